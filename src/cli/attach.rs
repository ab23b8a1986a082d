//! Follows running VMs: their output to this terminal, this terminal's signals to them.

use super::signals::Signals;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::manifest::model::Port;
use crate::name::Name;
use crate::supervise::logs::Escaper;
use crate::supervise::{Client, Event, Outcome, Phase, Stream};
use crate::ui::Ui;
use nix::sys::signal::Signal;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A VM that is followed.
pub(super) struct Followed {
    /// The VM.
    pub(super) name: Name,
    /// The connection to its supervisor.
    pub(super) client: Client,
    /// Started by this command: Ctrl-C stops it.
    pub(super) ours: bool,
    /// What to say once it runs.
    pub(super) ports: Vec<Port>,
}

enum Message {
    Event(usize, Event),
    /// The supervisor went away without an end.
    Lost(usize, Option<String>),
    Signal(Signal),
}

/// How to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// All workloads run or have ended: `up -d`.
    Running,
    /// All have ended.
    Ended,
}

/// What came of it.
pub(super) struct Followings {
    /// By VM; `None` for those that go on running.
    pub(super) outcomes: Vec<(Name, Option<Outcome>)>,
    /// The signal that asked for the end.
    pub(super) interrupted: Option<Signal>,
}

impl Followings {
    /// Whether every VM runs or ended with 0, or was stopped because that was asked for.
    pub(super) fn all_well(&self) -> bool {
        use crate::supervise::Reason;
        self.outcomes.iter().all(|(_, outcome)| {
            outcome
                .as_ref()
                .is_none_or(|o| o.is_success() || matches!(o.reason, Reason::Stopped | Reason::Killed))
        })
    }
}

struct Line {
    escaper: Escaper,
    partial: String,
}

/// Follows the VMs. Prefixes lines with the VM's name when there are several.
pub(super) fn follow(
    vms: Vec<Followed>,
    until: Until,
    signals: Option<&Signals>,
    home: &Home,
    project: &Name,
    ui: &Ui,
) -> Result<Followings> {
    let (sender, messages) = channel();
    if let Some(signals) = signals {
        signals.deliver(sender.clone(), Message::Signal);
    }
    let width =
        if vms.len() > 1 { vms.iter().map(|vm| vm.name.as_str().len()).max().unwrap_or(0) } else { 0 };
    let mut follower = Follower {
        names: vms.iter().map(|vm| vm.name.clone()).collect(),
        ours: vms.iter().map(|vm| vm.ours).collect(),
        ports: vms.iter().map(|vm| vm.ports.clone()).collect(),
        settled: vec![false; vms.len()],
        outcomes: vec![None; vms.len()],
        lines: vms.iter().map(|_| Line { escaper: Escaper::default(), partial: String::new() }).collect(),
        width,
        stops: 0,
        interrupted: None,
        ui,
    };
    for (index, vm) in vms.into_iter().enumerate() {
        read_events(index, vm.client, sender.clone());
    }
    drop(sender);
    follower.run(&messages, until, home, project)?;
    follower.flush();
    let outcomes = follower.names.into_iter().zip(follower.outcomes).collect();
    Ok(Followings { outcomes, interrupted: follower.interrupted })
}

fn read_events(index: usize, mut client: Client, sender: Sender<Message>) {
    std::thread::spawn(move || {
        loop {
            let message = match client.next_event() {
                Ok(Some(event)) => Message::Event(index, event),
                Ok(None) => Message::Lost(index, None),
                Err(error) => Message::Lost(index, Some(words(&error))),
            };
            let last = !matches!(&message, Message::Event(_, event) if !matches!(event, Event::Ended(_)));
            if sender.send(message).is_err() || last {
                return;
            }
        }
    });
}

/// An error in the form of a failed VM's message: with its causes, and its help on a line of its own.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(why) = cause {
        text += &format!(": {why}");
        cause = why.source();
    }
    if let Some(help) = error.help_text() {
        text += &format!("\nhelp: {help}");
    }
    text
}

struct Follower<'a> {
    names: Vec<Name>,
    ours: Vec<bool>,
    ports: Vec<Vec<Port>>,
    /// It runs, or it ended.
    settled: Vec<bool>,
    outcomes: Vec<Option<Outcome>>,
    lines: Vec<Line>,
    width: usize,
    stops: u32,
    interrupted: Option<Signal>,
    ui: &'a Ui,
}

