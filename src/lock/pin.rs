//! What a lock entry is made of, and what each of its fields may hold.

use super::oci::OciPin;
use crate::digest::ObjectDigest;
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
    /// A download, by what it is for, its first URL and the member that is taken out of it.
    File {
        /// What it is for.
        role: FileRole,
        /// The first URL of the manifest.
        url: String,
        /// The file in the archive, if it is one.
        member: Option<String>,
    },
    /// A container image, by its reference as the manifest writes it.
    Oci(String),
}

/// What a download is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileRole {
    /// A vmlinux or bzImage.
    Kernel,
    /// A release of Firecracker.
    Vmm,
    /// A root file system.
    Image,
    /// What is placed over a base image.
    Workload,
}

impl FileRole {
    /// All of them.
    pub const ALL: [FileRole; 4] = [FileRole::Kernel, FileRole::Vmm, FileRole::Image, FileRole::Workload];

    /// The word in the lock file.
    pub fn word(self) -> &'static str {
        match self {
            FileRole::Kernel => "kernel",
            FileRole::Vmm => "vmm",
            FileRole::Image => "image",
            FileRole::Workload => "workload",
        }
    }
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

    /// `kernel`, `vmm`, `image`, `workload` or `tool`.
    pub fn kind(&self) -> &'static str {
        match self {
            AssetId::Kernel(_) => "kernel",
            AssetId::Vmm => "vmm",
            AssetId::Image(_) | AssetId::Oci(_) => "image",
            AssetId::File { role, .. } => role.word(),
        }
    }

    /// What the manifest names the asset by: packages, a URL, a reference; for what is firegopher's own choice,
    /// nothing.
    pub fn names(&self) -> Vec<&str> {
        match self {
            AssetId::Oci(name) | AssetId::File { url: name, .. } => vec![name],
            AssetId::Vmm => Vec::new(),
            AssetId::Kernel(set) | AssetId::Image(set) => set.names().collect(),
        }
    }

    /// The packages that the asset is named by.
    pub fn set(&self) -> Option<&PackageSet> {
        match self {
            AssetId::Kernel(set) | AssetId::Image(set) => Some(set),
            AssetId::Vmm | AssetId::File { .. } | AssetId::Oci(_) => None,
        }
    }

    /// The package sources that it comes from; empty for the host's own.
    pub fn sources(&self) -> &[PackageSource] {
        self.set().map_or(&[], |set| &set.sources)
    }

    /// Whether it comes as Debian packages.
    pub fn is_debian(&self) -> bool {
        matches!(self, AssetId::Kernel(_) | AssetId::Vmm | AssetId::Image(_))
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let names = self.names();
        if !self.is_debian() {
            let bad = |text: &&str| text.is_empty() || text.chars().any(char::is_control);
            let member = match self {
                AssetId::File { member, .. } => member.as_deref(),
                _ => None,
            };
            return match names.into_iter().chain(member).find(bad) {
                Some(text) => Err(format!("{text:?} names nothing")),
                None => Ok(()),
            };
        }
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
            AssetId::Oci(reference) => write!(f, "image {reference}"),
            AssetId::File { role, url, member } => {
                write!(f, "{} {url}", role.word())?;
                match member {
                    Some(member) => write!(f, " ({member})"),
                    None => Ok(()),
                }
            }
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

/// What an asset is pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinned {
    /// Debian packages.
    Packages(Pins),
    /// One downloaded file.
    File(FilePin),
    /// A container image.
    Oci(OciPin),
}

impl Pinned {
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Pinned::Packages(pins) => pins.check(),
            Pinned::File(pin) => pin.check(),
            Pinned::Oci(pin) => pin.check(),
        }
    }
}

impl From<Pins> for Pinned {
    fn from(mut pins: Pins) -> Self {
        pins.packages.sort();
        pins.snapshot.sort();
        pins.snapshot.dedup();
        Pinned::Packages(pins)
    }
}

/// The bytes of a downloaded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePin {
    /// In bytes, at least 1.
    pub size: u64,
    /// As publishers name it: 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// As the store names it.
    pub blake3: ObjectDigest,
}

impl FilePin {
    fn check(&self) -> Result<(), String> {
        check_sha256(&self.sha256)?;
        check_size(self.size)
    }
}

fn check_sha256(text: &str) -> Result<(), String> {
    if text.len() != 64 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("{text:?} is no SHA-256 in lower-case hexadecimal"));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), String> {
    if size == 0 || size > i64::MAX as u64 {
        return Err(format!("a size of {size} bytes"));
    }
    Ok(())
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

impl Pins {
    /// Demands that the packages are sorted.
    fn check(&self) -> Result<(), String> {
        self.origin.check()?;
        self.snapshot.iter().try_for_each(Release::check)?;
        if self.packages.is_empty() {
            return Err("no packages".to_owned());
        }
        for pin in &self.packages {
            pin.check().map_err(|why| format!("package {:?}: {why}", pin.package))?;
        }
        for pair in self.packages.windows(2) {
            if pair[0].package == pair[1].package && pair[0].arch == pair[1].arch {
                return Err(format!("package {:?} is there twice", pair[0].package));
            }
        }
        Ok(())
    }
}

/// One suite's package list at one time, as its Release file names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// `Origin`, such as `Debian`; else `Label`; else `unnamed`.
    pub origin: String,
    /// `Suite`, such as `stable-security`; else `Codename`; else `unnamed`.
    pub suite: String,
    /// `Codename`, such as `bookworm-security`; else `Suite`; else `unnamed`.
    pub codename: String,
    /// `Date` in UTC as `20261122T143000Z`, which is how snapshot archives name their states; else `unknown`.
    pub date: String,
    /// SHA-256 of the InRelease (or Release) file.
    pub sha256: String,
}

impl Release {
    fn check(&self) -> Result<(), String> {
        let Release { origin, suite, codename, date, .. } = self;
        for (what, value) in [("origin", origin), ("suite", suite), ("codename", codename), ("date", date)] {
            let good = |b: u8| b.is_ascii_alphanumeric() || b" ._+~/-".contains(&b);
            if value.is_empty() || value.len() > 200 || !value.bytes().all(good) {
                return Err(format!("a release's {what} {value:?} is not a name"));
            }
        }
        check_sha256(&self.sha256)
    }
}

/// One exact Debian package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin {
    /// Its name.
    pub package: String,
    /// `amd64` or `all`.
    pub arch: String,
    /// Its version, epoch included.
    pub version: String,
    /// Size of the .deb in bytes.
    pub size: u64,
    /// SHA-256 of the .deb, as the archive names it: 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// The .deb as the store names it.
    pub blake3: ObjectDigest,
    /// Where the archive keeps it, from `pool/` on: no scheme, host or base path.
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
        check_sha256(&self.sha256)?;
        check_size(self.size)?;
        let path = |b: u8| b.is_ascii_graphic() && !b"\"\\'".contains(&b);
        if !self.pool.bytes().all(path) || self.pool.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(format!("{:?} is no path in an archive", self.pool));
        }
        Ok(())
    }
}
