//! The kernel's file systems: the three that boot needs, and those the workload expects to find.

use crate::console;
use crate::failure::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// One mount of a file system that has no device.
struct Pseudo {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

const DEV: Pseudo = Pseudo { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=0755" };
const PROC: Pseudo = Pseudo { kind: "proc", at: "/proc", flags: SAFE, data: "" };
const SYS: Pseudo = Pseudo { kind: "sysfs", at: "/sys", flags: SAFE, data: "" };

/// Mounted if the kernel can; a failure is a warning.
const OPTIONAL: &[Pseudo] = &[
    Pseudo {
        kind: "devpts",
        at: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        // gid 5 is tty in Debian and its relatives.
        data: "gid=5,mode=0620,ptmxmode=0666",
    },
    Pseudo {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=1777",
    },
    Pseudo { kind: "mqueue", at: "/dev/mqueue", flags: SAFE, data: "" },
    Pseudo {
        kind: "hugetlbfs",
        at: "/dev/hugepages",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "",
    },
    Pseudo { kind: "cgroup2", at: "/sys/fs/cgroup", flags: SAFE, data: "" },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

impl Pseudo {
    fn mount(&self) -> Result<()> {
        if let Err(error) = fs::create_dir(self.at)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).context(|| format!("creating {}", self.at));
        }
        match mount(Some(self.kind), self.at, Some(self.kind), self.flags, Some(self.data)) {
            // The kernel mounts devtmpfs by itself when it is configured to.
            Err(Errno::EBUSY) => Ok(()),
            other => other.context(|| format!("mounting {} on {}", self.kind, self.at)),
        }
    }
}

/// /dev, /proc and /sys of the initramfs. All are tried: the console needs /dev even if another one fails.
pub fn early() -> Result<()> {
    let dev = DEV.mount();
    console::attach();
    dev?;
    PROC.mount()?;
    SYS.mount()
}

/// What the workload sees, once the root is entered. Returns warnings.
pub fn late() -> Result<Vec<String>> {
    for needed in [DEV, PROC, SYS] {
        needed.mount()?;
    }
    let mut warnings = mount_what_can_be(OPTIONAL);
    for (target, link) in LINKS {
        if let Err(error) = symlink(target, link)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            warnings.push(format!("linking {link} to {target}: {error}"));
        }
    }
    warnings.extend(run_directory().err().map(|f| f.to_string()));
    warnings.extend(temporary_directory(Path::new("/tmp")).err().map(|f| f.to_string()));
    Ok(warnings)
}

/// Mounts each by itself; returns what went wrong.
fn mount_what_can_be(optional: &[Pseudo]) -> Vec<String> {
    optional.iter().filter_map(|pseudo| pseudo.mount().err().map(|failure| failure.to_string())).collect()
}

/// A tmpfs on /run, unless the image or the workload put files there: those stay visible (and writable, as all of
/// the root is).
fn run_directory() -> Result<()> {
    let occupied = fs::read_dir("/run").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name() != "lock" && entry.file_name() != "mount")
    });
    if !occupied {
        let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
        Pseudo { kind: "tmpfs", at: "/run", flags, data: "mode=0755" }.mount()?;
    }
    temporary_directory(Path::new("/run/lock"))
}

/// Makes a directory that everybody may write to, if it is lacking. An existing one keeps its mode.
fn temporary_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o1777)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .context(|| format!("creating {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_mount_that_fails_is_a_warning_and_the_others_are_made() {
        if !crate::testing::root("mounting") {
            return;
        }
        let (at, dir) = ("/tmp", MsFlags::empty());
        let on_thread = move || {
            use nix::sched::{CloneFlags, unshare};
            // Of this thread alone, and gone with it.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let warnings = mount_what_can_be(&[
                Pseudo { kind: "no-such-fs", at, flags: dir, data: "" },
                Pseudo { kind: "tmpfs", at: "/proc/no/directory/here", flags: dir, data: "" },
                Pseudo { kind: "tmpfs", at, flags: dir, data: "mode=1711" },
            ]);
            let mode = fs::metadata(at).unwrap().permissions().mode() & 0o7777;
            (warnings, mode)
        };
        let (warnings, mode) = std::thread::spawn(on_thread).join().unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("mounting no-such-fs on /tmp"), "{warnings:?}");
        assert!(warnings[1].contains("creating /proc/no/directory/here"), "{warnings:?}");
        assert_eq!(mode, 0o1711, "the last one was mounted");
    }

    #[test]
    fn a_lacking_tmp_is_made_sticky_and_an_existing_one_keeps_its_mode() {
        let dir = crate::testing::TempDir::new();
        let tmp = dir.path().join("tmp");
        temporary_directory(&tmp).unwrap();
        assert_eq!(fs::metadata(&tmp).unwrap().permissions().mode() & 0o7777, 0o1777);
        fs::set_permissions(&tmp, Permissions::from_mode(0o700)).unwrap();
        temporary_directory(&tmp).unwrap();
        assert_eq!(fs::metadata(&tmp).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
