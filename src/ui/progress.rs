//! Progress: bars that go away when stderr is a terminal, plain lines otherwise.

use super::style::{Painter, Style};
use super::wrap;
use crate::asset::Progress;
use crate::color;
use crate::plan::render::escape;
use crate::terminal::Stream;
use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often spinners turn.
const TICK: Duration = Duration::from_millis(120);

/// The user's terminal, or whatever stderr is.
pub struct Ui {
    bars: Option<MultiProgress>,
    transfer: Mutex<HashMap<std::thread::ThreadId, ProgressBar>>,
    quiet: bool,
    width: Option<usize>,
    colours: bool,
}

/// A step under way; its line is finished by `done` and goes away when dropped.
pub struct Step<'a> {
    ui: &'a Ui,
    name: String,
    bar: Option<ProgressBar>,
}

impl Ui {
    /// Writes to stderr.
    pub fn stderr() -> Ui {
        let bars = color::moves(&std::io::stderr())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        let (width, colours) = (Stream::Err.width(), Stream::Err.colours());
        Ui { bars, transfer: Mutex::default(), quiet: false, width, colours }
    }

    /// Says nothing but warnings.
    #[must_use]
    pub fn quiet(mut self) -> Ui {
        self.quiet = true;
        self.bars = None;
        self
    }

    /// A line of its own, above the bars.
    pub fn line(&self, text: &str) {
        // Line by line: an error may bring the end of a console along.
        let text = text.lines().map(escape).collect::<Vec<_>>().join("\n");
        let text = wrap::lines(&text, self.width, 2);
        let painter = Painter { colours: self.colours };
        let text = painter.head(Style::Warning, "warning:", &text);
        let text = painter.head(Style::Error, "error:", &text);
        match &self.bars {
            // A closed stderr must not end a build.
            Some(bars) => bars.suspend(|| drop(writeln!(std::io::stderr(), "{text}"))),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// Something worth knowing.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Something that may be wrong.
    pub fn warning(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// Announces a step.
    pub fn step(&self, name: &str) -> Step<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("  {spinner} {wide_msg} {elapsed:>4}");
            let bar = bars.add(ProgressBar::new_spinner().with_message(escape(name)));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        });
        Step { ui: self, name: name.to_owned(), bar }
    }
}

impl Step<'_> {
    /// The step is done; says so with its duration.
    pub fn done(self, took: Duration) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.ui.note(&format!("{} ({:.2} s)", self.name, took.as_secs_f64()));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How long the rest will take at the rate so far; nothing as long as nothing has arrived.
fn time_left(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    if state.pos() > 0 && state.per_sec() > 0.0 {
        // Writing to a line in memory does not fail.
        let _ = write!(to, "{:#}", HumanDuration(state.eta()));
    }
}

impl Progress for Ui {
    fn start(&self, what: &str, total: Option<u64>) {
        let Some(bars) = &self.bars else {
            self.note(what);
            return;
        };
        let bar = bars.add(match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        });
        let template = match total {
            // The message gives way where the terminal is narrow, never the figures.
            Some(_) => "  {wide_msg} {bar:12} {bytes}/{total_bytes} {bytes_per_sec} {left}",
            None => "  {spinner} {wide_msg} {elapsed:>4}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("left", time_left));
        bar.set_message(escape(what));
        // Rate and time left go on while nothing arrives, and whoever waits sees that it is waited.
        bar.enable_steady_tick(TICK);
        let old = self.transfers().insert(std::thread::current().id(), bar);
        if let Some(old) = old {
            old.finish_and_clear();
        }
    }

    fn advance(&self, amount: u64) {
        if let Some(bar) = self.transfers().get(&std::thread::current().id()) {
            bar.inc(amount);
        }
    }

    fn end(&self) {
        let bar = self.transfers().remove(&std::thread::current().id());
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        Ui::note(self, text);
    }
}

impl Ui {
    fn transfers(&self) -> std::sync::MutexGuard<'_, HashMap<std::thread::ThreadId, ProgressBar>> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away whatever bars are left.
    pub fn clear(&self) {
        for (_, bar) in self.transfers().drain() {
            bar.finish_and_clear();
        }
    }
}
