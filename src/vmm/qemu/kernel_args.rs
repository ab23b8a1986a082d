//! The kernel's command line under QEMU: what boots fast and surely under emulation.

use crate::vmm::tuning::Console;
use fs_err as fs;
use memmap2::Mmap;
use serde::Deserialize;
use std::path::Path;

/// Major and minor version.
pub(super) type Release = (u32, u32);

/// From here on kernels use cmpxchg16b in ways that QEMU 7.2's emulation gets wrong now and then (seen as
/// random panics).
const CX16_TROUBLE: Release = (6, 12);

/// The command line. `tsc_khz` is set under emulation only.
pub(super) fn build(release: Option<Release>, tsc_khz: Option<u64>, console: Console) -> String {
    // panic=-1 resets at once, which ends a VM whose kernel panics before pvpanic is loaded.
    let words = match console {
        Console::Quiet => "quiet loglevel=4",
        // From the first line on: without it a kernel is silent until its serial driver is there.
        Console::All => "earlyprintk=ttyS0",
    };
    let mut args = format!("console=ttyS0 {words} panic=-1 firegopher.end=poweroff");
    if let Some(khz) = tsc_khz {
        // Calibration against an emulated timer hangs on a busy host; so does the timer's own check.
        args += &format!(" tsc_early_khz={khz} tsc=reliable no_timer_check");
        // Each of these saves time that only emulation makes noticeable. Nothing in an emulated CPU speculates.
        args += " cryptomgr.notests nokaslr mitigations=off rcupdate.rcu_expedited=1";
        args += " initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init";
        if release.is_some_and(|release| release >= CX16_TROUBLE) {
            args += " clearcpuid=cx16";
        }
    }
    args
}

/// The kernel's version: from the `kernel.json` that lies beside an unpacked kernel, else from its own banner.
pub(super) fn release(vmlinux: &Path) -> Option<Release> {
    #[derive(Deserialize)]
    struct Info {
        release: String,
    }
    if let Ok(bytes) = fs::read(vmlinux.with_file_name("kernel.json"))
        && let Ok(info) = serde_json::from_slice::<Info>(&bytes)
    {
        return parse(&info.release);
    }
    let file = fs::File::open(vmlinux).ok()?;
    // SAFETY: a kernel in the store is sealed. Were one on the host cut short meanwhile, reading it would
    // raise SIGBUS, as executing any file does.
    let bytes = unsafe { Mmap::map(&file) }.ok()?;
    banner(&bytes)
}

/// `Linux version 6.1.0-…` (init/version.c).
fn banner(bytes: &[u8]) -> Option<Release> {
    const START: &[u8] = b"Linux version ";
    let mut rest = bytes;
    loop {
        // SAFETY: both pointers and lengths are those of live slices. The C library's search is used because
        // this looks through tens of megabytes before a boot.
        let found =
            unsafe { libc::memmem(rest.as_ptr().cast(), rest.len(), START.as_ptr().cast(), START.len()) };
        if found.is_null() {
            return None;
        }
        let version = &rest[found.addr() - rest.as_ptr().addr() + START.len()..];
        if let Some(release) = parse(&String::from_utf8_lossy(&version[..version.len().min(32)])) {
            return Some(release);
        }
        rest = version;
    }
}

fn parse(release: &str) -> Option<Release> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_about_cx16() {
        let cx16 = |release| build(release, Some(1), Console::Quiet).contains("clearcpuid=cx16");
        assert!(!cx16(parse("6.1.0-56-cloud-amd64")));
        assert!(!cx16(parse("6.9.7")));
        assert!(cx16(parse("6.12.0-1-cloud-amd64")));
        assert!(cx16(parse("7.0-rc1")));
    }

    #[test]
    fn hardware_gets_no_arguments_meant_for_emulation() {
        let args = build(Some((6, 12)), None, Console::Quiet);
        assert!(
            !args.contains("tsc") && !args.contains("mitigations") && !args.contains("clearcpuid"),
            "{args}"
        );
    }

    #[test]
    fn a_console_for_all_is_not_quiet() {
        let args = build(None, None, Console::All);
        assert!(
            !args.contains("quiet") && !args.contains("loglevel") && args.contains("earlyprintk"),
            "{args}"
        );
    }

    #[test]
    fn our_own_arguments_pass_the_linter() {
        use crate::vmm::boot_args::{Machine, lint};
        for release in [None, Some((6, 1)), Some((6, 12))] {
            for tsc_khz in [None, Some(2_500_000)] {
                assert_eq!(lint(&build(release, tsc_khz, Console::Quiet), Machine::Qemu, true), []);
            }
        }
    }

    #[test]
    fn the_banner_is_found() {
        assert_eq!(banner(b"\x7fELF LinLinux version %s\0Linux version 6.12.4 (x)"), Some((6, 12)));
        assert_eq!(banner(b"nothing"), None);
    }
}
