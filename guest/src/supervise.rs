//! From the workload's start to its end: one poll loop over its pipes, the control channel and SIGCHLD.
//!
//! Memory is bounded by back-pressure: pipes are read only while the control channel has room, and the workload waits.

use crate::control::{Control, Incoming};
use crate::processes::{self, Reaped};
use crate::workload::Workload;
use firegopher_protocol::{ExitRecord, FromGuest, STDIN_WINDOW, ToGuest, channel};
use nix::errno::Errno;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{read, write};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What processes that outlive the workload get between SIGTERM and SIGKILL, unless a stop allows more.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);
/// How long after SIGKILL a process may linger (in the kernel) before the end is reported without it.
const LINGER: Duration = Duration::from_secs(5);
/// Longest wait for a host that takes no output, where nobody looks at it before it is passed on.
pub const STALLED: Duration = Duration::from_secs(30);
/// Longest wait for the end of a pipe that a lingering process holds.
const HELD: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The workload runs. With a time: it was asked to stop and is killed then.
    Running(Option<Instant>),
    /// The workload ended; what it left behind ends too. Killed at the first time, given up at the second.
    Sweeping { kill: Option<Instant>, give_up: Instant },
    /// Nobody writes any more; the rest of the output is on its way.
    Draining,
}

/// Runs until the workload ended and its output is sent. `signals` must deliver SIGCHLD without blocking.
/// `stalled` is the longest wait for a host that takes no output; without it there is no limit.
pub fn run(
    control: &mut Control,
    signals: &SignalFd,
    workload: Workload,
    grace: Duration,
    stalled: Option<Duration>,
) -> ExitRecord {
    let mut supervisor = Supervisor {
        control,
        signals,
        workload,
        grace,
        stalled,
        input: VecDeque::new(),
        input_ends: false,
        phase: Phase::Running(None),
        record: ExitRecord::default(),
        moved: Instant::now(),
    };
    while !supervisor.turn() {}
    supervisor.record
}

struct Supervisor<'a> {
    control: &'a mut Control,
    signals: &'a SignalFd,
    workload: Workload,
    grace: Duration,
    /// Longest wait for a host that takes no output, if there is one.
    stalled: Option<Duration>,
    /// Standard input the workload has not taken yet.
    input: VecDeque<u8>,
    input_ends: bool,
    phase: Phase,
    record: ExitRecord,
    /// When output last moved.
    moved: Instant,
}