impl Follower<'_> {
    fn run(&mut self, messages: &Receiver<Message>, until: Until, home: &Home, project: &Name) -> Result<()> {
        loop {
            let done = match until {
                Until::Running => self.settled.iter().all(|s| *s),
                Until::Ended => self.outcomes.iter().all(Option::is_some),
            };
            if done {
                return Ok(());
            }
            let Ok(message) = messages.recv() else { return Ok(()) };
            match message {
                Message::Event(vm, event) => self.event(vm, event),
                Message::Lost(vm, why) => {
                    let why = why.unwrap_or_else(|| "its supervisor went away".to_owned());
                    self.end(vm, Outcome::failed(why));
                }
                // A closed terminal kills nothing.
                Message::Signal(Signal::SIGHUP) => return Ok(()),
                Message::Signal(signal) => {
                    self.interrupted.get_or_insert(signal);
                    if !self.interrupt(home, project)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn event(&mut self, vm: usize, event: Event) {
        match event {
            Event::Phase(Phase::Running) => {
                if !self.settled[vm] {
                    self.settled[vm] = true;
                    self.ui.note(&running(&self.names[vm], &self.ports[vm]));
                }
            }
            Event::Phase(Phase::Restarting) => {
                self.ui.note(&format!("{}: the workload ended; starting again", self.names[vm]))
            }
            Event::Phase(_) => {}
            Event::Warning(text) => self.ui.warning(&format!("{}: {text}", self.names[vm])),
            Event::Output { stream, bytes } => self.output(vm, stream, &bytes),
            Event::Ended(outcome) => self.end(vm, outcome),
        }
    }

    fn end(&mut self, vm: usize, outcome: Outcome) {
        self.flush_line(vm);
        self.settled[vm] = true;
        self.ui.note(&format!("{} {}", self.names[vm], outcome.describe()));
        self.outcomes[vm] = Some(outcome);
    }

    /// Whole lines, escaped where a terminal would obey them.
    fn output(&mut self, vm: usize, stream: Stream, bytes: &[u8]) {
        let terminal = match stream {
            Stream::Stdout => std::io::stdout().is_terminal(),
            Stream::Stderr => std::io::stderr().is_terminal(),
        };
        if self.width == 0 && !terminal {
            write(stream, bytes);
            return;
        }
        let line = &mut self.lines[vm];
        line.escaper.push(bytes, &mut line.partial);
        let Some(end) = line.partial.rfind('\n') else { return };
        let rest = line.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut line.partial, rest);
        let prefixed: String = match self.width {
            0 => whole,
            width => whole.lines().map(|l| format!("{:<width$} | {l}\n", self.names[vm])).collect(),
        };
        write(stream, prefixed.as_bytes());
    }

    fn flush_line(&mut self, vm: usize) {
        let line = &mut self.lines[vm];
        line.escaper.finish(&mut line.partial);
        if !line.partial.is_empty() {
            let text = std::mem::take(&mut line.partial);
            let prefix =
                if self.width > 0 { format!("{:<1$} | ", self.names[vm], self.width) } else { String::new() };
            write(Stream::Stdout, format!("{prefix}{text}\n").as_bytes());
        }
    }

    fn flush(&mut self) {
        for vm in 0..self.names.len() {
            self.flush_line(vm);
        }
    }

    /// Ctrl-C: the first stops what this command started, in reverse order, the second kills it. Returns
    /// whether there is still something to wait for.
    fn interrupt(&mut self, home: &Home, project: &Name) -> Result<bool> {
        self.stops += 1;
        let kill = self.stops > 1;
        let open: Vec<usize> =
            (0..self.names.len()).filter(|&n| self.ours[n] && self.outcomes[n].is_none()).collect();
        if open.is_empty() {
            self.ui.note("Detached; the VMs run on. `firegopher down` stops them.");
            return Ok(false);
        }
        if !kill {
            self.ui.note("Stopping; press Ctrl-C again to kill.");
        }
        for &vm in open.iter().rev() {
            if let Some(client) = Client::connect(&home.vm(project, &self.names[vm]))? {
                client.stop(kill)?;
            }
        }
        Ok(true)
    }
}

/// `web runs: 127.0.0.1:8080 (guest port 8000)`.
pub(super) fn running(vm: &Name, ports: &[Port]) -> String {
    if ports.is_empty() {
        return format!("{vm} runs");
    }
    let addresses: Vec<String> = ports
        .iter()
        .map(|p| format!("{} (guest port {})", std::net::SocketAddr::new(p.address, p.host), p.guest))
        .collect();
    format!("{vm} runs: {}", addresses.join(", "))
}

fn write(stream: Stream, bytes: &[u8]) {
    // A reader that went away (`| head`) is no reason to stop the VM.
    let _ = match stream {
        Stream::Stdout => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Stream::Stderr => std::io::stderr().write_all(bytes),
    };
}
