//! The one error of the guest: a sentence for the user that names subject, operation and cause.

use nix::errno::Errno;
use std::fmt;
use std::io;

/// Why the workload cannot run. It ends up in `ExitRecord::failed`, so it must never hold a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

/// `std::result::Result` with our error.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure without an underlying cause.
    pub fn new(message: impl Into<String>) -> Self {
        Failure(message.into())
    }

    /// The sentence.
    pub fn into_message(self) -> String {
        self.0
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds the operation to a system call's error.
pub trait Context<T> {
    /// `what` says what was attempted, such as "mounting /proc".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Failure(format!("{}: {}", what(), errno.desc())))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| match error.raw_os_error() {
            Some(raw) => Failure(format!("{}: {}", what(), Errno::from_raw(raw).desc())),
            None => Failure(format!("{}: {error}", what())),
        })
    }
}
