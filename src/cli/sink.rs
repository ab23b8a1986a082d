//! Writes to standard output and standard error on threads of their own, so that nobody who handles signals waits for
//! a reader. What is on its way is bounded: whoever produces it waits instead.

use super::stdio;
use crate::supervise::Stream;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of workloads' output on their way to the outputs; beyond them no more is taken.
const MAX_QUEUED: usize = 128 * 1024;
/// Written at once: progress is seen after each.
const PIECE: usize = 16 * 1024;

/// What became of a write.
pub(super) type Failed = Box<dyn Fn(Stream, io::Error) + Send + Sync>;

/// Counts bytes on their way.
pub(super) struct Gate {
    used: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    fn new() -> Gate {
        Gate { used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until bytes may be on their way.
    pub(super) fn enter(&self, bytes: usize) {
        let mut used = lock(&self.used);
        while *used >= MAX_QUEUED {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
    }

    /// They have arrived, or never will.
    fn leave(&self, bytes: usize) {
        if bytes > 0 {
            *lock(&self.used) -= bytes;
            self.freed.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both outputs.
pub(super) struct Sink {
    /// One and the same where both end in one place, so that order is kept.
    outs: [Arc<Out>; 2],
    gate: Arc<Gate>,
}

/// One place that is written to.
struct Out {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: VecDeque<Chunk>,
    /// A write is under way.
    writing: bool,
    /// When bytes were last taken, or there was nothing to take.
    moved: Instant,
    /// Nothing is written any more.
    closed: bool,
}

struct Chunk {
    stream: Stream,
    bytes: Vec<u8>,
    /// What it takes of the gate.
    charge: usize,
}

impl Sink {
    /// Starts the threads. `failed` is called on them, once for each place.
    pub(super) fn start(together: bool, failed: Failed) -> Sink {
        let gate = Arc::new(Gate::new());
        let failed = Arc::new(failed);
        let out = || {
            let out = Arc::new(Out::new());
            let (mine, gate, failed) = (out.clone(), gate.clone(), failed.clone());
            std::thread::spawn(move || mine.write_all(&gate, &failed));
            out
        };
        let first = out();
        let second = if together { first.clone() } else { out() };
        Sink { outs: [first, second], gate }
    }

    /// Where producers wait.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Never waits. `charge` is what was let in through the gate for this.
    pub(super) fn write(&self, stream: Stream, bytes: Vec<u8>, charge: usize) {
        let out = self.out(stream);
        let mut state = lock(&out.state);
        if bytes.is_empty() || state.closed {
            drop(state);
            return self.gate.leave(charge);
        }
        if state.is_idle() {
            state.moved = Instant::now();
        }
        state.queue.push_back(Chunk { stream, bytes, charge });
        out.changed.notify_all();
    }

    /// Waits until everything is written, at most this long.
    pub(super) fn wait_idle(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        self.outs.iter().all(|out| {
            let mut state = lock(&out.state);
            while !state.is_idle() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                state = out.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            true
        })
    }

    /// Drops what is on its way to where nobody has taken anything since `since`, and all that follows. Whether there
    /// was something.
    pub(super) fn give_up(&self, since: Instant) -> bool {
        let mut dropped = false;
        for out in &self.outs {
            let state = lock(&out.state);
            if !state.is_idle() && state.moved <= since {
                dropped = true;
                self.close_out(state);
            }
        }
        dropped
    }

    /// Nothing is written there any more.
    pub(super) fn close(&self, stream: Stream) {
        self.close_out(lock(&self.out(stream).state));
    }

    fn close_out(&self, mut state: MutexGuard<'_, State>) {
        state.closed = true;
        let charge = state.queue.drain(..).map(|chunk| chunk.charge).sum();
        drop(state);
        self.gate.leave(charge);
    }

    fn out(&self, stream: Stream) -> &Arc<Out> {
        match stream {
            Stream::Stdout => &self.outs[0],
            Stream::Stderr => &self.outs[1],
        }
    }
}

impl State {
    /// A closed output's thread may be stuck in a write that never ends.
    fn is_idle(&self) -> bool {
        self.closed || self.queue.is_empty() && !self.writing
    }
}

impl Out {
    fn new() -> Out {
        let state = State { queue: VecDeque::new(), writing: false, moved: Instant::now(), closed: false };
        Out { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The thread: writes what comes, until an error.
    fn write_all(&self, gate: &Gate, failed: &Failed) {
        loop {
            let Chunk { stream, bytes, charge } = self.next();
            let mut result = Ok(());
            for piece in bytes.chunks(PIECE) {
                result = stdio::write_all(stream, piece);
                let mut state = lock(&self.state);
                state.moved = Instant::now();
                if state.closed || result.is_err() {
                    break;
                }
            }
            let mut left = charge;
            let mut state = lock(&self.state);
            state.writing = false;
            let told = state.closed;
            state.closed |= result.is_err();
            if state.closed {
                left += state.queue.drain(..).map(|chunk| chunk.charge).sum::<usize>();
            }
            drop(state);
            gate.leave(left);
            self.changed.notify_all();
            if let (Err(e), false) = (result, told) {
                failed(stream, e);
            }
        }
    }

    fn next(&self) -> Chunk {
        let mut state = lock(&self.state);
        loop {
            if let Some(chunk) = state.queue.pop_front() {
                state.writing = true;
                return chunk;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_bounded() {
        let gate = Arc::new(Gate::new());
        gate.enter(MAX_QUEUED);
        let waits = {
            let gate = gate.clone();
            std::thread::spawn(move || gate.enter(1))
        };
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished(), "more was let in than may be on its way");
        gate.leave(1);
        waits.join().unwrap();
        assert_eq!(*lock(&gate.used), MAX_QUEUED);
    }
}
