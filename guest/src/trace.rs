//! Where boot time goes: marks printed to the console when the kernel command line has `firegopher.trace`.

use nix::time::{ClockId, clock_gettime};

/// Marks since the kernel's start, on the monotonic clock.
#[derive(Default)]
pub struct Trace(Vec<(&'static str, i64)>);

impl Trace {
    /// Notes that `what` is done.
    pub fn mark(&mut self, what: &'static str) {
        if let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) {
            self.0.push((what, now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000));
        }
    }

    /// One line: each mark with the milliseconds since the one before it, the first since the kernel's start.
    pub fn line(&self) -> String {
        let mut last = 0;
        let mut line = "trace:".to_owned();
        for (what, micros) in &self.0 {
            let step = micros - last;
            line.push_str(&format!(" {what} {}.{:01}", step / 1000, step % 1000 / 100));
            last = *micros;
        }
        line
    }
}
