//! What a lock entry is made of, and what each of its fields may hold.

use crate::packages::{PackageSet, PackageSource, is_package_name, is_version};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An asset that a manifest names and that has to be pinned. Assets given by `path` are not: their bytes are
/// their identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AssetId {
    /// The kernel behind a Debian package name, which may be a metapackage.
    Kernel(PackageSet),
    /// QEMU's microvm out of Debian packages.
    Vmm,
    /// The closure of these Debian packages.
    Image(PackageSet),
    /// mmdebstrap and the perl that runs it, for images whose maintainer scripts run.
    Mmdebstrap,
}

impl AssetId {
    /// A kernel by the name of its package, from the host's sources.
    pub fn kernel(package: &str) -> Self {
        AssetId::Kernel(PackageSet::of([package]))
    }

    /// An image's id, whatever the order of its packages, from the host's sources.
    pub fn image<S: Into<String>>(packages: impl IntoIterator<Item = S>) -> Self {
        AssetId::Image(PackageSet::of(packages))
    }

    /// `kernel`, `vmm`, `image` or `tool`.
    pub fn kind(&self) -> &'static str {
        match self {
            AssetId::Kernel(_) => "kernel",
            AssetId::Vmm => "vmm",
            AssetId::Image(_) => "image",
            AssetId::Mmdebstrap => "tool",
        }
    }

    /// The packages that the asset is named by; for the VMM and tools these are firegopher's own choice.
    pub fn set(&self) -> Option<&PackageSet> {
        match self {
            AssetId::Kernel(set) | AssetId::Image(set) => Some(set),
            AssetId::Vmm | AssetId::Mmdebstrap => None,
        }
    }

    /// The sources that it comes from; empty for the host's own.
    pub fn sources(&self) -> &[PackageSource] {
        self.set().map_or(&[], |set| &set.sources)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Some(set) = self.set() else { return Ok(()) };
        if set.packages.is_empty() {
            return Err(format!("a {} needs names", self.kind()));
        }
        if matches!(self, AssetId::Kernel(_)) && set.scripts {
            return Err("a kernel runs no scripts".to_owned());
        }
        set.check()
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssetId::Kernel(set) => write!(f, "kernel {set}"),
            AssetId::Vmm => f.write_str("vmm qemu"),
            AssetId::Image(set) => write!(f, "image {set}"),
            AssetId::Mmdebstrap => f.write_str("tool mmdebstrap"),
        }
    }
}

/// The distribution whose archive served the packages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// `ID` of os-release, such as `debian`.
    pub distribution: String,
    /// `VERSION_CODENAME` of os-release, such as `bookworm`; else `VERSION_ID`, else `rolling`.
    pub suite: String,
}

impl Origin {
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, value) in [("distribution", &self.distribution), ("suite", &self.suite)] {
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err(format!("{what} {value:?} is not a name"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.distribution, self.suite)
    }
}

/// An asset's packages and where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    /// The distribution that they were resolved on, or that the manifest's first source is of.
    pub origin: Origin,
    /// The package lists that they were resolved with, sorted. What follows from them is in `packages`, so nothing
    /// depends on them: they say which state of an archive to ask for should it move on.
    pub snapshot: Vec<Release>,
    /// Sorted by name and architecture.
    pub packages: Vec<Pin>,
}

/// One suite's package list at one time, as its Release file names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// `Origin`, such as `Debian`; else `Label`; else `unnamed`.
    pub origin: String,
    /// `Codename`, such as `bookworm-security`; else `Suite`; else the source's.
    pub codename: String,
    /// `Date` in UTC as `20261122T143000Z`, which is how snapshot archives name their states.
    pub date: String,
    /// SHA-256 of the InRelease (or Release) file.
    pub sha256: String,
}

impl Release {
    pub(super) fn check(&self) -> Result<(), String> {
        for (what, value) in [("origin", &self.origin), ("codename", &self.codename), ("date", &self.date)] {
            let good = |b: u8| b.is_ascii_alphanumeric() || b" ._+~/-".contains(&b);
            if value.is_empty() || value.len() > 200 || !value.bytes().all(good) {
                return Err(format!("a release's {what} {value:?} is not a name"));
            }
        }
        is_sha256(&self.sha256).then_some(()).ok_or_else(|| format!("{:?} is no SHA-256", self.sha256))
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// One exact Debian package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Its name.
    #[serde(rename = "name")]
    pub package: String,
    /// `amd64` or `all`.
    pub arch: String,
    /// Its version, epoch included.
    pub version: String,
    /// Size of the .deb in bytes.
    pub size: u64,
    /// SHA-256 of the .deb: 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// Where the archive keeps it, from `pool/` on: no scheme, host or base path.
    #[serde(rename = "path")]
    pub pool: String,
}

impl Pin {
    pub(super) fn check(&self) -> Result<(), String> {
        if !is_package_name(&self.package) {
            return Err("no Debian package name".to_owned());
        }
        // These values become apt-get's arguments.
        if !is_version(&self.version) {
            return Err(format!("{:?} is no version", self.version));
        }
        if self.arch != "amd64" && self.arch != "all" {
            return Err(format!("architecture {:?} is neither amd64 nor all", self.arch));
        }
        if !is_sha256(&self.sha256) {
            return Err(format!("{:?} is no SHA-256 in lower-case hexadecimal", self.sha256));
        }
        if self.size == 0 || self.size > i64::MAX as u64 {
            return Err(format!("a size of {} bytes", self.size));
        }
        let path = |b: u8| b.is_ascii_graphic() && !b"\"\\'".contains(&b);
        if !self.pool.bytes().all(path) || self.pool.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{:?} is no path in an archive", self.pool));
        }
        Ok(())
    }
}
