//! Turns apt's complaints into errors that keep its own words.

use super::parse::printable;
use crate::error::Error;

/// The `E:` and `W:` lines of one apt run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Complaints(Vec<String>);

impl Complaints {
    pub(super) fn from_stderr(stderr: &str) -> Self {
        let mut lines: Vec<String> = Vec::new();
        for line in stderr.lines().map(str::trim) {
            match line.strip_prefix("E: ").or_else(|| line.strip_prefix("W: ")) {
                Some(text) if lines.iter().all(|seen| seen != text) => lines.push(printable(text)),
                _ => {}
            }
        }
        Complaints(lines)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    pub(super) fn extend(&mut self, other: Complaints) {
        self.0.extend(other.0);
    }

    /// The package that apt does not know, or has no version of.
    pub(super) fn unknown_package(&self) -> Option<&str> {
        self.lines().find_map(|line| {
            if let Some(name) = line.strip_prefix("Unable to locate package ") {
                return Some(name.trim());
            }
            let name = line.strip_prefix("Package '")?.split('\'').next()?;
            line.contains("has no installation candidate").then_some(name)
        })
    }

    /// The first package and version that no list knows.
    pub(super) fn unknown_version(&self) -> Option<(&str, &str)> {
        self.unknown_versions().next()
    }

    fn unknown_versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines().filter_map(|line| {
            let (version, rest) = line.strip_prefix("Version '")?.split_once("' for '")?;
            Some((rest.strip_suffix("' was not found")?, version))
        })
    }

    /// Whether no list knows this package, or this version of it: apt-get then downloads none of what it was asked for.
    pub(super) fn unlisted(&self, package: &str, version: &str) -> bool {
        self.unknown_package() == Some(package) || self.unknown_versions().any(|it| it == (package, version))
    }

    /// Whether the suite that was asked for is none of the sources'.
    pub(super) fn unknown_suite(&self) -> bool {
        self.any(&["is invalid for APT::Default-Release"])
    }

    /// Whether the archive, as far as the lists know it, lacks something that was asked for by version, or
    /// refused to serve it. Newer lists may help.
    pub(super) fn gone(&self) -> bool {
        self.any(&[
            "was not found",
            "Unable to locate package",
            "Can't find a source to download",
            "404  Not Found",
        ])
    }

    pub(super) fn network(&self) -> bool {
        const SIGNS: &[&str] = &[
            "Temporary failure resolving",
            "Could not resolve",
            "Could not connect",
            "Unable to connect",
            "Cannot initiate the connection",
            "Network is unreachable",
            "Connection timed out",
            "Connection refused",
            "Connection failed",
            "Connection reset",
        ];
        self.any(SIGNS)
    }

    pub(super) fn disk_full(&self) -> bool {
        self.lines().any(says_disk_full)
    }

    fn any(&self, signs: &[&str]) -> bool {
        self.lines().any(|line| signs.iter().any(|sign| line.contains(sign)))
    }

    /// Whether bytes came that a list or its Release file does not promise.
    pub(super) fn other_bytes(&self) -> bool {
        self.any(&["Hash Sum mismatch", "Hash sum mismatch", "File has unexpected size"])
    }

    /// At most three of them, in apt's words.
    pub(super) fn quoted(&self) -> String {
        if self.0.is_empty() {
            return "apt-get gave no reason".to_owned();
        }
        // What apt adds whenever something else went wrong tells nothing new.
        let mut lines: Vec<&str> = self.lines().collect();
        if lines.len() > 1 {
            lines.retain(|line| !line.starts_with("Some index files failed to download"));
        }
        let shown = lines.len().min(3);
        let mut text = lines[..shown].join("; ");
        if lines.len() > shown {
            text.push_str(&format!("; and {} more", lines.len() - shown));
        }
        text
    }
}

/// Whether a program's words are those of a full disk.
pub(super) fn says_disk_full(text: &str) -> bool {
    ["No space left on device", "don't have enough free space", "Disk quota exceeded"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// An error about reaching the archive, or the most telling other one. `doing` completes "cannot …".
pub(super) fn network_error(doing: &str, complaints: &Complaints) -> Error {
    let message = format!("cannot {doing}: {}", complaints.quoted());
    if complaints.disk_full() {
        Error::failed("asset.disk-full", message).help("free some space where firegopher keeps its home")
    } else if complaints.network() {
        Error::failed("asset.network", message)
            .help("check this host's network, or the proxy in its apt configuration; what is in the store needs none")
    } else {
        Error::failed("asset.apt", message)
            .help("check that `apt-get update` works on this host: firegopher uses its sources and keys")
    }
}

/// An error about a source that the manifest names.
pub(super) fn source_error(complaints: &Complaints) -> Error {
    let message = format!("cannot use the manifest's package sources: {}", complaints.quoted());
    const SIGNATURE: &[&str] = &[
        "is not signed",
        "is no longer signed",
        "NO_PUBKEY",
        "BADSIG",
        "EXPKEYSIG",
        "REVKEYSIG",
        "signatures were invalid",
        "signatures couldn't be verified",
        "Clearsigned file isn't valid",
        "At least one invalid signature",
        "is not readable by user",
        "NODATA",
    ];
    if complaints.any(&["is expired (invalid since", "is not valid yet"]) {
        Error::failed("asset.expired", message)
            .help("the archive's Release file is outside of its own time: its mirror is stale, or this host's clock is wrong; for a snapshot on purpose, set Acquire::Check-Valid-Until \"false\" in this host's apt.conf")
    } else if complaints.other_bytes() {
        Error::failed("asset.digest", message).help(
            "the archive's lists are not those that its Release file signs: it is being updated, or somebody changed them",
        )
    } else if complaints.any(SIGNATURE) {
        Error::failed("asset.signature", message)
            .help("`keyring` must hold the key that signs the source; an unsigned source cannot be used")
    } else if complaints.any(&[
        "doesn't support architecture",
        "doesn't have the component",
        "does not have a Release file",
    ]) {
        Error::usage("asset.source", message).help(
            "check the source's address, suite and components: they are those of a line in sources.list",
        )
    } else {
        network_error("use the manifest's package sources", complaints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_every_programs_words() {
        for said in [
            "tar: ./usr/x: Cannot write: No space left on device",
            "You don't have enough free space in /var/cache/apt/archives/.",
            "dpkg: error processing archive a.deb (--install):\n cannot copy extracted data: Disk quota exceeded",
        ] {
            assert!(says_disk_full(said), "{said}");
            let complaint = format!("E: {}", said.replace('\n', " "));
            assert!(Complaints::from_stderr(&complaint).disk_full(), "{said}");
        }
        assert!(!says_disk_full("E: Unable to locate package no-space"));
    }
}
