//! The typed model of a manifest. Everything here has been checked: later code cannot see a bad value.
//! Defaults are filled in; spans stay in the decoder.

use super::Location;
use crate::name::Name;
use crate::packages::PackageSet;
use crate::vmm::firecracker::version::Version;
use crate::vmm::tuning::Tuning;
use firegopher_protocol::Limit;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::net::Port;

/// A whole manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The canonical directory that holds the manifest; relative paths start here.
    pub dir: PathBuf,
    /// The manifest's name in it.
    pub file: OsString,
    /// The project's name, if the manifest gives one.
    pub project: Option<Name>,
    /// The VMs in the order of the manifest.
    pub vms: Vec<Vm>,
}

impl Manifest {
    /// Where it was read from.
    pub fn location(&self) -> Location {
        Location::in_dir(&self.dir).with_file(&self.file)
    }
}

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Unique in the manifest.
    pub name: Name,
    /// Where the kernel comes from.
    pub kernel: KernelSource,
    /// Where the base image comes from.
    pub image: ImageSource,
    /// Which VMM boots it, and where that comes from.
    pub vmm: VmmSource,
    /// What `vmm "auto"` means on hosts that differ from this one; the lock covers it, too.
    pub vmm_elsewhere: Option<VmmSource>,
    /// What is placed over the base image, in order.
    pub workloads: Vec<Workload>,
    /// The argument vector; never split. Empty only while an OCI image's own program is not known.
    pub run: Vec<String>,
    /// Absolute path in the guest; the OCI image's or `/` unless set.
    pub workdir: Option<Workdir>,
    /// Whom the workload runs as; the OCI image's user or root unless set.
    pub user: Option<User>,
    /// Plain environment, in the order of the manifest.
    pub env: Vec<(String, String)>,
    /// Values taken from the host at boot and never stored.
    pub secrets: Vec<Secret>,
    /// Virtual CPUs, 1 to 32.
    pub cpus: u32,
    /// Guest memory in bytes: a multiple of 1 MiB, at least 64 MiB.
    pub memory: u64,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Where `ports` is empty, those that an OCI image exposes are published.
    pub exposed: bool,
    /// What may leave the guest.
    pub egress: Egress,
    /// Disks that outlive the VM.
    pub volumes: Vec<Volume>,
    /// What the writable layer of the root is made of.
    pub root: Root,
    /// When the workload is started again after its end.
    pub restart: Restart,
    /// Time between SIGTERM and SIGKILL; 10 s unless set.
    #[serde(with = "millis")]
    pub grace: Duration,
    /// Time in which the guest must report; 60 s unless set.
    #[serde(with = "millis")]
    pub boot_timeout: Duration,
    /// The guest's host name; the VM's name unless set.
    pub hostname: String,
    /// Kernel parameters of the guest, in order: a path below /proc/sys and its text.
    pub sysctls: Vec<(String, String)>,
    /// Resource limits of the workload's processes, each resource at most once.
    pub limits: Vec<Limit>,
    /// Whether no program may give its user more than the user has.
    pub no_new_privileges: bool,
    /// How its machine differs from the plain one.
    pub tuning: Tuning,
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelSource {
    /// A Debian image package or a metapackage that depends on one; `linux-image-cloud-amd64` unless set.
    Debian(PackageSet),
    /// A vmlinux or bzImage on this host, without modules.
    Path(PathBuf),
    /// The same, to be downloaded.
    Url(UrlSource),
}

/// A file to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct UrlSource {
    /// `http`, `https` or `file`; mirrors of the same bytes, tried in this order. Never empty.
    pub urls: Vec<String>,
    /// What the download must have: 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// The file to take out of a downloaded tar or zip.
    pub member: Option<String>,
    /// The most bytes that are taken where no pin says how many there are; else what its use allows.
    pub max: Option<u64>,
}

impl UrlSource {
    /// The first URL, by which the asset is known.
    pub fn url(&self) -> &str {
        self.urls.first().map(String::as_str).unwrap_or_default()
    }

    /// The name of the file that is wanted, without directories.
    pub fn file_name(&self) -> &str {
        let path = match &self.member {
            Some(member) => member,
            None => self.url().split('?').next().unwrap_or_default(),
        };
        path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }
}

impl std::fmt::Display for UrlSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url())?;
        match &self.member {
            Some(member) => write!(f, " ({member})"),
            None => Ok(()),
        }
    }
}

