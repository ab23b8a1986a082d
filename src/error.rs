//! The one error type that reaches the user: what failed, on what, why, and how to mend it.
//! Manifest problems carry spans and live in `manifest::diagnostic` until they become one of these.

use std::fmt;

/// Who has to act, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something failed while doing what was asked (exit 1).
    Failed,
    /// The command line or the manifest is wrong (exit 64, `EX_USAGE` of sysexits.h).
    Usage,
    /// The host lacks something that is needed (exit 69, `EX_UNAVAILABLE`).
    Host,
    /// firegopher itself is wrong (exit 70, `EX_SOFTWARE`).
    Bug,
}

impl Kind {
    /// The process exit code for an error of this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 64,
            Kind::Host => 69,
            Kind::Bug => 70,
        }
    }
}

/// An error for the user.
#[derive(Debug)]
pub struct Error(Box<Inner>);

/// In a box: results that hold an error are passed through many hands.
#[derive(Debug)]
struct Inner {
    kind: Kind,
    code: &'static str,
    message: String,
    help: Option<String>,
    /// An already rendered report (manifest diagnostics with source excerpts), shown instead of `message`.
    report: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `std::result::Result` with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, code, message: message.into(), help: None, report: None, source: None }))
    }

    /// Something failed. `code` is stable and dotted by module, such as `store.disk-full`.
    pub fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, code, message)
    }

    /// The user's input is wrong.
    pub fn usage(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, code, message)
    }

    /// The host lacks something.
    pub fn host(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Host, code, message)
    }

    /// firegopher is wrong: an invariant did not hold.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, "bug", message)
    }

    /// Adds how to mend it, as a sentence to the user.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Adds the underlying cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says `name` where the message says `path`, which means nothing to the user: an object of the store.
    #[must_use]
    pub fn calling(mut self, path: &std::path::Path, name: impl fmt::Display) -> Self {
        self.0.message = self.0.message.replace(&path.display().to_string(), &name.to_string());
        self
    }

    /// Replaces the plain message on the terminal by a rendered report.
    #[must_use]
    pub fn with_report(mut self, report: String) -> Self {
        self.0.report = Some(report);
        self
    }

    /// Who has to act.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable code, for tests and `--json`.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// How to mend it, if known.
    pub fn help_text(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// A report rendered beforehand, if there is one.
    pub fn report(&self) -> Option<&str> {
        self.0.report.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// Turns low-level results into ours, keeping the cause.
pub trait Context<T> {
    /// `Kind::Failed` with a code and a message that names subject and operation.
    fn or_failed<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T>;
    /// `Kind::Host`, likewise.
    fn or_host<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T>;
    /// `Kind::Usage`, likewise.
    fn or_usage<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn or_failed<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::failed(code, message()).because(e))
    }
    fn or_host<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::host(code, message()).because(e))
    }
    fn or_usage<M: Into<String>>(self, code: &'static str, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|e| Error::usage(code, message()).because(e))
    }
}
