//! Lays out a jail for the jailer: `PROGRAM/ID/root` with every artifact in it, the control socket and the log.

use crate::error::{Context, Error, Result};
use crate::vmm::jail::link::{Place, place};
use crate::vmm::jail::name_of;
use crate::vmm::spec::{JailSpec, VmSpec};
use fs_err as fs;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Inside the jail.
pub(super) const CONFIG: &str = "config.json";
/// The CPU template, if there is one.
pub(super) const CPU: &str = "cpu.json";
/// The VMM's own socket for vsock; the guest's connections to port N go to this name with `_N`.
pub(super) const VSOCK: &str = "v.sock";
/// The API's socket, where the jailer has made a directory for it.
pub(super) const API_SOCKET: &str = "run/api.sock";
/// A FIFO: bounded, and unlike a file it cannot fill a disk.
pub(super) const LOG: &str = "log";
/// Another one.
pub(super) const METRICS: &str = "metrics";
/// Copying this much is worth a word.
const NOTABLE: u64 = 1 << 20;

/// A jail that the jailer can be started on.
pub(super) struct Staged {
    /// The directory that becomes `/`, pinned: its name inside the jail base is ours, its contents are not.
    pub root: OwnedFd,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// In the order of `VmSpec::drives`.
    pub drives: Vec<PathBuf>,
    /// Where the guest's control connection arrives.
    pub control: UnixListener,
    /// What the VMM logs.
    pub log: OwnedFd,
    /// Where it flushes its metrics to.
    pub metrics: OwnedFd,
    /// Bytes of the largest file that the VMM may write.
    pub largest: u64,
    pub warnings: Vec<String>,
}

/// Where the jailer makes its jail beneath `base`.
pub(super) fn root_of(base: &Path, program: &Path, id: &str) -> PathBuf {
    base.join(program.file_name().unwrap_or_default()).join(id).join("root")
}

/// Stages `spec` into `jail.root`, which must not exist. `control_port` is where the guest connects to.
pub(super) fn stage(spec: &VmSpec, jail: &JailSpec, program: &Path, control_port: u32) -> Result<Staged> {
    let fail = || format!("cannot make the jail {}", jail.root.display());
    safe_parents(&jail.root)?;
    let root = root_of(&jail.root, program, &name_of(&spec.id, jail));
    let levels = [Some(jail.root.as_path()), root.ancestors().nth(2), root.parent(), Some(&root)];
    for dir in levels.into_iter().flatten() {
        std::fs::DirBuilder::new().mode(0o700).create(dir).or_failed("jail.make", fail)?;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let pinned = open(&root, flags, Mode::empty()).or_failed("jail.make", fail)?;
    let drives = root.join("drives");
    fs::create_dir(&drives)
        .and_then(|()| fs::set_permissions(&drives, PermissionsExt::from_mode(0o755)))
        .or_failed("jail.make", fail)?;

    let mut warnings = Vec::new();
    let mut put = |from: &Path, to: &Path, how| -> Result<PathBuf> {
        let copied = place(from, &root.join(to), how)?;
        if copied >= NOTABLE {
            warnings.push(format!(
                "{} is on another file system than the jail: {} MiB were copied",
                from.display(),
                copied >> 20
            ));
        }
        Ok(Path::new("/").join(to))
    };
    let kernel = put(&spec.kernel, Path::new("kernel"), Place::Shared)?;
    let initramfs = put(&spec.initramfs, Path::new("initramfs"), Place::Shared)?;
    let mut inside = Vec::with_capacity(spec.drives.len());
    let mut largest = 0;
    for (n, drive) in spec.drives.iter().enumerate() {
        let safe = drive.role.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !safe {
            return Err(Error::bug(format!("{:?} is no role for a drive", drive.role)));
        }
        let name = PathBuf::from(format!("drives/{n:02}-{}", drive.role));
        let how = if drive.read_only { Place::Shared } else { Place::Owned(jail) };
        inside.push(put(&drive.path, &name, how)?);
        if !drive.read_only {
            largest = largest.max(fs::metadata(&drive.path).or_failed("jail.place", fail)?.len());
        }
    }
    let control =
        listen(&pinned, jail, control_port).or_failed("jail.socket", || "cannot make the control socket")?;
    let pipe =
        |name| fifo(&pinned, name, jail).or_failed("jail.log", || format!("cannot make the VMM's {name}"));
    let (log, metrics) = (pipe(LOG)?, pipe(METRICS)?);
    Ok(Staged { root: pinned, kernel, initramfs, drives: inside, control, log, metrics, largest, warnings })
}

/// Writes a file of the configuration: readable by the VMM, not its own.
pub(super) fn write_config(root: &OwnedFd, name: &str, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let path = in_root(root, name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_permissions(PermissionsExt::from_mode(0o444))?;
        io::Write::write_all(&mut file, bytes)
    };
    write().or_failed("jail.config", || "cannot write the VMM's configuration")
}

/// A path that leads through a descriptor: short enough for sockets, and past every name above it.
pub(super) fn in_root(root: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", root.as_raw_fd()))
}

/// Every directory on the way must belong to root and be closed to others, or somebody could exchange the jail.
fn safe_parents(base: &Path) -> Result<()> {
    let parent = base.parent().unwrap_or(base);
    let parent = parent
        .canonicalize()
        .or_failed("jail.make", || format!("cannot make a jail in {}", parent.display()))?;
    for dir in parent.ancestors() {
        let meta =
            fs::symlink_metadata(dir).or_failed("jail.make", || format!("cannot stat {}", dir.display()))?;
        let open = meta.mode() & 0o022 != 0 && meta.mode() & libc::S_ISVTX == 0;
        if meta.uid() != 0 || open {
            let text = format!("{} can be changed by others than root: no place for a jail", dir.display());
            return Err(Error::host("jail.unsafe-parent", text)
                .help("keep FIREGOPHER_HOME beneath directories that only root can write"));
        }
    }
    Ok(())
}

/// The VMM connects to it, so it is the VMM's; nobody else gets through the directories above.
fn listen(root: &OwnedFd, jail: &JailSpec, port: u32) -> io::Result<UnixListener> {
    let name = format!("{VSOCK}_{port}");
    let listener = UnixListener::bind(in_root(root, &name))?;
    give(root, &name, jail)?;
    Ok(listener)
}

fn fifo(root: &OwnedFd, name: &str, jail: &JailSpec) -> io::Result<OwnedFd> {
    nix::unistd::mkfifo(&in_root(root, name), Mode::from_bits_truncate(0o600))?;
    give(root, name, jail)?;
    // For writing too: it counts as closed by its writers otherwise, before the VMM has opened it.
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(root, name, flags, Mode::empty())?)
}

fn give(root: &OwnedFd, name: &str, jail: &JailSpec) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(jail.uid)), Some(Gid::from_raw(jail.gid)));
    nix::unistd::fchownat(root, name, uid, gid, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(())
}
