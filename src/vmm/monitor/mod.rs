//! Follows a running VMM, says how it ended, and reaps it.

mod condition;
mod events;
mod process;
mod qmp;
mod reason;
mod words;

pub use condition::{Condition, FailedRequests, Pause, Watch};
pub(crate) use process::{ProcessMonitor, reap};
pub(crate) use qmp::QmpMonitor;
pub use words::{Listener, Said};

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use tokio::io::unix::AsyncFd;

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset itself.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The VMM got a signal that it handles, such as SIGTERM.
    HostSignal,
    /// We asked the VMM to quit.
    HostQuit,
    /// The VMM ended without a word: killed, crashed or refused to start.
    Died(Death),
}

/// A VMM that ended without saying why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Its status.
    pub status: ExitStatus,
    /// The end of what it wrote to its standard error and its log; not to be trusted.
    pub stderr: String,
}

impl Death {
    /// The line that says most about it.
    pub fn reason(&self) -> Option<&str> {
        reason::reason(&self.stderr)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::GuestShutdown => f.write_str("the guest powered off"),
            Ended::GuestReset => f.write_str("the guest reset itself"),
            Ended::GuestPanic => f.write_str("the guest's kernel panicked"),
            Ended::HostSignal => f.write_str("the VMM was told to end by a signal"),
            Ended::HostQuit => f.write_str("the VMM was told to quit"),
            Ended::Died(death) => {
                write!(f, "the VMM died ({})", death.status)?;
                match death.reason() {
                    Some(line) => write!(f, ": {line}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The watch over one VMM. Every method may be cancelled and called again; all need a tokio runtime with I/O.
#[derive(Debug)]
pub enum Monitor {
    /// QEMU, which tells over QMP.
    Qmp(QmpMonitor),
    /// Firecracker, which tells by its exit status.
    Process(ProcessMonitor),
}

impl Monitor {
    /// Waits for the VMM's end, reaps it and says how it came. Later calls repeat the answer.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        match self {
            Monitor::Qmp(monitor) => monitor.ended().await,
            Monitor::Process(monitor) => monitor.ended().await,
        }
    }

    /// Asks the VMM to quit at once, without the guest's consent. One that is gone already is no error.
    pub async fn quit(&mut self) -> io::Result<()> {
        match self {
            Monitor::Qmp(monitor) => monitor.quit().await,
            Monitor::Process(monitor) => monitor.quit(),
        }
    }

    /// Hands on what the VMM says besides its guest's console, as long as somebody waits for its end.
    pub fn listen(&mut self, listener: Listener) {
        match self {
            Monitor::Qmp(monitor) => monitor.words.listen(listener),
            Monitor::Process(monitor) => monitor.listen(listener),
        }
    }

    /// How to follow the guest's condition, for the first who asks. It is kept up to date while the end is waited for.
    pub fn watch(&mut self) -> Option<Watch> {
        match self {
            Monitor::Qmp(monitor) => monitor.reporter.watch(),
            Monitor::Process(monitor) => monitor.reporter.watch(),
        }
    }

    /// The end of what the VMM has said so far.
    pub fn stderr_so_far(&mut self) -> String {
        let words = self.words();
        words.drain();
        words.tail()
    }

    /// Of that, the line that says most about a VMM that has ended.
    pub fn reason_so_far(&mut self) -> Option<String> {
        reason::reason(&self.stderr_so_far()).map(str::to_owned)
    }

    fn words(&mut self) -> &mut words::Words {
        match self {
            Monitor::Qmp(monitor) => &mut monitor.words,
            Monitor::Process(monitor) => &mut monitor.words,
        }
    }
}

/// A pidfd, made outside a runtime and registered with the one that first waits.
#[derive(Debug)]
enum Exit {
    New(OwnedFd),
    Open(AsyncFd<OwnedFd>),
    Lost,
}

impl Exit {
    fn register(&mut self) -> io::Result<()> {
        if let Exit::New(_) = self
            && let Exit::New(fd) = std::mem::replace(self, Exit::Lost)
        {
            // SAFETY: the descriptor is owned, so it stays open and the same until the AsyncFd is dropped.
            let watched = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
            *self = Exit::Open(watched?);
        }
        Ok(())
    }

    /// Returns once the process has ended. `register` comes first.
    async fn wait(&self) -> io::Result<()> {
        match self {
            Exit::Open(pidfd) => {
                pidfd.readable().await?.retain_ready();
                Ok(())
            }
            _ => Err(io::Error::other("the monitor was lost")),
        }
    }
}
