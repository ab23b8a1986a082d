//! What is wrong with a manifest: problems with code, span, label and help, and how they are shown.

use super::excerpt::Source;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode, SourceSpan};
use std::fmt;
use std::ops::Range;

/// More problems than this are counted, not shown: past it nobody reads on.
const SHOWN_MAX: usize = 40;

/// Characters of a message at most: it may quote a value of any length.
const MESSAGE_MAX: usize = 300;
/// Those of a help, which may list all settings.
const HELP_MAX: usize = 600;

/// One problem, tied to a place in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable and dotted, such as `manifest.unknown-node`.
    pub code: &'static str,
    /// What is wrong, naming the setting.
    pub message: String,
    /// Byte ranges and what to say at each; the first is the place itself.
    pub labels: Vec<(Range<usize>, String)>,
    /// How to mend it.
    pub help: Option<String>,
}

impl Problem {
    /// A problem at `span`.
    pub fn new(
        code: &'static str,
        span: Range<usize>,
        label: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Problem { code, message: message.into(), labels: vec![(span, label.into())], help: None }
    }

    /// Adds how to mend it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points at a second place, such as the first of two definitions.
    #[must_use]
    pub fn also(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    /// Where the problem is.
    pub fn span(&self) -> Range<usize> {
        self.labels.first().map_or(0..0, |l| l.0.clone())
    }
}

/// Every problem of one manifest, in the order of the text, with the text itself.
#[derive(Debug)]
pub struct Diagnostics {
    source: Source,
    problems: Vec<Problem>,
}

impl Diagnostics {
    pub(super) fn new(file_name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.span().start);
        for problem in &mut problems {
            problem.message = clipped(&problem.message, MESSAGE_MAX);
            problem.help = problem.help.as_deref().map(|help| clipped(help, HELP_MAX));
        }
        Diagnostics { source: Source::new(file_name, text), problems }
    }

    /// The problems in the order of the text; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// One line without excerpts: how many problems, and the first.
    pub fn summary(&self) -> String {
        let name = self.source.name();
        match self.problems.as_slice() {
            [] => format!("{name} is not valid"),
            [only] => format!("{name}: {}", only.message),
            [first, rest @ ..] => {
                format!(
                    "{name}: {} (and {} more problem{})",
                    first.message,
                    rest.len(),
                    if rest.len() == 1 { "" } else { "s" }
                )
            }
        }
    }

    /// The whole report with source excerpts; without colours it is plain ASCII around the user's own text.
    pub fn render(&self, colours: bool, width: usize) -> String {
        self.render_from(&self.source, colours, width)
    }

    /// The report for a terminal: lines of the manifest that are longer than it is wide are cut around their place.
    pub fn render_fitted(&self, colours: bool, width: usize) -> String {
        self.render_from(&self.source.fitted(width), colours, width)
    }

    fn render_from(&self, source: &Source, colours: bool, width: usize) -> String {
        let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::none() };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(width)
            .with_links(false)
            .with_context_lines(1)
            .with_break_words(false);
        let mut out = String::new();
        for problem in self.problems.iter().take(SHOWN_MAX) {
            let shown = Shown { problem, source };
            if handler.render_report(&mut out, &shown).is_err() {
                // Writing to a String cannot fail; a problem is never lost all the same.
                out.push_str(&problem.message);
            }
            out.push('\n');
        }
        if self.problems.len() > SHOWN_MAX {
            out.push_str(&format!("... and {} more problems\n", self.problems.len() - SHOWN_MAX));
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

impl std::error::Error for Diagnostics {}

/// A problem together with its text, as miette wants it.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    source: &'a Source,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.problem.help.as_ref().map(|h| Box::new(h) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.problem.labels.iter().enumerate().map(|(i, (span, text))| {
            let (place, text) = (SourceSpan::from(span.clone()), Some(text.clone()));
            if i == 0 {
                LabeledSpan::new_primary_with_span(text, place)
            } else {
                LabeledSpan::new_with_span(text, place)
            }
        })))
    }
}

fn clipped(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The candidate nearest to `word`, if one is near enough to be a typing error.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lower, c), c))
        .filter(|(distance, c)| *distance <= (c.len().max(lower.len()) / 3).max(1) || c.starts_with(&lower))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
        .filter(|_| word.len() <= 64)
}

/// `a, b and c`, each in backquotes.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{n}`")).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
