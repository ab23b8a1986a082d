//! Measures the rate of the host's time-stamp counter. A guest under emulation reads that counter but, on a busy
//! host, hangs while it tries to find out the rate; it is told instead.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Long enough to be within 0.02 % (measured), short enough to hide behind staging.
const SPAN: Duration = Duration::from_millis(20);
/// Readings at each end; the tightest one counts, so that being scheduled away in between does not.
const TRIES: u32 = 8;

/// An older first reading is not used: a host that slept meanwhile would spoil it.
const FRESH: Duration = Duration::from_secs(5);

/// The first reading of the process's first measurement.
static EARLY: Mutex<Option<(Instant, u64)>> = Mutex::new(None);

/// Takes the first reading now, so that the next measurement has less to wait for.
pub(crate) fn prepare() {
    *EARLY.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading());
}

/// A measurement under way on a thread of its own.
pub(crate) struct Measurement(JoinHandle<u64>);

/// Starts measuring.
pub(crate) fn start() -> Measurement {
    let early = EARLY.lock().unwrap_or_else(PoisonError::into_inner).take();
    let first = early.filter(|(at, _)| at.elapsed() < FRESH).unwrap_or_else(reading);
    Measurement(thread::spawn(move || measure(first)))
}

impl Measurement {
    /// The rate in kHz.
    pub(crate) fn khz(self) -> u64 {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn measure((from, first): (Instant, u64)) -> u64 {
    thread::sleep(SPAN.saturating_sub(from.elapsed()));
    let (to, last) = reading();
    let nanos = to.duration_since(from).as_nanos().max(1);
    (u128::from(last.wrapping_sub(first)) * 1_000_000 / nanos) as u64
}

fn reading() -> (Instant, u64) {
    let mut best: Option<(Duration, Instant, u64)> = None;
    for _ in 0..TRIES {
        let before = Instant::now();
        // SAFETY: rdtsc is part of every x86_64 and reads nothing but a counter.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        let width = before.elapsed();
        if best.is_none_or(|(narrowest, ..)| width < narrowest) {
            best = Some((width, before + width / 2, ticks));
        }
    }
    let (_, at, ticks) = best.expect("invariant: TRIES is not zero");
    (at, ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (start().khz() as f64, start().khz() as f64);
        assert!((a / b - 1.0).abs() < 0.005, "{a} kHz and {b} kHz");
        assert!(a > 500_000.0, "{a} kHz");
        prepare();
        thread::sleep(SPAN);
        let c = start().khz() as f64;
        assert!((a / c - 1.0).abs() < 0.005, "{a} kHz and {c} kHz");
    }
}
