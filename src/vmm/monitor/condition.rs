//! How a guest fares while its VMM runs: whether its CPUs stand still, and why, and what the host failed to do for it.

use std::collections::BTreeMap;
use tokio::sync::{mpsc, watch};

/// As last reported by the VMM. A VMM may be hostile: all of it is bounded, and nothing of it is proven.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Why the guest's CPUs stand still, if they do.
    pub paused: Option<Pause>,
    /// How often they were stopped: two pauses may look like one.
    pub pauses: u64,
    /// Requests to a drive that the host failed to carry out and of which the guest was told; by the drive's number,
    /// where the VMM names it.
    pub failed: BTreeMap<Option<usize>, FailedRequests>,
    /// Uncorrected errors of the host's memory that hit the VM.
    pub memory_errors: u64,
    /// The VMM cannot be heard any more, although it runs.
    pub silent: bool,
}

/// Why a guest's CPUs stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// A write to this drive found no space on the host. The request is kept, and tried again when the guest goes on.
    DiskFull {
        /// By its position; `None` if the VMM does not tell.
        drive: Option<usize>,
    },
    /// The guest suspended itself to memory, and nothing wakes it.
    Suspended,
    /// The VMM cannot go on with its guest, in its own word: `internal-error`.
    Broken(String),
    /// Another reason, in the VMM's own word.
    Other(String),
}

/// What the host failed to do for a drive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailedRequests {
    /// How many requests.
    pub count: u64,
    /// What was asked for last: `write`, `read` or `flush`.
    pub operation: String,
    /// Why the last one failed.
    pub reason: String,
}

impl Condition {
    /// Notes a failed request. Drives that do not exist are counted as one that is not named.
    pub(super) fn fail(&mut self, drive: Option<usize>, operation: &str, reason: &str) {
        const DRIVES: usize = 64;
        let drive = drive.filter(|drive| *drive < DRIVES);
        let failed = self.failed.entry(drive).or_default();
        failed.count += 1;
        failed.operation = word(operation);
        failed.reason = word(reason);
    }
}

/// The VMM's own word, short and harmless.
pub(super) fn word(text: &str) -> String {
    const LONGEST: usize = 120;
    text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How to follow a guest's condition, and to let it go on.
#[derive(Debug)]
pub struct Watch {
    /// What was reported last.
    pub condition: watch::Receiver<Condition>,
    /// Asks the VMM to let a paused guest go on; one request at a time is enough.
    pub resume: mpsc::Sender<()>,
}

/// The VMM's side.
#[derive(Debug)]
pub(super) struct Reporter {
    pub condition: watch::Sender<Condition>,
    pub resume: mpsc::Receiver<()>,
    /// Until somebody takes it.
    watch: Option<Watch>,
}

impl Reporter {
    pub fn new() -> Reporter {
        let (condition, seen) = watch::channel(Condition::default());
        let (ask, resume) = mpsc::channel(1);
        Reporter { condition, resume, watch: Some(Watch { condition: seen, resume: ask }) }
    }

    pub fn watch(&mut self) -> Option<Watch> {
        self.watch.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hostile_vmm_reports_stays_bounded() {
        let mut condition = Condition::default();
        for drive in 0..100_000 {
            condition.fail(Some(drive), &"w".repeat(10_000), "\x1b[1mno\nspace");
        }
        assert!(condition.failed.len() <= 65);
        let unnamed = &condition.failed[&None];
        assert_eq!((unnamed.operation.len(), unnamed.reason.as_str()), (120, "?[1mno?space"));
    }
}
