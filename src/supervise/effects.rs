//! Disks and ports a VM needs before it boots: volumes, the scratch disk, and the published ports.

use super::spec::SuperviseSpec;
use crate::error::{Context, Error, Result};
use crate::image::{Role, create_empty};
use crate::manifest::model::Port;
use crate::name::Name;
use crate::vmm::spec::NetSpec;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Binds every published port on the host. Without root QEMU does that itself, so there it is only tried: better
/// an error now than a VMM that dies at its start.
pub(super) fn bind_ports(spec: &SuperviseSpec) -> Result<Vec<(TcpListener, Port)>> {
    let bound = spec.ports.iter().map(|port| Ok((bind_port(port, &spec.vm)?, port.clone())));
    let bound = bound.collect::<Result<Vec<_>>>()?;
    match spec.vm_spec.net {
        NetSpec::Tap { .. } => Ok(bound),
        NetSpec::None | NetSpec::User { .. } => Ok(Vec::new()),
    }
}

/// Takes a host port for `vm`, for as long as the listener lives.
///
/// # Errors
/// `supervise.port`, with the reason: taken, not this host's address, not permitted.
pub fn bind_port(port: &Port, vm: &Name) -> Result<TcpListener> {
    let address = SocketAddr::new(port.address, port.host);
    TcpListener::bind(address).map_err(|e| {
        let what = match e.kind() {
            io::ErrorKind::AddrInUse => "is taken by another process",
            io::ErrorKind::AddrNotAvailable => "cannot be published: this host does not have that address",
            io::ErrorKind::PermissionDenied => "may only be published by root",
            _ => "cannot be published",
        };
        Error::failed("supervise.port", format!("port {address} of VM {vm} {what}"))
            .because(e)
            .help("end that process, or publish another host port: port HOST to=GUEST")
    })
}

/// Makes volumes that do not exist, checks those that do, and locks each for this VM alone. The locks last as
/// long as the returned files.
pub(super) fn lock_volumes(spec: &SuperviseSpec) -> Result<Vec<File>> {
    let mut locks = Vec::new();
    for volume in &spec.volumes {
        let subject = || format!("volume {} of VM {}", volume.name, spec.vm);
        if let Some(dir) = volume.path.parent() {
            private_dir(dir)?;
        }
        // Never through a link: the directory is ours, but the name comes from the manifest.
        let open = || {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&volume.path)
        };
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_volume(&volume.path, volume.size)?;
                open()
            }
            other => other,
        };
        let file = file.or_failed("supervise.volume", || format!("cannot open {}", subject()))?.into_file();
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::failed(
                    "supervise.volume-busy",
                    format!("{} is used by another VM", subject()),
                )
                .help("a volume belongs to one VM at a time: stop the other one first"));
            }
            Err(std::fs::TryLockError::Error(e)) => {
                return Err(
                    Error::failed("supervise.volume", format!("cannot lock {}", subject())).because(e)
                );
            }
        }
        let size =
            file.metadata().or_failed("supervise.volume", || format!("cannot size {}", subject()))?.len();
        if size != volume.size {
            let text = format!("{} has {size} bytes; the manifest says {}", subject(), volume.size);
            return Err(Error::usage("supervise.volume-size", text).help(
                "a volume keeps its size: write the old size into the manifest, \
                 or delete the volume and its data with `firegopher down --volumes`",
            ));
        }
        locks.push(file);
    }
    Ok(locks)
}

/// Makes a volume under another name first, so that one that exists is whole.
fn create_volume(path: &Path, size: u64) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let tmp = path.with_file_name(name);
    remove_file(&tmp).or_failed("supervise.volume", || format!("cannot replace {}", tmp.display()))?;
    create_empty(&tmp, size, Role::Volume)
        .and_then(|()| {
            // A link fails where a rename would replace: two VMs may be making the same volume.
            match fs::hard_link(&tmp, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
            .or_failed("supervise.volume", || format!("cannot make volume {}", path.display()))
        })
        .and_then(|()| fs::remove_file(&tmp).or_failed("supervise.volume", || "cannot finish a volume"))
        .inspect_err(|_| {
            let _ = remove_file(&tmp);
        })
}

/// Makes the scratch disk anew.
pub(super) fn create_scratch(spec: &SuperviseSpec) -> Result<()> {
    let (Some(path), Some(size)) = (scratch_path(spec), spec.scratch) else { return Ok(()) };
    remove_file(&path)
        .or_failed("supervise.scratch", || format!("cannot empty the root of VM {}", spec.vm))?;
    create_empty(&path, size, Role::Scratch)
}

/// Where the scratch disk is, if the VM has one.
pub(super) fn scratch_path(spec: &SuperviseSpec) -> Option<PathBuf> {
    spec.scratch?;
    spec.vm_spec.drives.iter().find(|d| d.role == "scratch").map(|d| d.path.clone())
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes a directory of mode 0700 with its parents.
pub(super) fn private_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .or_failed("supervise.directory", || format!("cannot make {}", dir.display()))
}
