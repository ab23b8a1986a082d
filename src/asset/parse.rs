//! Reads what apt prints: URIs, records, progress; and os-release. Pure functions over text.

use crate::digest::ObjectDigest;
use crate::lock::{Origin, Pin};
use std::collections::HashMap;

/// A package of a resolved closure, from one line of `--print-uris`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Chosen {
    pub package: String,
    pub version: String,
    pub arch: String,
}

/// `'URI' NAME_VERSION_ARCH.deb SIZE [HASH]`; other lines are `None`. The hash may be MD5 or missing, so it is not used.
pub(super) fn uri_line(line: &str) -> Option<Chosen> {
    let (_uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    deb_name(rest.split(' ').next()?)
}

/// apt's names of downloaded files: `NAME_VERSION_ARCH.deb` with the version's colon as `%3a`.
pub(super) fn deb_name(file: &str) -> Option<Chosen> {
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (package, version, arch) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    Some(Chosen { package: package.into(), version: percent_decode(version)?, arch: arch.into() })
}

fn percent_decode(text: &str) -> Option<String> {
    let mut pieces = text.split('%');
    let mut out = pieces.next()?.to_owned();
    for piece in pieces {
        let byte = u8::from_str_radix(piece.get(..2)?, 16).ok()?;
        if !byte.is_ascii() {
            return None;
        }
        out.push(char::from(byte));
        out.push_str(&piece[2..]);
    }
    Some(out)
}

/// A package as an archive lists it: a pin but for what only the .deb itself tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Deb {
    pub package: String,
    pub arch: String,
    pub version: String,
    pub size: u64,
    pub sha256: String,
    pub pool: String,
}

impl Deb {
    /// The pin, given the .deb as the store names it.
    pub fn pinned(self, blake3: ObjectDigest) -> Pin {
        let Deb { package, arch, version, size, sha256, pool } = self;
        Pin { package, arch, version, size, sha256, blake3, pool }
    }
}

impl From<&Pin> for Deb {
    fn from(pin: &Pin) -> Self {
        let Pin { package, arch, version, size, sha256, blake3: _, pool } = pin.clone();
        Deb { package, arch, version, size, sha256, pool }
    }
}

/// What `apt-cache show` says of one package version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub deb: Deb,
    /// The raw Depends and Pre-Depends fields.
    pub depends: String,
}

/// The records of `apt-cache show` by (package, version, architecture); incomplete ones are left out.
pub(super) fn records(text: &str) -> HashMap<Chosen, Record> {
    text.split("\n\n").filter_map(record).map(|r| (chosen(&r.deb), r)).collect()
}

pub(super) fn chosen(deb: &Deb) -> Chosen {
    Chosen { package: deb.package.clone(), version: deb.version.clone(), arch: deb.arch.clone() }
}

fn record(stanza: &str) -> Option<Record> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let depends =
        [field("Pre-Depends"), field("Depends")].into_iter().flatten().collect::<Vec<_>>().join(", ");
    Some(Record {
        deb: Deb {
            package: field("Package")?.to_owned(),
            arch: field("Architecture")?.to_owned(),
            version: field("Version")?.to_owned(),
            size: field("Size")?.parse().ok()?,
            sha256: field("SHA256")?.to_ascii_lowercase(),
            pool: pool_path(field("Filename")?).to_owned(),
        },
        depends,
    })
}

/// From `pool/` on; archives without a pool keep their path, less what makes it relative or absolute.
fn pool_path(filename: &str) -> &str {
    match filename.find("pool/") {
        Some(0) => filename,
        Some(at) if filename.as_bytes()[at - 1] == b'/' => &filename[at..],
        _ => filename.trim_start_matches("./").trim_start_matches('/'),
    }
}

/// The names in a dependency field, alternatives included, without versions and architectures.
pub(super) fn dependency_names(field: &str) -> impl Iterator<Item = &str> {
    field
        .split([',', '|'])
        .filter_map(|part| part.trim().split([' ', '(', ':', '[']).next())
        .filter(|n| !n.is_empty())
}

/// The percentage of a `dlstatus:N:PERCENT:TEXT` line (README.progress-reporting of apt).
pub(super) fn download_percent(line: &str) -> Option<f64> {
    let mut parts = line.strip_prefix("dlstatus:")?.splitn(3, ':');
    let percent: f64 = parts.nth(1)?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

/// Distribution and suite out of os-release(5).
pub(super) fn os_release(text: &str) -> Option<Origin> {
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix('=')?;
            Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|v| !v.is_empty())
        })
    };
    let suite =
        value("VERSION_CODENAME").or_else(|| value("VERSION_ID")).unwrap_or_else(|| "rolling".to_owned());
    Some(Origin { distribution: value("ID")?, suite })
}

/// Archives and packages choose these words: nothing in them may steer a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