impl Supervisor<'_> {
    /// One round. Returns whether everything is done.
    fn turn(&mut self) -> bool {
        self.reap();
        while let Some(incoming) = self.control.next_incoming() {
            self.obey(incoming);
        }
        self.feed();
        if self.control.flush() {
            self.moved = Instant::now();
        }
        self.keep_time();
        if self.phase == Phase::Draining && self.drained() {
            return true;
        }
        self.wait();
        false
    }

    fn drained(&self) -> bool {
        let read_all = self.workload.stdout.is_none() && self.workload.stderr.is_none();
        let idle = self.moved.elapsed();
        let limit = if self.control.pending() { self.stalled } else { Some(HELD) };
        read_all && !self.control.pending() || limit.is_some_and(|limit| idle >= limit)
    }

    /// Waits for something to do, and moves bytes.
    fn wait(&mut self) {
        let room = self.control.room() > 0;
        let number = |fd: &Option<OwnedFd>, wanted: bool| match fd {
            Some(fd) if wanted => fd.as_raw_fd(),
            // poll ignores negative descriptors.
            _ => -1,
        };
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut control = 0;
        if self.input.len() < 2 * STDIN_WINDOW {
            control |= libc::POLLIN;
        }
        if self.control.pending() {
            control |= libc::POLLOUT;
        }
        let mut set = [
            entry(self.signals.as_raw_fd(), libc::POLLIN),
            entry(self.control.fd().map_or(-1, |fd| fd.as_raw_fd()), control),
            entry(number(&self.workload.stdout, room), libc::POLLIN),
            entry(number(&self.workload.stderr, room), libc::POLLIN),
            entry(number(&self.workload.stdin, !self.input.is_empty()), libc::POLLOUT),
        ];
        let timeout = self.timeout().as_millis().saturating_add(1).min(60_000) as i32;
        // SAFETY: pointer and length describe `set`, which outlives the call.
        let ready = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout) };
        if ready <= 0 {
            return;
        }
        let [signals, control, stdout, stderr, _] = set.map(|e| e.revents);
        if signals != 0 {
            // The signal only wakes; `reap` looks at the children themselves, as signals merge.
            while matches!(self.signals.read_signal(), Ok(Some(_))) {}
        }
        if control & !libc::POLLOUT != 0 {
            self.control.receive();
        }
        if stdout != 0 {
            self.forward(channel::STDOUT);
        }
        if stderr != 0 {
            self.forward(channel::STDERR);
        }
    }

    /// Time until the next deadline.
    fn timeout(&self) -> Duration {
        let next = match self.phase {
            Phase::Running(at) => at,
            Phase::Sweeping { kill, give_up } => Some(kill.unwrap_or(give_up)),
            Phase::Draining if self.control.pending() => self.stalled.map(|limit| self.moved + limit),
            Phase::Draining => Some(self.moved + HELD),
        };
        next.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Running(Some(at)) if now >= at => {
                processes::signal_all(libc::SIGKILL);
                self.phase = Phase::Running(None);
            }
            Phase::Sweeping { kill: Some(at), .. } if now >= at => {
                processes::signal_all(libc::SIGKILL);
                self.phase = Phase::Sweeping { kill: None, give_up: now + LINGER };
            }
            Phase::Sweeping { kill: None, give_up } if now >= give_up => self.drain(),
            _ => {}
        }
    }

    fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.moved = Instant::now();
    }

    /// Takes every ended child: the workload, and orphans.
    fn reap(&mut self) {
        loop {
            match processes::reap() {
                Reaped::Child(pid, status) if pid == self.workload.pid => self.ended(status),
                Reaped::Child(..) => {}
                Reaped::Running => return,
                Reaped::Childless => {
                    if matches!(self.phase, Phase::Sweeping { .. }) {
                        self.drain();
                    }
                    return;
                }
            }
        }
    }

    /// The workload's own process ended. Others may be left, even some that a stop has asked to end and that are
    /// using their grace.
    fn ended(&mut self, status: i32) {
        self.record = record(status);
        self.workload.stdin = None;
        self.take_no_input();
        let now = Instant::now();
        let kill = match self.phase {
            Phase::Running(Some(at)) => {
                // The group has had its SIGTERM; for some programs a second one means "at once".
                processes::signal_others(self.workload.pid, libc::SIGTERM);
                at.max(now + LEFTOVER_GRACE.min(self.grace))
            }
            _ => {
                processes::signal_all(libc::SIGTERM);
                now + LEFTOVER_GRACE
            }
        };
        self.phase = Phase::Sweeping { kill: Some(kill), give_up: kill + LINGER };
    }

    fn obey(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Stdin(bytes) if bytes.is_empty() => self.input_ends = true,
            Incoming::Stdin(bytes) if self.workload.stdin.is_some() && !self.input_ends => {
                self.input.extend(bytes)
            }
            Incoming::Stdin(bytes) => self.control.send(FromGuest::StdinTaken { bytes: bytes.len() }),
            Incoming::Message(ToGuest::Stop) => self.stop(),
            Incoming::Message(ToGuest::Signal { signal }) => {
                if !(1..=64).contains(&signal) {
                    let message = format!("there is no signal {signal}");
                    self.control.send(FromGuest::Warning { message });
                } else if matches!(self.phase, Phase::Running(_)) {
                    processes::signal_group(self.workload.pid, signal);
                }
            }
            Incoming::Message(ToGuest::CloseOutput { channel: channel::STDOUT }) => {
                self.workload.stdout = None
            }
            Incoming::Message(ToGuest::CloseOutput { channel: channel::STDERR }) => {
                self.workload.stderr = None
            }
            Incoming::Message(ToGuest::CloseOutput { channel }) => {
                let message = format!("the workload has no output {channel}");
                self.control.send(FromGuest::Warning { message });
            }
            Incoming::Message(ToGuest::Start(_) | ToGuest::ExitAck) => {}
        }
    }

    /// A second stop does not extend the first one's grace.
    fn stop(&mut self) {
        if self.phase == Phase::Running(None) {
            processes::signal_group(self.workload.pid, libc::SIGTERM);
            // What is stopped would not notice before its grace is over.
            processes::signal_group(self.workload.pid, libc::SIGCONT);
            self.phase = Phase::Running(Some(Instant::now() + self.grace));
        }
    }

    /// Hands input to the workload, as much as it takes.
    fn feed(&mut self) {
        let mut taken = 0;
        while let Some(fd) = &self.workload.stdin {
            let (bytes, _) = self.input.as_slices();
            if bytes.is_empty() {
                if self.input_ends {
                    self.workload.stdin = None;
                }
                break;
            }
            match write(fd, bytes) {
                Ok(n) => {
                    self.input.drain(..n);
                    taken += n;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // The workload closed its input.
                Err(_) => self.workload.stdin = None,
            }
        }
        if taken > 0 {
            self.control.send(FromGuest::StdinTaken { bytes: taken });
        }
        if self.workload.stdin.is_none() {
            self.take_no_input();
        }
    }

    /// Input nobody will read counts as taken: the host must not wait for it.
    fn take_no_input(&mut self) {
        if !self.input.is_empty() {
            self.control.send(FromGuest::StdinTaken { bytes: self.input.len() });
            self.input = VecDeque::new();
        }
    }

    /// Moves what is there from one of the workload's pipes to the control channel.
    fn forward(&mut self, from: u16) {
        let pipe =
            if from == channel::STDOUT { &mut self.workload.stdout } else { &mut self.workload.stderr };
        let Some(fd) = pipe else { return };
        // A pipe's default capacity.
        let mut buffer = [0; 64 * 1024];
        let limit = self.control.room().min(buffer.len());
        if limit == 0 {
            return;
        }
        match read(fd, &mut buffer[..limit]) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                self.control.queue(from, &buffer[..n]);
                self.moved = Instant::now();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => *pipe = None,
        }
    }
}

fn record(status: i32) -> ExitRecord {
    if libc::WIFSIGNALED(status) {
        ExitRecord { signal: Some(libc::WTERMSIG(status)), ..ExitRecord::default() }
    } else {
        ExitRecord { code: Some(libc::WEXITSTATUS(status)), ..ExitRecord::default() }
    }
}

#[cfg(test)]
mod tests;
