//! How patient downloads are, and whom they trust.

use std::time::Duration;

/// Fixed, but for tests, which have less time and servers of their own.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// For a connection to stand.
    pub connect: Duration,
    /// Without a single byte, headers included.
    pub stall: Duration,
    /// Rounds over all mirrors, until none of them is left.
    pub rounds: u32,
    /// Before the second round; doubles with each.
    pub pause: Duration,
    /// The longest pause of our own accord.
    pub longest_pause: Duration,
    /// The longest pause that a server may ask for: whoever asks for more is not asked again.
    pub longest_retry_after: Duration,
    /// Root certificates (DER) instead of the host's.
    pub roots: Option<Vec<Vec<u8>>>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            rounds: 5,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
            longest_retry_after: Duration::from_secs(300),
            roots: None,
        }
    }
}

impl Settings {
    /// How long to wait after `round` (from 0), if that may be waited for: twice as long each time, and nobody in step
    /// with anybody else.
    pub fn pause_after(&self, round: u32, asked: Option<Duration>) -> Option<Duration> {
        let full = self.pause.saturating_mul(2_u32.saturating_pow(round)).min(self.longest_pause);
        let ours = full.mul_f64(0.5 + fastrand::f64() / 2.0);
        let asked = asked.unwrap_or_default();
        (asked <= self.longest_retry_after).then(|| ours.max(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_vary_and_are_bounded() {
        let settings = Settings::default();
        for round in 0..40 {
            let full = settings.pause.as_secs_f64() * 2_f64.powi(round.min(10) as i32);
            let full = full.min(settings.longest_pause.as_secs_f64());
            let pause = settings.pause_after(round, None).unwrap().as_secs_f64();
            assert!(pause >= full / 2.0 - 1e-6 && pause <= full + 1e-6, "{round}: {pause}");
        }
        let day = Duration::from_secs(86400);
        assert_eq!(settings.pause_after(0, Some(day)), None);
        let pause = settings.pause_after(0, Some(Duration::from_secs(100))).unwrap();
        assert!(pause >= Duration::from_secs(100));
    }
}
