//! What there is room for: devices in a machine, and a guest's memory on this host.

use super::firecracker::version::Version;
use crate::error::{Error, Result};

/// What a VM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's microvm.
    Qemu,
    /// Firecracker of this version.
    Firecracker(Version),
}

/// virtio-mmio transports of a microvm with its second I/O APIC, which acpi=on brings.
pub(super) const TRANSPORTS: usize = 24;
/// Interrupts that Firecracker has for devices: 5 to 23 (its `layout.rs` for x86_64).
const INTERRUPTS: usize = 19;
/// Devices of every VM besides drives: network, control and random numbers.
const OTHERS: usize = 3;

impl Machine {
    fn room(self) -> usize {
        match self {
            Machine::Qemu => TRANSPORTS,
            // What tells guests of snapshots takes an interrupt each: VMGenID since 1.8, VMClock since 1.15.
            Machine::Firecracker(version) => {
                let takes = |since: (u32, u32)| usize::from((version.major, version.minor) >= since);
                INTERRUPTS - takes((1, 8)) - takes((1, 15))
            }
        }
    }
}

/// Whether `machine` has room for so many drives, and for a balloon if there is one.
///
/// # Errors
/// `vmm.too-many-devices`.
pub fn check_devices(machine: Machine, drives: usize, balloon: bool) -> Result<()> {
    let room = machine.room() - OTHERS - usize::from(balloon);
    if drives <= room {
        return Ok(());
    }
    let what = match machine {
        Machine::Qemu => "QEMU's microvm".to_owned(),
        Machine::Firecracker(version) => format!("Firecracker {version}"),
    };
    let others = if balloon {
        "network, control, random numbers and balloon"
    } else {
        "network, control and random numbers"
    };
    Err(Error::usage("vmm.too-many-devices", format!("{drives} drives are more than {what} has room for"))
        .help(format!(
            "at most {room} fit beside {others}; base, workload and scratch disk are drives as volumes are"
        )))
}

/// Whether this host could ever hold so much guest memory, in bytes. Guests may be promised more than is free, but not
/// one of them more than there is.
///
/// # Errors
/// `vmm.memory`.
pub fn check_memory(memory: u64) -> Result<()> {
    match host_memory() {
        Some(total) if memory > total => {
            let text = format!(
                "{} MiB of guest memory are more than this host has: {} MiB, swap included",
                memory >> 20,
                total >> 20
            );
            Err(Error::host("vmm.memory", text).help("give the VM less with `memory`"))
        }
        _ => Ok(()),
    }
}

/// The memory that this host has, swap included, in bytes; `None` if it does not say.
pub(super) fn host_memory() -> Option<u64> {
    total(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// Memory and swap of proc(5)'s meminfo, in bytes; `None` if it does not say.
fn total(meminfo: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((field("MemTotal")? + field("SwapTotal").unwrap_or(0)) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_for_each_vmm_and_version() {
        let most =
            |machine| (0..30).take_while(|drives| check_devices(machine, *drives, false).is_ok()).count() - 1;
        let version = |text: &str| Machine::Firecracker(text.parse().unwrap());
        assert_eq!(most(Machine::Qemu), 21);
        assert_eq!(most(version("1.6.0")), 16);
        assert_eq!(most(version("1.8.0")), 15);
        assert_eq!(most(version("1.16.1")), 14);
        check_devices(version("1.16.1"), 13, true).unwrap();
        let error = check_devices(version("1.16.1"), 14, true).unwrap_err();
        assert_eq!(error.code(), "vmm.too-many-devices");
        assert_eq!(error.to_string(), "14 drives are more than Firecracker 1.16.1 has room for");
        assert!(error.help_text().unwrap().contains("at most 13 fit beside"), "{error:?}");
    }

    #[test]
    fn only_more_memory_than_there_is_at_all_is_refused() {
        let meminfo = "MemTotal:       24098432 kB\nMemFree:         2000 kB\nSwapTotal:       1048576 kB\n";
        assert_eq!(total(meminfo), Some((24_098_432 + 1_048_576) << 10));
        assert_eq!(total("MemFree: 5 kB\n"), None);
        let here = total(&fs_err::read_to_string("/proc/meminfo").unwrap()).unwrap();
        check_memory(here).unwrap();
        assert_eq!(check_memory(here + 1).unwrap_err().code(), "vmm.memory");
    }
}
