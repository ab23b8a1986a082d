//! The protocol between a supervisor and its clients: the guest protocol's frames with messages of its own.

use super::outcome::{Outcome, Phase, Stream};
use crate::error::{Error, Kind};
use serde::{Deserialize, Serialize};

/// Raised whenever a message changes its meaning. Any version can stop any other: by SIGTERM.
pub(super) const WIRE: u32 = 1;
/// The socket in a VM's directory.
pub const SOCKET_FILE: &str = "sup.sock";
/// The largest specification in bytes: an environment of a Linux process fits many times over.
pub(super) const MAX_SPEC: u32 = 8 * 1024 * 1024;

/// Client to supervisor, on channel 0. Channel 1 carries the workload's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum ToSupervisor {
    /// Asks for output and events.
    Attach {
        /// The client's `WIRE`.
        wire: u32,
        /// Replay the log from its oldest record.
        from_start: bool,
    },
    /// Ends the VM.
    Stop {
        /// At once instead of gracefully.
        kill: bool,
    },
    /// Sends a signal to the workload.
    Signal {
        /// Linux signal number.
        signal: i32,
    },
    /// The client of an ephemeral VM, which nobody else reads, cannot pass this output on any more.
    CloseOutput {
        /// Which.
        stream: Stream,
    },
}

/// Supervisor to client, on channel 0. Channels 2 and 3 carry the workload's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum FromSupervisor {
    /// All that can be checked before a boot was: it starts now. Also the answer to `Attach`.
    Ready {
        /// The supervisor's `WIRE`.
        wire: u32,
    },
    /// Nothing was started. An `Error` in parts.
    Refused {
        /// `Error::kind`'s exit code.
        kind: u8,
        /// `Error::code`.
        code: String,
        /// What failed.
        message: String,
        /// How to mend it.
        help: Option<String>,
    },
    /// The VM entered a phase.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Something optional failed.
    Warning {
        /// For the user.
        message: String,
    },
    /// The last message.
    Ended {
        /// How it went.
        outcome: Outcome,
    },
}

impl FromSupervisor {
    pub(super) fn refused(error: &Error) -> Self {
        FromSupervisor::Refused {
            kind: error.kind().exit_code(),
            code: error.code().to_owned(),
            message: super::journal::chain(error),
            help: error.help_text().map(str::to_owned),
        }
    }
}

/// Rebuilds an error that crossed the wire. `Error` wants static codes; the handful that exists is interned.
pub(super) fn error_from(kind: u8, code: &str, message: String, help: Option<String>) -> Error {
    // Leaks a few bytes once a failed start: the process reports it and ends.
    let code: &'static str = Box::leak(code.to_owned().into_boxed_str());
    let error = match kind {
        k if k == Kind::Usage.exit_code() => Error::usage(code, message),
        k if k == Kind::Host.exit_code() => Error::host(code, message),
        k if k == Kind::Bug.exit_code() => Error::bug(message),
        _ => Error::failed(code, message),
    };
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// One control message as a frame.
pub(super) fn message<T: Serialize>(value: &T) -> Vec<u8> {
    let json = serde_json::to_vec(value).expect("invariant: messages hold strings and numbers only");
    let mut out = Vec::with_capacity(json.len() + firegopher_protocol::HEADER_LEN);
    firegopher_protocol::encode(firegopher_protocol::channel::CONTROL, &json, &mut out);
    out
}
