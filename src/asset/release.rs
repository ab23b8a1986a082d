//! Reads the Release files that apt keeps with its lists: what an archive says of a suite, and when.

use crate::digest::hex;
use crate::error::{Context, Result};
use crate::lock::{Origin, Release};
use crate::packages::PackageSource;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Debian's have 150 kB, Ubuntu's 270 kB.
const MAX: u64 = 16 << 20;

/// What the Release files in `lists` say, sorted.
pub(super) fn all(lists: &Path) -> Result<Vec<Release>> {
    let mut found: Vec<Release> =
        files(lists)?.into_iter().filter_map(|path| Some(release(&fs::read(path).ok()?))).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// All suites and codenames that the lists know, sorted: what `suite=` may be.
pub(super) fn suites(lists: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for path in files(lists).unwrap_or_default() {
        let Ok(bytes) = fs::read(path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        names.extend(["Suite", "Codename"].iter().filter_map(|name| field(&text, name)));
    }
    names.sort();
    names.dedup();
    names
}

/// Distribution and suite of a source, by its Release file.
pub(super) fn origin(lists: &Path, source: &PackageSource) -> Result<Origin> {
    let plain = |text: String, fallback: &str| {
        let kept: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .collect();
        if kept.is_empty() { fallback.to_owned() } else { kept }
    };
    let name = list_name(source);
    let path = files(lists)?.into_iter().find(|path| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file == format!("{name}_InRelease") || file == format!("{name}_Release")
    });
    let text = match path {
        Some(path) => {
            fs::read(&path).or_failed("asset.read", || format!("cannot read {}", path.display()))?
        }
        None => Vec::new(),
    };
    let text = String::from_utf8_lossy(&text);
    let distribution = field(&text, "Origin").or_else(|| field(&text, "Label")).unwrap_or_default();
    let suite = field(&text, "Codename").or_else(|| field(&text, "Suite"));
    let suite = suite.unwrap_or_else(|| source.suite.trim_end_matches('/').to_owned());
    Ok(Origin { distribution: plain(distribution.to_lowercase(), "unnamed"), suite: plain(suite, "flat") })
}

fn files(lists: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot list {}", lists.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(lists).or_failed("asset.read", failed)? {
        let path = entry.or_failed("asset.read", failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if ["_InRelease", "_Release"].iter().any(|end| name.ends_with(end))
            && fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX)
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn release(bytes: &[u8]) -> Release {
    let text = String::from_utf8_lossy(bytes);
    // These words end in the lock, which takes no others.
    let words = |name: &str| {
        let keep = |c: char| if c.is_ascii_alphanumeric() || " ._+~/-".contains(c) { c } else { '-' };
        field(&text, name).map(|value| value.chars().map(keep).take(100).collect::<String>())
    };
    let or = |first: Option<String>, second: Option<String>| {
        first.or(second).unwrap_or_else(|| "unnamed".to_owned())
    };
    Release {
        origin: or(words("Origin"), words("Label")),
        suite: or(words("Suite"), words("Codename")),
        codename: or(words("Codename"), words("Suite")),
        date: field(&text, "Date").and_then(|date| timestamp(&date)).unwrap_or_else(|| "unknown".to_owned()),
        sha256: hex(&Sha256::digest(bytes)),
    }
}

/// A field of the Release file, whether it stands in a clear-signed message or alone.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })?;
    Some(value).filter(|value| !value.is_empty())
}

/// `Sat, 21 Nov 2026 14:30:00 UTC` as `20261121T143000Z`. Release files are dated in UTC, by whatever name
/// (<https://wiki.debian.org/DebianRepository/Format>); other zones give `None`.
fn timestamp(date: &str) -> Option<String> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_weekday, day, month, year, time, "UTC" | "GMT" | "Z" | "+0000"] = words.as_slice() else {
        return None;
    };
    let month = 1 + MONTHS.iter().position(|name| name == month)?;
    let (day, year): (u32, u32) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u32> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hour, minute, second] = clock.as_slice() else { return None };
    let sane = (1..=31).contains(&day) && year < 10_000 && *hour < 24 && *minute < 60 && *second < 61;
    sane.then(|| format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"))
}

/// How apt names the files of a source: the address without scheme, `/` as `_` (apt-pkg's URItoFileName).
fn list_name(source: &PackageSource) -> String {
    let url = source.url.split_once(':').map_or("", |(_, rest)| rest);
    let rest = url.strip_prefix("//").unwrap_or(url);
    let path = match source.suite.strip_suffix('/') {
        Some(flat) => format!("{rest}/{flat}"),
        None => format!("{rest}/dists/{}", source.suite),
    };
    let mut name = String::new();
    for c in path.chars() {
        match c {
            '/' => name.push('_'),
            c if "\\|{}[]<>\"^~_=!@#$%^&*".contains(c) => name.push_str(&format!("%{:02x}", u32::from(c))),
            c => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nOrigin: Ubuntu\nLabel: Ubuntu\nSuite: jammy\n\
        Codename: jammy\nDate: Thu, 21 Apr 2022 17:16:08 UTC\nArchitectures: amd64\n";

    #[test]
    fn dates_become_what_snapshot_archives_are_named_by() {
        assert_eq!(timestamp("Thu, 21 Apr 2022 17:16:08 UTC").unwrap(), "20220421T171608Z");
        assert_eq!(timestamp("Sun, 1 Jan 2023  7:06:08 GMT").unwrap(), "20230101T070608Z");
        for bad in [
            "",
            "Thu, 21 Apr 2022 17:16:08 CET",
            "Thu, 41 Apr 2022 17:16:08 UTC",
            "Thu, 21 Apr 2022 17:16 UTC",
        ] {
            assert_eq!(timestamp(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_source_is_known_by_its_own_release_file() {
        let dir = tempfile::tempdir().unwrap();
        let source = |url: &str, suite: &str| PackageSource {
            url: url.into(),
            suite: suite.into(),
            components: vec![],
            keyring: "k".into(),
        };
        fs::write(dir.path().join("archive.example.org_ubuntu_dists_jammy_InRelease"), SIGNED).unwrap();
        fs::write(
            dir.path().join("x.example.org_dists_jammy_Release"),
            "Origin: Some One\nCodename: jammy\n",
        )
        .unwrap();
        fs::write(dir.path().join("archive.example.org_ubuntu_dists_jammy_main_binary-amd64_Packages"), "")
            .unwrap();
        let of = |url: &str, suite: &str| origin(dir.path(), &source(url, suite)).unwrap().to_string();
        assert_eq!(of("http://archive.example.org/ubuntu", "jammy"), "ubuntu jammy");
        assert_eq!(of("https://x.example.org", "jammy"), "some-one jammy");
        assert_eq!(of("file:/srv", "./"), "unnamed .");
        let all = all(dir.path()).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].codename.as_str(), all[1].date.as_str()), ("jammy", "20220421T171608Z"));
        assert_eq!(all[0].date, "unknown");
        assert_eq!(suites(dir.path()), ["jammy"]);
    }
}