/// Where a base image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// The closure of these packages and of `manifest::BASE_PACKAGES`.
    Debian(PackageSet),
    /// On this host a tar (any compression), zip or ext4 file, or a directory.
    Path {
        /// The file or directory.
        path: PathBuf,
        /// Keep the mode bits of a directory instead of 0755/0644.
        keep_modes: bool,
    },
    /// A file of these kinds, to be downloaded.
    Url(UrlSource),
    /// An image of a registry, by its reference as written.
    Oci(String),
    /// An OCI layout or archive, or a docker archive, on this host.
    OciPath {
        /// Directory or tar.
        path: PathBuf,
        /// Which of several images.
        tag: Option<String>,
    },
}

/// Which VMM, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmmSource {
    /// The best one this host can run.
    Auto,
    /// QEMU's microvm machine out of Debian packages in the store.
    Qemu,
    /// An explicit `qemu-system-x86_64` on this host.
    QemuPath(PathBuf),
    /// Firecracker and its jailer.
    Firecracker(Firecracker),
    /// The same where the host's KVM has hardware behind it, else QEMU.
    AutoFirecracker(Firecracker),
}

/// Which Firecracker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Firecracker {
    /// Where it comes from.
    pub from: FirecrackerFrom,
    /// What it must say that it is.
    pub version: Option<Version>,
}

/// Where Firecracker and its jailer come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirecrackerFrom {
    /// A directory on this host that holds `firecracker` and `jailer`.
    Dir(PathBuf),
    /// The archive of a release, to be downloaded.
    Release(UrlSource),
}

/// A tree placed over the base image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Workload {
    /// Directory, zip, tar[.gz|.xz|.zst] or single file.
    pub source: WorkloadFrom,
    /// Absolute path in the guest; a directory, or for a single file its own path unless it ends in '/'.
    pub to: String,
    /// Numeric owner of everything, 0:0 unless set; only for directories and single files.
    pub owner: (u32, u32),
    /// Keep the mode bits of a directory instead of 0755/0644.
    pub keep_modes: bool,
    /// gitignore patterns of what stays out; only for directories.
    pub ignore: Vec<String>,
    /// A file of such patterns, relative to the manifest; those of its name beneath it count, too, as git has it.
    pub ignore_from: Option<PathBuf>,
}

/// Where a workload comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadFrom {
    /// On this host; as written, relative to the manifest.
    Path(PathBuf),
    /// An archive or single file, to be downloaded.
    Url(UrlSource),
}

impl std::fmt::Display for WorkloadFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WorkloadFrom::Path(path) => path.display().fmt(f),
            WorkloadFrom::Url(source) => source.fmt(f),
        }
    }
}

/// Where a workload starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workdir {
    /// The manifest says so: it must be there.
    Own(String),
    /// The OCI image says so: it is made if it is missing.
    Image(String),
}

/// Whom the workload runs as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum User {
    /// By name; created in the guest if the image lacks it. `root` unless set.
    Name(String),
    /// By number; the gid equals the uid unless set.
    Id {
        /// Numeric user id.
        uid: u32,
        /// Numeric group id.
        gid: u32,
    },
    /// As a container image says it: no manifest can.
    Image {
        /// A name or a number of the image's own passwd.
        user: String,
        /// A name or a number of its group file.
        group: Option<String>,
    },
}

/// An environment variable whose value comes from the host at boot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Secret {
    /// The variable's name in the guest.
    pub name: String,
    /// The host's environment variable that holds the value.
    pub env: String,
}

/// What may leave the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Nothing.
    None,
}

/// A disk that outlives the VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Volume {
    /// Unique in the project.
    pub name: Name,
    /// Absolute mount point in the guest.
    pub at: String,
    /// Size in bytes: a multiple of 4096, at least 32 MiB.
    pub size: u64,
}

/// The writable layer of the root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// A sparse disk of this many bytes, empty at every boot; 2 GiB unless set.
    Scratch(u64),
    /// The guest's memory.
    Tmpfs,
}

/// When a workload that ended is booted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    No,
    /// After anything but exit code 0, at most `max` times in a row (`None`: without limit).
    OnFailure {
        /// Restarts in a row before giving up.
        max: Option<u32>,
    },
    /// After every end, at most `max` times in a row.
    Always {
        /// Restarts in a row before giving up.
        max: Option<u32>,
    },
}

mod millis {
    use serde::Serializer;
    use std::time::Duration;
    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(d.as_millis() as u64)
    }
}
