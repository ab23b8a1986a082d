//! The VMM's jail: a fresh directory that becomes its root, its cgroups, and the removal of both.
//! Nothing in the directory can be written by the VMM, except the drives that the guest writes.

pub mod cgroup;
pub mod lease;
pub(in crate::vmm) mod link;
pub mod ranges;
mod remove;
mod strays;
mod usage;

pub use remove::remove_tree;
pub use usage::{Memory, Pids, Usage, usage};

use super::spec::{JailSpec, VmSpec, VmmBinary};
use crate::error::{Context, Error, Result};
use crate::name::VmId;
use fs_err as fs;
use link::Place;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `/dev/null` (Documentation/admin-guide/devices.txt).
const NULL: (u64, u64) = (1, 3);
/// `/dev/kvm`.
const KVM: (u64, u64) = (10, 232);

/// Where things are for the VMM: inside its root if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What QEMU is told of its firmware, if it would not choose that by itself.
    pub firmware: Option<PathBuf>,
    /// In the order of `VmSpec::drives`.
    pub drives: Vec<PathBuf>,
}

/// Stages `spec` into `jail.root`, which must not exist. Only a QEMU tree can be jailed this way.
pub(crate) fn stage(spec: &VmSpec, jail: &JailSpec) -> Result<Staged> {
    let VmmBinary::QemuTree(tree) = &spec.vmm else {
        return Err(Error::bug("only a VMM that brings its libraries can be moved into a jail"));
    };
    let root = &jail.root;
    let fail = || format!("cannot make the jail {}", root.display());
    // A QEMU that emulates opens /dev/null alone, and without it takes locks of processes for those of descriptors.
    check_place(root, spec.kvm)?;
    std::fs::DirBuilder::new().mode(0o755).create(root).or_failed("jail.make", fail)?;
    // The umask may have taken bits that the VMM needs to search it.
    let open = |dir: &Path| fs::set_permissions(dir, PermissionsExt::from_mode(0o755));
    open(root).or_failed("jail.make", fail)?;
    for dir in ["dev", "drives", "lib", "modules", "share"] {
        fs::create_dir(root.join(dir)).and_then(|()| open(&root.join(dir))).or_failed("jail.make", fail)?;
    }
    for file in ["ld.so", "qemu-system-x86_64"] {
        link::place(&tree.join(file), &root.join(file), Place::Shared)?;
    }
    for dir in ["lib", "modules", "share"] {
        link::place_all(&tree.join(dir), &root.join(dir))?;
    }
    node(&root.join("dev/null"), NULL, None)?;
    if spec.kvm {
        node(&root.join("dev/kvm"), KVM, Some(jail))?;
    }
    link::place(&spec.kernel, &root.join("kernel"), Place::Shared)?;
    link::place(&spec.initramfs, &root.join("initramfs"), Place::Shared)?;
    let mut drives = Vec::with_capacity(spec.drives.len());
    for (n, drive) in spec.drives.iter().enumerate() {
        let safe = drive.role.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !safe {
            return Err(Error::bug(format!("{:?} is no role for a drive", drive.role)));
        }
        let inside = Path::new("drives").join(format!("{n:02}-{}", drive.role));
        let how = if drive.read_only { Place::Shared } else { Place::Owned(jail) };
        link::place(&drive.path, &root.join(&inside), how)?;
        drives.push(Path::new("/").join(inside));
    }
    let firmware = firmware_of_tree(tree);
    Ok(Staged { kernel: "/kernel".into(), initramfs: "/initramfs".into(), firmware, drives })
}

/// qboot by name, if QEMU's tree has it under that one; else QEMU chooses by itself what its packages say.
pub(crate) fn firmware_of_tree(tree: &Path) -> Option<PathBuf> {
    const QBOOT: &str = "qboot.rom";
    tree.join("share").join(QBOOT).exists().then(|| QBOOT.into())
}

/// Whether a VMM could be executed in a jail at `root`, which need not exist, and open devices there if it needs any:
/// on a file system that is mounted noexec or nodev neither fails before it is tried.
///
/// # Errors
/// `jail.noexec`, `jail.nodev`.
pub fn check_place(root: &Path, devices: bool) -> Result<()> {
    let there = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let mounted =
        statvfs(there).or_failed("jail.make", || format!("cannot see how {} is mounted", there.display()))?;
    if mounted.flags().contains(FsFlags::ST_NOEXEC) {
        let text = format!(
            "{} is on a file system that is mounted noexec: no VMM can be executed in a jail there",
            there.display()
        );
        return Err(Error::host("jail.noexec", text).help(
            "keep FIREGOPHER_HOME on another file system, or mount this one with programs: \
             mount -o remount,exec MOUNT-POINT",
        ));
    }
    if !devices || !mounted.flags().contains(FsFlags::ST_NODEV) {
        return Ok(());
    }
    let text = format!(
        "{} is on a file system that is mounted nodev: no device opens in a jail there",
        there.display()
    );
    Err(Error::host("jail.nodev", text).help(
        "keep FIREGOPHER_HOME on another file system, or mount this one with devices: \
         mount -o remount,dev MOUNT-POINT",
    ))
}

/// What a VM's cgroups and the jailer's directory are called. Two homes may hold the same project; a uid is one VM's
/// on the whole host.
pub(in crate::vmm) fn name_of(id: &VmId, jail: &JailSpec) -> String {
    format!("{}-{}", id.as_str(), jail.uid)
}

/// Removes what a boot of `spec` staged: its cgroups and its directory, and whatever still runs in them. What is
/// gone already is no error, so this also follows a crash at any point.
pub fn clean(jail: &JailSpec) -> Result<()> {
    strays::kill(jail)?;
    cgroup::remove(&cgroup::journal(&jail.root))?;
    remove_tree(&jail.root)
}

/// A device node, for everybody or for the jail's owner alone.
fn node(path: &Path, (major, minor): (u64, u64), owner: Option<&JailSpec>) -> Result<()> {
    let mode = if owner.is_some() { 0o600 } else { 0o666 };
    let make = || -> std::io::Result<()> {
        mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(mode), makedev(major, minor))?;
        fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
        if let Some(jail) = owner {
            std::os::unix::fs::lchown(path, Some(jail.uid), Some(jail.gid))?;
        }
        Ok(())
    };
    make()
        .or_host("jail.device-node", || format!("cannot make the device node {}", path.display()))
        .map_err(|e| e.help("jails need CAP_MKNOD"))
}

#[cfg(test)]
mod tests;
