//! The end of the machine. Whatever went wrong before, this is reached and does not return.

use crate::console;
use crate::processes::{self, Reaped};
use crate::volumes;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How the machine ends, as the VMM needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// ACPI power-off (QEMU).
    #[default]
    PowerOff,
    /// A reset, which Firecracker takes for the end on x86.
    Reset,
}

impl End {
    /// From `firegopher.end=` on the kernel command line.
    pub fn from_command_line(text: &str) -> End {
        match text.split_whitespace().rev().find_map(|word| word.strip_prefix("firegopher.end=")) {
            Some("reset") => End::Reset,
            _ => End::PowerOff,
        }
    }
}

/// Ends all processes, writes volumes back, and ends the machine. The root is not synced: it is thrown away.
pub fn now(end: End, mounted: &[PathBuf]) -> ! {
    processes::signal_all(libc::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match processes::reap() {
            Reaped::Childless => break,
            Reaped::Child(..) => {}
            Reaped::Running if Instant::now() >= deadline => break,
            Reaped::Running => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    for problem in volumes::unmount_all(mounted) {
        console::say(&problem);
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(errno) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
        console::say(&format!("making the root read-only: {}", errno.desc()));
    }
    machine(end)
}

/// Ends the machine at once.
pub fn machine(end: End) -> ! {
    let modes = match end {
        End::PowerOff => [RebootMode::RB_POWER_OFF, RebootMode::RB_AUTOBOOT],
        End::Reset => [RebootMode::RB_AUTOBOOT, RebootMode::RB_POWER_OFF],
    };
    for mode in modes {
        let Err(errno) = reboot(mode);
        console::say(&format!("ending the machine: {}", errno.desc()));
    }
    loop {
        // PID 1 must not return: the kernel would panic.
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, as_pid_1_then, root};
    use nix::sys::signal::Signal;
    use nix::sys::statvfs::{FsFlags, statvfs};
    use nix::sys::wait::WaitStatus;
    use nix::unistd::{chdir, chroot};
    use std::path::Path;

    #[test]
    fn the_root_is_read_only_and_volumes_are_unmounted_before_the_machine_ends() {
        if !root("a PID namespace") {
            return;
        }
        let dir = TempDir::new();
        let at = dir.path();
        let tmpfs = |at: &Path| {
            std::fs::create_dir_all(at).unwrap();
            mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        };
        let read_only = |at: &Path| statvfs(at).unwrap().flags().contains(FsFlags::ST_RDONLY);
        for busy in [false, true] {
            // PID 1 mounts them; they are looked at from outside of its PID namespace.
            let (ended, whole) = as_pid_1_then(
                || {
                    tmpfs(at);
                    tmpfs(&at.join("data"));
                    std::fs::write(at.join("data/file"), "x").unwrap();
                    chroot(at).unwrap();
                    chdir(if busy { "/data" } else { "/" }).unwrap();
                    assert!(!read_only(Path::new("/")));
                    now(End::PowerOff, &[PathBuf::from("/data")])
                },
                || {
                    let data = at.join("data");
                    let gone = !data.join("file").exists();
                    read_only(at) && if busy { read_only(&data) && !gone } else { gone }
                },
            );
            assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGINT, _)), "{ended:?}");
            assert!(whole, "in use: {busy}");
        }
    }

    #[test]
    fn the_command_line_decides_and_the_last_word_counts() {
        assert_eq!(End::from_command_line("console=ttyS0 firegopher.end=reset"), End::Reset);
        assert_eq!(End::from_command_line("firegopher.end=reset firegopher.end=poweroff\n"), End::PowerOff);
        assert_eq!(End::from_command_line(""), End::PowerOff);
        assert_eq!(End::from_command_line("firegopher.end=nonsense"), End::PowerOff);
    }
}
