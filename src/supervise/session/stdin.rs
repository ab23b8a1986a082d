//! The workload's standard input on its way to the guest: no more of it than the guest is ready to take, so that it never
//! blocks the messages behind it.

use super::{MAX_OUT, Session};
use firegopher_protocol::{channel, encode_stream};

/// The workload's standard input.
pub(super) struct Stdin {
    /// It may still be sent; else it is dropped.
    pub open: bool,
    /// Bytes the guest is ready to take.
    pub credit: usize,
    /// For when it is ready again.
    pub waiting: Vec<u8>,
}

impl Session<'_> {
    /// Not before the guest knows whether its workload has an input; what it will not read is taken and dropped.
    pub(super) fn wants_stdin(&self) -> bool {
        self.run.is_none() && self.stdin.waiting.is_empty() && self.out.len() < MAX_OUT
    }

    pub(super) fn stdin(&mut self, bytes: Vec<u8>) {
        if !self.stdin.open {
            return;
        }
        if bytes.is_empty() {
            encode_stream(channel::STDIN, &[], &mut self.out);
            self.stdin.open = false;
            return;
        }
        self.stdin.waiting = bytes;
        self.feed();
    }

    /// Sends as much of the waiting input as the guest is ready to take.
    pub(super) fn feed(&mut self) {
        let n = self.stdin.waiting.len().min(self.stdin.credit);
        if n > 0 {
            encode_stream(channel::STDIN, &self.stdin.waiting[..n], &mut self.out);
            self.stdin.credit -= n;
            self.stdin.waiting.drain(..n);
        }
    }
}
