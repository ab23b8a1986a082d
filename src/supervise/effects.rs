//! Disks and ports a VM needs before it boots: volumes, the scratch disk, and the published ports.

use super::process::{Process, Whereabouts};
use super::spec::{SuperviseSpec, VolumeSpec};
use crate::error::{Context, Error, Result};
use crate::image::{Role, create_empty};
use crate::manifest::model::Port;
use crate::name::Name;
use crate::units::Bytes;
use crate::vmm::spec::NetSpec;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::fs::File;
use std::io;
use std::net::TcpListener;
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
pub(super) fn bind_port(port: &Port, vm: &Name) -> Result<TcpListener> {
    TcpListener::bind(port.on_host()).map_err(|e| port_error(port, vm, e))
}

/// Why a port cannot be published.
pub fn port_error(port: &Port, vm: &Name, error: io::Error) -> Error {
    let (what, help) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "is taken by another process",
            "end that process (`ss -ltnp` names it), or publish another host port: port HOST to=GUEST",
        ),
        io::ErrorKind::AddrNotAvailable => (
            "cannot be published: this host does not have that address",
            "publish it on an address of this host, such as 127.0.0.1 or 0.0.0.0",
        ),
        io::ErrorKind::PermissionDenied => {
            ("may only be published by root", "publish a host port from 1024 on: port HOST to=GUEST")
        }
        _ => ("cannot be published", "publish another host port: port HOST to=GUEST"),
    };
    let text = format!("port {} of VM {vm} {what}", port.on_host());
    Error::failed("supervise.port", text).because(error).help(help)
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
        let file = match open_volume(volume) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                create_volume(&volume.path, volume.size)?;
                open_volume(volume)
            }
            other => other,
        };
        let file = file.or_failed("supervise.volume", || format!("cannot open {}", subject()))?;
        if !lock_volume(&file, &subject)? {
            return Err(busy(&subject));
        }
        check_size(&file, volume, &subject)?;
        locks.push(file);
    }
    Ok(locks)
}

/// Refuses volumes that `vm` could not take once the supervisors `ending` have ended. Makes and keeps nothing.
///
/// # Errors
/// `supervise.volume-size` and `supervise.volume-busy`, as a boot would.
pub fn check_volumes(vm: &Name, volumes: &[VolumeSpec], ending: &[Process]) -> Result<()> {
    for volume in volumes {
        let subject = || format!("volume {} of VM {vm}", volume.name);
        let file = match open_volume(volume) {
            // A boot makes it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.or_failed("supervise.volume", || format!("cannot open {}", subject()))?,
        };
        check_size(&file, volume, &subject)?;
        if !lock_volume(&file, &subject)? && !ending.iter().any(|process| has_open(process, &file)) {
            return Err(busy(&subject));
        }
    }
    Ok(())
}

/// Never through a link: the directory is ours, but the name comes from the manifest.
fn open_volume(volume: &VolumeSpec) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    Ok(options.open(&volume.path)?.into_file())
}

/// Whether it could be locked.
fn lock_volume(file: &File, subject: &dyn Fn() -> String) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(e)) => {
            Err(Error::failed("supervise.volume", format!("cannot lock {}", subject())).because(e))
        }
    }
}

fn check_size(file: &File, volume: &VolumeSpec, subject: &dyn Fn() -> String) -> Result<()> {
    let meta = file.metadata().or_failed("supervise.volume", || format!("cannot size {}", subject()))?;
    if meta.len() == volume.size {
        return Ok(());
    }
    let (has, wanted) = (Bytes(meta.len()), Bytes(volume.size));
    let text = format!("{} has {has}; the manifest says {wanted}", subject());
    Err(Error::usage("supervise.volume-size", text).help(
        "a volume keeps its size: write the old size into the manifest, \
         or delete the volume and its data with `firegopher down --volumes`",
    ))
}

fn busy(subject: &dyn Fn() -> String) -> Error {
    Error::failed("supervise.volume-busy", format!("{} is used by another VM", subject()))
        .help("a volume belongs to one VM at a time: stop the other one first")
}

/// Whether a supervisor holds a volume.
pub fn has_volume_open(supervisor: &Process, volume: &VolumeSpec) -> bool {
    open_volume(volume).is_ok_and(|file| has_open(supervisor, &file))
}

/// Whether a process has this file open; false too for one that is gone or another user's. Only a supervisor that has
/// locked a volume keeps it open. (/proc/locks would name the holder, but misses some while others come and go.)
fn has_open(process: &Process, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let pid = match process.find() {
        Whereabouts::Here(pid) => pid,
        Whereabouts::Gone => return false,
        // Nobody can look at its files from here; the boot itself finds out.
        Whereabouts::Hidden => return true,
    };
    let (Ok(own), Ok(open)) = (file.metadata(), std::fs::read_dir(format!("/proc/{pid}/fd"))) else {
        return false;
    };
    let mut seen = open.flatten().filter_map(|fd| std::fs::metadata(fd.path()).ok());
    seen.any(|meta| meta.ino() == own.ino() && meta.dev() == own.dev())
}

/// Makes a volume under another name first, so that one that exists is whole.
fn create_volume(path: &Path, size: u64) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Not by pid: another pid namespace may have the same.
    name.push(format!(".{:016x}.tmp", fastrand::u64(..)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_volume_is_refused_before_anything_is_stopped_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let vm = Name::new("web").unwrap();
        let volume = |size| VolumeSpec { name: "data".to_owned(), path: dir.path().join("data.ext4"), size };
        check_volumes(&vm, &[volume(4096)], &[]).unwrap();
        assert!(!dir.path().join("data.ext4").exists(), "a check makes nothing");
        fs::write(dir.path().join("data.ext4"), [0; 4096]).unwrap();
        check_volumes(&vm, &[volume(4096)], &[]).unwrap();
        assert_eq!(check_volumes(&vm, &[volume(8192)], &[]).unwrap_err().code(), "supervise.volume-size");
        // The lock is held by whoever has the file as it was opened here.
        let held = File::open(dir.path().join("data.ext4")).unwrap();
        held.try_lock().unwrap();
        let mut holder = Command::new("sleep").arg("60").stdin(held).spawn().unwrap();
        let holds = Process::of(holder.id() as i32).unwrap();
        let other = Process::of(1).unwrap();
        let busy = |ending: &[Process]| check_volumes(&vm, &[volume(4096)], ending).map_err(|e| e.code());
        assert_eq!(busy(&[]), Err("supervise.volume-busy"));
        assert_eq!(
            busy(std::slice::from_ref(&other)),
            Err("supervise.volume-busy"),
            "held by one that stays"
        );
        assert_eq!(busy(&[other.clone(), holds.clone()]), Ok(()), "held by one that ends before");
        std::os::unix::fs::symlink("data.ext4", dir.path().join("link")).unwrap();
        let link = VolumeSpec { path: dir.path().join("link"), ..volume(4096) };
        assert_eq!(check_volumes(&vm, &[link], &[holds]).unwrap_err().code(), "supervise.volume");
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(busy(&[]), Ok(()), "nobody holds it any more");
    }
}
