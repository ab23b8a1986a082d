//! What clients are told: the workload's log and a short list of notices. Clients read both at their own pace,
//! so a slow one costs nothing but itself.

use super::logs::WorkloadLog;
use super::outcome::{Outcome, Phase, Stream};
use super::wire::FromSupervisor;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use tokio::sync::{Notify, watch};

/// Notices kept for clients that attach late: a crash loop's phases must not pile up.
const KEPT_NOTICES: usize = 256;
/// How far an ephemeral VM's output may run ahead of its client, in log bytes: far less than a log holds.
const MAX_LEAD: u64 = 2 * 1024 * 1024;

/// Shared by the session, which writes, and the clients, which read. One thread.
pub(super) struct Hub {
    log: RefCell<WorkloadLog>,
    notices: RefCell<VecDeque<FromSupervisor>>,
    /// Notices that were dropped from the front.
    dropped: Cell<u64>,
    phase: Cell<Phase>,
    /// Raised with every change.
    changed: watch::Sender<u64>,
    appended: Cell<u64>,
    /// How far each attached client has read, in log bytes.
    readers: RefCell<Vec<Weak<Cell<u64>>>>,
    /// A client has read on, or has gone.
    pub progress: Notify,
    warned: Cell<u32>,
    lossless: bool,
    unwritten: RefCell<Unwritten>,
}

/// Output that the log could not take: its disk is full, or descriptors ran out.
#[derive(Default)]
struct Unwritten {
    /// Waits for the log, oldest first. No more than what the guest had sent when it failed.
    waiting: VecDeque<(Stream, Vec<u8>)>,
    /// Bytes that were dropped, and not told yet.
    lost: u64,
    /// That it fails was told.
    failing: bool,
}

impl Hub {
    pub fn new(log: WorkloadLog, lossless: bool) -> Rc<Self> {
        Rc::new(Hub {
            log: RefCell::new(log),
            notices: RefCell::default(),
            dropped: Cell::new(0),
            phase: Cell::new(Phase::Booting),
            changed: watch::Sender::new(0),
            appended: Cell::new(0),
            readers: RefCell::default(),
            progress: Notify::new(),
            warned: Cell::new(0),
            lossless,
            unwritten: RefCell::default(),
        })
    }

    /// Takes the workload's output. What the log does not take is dropped and counted, or, where nothing may be lost,
    /// waits: then `must_wait` holds, too.
    pub fn output(&self, stream: Stream, bytes: &[u8]) {
        let waiting = !self.unwritten.borrow().waiting.is_empty();
        let taken = if waiting { 0 } else { self.write(stream, bytes) };
        let rest = &bytes[taken..];
        if rest.is_empty() {
            return;
        }
        let mut unwritten = self.unwritten.borrow_mut();
        if self.lossless {
            unwritten.waiting.push_back((stream, rest.to_vec()));
        } else {
            unwritten.lost += rest.len() as u64;
        }
    }

    /// Writes to the log; returns how many of the bytes it took.
    fn write(&self, stream: Stream, bytes: &[u8]) -> usize {
        let written = self.log.borrow_mut().output(stream, bytes);
        self.appended.set(self.appended.get() + written.logged);
        let failed = written.failed;
        let before = std::mem::replace(&mut self.unwritten.borrow_mut().failing, failed.is_some());
        match failed {
            Some(e) if !before => {
                let what = if self.lossless { "it waits" } else { "it is dropped" };
                self.warn_once(&format!(
                    "the workload's output cannot be logged: {e}; {what} until it can be"
                ));
            }
            None if before => self.tell_loss(),
            _ => {}
        }
        self.wake();
        written.taken
    }

    /// Whether output waits for the log: call `retry` now and then.
    pub fn is_waiting(&self) -> bool {
        !self.unwritten.borrow().waiting.is_empty()
    }

    /// Writes what waits, as far as the log takes it.
    pub fn retry(&self) {
        loop {
            let Some((stream, bytes)) = self.unwritten.borrow_mut().waiting.pop_front() else { break };
            let taken = self.write(stream, &bytes);
            if taken < bytes.len() {
                self.unwritten.borrow_mut().waiting.push_front((stream, bytes[taken..].to_vec()));
                return;
            }
        }
        self.progress.notify_one();
    }

    /// Drops what waits: the guest is to end, and the log may never take it.
    pub fn give_up_waiting(&self) {
        self.retry();
        let mut unwritten = self.unwritten.borrow_mut();
        let dropped: usize = unwritten.waiting.drain(..).map(|(_, bytes)| bytes.len()).sum();
        unwritten.lost += dropped as u64;
        drop(unwritten);
        self.progress.notify_one();
    }

    /// Tells how much output was lost since that was told last, if any was.
    pub fn tell_loss(&self) {
        let lost = std::mem::take(&mut self.unwritten.borrow_mut().lost);
        if lost > 0 {
            self.warn_once(&format!(
                "{lost} bytes of the workload's output were lost, as they could not be logged"
            ));
        }
    }

