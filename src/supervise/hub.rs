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
        })
    }

    pub fn output(&self, stream: Stream, bytes: &[u8]) {
        match self.log.borrow_mut().output(stream, bytes) {
            Ok(n) => self.appended.set(self.appended.get() + n),
            Err(e) => return self.warn_once(&format!("the workload's log cannot be written: {e}")),
        }
        self.wake();
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

    fn notice(&self, notice: FromSupervisor) {
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

    /// Whether the guest's output must wait for a client. Only ever for ephemeral VMs.
    pub fn must_wait(&self) -> bool {
        let behind = |r: &Weak<Cell<u64>>| {
            r.upgrade().is_some_and(|read| self.appended.get().saturating_sub(read.get()) > MAX_LEAD)
        };
        self.lossless && self.readers.borrow().iter().any(behind)
    }
}
