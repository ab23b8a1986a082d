//! Decides whether and when a VM that ended is booted again. Pure: no clock, no process.

use super::outcome::{Outcome, Reason};
use crate::manifest::model::Restart;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A run this long was no crash loop: counting and pauses start over.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Restarts so far.
#[derive(Debug)]
pub struct Backoff {
    policy: Restart,
    in_a_row: u32,
}

impl Backoff {
    /// Nothing has ended yet.
    pub fn new(policy: Restart) -> Self {
        Backoff { policy, in_a_row: 0 }
    }

    /// After an end: the pause before the next boot, `None` to leave it. `ran` is how long the workload ran.
    pub fn next(&mut self, outcome: &Outcome, ran: Duration) -> Option<Duration> {
        if matches!(outcome.reason, Reason::Stopped | Reason::Killed) {
            return None;
        }
        let max = match self.policy {
            Restart::No => return None,
            Restart::OnFailure { .. } if outcome.is_success() => return None,
            Restart::OnFailure { max } | Restart::Always { max } => max,
        };
        if ran >= GOOD_RUN {
            self.in_a_row = 0;
        }
        if max.is_some_and(|max| self.in_a_row >= max) {
            return None;
        }
        // 2^7 * 100 ms is past the longest pause already.
        let pause = FIRST_PAUSE * 2u32.pow(self.in_a_row.min(7));
        self.in_a_row = self.in_a_row.saturating_add(1);
        Some(pause.min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firegopher_protocol::ExitRecord;

    fn code(code: i32) -> Outcome {
        let exit = Some(ExitRecord { code: Some(code), ..Default::default() });
        Outcome { reason: Reason::Exited, exit, message: None }
    }
    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_from_100_ms_to_10_s() {
        let mut b = Backoff::new(Restart::Always { max: None });
        let pauses: Vec<u128> = (0..10).map(|_| b.next(&code(1), SHORT).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn a_long_run_resets_pause_and_count() {
        let mut b = Backoff::new(Restart::OnFailure { max: Some(2) });
        assert!(b.next(&code(1), SHORT).is_some());
        assert!(b.next(&code(1), SHORT).is_some());
        assert_eq!(b.next(&code(1), GOOD_RUN), Some(FIRST_PAUSE));
        assert!(b.next(&code(1), SHORT).is_some());
        assert!(b.next(&code(1), SHORT).is_none());
    }

    #[test]
    fn on_failure_leaves_success_and_failures_of_the_vm_count() {
        let mut b = Backoff::new(Restart::OnFailure { max: None });
        assert!(b.next(&code(0), SHORT).is_none());
        assert!(b.next(&Outcome::failed("no hello"), Duration::ZERO).is_some());
        assert!(Backoff::new(Restart::Always { max: None }).next(&code(0), SHORT).is_some());
        assert!(Backoff::new(Restart::No).next(&code(1), SHORT).is_none());
    }

    #[test]
    fn what_was_stopped_stays_stopped() {
        let mut b = Backoff::new(Restart::Always { max: None });
        let stopped = Outcome { reason: Reason::Stopped, ..code(0) };
        assert!(b.next(&stopped, SHORT).is_none());
        assert!(b.next(&Outcome { reason: Reason::Killed, ..stopped }, SHORT).is_none());
    }
}
