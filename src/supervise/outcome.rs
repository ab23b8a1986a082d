//! How a VM's run went, as told to clients and recorded in its state.

use firegopher_protocol::ExitRecord;
use serde::{Deserialize, Serialize};

/// What `run` returns when firegopher, not the workload, failed.
pub const FAILED_CODE: u8 = 125;

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The workload ended by itself.
    Exited,
    /// A client or SIGTERM asked for it, and the workload ended within its grace.
    Stopped,
    /// A client asked for it, or the grace ran out: the VMM was killed.
    Killed,
    /// The VM never came up, or ended without a word about its workload.
    Failed,
}

/// The end of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub reason: Reason,
    /// What the guest said about its workload, if it did.
    pub exit: Option<ExitRecord>,
    /// For the user: what failed, with the console's tail where that helps. Escaped for terminals.
    pub message: Option<String>,
}

impl Outcome {
    /// firegopher's failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Outcome { reason: Reason::Failed, exit: None, message: Some(message.into()) }
    }

    /// The process exit code: the workload's own, 128 + signal, or 125 when there is none.
    pub fn exit_code(&self) -> u8 {
        match &self.exit {
            // Linux exit codes are 0 to 255 and signals 1 to 64; the guest could send anything.
            Some(ExitRecord { code: Some(code), .. }) => u8::try_from(*code).unwrap_or(FAILED_CODE),
            Some(ExitRecord { signal: Some(signal), .. }) => match signal {
                1..=64 => 128 + *signal as u8,
                _ => FAILED_CODE,
            },
            Some(_) => FAILED_CODE,
            None if self.reason == Reason::Killed => 128 + libc::SIGKILL as u8,
            None => FAILED_CODE,
        }
    }

    /// Whether the workload itself said that all went well.
    pub fn is_success(&self) -> bool {
        self.exit.as_ref().is_some_and(|e| e.code == Some(0))
    }
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The VMM is being started.
    Booting,
    /// The guest has reported and is told what to run.
    Guest,
    /// The workload runs.
    Running,
    /// The workload was asked to end.
    Stopping,
    /// The workload ended and is started again after a pause.
    Restarting,
}

/// Which of the workload's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a client learns of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The VM entered a phase.
    Phase(Phase),
    /// The workload wrote. Raw bytes: escape them before a terminal sees them.
    Output {
        /// Where it wrote to.
        stream: Stream,
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// Something optional failed.
    Warning(String),
    /// The VM ended for good; nothing follows.
    Ended(Outcome),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_workloads_own() {
        let with = |exit: ExitRecord| Outcome { reason: Reason::Exited, exit: Some(exit), message: None };
        assert_eq!(with(ExitRecord { code: Some(7), ..Default::default() }).exit_code(), 7);
        assert_eq!(with(ExitRecord { signal: Some(15), ..Default::default() }).exit_code(), 143);
        assert_eq!(
            with(ExitRecord { failed: Some("no such file".into()), ..Default::default() }).exit_code(),
            125
        );
        assert_eq!(with(ExitRecord { code: Some(-3), ..Default::default() }).exit_code(), 125);
        assert_eq!(with(ExitRecord { signal: Some(300), ..Default::default() }).exit_code(), 125);
        assert_eq!(Outcome::failed("x").exit_code(), 125);
        assert_eq!(Outcome { reason: Reason::Killed, exit: None, message: None }.exit_code(), 137);
    }
}