    pub fn phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.notice(FromSupervisor::Phase { phase });
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.notice(FromSupervisor::Warning { message: message.into() });
    }

    /// For warnings that could repeat with every byte.
    pub fn warn_once(&self, message: &str) {
        if self.warned.get() < 16 {
            self.warned.set(self.warned.get() + 1);
            super::log_line(message);
            self.warn(message);
        }
    }

    pub fn ended(&self, outcome: Outcome) {
        self.notice(FromSupervisor::Ended { outcome });
    }

    fn notice(&self, mut notice: FromSupervisor) {
        notice.clip();
        let mut notices = self.notices.borrow_mut();
        notices.push_back(notice);
        if notices.len() > KEPT_NOTICES {
            notices.pop_front();
            self.dropped.set(self.dropped.get() + 1);
        }
        drop(notices);
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notices from a position on, and the position behind them.
    pub fn notices_from(&self, position: u64) -> (Vec<FromSupervisor>, u64) {
        let notices = self.notices.borrow();
        let skip = position.saturating_sub(self.dropped.get()) as usize;
        let end = self.dropped.get() + notices.len() as u64;
        (notices.iter().skip(skip).cloned().collect(), end)
    }

    /// The position behind the newest notice, and the current phase.
    pub fn now(&self) -> (u64, Phase) {
        (self.dropped.get() + self.notices.borrow().len() as u64, self.phase.get())
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn log_path(&self) -> PathBuf {
        self.log.borrow().path().to_owned()
    }

    /// Counts a client as attached until the returned cell is dropped; it reports there how far it has read.
    pub fn attach(&self, from_start: bool) -> Rc<Cell<u64>> {
        let read = Rc::new(Cell::new(if from_start { 0 } else { self.appended.get() }));
        let mut readers = self.readers.borrow_mut();
        readers.retain(|r| r.strong_count() > 0);
        readers.push(Rc::downgrade(&read));
        read
    }

    pub fn attached(&self) -> usize {
        self.readers.borrow().iter().filter(|r| r.strong_count() > 0).count()
    }

    /// Whether the guest's output must wait for a client, or for the log. Only ever for ephemeral VMs.
    pub fn must_wait(&self) -> bool {
        let behind = |r: &Weak<Cell<u64>>| {
            r.upgrade().is_some_and(|read| self.appended.get().saturating_sub(read.get()) > MAX_LEAD)
        };
        self.lossless && (self.is_waiting() || self.readers.borrow().iter().any(behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::logs::{LogReader, MAX_BYTES};
    use crate::testing::on_small_disk;
    use std::path::Path;

    fn hub(dir: &Path, lossless: bool) -> Rc<Hub> {
        Hub::new(WorkloadLog::create(&dir.join("workload.log"), MAX_BYTES).unwrap(), lossless)
    }

    fn logged(hub: &Hub) -> Vec<u8> {
        let mut reader = LogReader::from_start(&hub.log_path()).unwrap();
        let mut all = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            all.extend(record.into_output());
        }
        all
    }

    fn warnings(hub: &Hub) -> Vec<String> {
        let text = |notice| match notice {
            FromSupervisor::Warning { message } => Some(message),
            _ => None,
        };
        hub.notices_from(0).0.into_iter().filter_map(text).collect()
    }

    fn line(n: u32) -> Vec<u8> {
        format!("{n:05} {}\n", "x".repeat(4000)).into_bytes()
    }

    #[test]
    fn output_that_a_full_disk_does_not_take_is_counted_and_records_stay_whole() {
        on_small_disk(256 << 10, |disk| {
            let hub = hub(disk, false);
            let sent: Vec<Vec<u8>> = (0..200).map(line).collect();
            sent.iter().for_each(|line| hub.output(Stream::Stdout, line));
            let kept = logged(&hub);
            let whole = sent.concat();
            assert!(!kept.is_empty() && kept.len() < whole.len() && whole.starts_with(&kept));
            assert!(kept.ends_with(b"\n"), "half a record was written");
            assert!(!hub.must_wait(), "a VM that nobody waits for goes on");
            let told = warnings(&hub);
            assert!(told.len() == 1 && told[0].contains("No space left"), "{told:?}");
            // Space: what comes is logged again, and what is missing is counted.
            std::fs::write(disk.join("workload.log"), "").unwrap();
            hub.output(Stream::Stdout, b"again\n");
            assert!(logged(&hub).ends_with(b"again\n"));
            let lost = whole.len() - kept.len();
            assert!(warnings(&hub)[1].starts_with(&format!("{lost} bytes of")), "{:?}", warnings(&hub));
        });
    }

    #[test]
    fn output_that_may_not_be_lost_waits_for_the_disk() {
        on_small_disk(512 << 10, |disk| {
            let hub = hub(disk, true);
            let filler = disk.join("filler");
            std::fs::write(&filler, vec![0; 256 << 10]).unwrap();
            let mut sent = Vec::new();
            for n in 0..200 {
                if hub.must_wait() {
                    break;
                }
                sent.extend(line(n));
                hub.output(Stream::Stdout, &line(n));
            }
            assert!(hub.must_wait() && hub.is_waiting());
            hub.retry();
            assert!(hub.must_wait(), "nothing has changed");
            std::fs::remove_file(filler).unwrap();
            hub.retry();
            assert!(!hub.must_wait() && !hub.is_waiting());
            assert!(logged(&hub) == sent, "all of it is there, once and in order");
            assert_eq!(warnings(&hub).len(), 1, "nothing was lost");
        });
    }

    #[test]
    fn notices_of_any_size_and_number_stay_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(dir.path(), false);
        for _ in 0..1000 {
            hub.warn("w".repeat(1 << 20));
        }
        let (notices, end) = hub.notices_from(0);
        assert_eq!((notices.len(), end), (KEPT_NOTICES, 1000));
        let all: usize = notices.into_iter().map(|notice| notice.frame().len()).sum();
        assert!(all < 8 << 20, "{all} bytes are kept");
    }
}
