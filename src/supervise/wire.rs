//! The protocol between a supervisor and its clients: the guest protocol's frames with messages of its own.

use super::outcome::{Outcome, Phase, Stream};
use crate::error::{Error, Kind};
use firegopher_protocol::{clip, encode_message};
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

/// The longest text of a message to a client, in bytes. JSON makes six of one at most, so that a message with one of
/// these and two of `MAX_SIDE_TEXT` fits into a frame.
const MAX_TEXT: usize = 24 * 1024;
/// The longest text that comes with it.
const MAX_SIDE_TEXT: usize = 8 * 1024;

impl FromSupervisor {
    pub(super) fn refused(error: &Error) -> Self {
        FromSupervisor::Refused {
            kind: error.kind().exit_code(),
            code: error.code().to_owned(),
            message: super::journal::chain(error),
            help: error.help_text().map(str::to_owned),
        }
    }

    /// Cuts its texts to what a frame holds, whoever wrote them.
    pub(super) fn clip(&mut self) {
        match self {
            FromSupervisor::Ready { .. } | FromSupervisor::Phase { .. } => {}
            FromSupervisor::Warning { message } => clip(message, MAX_TEXT),
            FromSupervisor::Refused { code, message, help, .. } => {
                clip(message, MAX_TEXT);
                [Some(code), help.as_mut()].into_iter().flatten().for_each(|text| clip(text, MAX_SIDE_TEXT));
            }
            FromSupervisor::Ended { outcome } => {
                outcome.message.iter_mut().for_each(|text| clip(text, MAX_TEXT));
                let failed = outcome.exit.as_mut().and_then(|exit| exit.failed.as_mut());
                failed.into_iter().for_each(|text| clip(text, MAX_SIDE_TEXT));
            }
        }
    }

    /// As a frame.
    pub(super) fn frame(mut self) -> Vec<u8> {
        self.clip();
        let mut out = Vec::new();
        encode_message(&self, &mut out).expect("invariant: clipped texts fit into a frame");
        out
    }
}

impl ToSupervisor {
    /// As a frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_message(self, &mut out).expect("invariant: these messages hold numbers only");
        out
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::outcome::Reason;
    use firegopher_protocol::{Decoder, ExitRecord, MAX_PAYLOAD, channel};
    use proptest::prelude::*;

    /// Texts around the bounds, of what JSON writes as one, two and six bytes, and of more than one byte each.
    fn text() -> impl Strategy<Value = String> {
        let unit = prop_oneof![Just("a"), Just("\""), Just("\u{1}"), Just("é"), Just("\\x1b\n")];
        let around = |n: usize| n.saturating_sub(9)..n + 9;
        let count =
            prop_oneof![around(MAX_SIDE_TEXT), around(MAX_TEXT), around(MAX_PAYLOAD), 0..600_000_usize];
        (unit, count).prop_map(|(unit, count)| unit.repeat(count / unit.len() + 1))
    }

    fn message() -> impl Strategy<Value = FromSupervisor> {
        prop_oneof![
            text().prop_map(|message| FromSupervisor::Warning { message }),
            (text(), text(), text()).prop_map(|(code, message, help)| FromSupervisor::Refused {
                kind: 1,
                code,
                message,
                help: Some(help),
            }),
            (text(), text()).prop_map(|(failed, message)| FromSupervisor::Ended {
                outcome: Outcome {
                    reason: Reason::Failed,
                    exit: Some(ExitRecord { failed: Some(failed), ..ExitRecord::default() }),
                    message: Some(message),
                },
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_message_of_any_size_is_one_frame_for_a_client(message in message()) {
            let mut wire = message.clone().frame();
            wire.extend(FromSupervisor::Ready { wire: WIRE }.frame());
            let mut decoder = Decoder::default();
            decoder.push(&wire);
            let mut next = || -> FromSupervisor {
                let frame = decoder.frame().unwrap().unwrap();
                assert_eq!(frame.channel, channel::CONTROL);
                serde_json::from_slice(&frame.payload).unwrap()
            };
            let mut clipped = message;
            clipped.clip();
            prop_assert!(next() == clipped);
            prop_assert_eq!(next(), FromSupervisor::Ready { wire: WIRE });
            prop_assert!(decoder.frame().unwrap().is_none());
        }
    }
}
