//! Signals while VMs are followed: which ask for the end, how many requests count, and how long a reader is waited for
//! after one.

use super::{Follower, How};
use crate::cli::signals;
use crate::error::Result;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// After a signal that asks for the end, a reader that takes nothing for this long loses what it has not read.
const READER_PATIENCE: Duration = Duration::from_secs(2);
/// A workload that still runs this long after a request has dealt with it (an interpreter drops its line): the next is
/// a first one again.
const STANDS: Duration = Duration::from_secs(10);

/// A workload that still runs this long after Ctrl-C: its user is told how to end it.
const HINT: Duration = Duration::from_secs(2);

/// How often somebody asked for the end.
#[derive(Debug, Default)]
pub(super) struct Requests {
    count: u32,
    last: Option<Instant>,
}

impl Requests {
    /// Somebody asks. `afresh`: what was asked for long ago has been dealt with.
    pub(super) fn ask(&mut self, now: Instant, afresh: bool) {
        if afresh && !self.stand(now) {
            self.count = 0;
        }
        self.count += 1;
        self.last = Some(now);
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The last one was not long ago.
    pub(super) fn stand(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) <= STANDS)
    }
}

/// What has yet to be read, once the end was asked for.
pub(super) trait Unread {
    /// Drops what nobody has taken anything of since.
    fn give_up(&mut self, since: Instant);
    /// Nothing is left to be read.
    fn is_idle(&mut self) -> bool;
}

/// How long a reader is waited for that takes nothing.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Since when it has to take something; `None` while nobody is in a hurry.
    since: Option<Instant>,
}

impl Patience {
    /// Somebody is in a hurry.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    pub(super) fn is_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Gives up on readers whose time is over; how long until the next look. One that took something has its time
    /// again: it may stop later.
    pub(super) fn check(&mut self, now: Instant, unread: &mut impl Unread) -> Option<Duration> {
        let left = (self.since? + READER_PATIENCE).saturating_duration_since(now);
        if !left.is_zero() {
            return Some(left);
        }
        if let Some(since) = self.since.take() {
            unread.give_up(since);
        }
        if unread.is_idle() {
            return None;
        }
        self.since = Some(now);
        Some(READER_PATIENCE)
    }
}

impl Unread for Follower {
    fn give_up(&mut self, since: Instant) {
        if self.sink.give_up(since) {
            self.say("warning: output that nobody reads is dropped");
        }
    }

    fn is_idle(&mut self) -> bool {
        self.sink.wait_idle(Duration::ZERO)
    }
}

impl Follower {
    pub(super) fn ask(&mut self, signal: Signal) {
        self.end.interrupted.get_or_insert(signal);
        self.caret = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        let now = Instant::now();
        self.patience.begin(now);
        if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
            // A workload that is there may deal with one in its own way; a boot and an end cannot.
            let runs = self.settled.iter().all(|s| *s) && self.outcomes.iter().any(Option::is_none);
            self.asked.ask(now, self.how == How::InPlace && runs);
        }
        if self.asked.count() > 1 {
            self.sink.give_up(now);
        }
    }

    /// `up`: the first Ctrl-C stops what this command started, in reverse order, the second kills it.
    pub(super) fn interrupt(&mut self, signal: Signal) -> Result<()> {
        let open: Vec<usize> =
            (0..self.names.len()).filter(|&n| self.ours[n] && self.outcomes[n].is_none()).collect();
        self.end.early |= open.iter().any(|&n| !self.settled[n]);
        self.ask(signal);
        if open.is_empty() {
            self.note("Detached; the VMs run on. `firegopher down` stops them.");
            self.detached = true;
            return Ok(());
        }
        let kill = self.asked.count() > 1;
        if !kill {
            self.note("Stopping; press Ctrl-C again to kill.");
        }
        open.iter().rev().try_for_each(|&vm| self.commands[vm].stop(kill))
    }

    /// `run`: the signal is the workload's. A second Ctrl-C or SIGTERM soon after kills its VM.
    pub(super) fn pass_on(&mut self, signal: Signal) -> Result<()> {
        let runs = self.settled.iter().all(|s| *s);
        if asks_for_the_end(signal) {
            self.ask(signal);
            // Before there is a workload, the boot ends.
            self.end.early |= !runs;
            if !runs || self.asked.count() > 1 {
                return self.commands.iter().try_for_each(|vm| vm.stop(self.asked.count() > 1));
            }
            self.hint = matches!(signal, Signal::SIGINT | Signal::SIGTERM).then(|| Instant::now() + HINT);
        }
        if runs {
            self.commands.iter().try_for_each(|vm| vm.signal(signal as i32))?;
        }
        if signal == Signal::SIGTSTP {
            signals::suspend();
            // This process went on; nobody would continue its workload.
            if runs && !signals::is_a_job() {
                self.commands.iter().try_for_each(|vm| vm.signal(Signal::SIGCONT as i32))?;
            }
        }
        Ok(())
    }
}

pub(super) fn asks_for_the_end(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn requests_far_apart_are_each_a_first_one() {
        let begin = Instant::now();
        let mut asked = Requests::default();
        assert!(!asked.stand(begin));
        asked.ask(begin, true);
        asked.ask(begin + 3600 * SECOND, true);
        assert_eq!(asked.count(), 1);
        assert!(asked.stand(begin + 3605 * SECOND));
        asked.ask(begin + 3605 * SECOND, true);
        assert_eq!(asked.count(), 2);
        // Where nothing else than the end can come of one, all count.
        asked.ask(begin + 7200 * SECOND, false);
        assert_eq!(asked.count(), 3);
    }

    /// A reader that took something last at a time, and has not taken all.
    struct Reader {
        moved: Instant,
        done: bool,
    }

    impl Unread for Reader {
        fn give_up(&mut self, since: Instant) {
            self.done |= self.moved <= since;
        }

        fn is_idle(&mut self) -> bool {
            self.done
        }
    }

    #[test]
    fn a_reader_that_stops_only_later_is_given_up_too() {
        let begin = Instant::now();
        let mut patience = Patience::default();
        let mut reader = Reader { moved: begin + SECOND, done: false };
        assert_eq!(patience.check(begin, &mut reader), None, "nobody is in a hurry");
        patience.begin(begin);
        assert_eq!(patience.check(begin + SECOND, &mut reader), Some(SECOND));
        // It took something, and nothing more from now on.
        assert_eq!(patience.check(begin + 2 * SECOND, &mut reader), Some(READER_PATIENCE));
        assert!(!reader.done && patience.is_begun());
        assert_eq!(patience.check(begin + 4 * SECOND, &mut reader), None);
        assert!(reader.done && !patience.is_begun());
    }

    #[test]
    fn a_reader_that_goes_on_keeps_what_it_reads() {
        let begin = Instant::now();
        let mut patience = Patience::default();
        let mut reader = Reader { moved: begin, done: false };
        patience.begin(begin);
        for second in 1..60 {
            reader.moved = begin + second * SECOND;
            patience.check(reader.moved, &mut reader);
            assert!(!reader.done);
        }
    }
}
