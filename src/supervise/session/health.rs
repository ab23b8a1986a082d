//! What a session does about the host's failures: a full disk that stops the guest, requests and memory that fail, logs
//! and states that cannot be written.

use super::{Hint, Session};
use crate::supervise::log_line;
use crate::vmm::{Condition, Pause};
use std::time::Duration;
use tokio::time::Instant;

/// What is left to a guest that stands still although it was asked to end.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// A VMM that ends closes its monitor first: one that still runs after this long has lost it.
const MONITOR_GRACE: Duration = Duration::from_secs(5);

impl Session<'_> {
    /// The VMM reports something new.
    pub(super) fn condition(&mut self, now: Condition) {
        for (drive, failed) in &now.failed {
            if !self.seen.failed.contains_key(drive) {
                let drive = self.drives.name(*drive);
                let (operation, reason) = (&failed.operation, &failed.reason);
                self.tell(format!(
                    "the host failed to carry out a {operation} of {drive} ({reason}); the guest was told of an I/O \
                     error, and may have lost data"
                ));
            }
        }
        if now.memory_errors > 0 && self.seen.memory_errors == 0 {
            self.tell("the host's memory has failed, and the failure hit this VM".to_owned());
        }
        if now.silent && !self.seen.silent {
            self.monitor_closed = Some(Instant::now());
        }
        if now.pauses != self.seen.pauses || now.paused != self.seen.paused {
            match now.paused.clone() {
                Some(why) => self.pause(why),
                None => self.go_on(),
            }
        }
        self.seen = now;
    }

    fn pause(&mut self, why: Pause) {
        if let Pause::Broken(word) = &why {
            self.end.hint = Some(Hint::VmmLog);
            return self.fail(format!("the VMM cannot go on with its guest ({word})"));
        }
        let now = Instant::now();
        let news = self.paused.pause(why, &self.drives, now);
        let words = self.paused.describe(&self.drives).unwrap_or_default();
        if news {
            self.tell(format!("paused: {words}"));
        }
        self.recorder.update(|s| s.paused = Some(words));
        if self.end.stopped {
            self.deadline = self.deadline.map(|at| at.min(now + LAST_LOOK));
        } else if let Some(deadline) = self.deadline.take() {
            // Its time stands still, too.
            self.held = Some(deadline.saturating_duration_since(now));
        }
    }

    fn go_on(&mut self) {
        let now = Instant::now();
        if self.paused.resume(now) {
            self.recorder.update(|s| s.paused = None);
            if let Some(left) = self.held.take() {
                self.deadline.get_or_insert(now + left);
            }
        }
    }

    /// Whether the guest can be asked to end: it runs, or it does from now on.
    pub(super) fn can_be_asked(&mut self) -> bool {
        if !self.paused.is_paused() {
            return true;
        }
        let space = self.paused.has_space();
        if space {
            self.let_go_on();
        }
        space
    }

    /// Ends a guest that stands still.
    pub(super) fn kill_paused(&mut self) {
        self.tell(
            "it stands still and cannot be asked to end, so it is killed: what its guest had not yet written to its \
             disks is lost"
                .to_owned(),
        );
        self.end.killed = true;
        self.kill();
    }

    /// Whether something waits for time to pass: for space on the host's disk, or for an end that may follow.
    pub(super) fn is_waiting(&self) -> bool {
        self.monitor_closed.is_some()
            || self.paused.is_pending()
            || self.recorder.is_unsaved()
            || self.hub.is_waiting()
    }

    /// Looks whether the host's disk has space again, and whether a VMM has outlived its monitor.
    pub(super) fn second(&mut self) {
        let now = Instant::now();
        if self.monitor_closed.take_if(|closed| now - *closed >= MONITOR_GRACE).is_some() {
            self.tell("the VMM's monitor has closed: a pause of the guest will not be seen".to_owned());
        }
        if self.paused.may_go_on(now) {
            self.let_go_on();
        }
        if self.paused.goes_on(now) {
            self.tell("goes on: it runs again".to_owned());
        }
        self.recorder.retry();
        self.hub.retry();
    }

    fn let_go_on(&self) {
        // One that waits to be read is enough.
        let _ = self.resume.try_send(());
    }

    /// To those who follow the VM, and to the supervisor's log.
    pub(super) fn tell(&self, text: String) {
        log_line(&text);
        self.hub.warn(text);
    }
}
