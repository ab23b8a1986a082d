//! What a VMM is told: plain data, made by the jail step and handed to the supervisor.

use super::tuning::Tuning;
use crate::name::VmId;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// One boot of one VM. Paths are absolute host paths; the back end moves them into its jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Names the jail, the tap and the cgroup.
    pub id: VmId,
    /// Which VMM and where it is.
    pub vmm: VmmBinary,
    /// Hardware KVM, else TCG.
    pub kvm: bool,
    /// ELF vmlinux.
    pub kernel: PathBuf,
    /// gzip cpio.
    pub initramfs: PathBuf,
    /// How its machine differs from the plain one.
    #[serde(default)]
    pub tuning: Tuning,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// In the order the guest sees them: vda first.
    pub drives: Vec<Drive>,
    /// The network device.
    pub net: NetSpec,
    /// Jail the VMM: `None` without root.
    pub jail: Option<JailSpec>,
}

/// Which VMM and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmmBinary {
    /// The store's QEMU tree, as made by the fetch step: `ld.so`, `lib/`, `qemu-system-x86_64`, firmware.
    QemuTree(PathBuf),
    /// A `qemu-system-x86_64` installed on the host (not chrooted: its libraries are the host's).
    QemuPath {
        /// The program.
        program: PathBuf,
        /// qboot, where this one keeps its data.
        firmware: PathBuf,
    },
    /// Firecracker and its jailer installed on the host; runs jailed only.
    Firecracker {
        /// The VMM; its file's name contains `firecracker`, as the jailer wants it.
        firecracker: PathBuf,
        /// What jails and starts it.
        jailer: PathBuf,
    },
}

/// Where the two programs are in a directory of Firecracker's: the VMM and the jailer.
pub fn firecracker_programs(dir: &Path) -> [PathBuf; 2] {
    ["firecracker", "jailer"].map(|name| dir.join(name))
}

/// A disk image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// `base`, `workload0`, `scratch`, `volume-NAME`: names the file in the jail.
    pub role: String,
    /// The image.
    pub path: PathBuf,
    /// Attached read-only; may be a shared store object.
    pub read_only: bool,
}

/// How the guest's eth0 is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetSpec {
    /// No network device.
    None,
    /// A tap in the project's network namespace.
    Tap {
        /// ≤ 15 bytes.
        name: String,
        /// The host side's address inside the namespace (prefix length 30).
        host: Ipv4Addr,
        /// The guest's address.
        guest: Ipv4Addr,
        /// The guest's MAC.
        mac: [u8; 6],
    },
    /// QEMU user networking, restricted, with these published ports.
    User {
        /// Host address, host port, guest port.
        forwards: Vec<crate::net::Port>,
        /// The guest's MAC.
        mac: [u8; 6],
    },
}

/// The VMM's jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    /// Directory that becomes `/`; must not exist beforehand, removed after the VM's end.
    pub root: PathBuf,
    /// Leased to this VM alone.
    pub uid: u32,
    /// Equals the uid.
    pub gid: u32,
}
