//! Sizes and lengths of time as people write them: exact, in the largest unit that divides them.

use std::fmt;
use std::time::Duration;

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIMES: [(&str, u128); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A number of bytes; `268435456` is shown as `256MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZES.into_iter().find(|(_, factor)| self.0.is_multiple_of(*factor) && self.0 > 0);
        let (name, factor) = unit.unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

/// A length of time in whole milliseconds; `90 s` is shown as `90s`, an hour as `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let unit = TIMES.into_iter().find(|(_, factor)| millis.is_multiple_of(*factor) && millis > 0);
        let (name, factor) = unit.unwrap_or(("s", 1_000));
        write!(f, "{}{name}", millis / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_exact_and_in_their_largest_unit() {
        let sizes = [0, 1, 1023, 1024, 256 << 20, 3 << 29, (1 << 30) + 1];
        assert_eq!(
            sizes.map(|bytes| Bytes(bytes).to_string()),
            ["0B", "1B", "1023B", "1KiB", "256MiB", "1536MiB", "1073741825B"]
        );
        let times = [0, 1, 1500, 2000, 90_000, 3_600_000];
        let shown = times.map(|millis| Time(Duration::from_millis(millis)).to_string());
        assert_eq!(shown, ["0s", "1ms", "1500ms", "2s", "90s", "1h"]);
    }
}
