//! Sizes and durations as text.

use super::decode::Wrong;
use std::time::Duration;

const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const DURATIONS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// What a size may be, in bytes.
pub(super) struct Bounds {
    pub least: u64,
    pub most: u64,
    /// Sizes are multiples of this.
    pub unit: u64,
}

/// What a VM's memory may be.
pub(super) const MEMORY: Bounds = Bounds { least: 64 << 20, most: 1 << 40, unit: 1 << 20 };

/// Splits into a whole number and its unit.
fn split(text: &str) -> (Option<u64>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (text[..digits].parse().ok(), &text[digits..])
}

/// Bytes, out of `"256MiB"`. Units are B, KiB, MiB and GiB: exact ones, so that nobody guesses.
pub(super) fn size(subject: &str, text: &str) -> Result<u64, Wrong> {
    let (number, unit) = split(text);
    if let Some(number) = number {
        if let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) {
            return number.checked_mul(*factor).ok_or_else(|| {
                Wrong::new("too large", format!("{subject} of {text} is too large"), "write a smaller size")
            });
        }
        let bare = unit.trim().to_lowercase();
        if let Some((name, _)) = SIZES.iter().find(|(name, _)| {
            name.to_lowercase() == bare
                || (bare.len() == 1 && name.to_lowercase().starts_with(&bare) && bare != "b")
        }) {
            return Err(Wrong::new(
                "not a unit",
                format!("{subject} has the unit {unit:?}, which is none"),
                format!("write \"{number}{name}\""),
            ));
        }
        if let Some((name, _)) =
            SIZES.iter().skip(1).find(|(name, _)| name.to_lowercase().replace('i', "") == bare)
        {
            return Err(Wrong::new(
                "a decimal unit",
                format!("{subject} has the decimal unit {unit}"),
                format!("sizes are counted in powers of 1024: write \"{number}{name}\""),
            ));
        }
        if bare.is_empty() {
            return Err(Wrong::new(
                "no unit",
                format!("{subject} has no unit"),
                format!("write \"{number}MiB\", or \"{number}B\" for bytes"),
            ));
        }
        if let (Some(fraction), (_, rest)) = (unit.strip_prefix('.'), split(unit.trim_start_matches('.'))) {
            let example = SIZES.iter().position(|(name, _)| *name == rest).filter(|i| *i > 0);
            let (digits, _) = fraction.split_at(fraction.len() - rest.len());
            let tenths = digits.parse::<u64>().ok().filter(|_| digits.len() == 1);
            let help = match (example, tenths) {
                (Some(i), Some(t)) if number < 1 << 40 => {
                    format!("write \"{}{}\"", (number * 10 + t) * 1024 / 10, SIZES[i - 1].0)
                }
                _ => "write it in the next smaller unit".to_owned(),
            };
            return Err(Wrong::new(
                "a fraction",
                format!("{subject} must be a whole number of its unit"),
                help,
            ));
        }
    }
    Err(Wrong::new(
        "not a size",
        format!("{subject} cannot be read as a size: {text:?}"),
        "a size is a number and one of B, KiB, MiB and GiB, such as \"256MiB\"",
    ))
}

/// A duration out of `"500ms"`, `"2s"`, `"1m"` or `"1h"`.
pub(super) fn duration(subject: &str, text: &str) -> Result<Duration, Wrong> {
    let (number, unit) = split(text);
    if let Some(number) = number {
        if let Some((_, factor)) = DURATIONS.iter().find(|(name, _)| *name == unit) {
            return number.checked_mul(*factor).map(Duration::from_millis).ok_or_else(|| {
                Wrong::new("too long", format!("{subject} of {text} is too long"), "write a shorter duration")
            });
        }
        let bare = unit.trim().to_lowercase();
        let meant = match bare.as_str() {
            "" | "sec" | "secs" | "second" | "seconds" | "s" => Some("s"),
            "min" | "mins" | "minute" | "minutes" | "m" => Some("m"),
            "msec" | "millis" | "milliseconds" | "ms" => Some("ms"),
            "hour" | "hours" | "hr" | "h" => Some("h"),
            _ => None,
        };
        if let Some(meant) = meant {
            let label = if bare.is_empty() { "no unit" } else { "not a unit" };
            return Err(Wrong::new(
                label,
                format!(
                    "{subject} has {}",
                    if bare.is_empty() {
                        "no unit".to_owned()
                    } else {
                        format!("the unit {unit:?}, which is none")
                    }
                ),
                format!("write \"{number}{meant}\""),
            ));
        }
    }
    Err(Wrong::new(
        "not a duration",
        format!("{subject} cannot be read as a duration: {text:?}"),
        "a duration is a whole number and one of ms, s, m and h, such as \"90s\"",
    ))
}

/// A size as a person writes it: in the largest unit that divides it.
pub(super) fn show(bytes: u64) -> String {
    crate::units::Bytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("x", "256MiB"), Ok(256 << 20));
        assert_eq!(size("x", "1GiB"), Ok(1 << 30));
        assert_eq!(size("x", "4096B"), Ok(4096));
        assert_eq!(show(256 << 20), "256MiB");
        assert_eq!(show(3 << 29), "1536MiB");
    }

    #[test]
    fn other_units_are_explained() {
        let help = |text| size("x", text).unwrap_err().help.unwrap();
        assert!(help("256MB").contains("write \"256MiB\""));
        assert!(help("256M").contains("write \"256MiB\""));
        assert!(help("256 MiB").contains("write \"256MiB\""));
        assert!(help("256mib").contains("write \"256MiB\""));
        assert!(help("256").contains("write \"256MiB\""));
        assert_eq!(help("1.5GiB"), "write \"1536MiB\"");
        for bad in ["", "MiB", "-1MiB", "99999999999GiB", "1.GiB", "1.5", "1.é", "é", "18446744073709551616B"]
        {
            assert!(size("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("x", "2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("x", "500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("x", "1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "2", "2sec", "1.5s", "-1s", "99999999999999999999s", "1m30s"] {
            assert!(duration("x", bad).is_err(), "{bad}");
        }
    }
}
