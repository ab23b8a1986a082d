//! Sizes and ages as they are typed on a command line.

use crate::store::gc::Caps;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct CapArgs {
    /// The store may keep this much; 0 keeps what is needed only. [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) max_size: Option<u64>,
    /// What was not used for this long goes. [default: 30d]
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub(super) max_age: Option<Duration>,
}

impl CapArgs {
    pub(super) fn caps(&self) -> Caps {
        let default = Caps::default();
        Caps { size: self.max_size.unwrap_or(default.size), age: self.max_age.unwrap_or(default.age) }
    }
}

/// Units as people write them: G, GB and GiB, in any case, are all powers of 1024. (A manifest insists on GiB, since it
/// says what is given; a cap that is some per cent smaller hurts nobody.)
fn size(text: &str) -> Result<u64, String> {
    let units = [("B", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    let help = "a size is a whole number and a unit, such as 500M, 10G or 10GiB (all in powers of 1024)";
    let upper = text.trim().to_uppercase();
    // GB and GiB are G; B alone is bytes.
    let short = upper.strip_suffix('B').filter(|rest| rest.ends_with(['K', 'M', 'G', 'T', 'I']));
    let short = short.unwrap_or(&upper);
    quantity(short.strip_suffix('I').unwrap_or(short).trim_end(), &units, help)
}

fn age(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];
    let help = "an age is a whole number and one of s, m, h, d and w, such as 30d";
    quantity(text, &units, help).map(Duration::from_secs)
}

fn quantity(text: &str, units: &[(&str, u64)], help: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let number: u64 = number.parse().map_err(|_| help.to_owned())?;
    // Nothing needs no unit.
    if number == 0 && unit.is_empty() {
        return Ok(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| help.to_owned())?;
    number.checked_mul(*factor).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_read_with_their_units() {
        assert_eq!(size("10GiB"), Ok(10 << 30));
        for ten in ["10G", "10g", "10GB", "10gb", "10GiB", "10Gi", "10 GiB", "10240M", "10737418240B"] {
            assert_eq!(size(ten), Ok(10 << 30), "{ten}");
        }
        assert_eq!((size("0"), size("0B"), size("1T")), (Ok(0), Ok(0), Ok(1 << 40)));
        assert_eq!(age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(age("2w"), age("14d"));
        for bad in [
            "",
            "10",
            "GiB",
            "G",
            "1X",
            "1BB",
            "1.5GiB",
            "-1GiB",
            "99999999999999999999B",
            "18446744073709551615GiB",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
        for bad in ["30", "d", "1y", "1 dd"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
