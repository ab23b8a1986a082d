//! Finds what a kernel's configuration lacks to boot as a guest, and says what would be missing.

use super::boot_args::{Machine, Severity};
use super::tuning::Balloon;

/// Something that a guest needs of its kernel.
struct Need {
    /// Any one of them does, without `CONFIG_`. The first is the one to name.
    symbols: &'static [&'static str],
    /// The driver's module where it may be one: what the initramfs itself and the first lines on the console need
    /// may not.
    module: Option<&'static str>,
    severity: Severity,
    /// What is missing without it.
    what: &'static str,
}

const fn need(symbols: &'static [&'static str], what: &'static str) -> Need {
    Need { symbols, module: None, severity: Severity::Error, what }
}

const fn driver(symbols: &'static [&'static str], module: &'static str, what: &'static str) -> Need {
    Need { symbols, module: Some(module), severity: Severity::Error, what }
}

const fn better(symbols: &'static [&'static str], what: &'static str) -> Need {
    Need { symbols, module: None, severity: Severity::Warning, what }
}

/// Under every VMM.
const ALWAYS: &[Need] = &[
    need(&["64BIT", "X86_64"], "64-bit programs"),
    need(&["BLK_DEV_INITRD"], "the initramfs that starts the guest"),
    need(&["RD_GZIP"], "unpacking the initramfs"),
    need(&["BINFMT_ELF"], "running any program"),
    need(&["DEVTMPFS"], "/dev"),
    need(&["PROC_FS"], "/proc"),
    need(&["SYSFS"], "/sys"),
    driver(&["VIRTIO_MMIO"], "virtio_mmio", "every device"),
    driver(&["VIRTIO_BLK"], "virtio_blk", "the disks"),
    driver(&["VIRTIO_NET"], "virtio_net", "the network"),
    driver(&["EXT4_FS"], "ext4", "reading the root file system"),
    driver(&["OVERLAY_FS"], "overlay", "a writable root over the sealed images"),
    better(&["SERIAL_8250_CONSOLE"], "the console, which shows why a boot fails"),
    better(&["TMPFS"], "/dev/shm, and /run in memory"),
];
/// Firecracker announces its devices on the kernel's command line, and also by ACPI from 1.8 on.
const BY_EITHER: &[Need] = &[need(&["ACPI", "VIRTIO_MMIO_CMDLINE_DEVICES"], "finding the devices")];
const BY_COMMAND_LINE: &[Need] = &[need(&["VIRTIO_MMIO_CMDLINE_DEVICES"], "finding the devices")];
/// Where a balloon is asked for.
const BALLOON: &[Need] = &[driver(&["VIRTIO_BALLOON"], "virtio_balloon", "the balloon")];
const REPORTING: &[Need] = &[need(&["PAGE_REPORTING"], "reporting free pages")];
const FIRECRACKER: &[Need] = &[
    driver(&["VIRTIO_VSOCKETS"], "vmw_vsock_virtio_transport", "the control channel"),
    better(&["SERIO_I8042"], "Ctrl-Alt-Del, the second way to stop the guest"),
];
const QEMU: &[Need] = &[
    need(&["PVH"], "being started as a vmlinux"),
    need(&["ACPI"], "finding the devices"),
    driver(&["VIRTIO_CONSOLE"], "virtio_console", "the control channel"),
];

/// What a kernel is to boot on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The VMM's machine.
    pub machine: Machine,
    /// Whether ACPI announces the devices.
    pub acpi: bool,
    /// The device that the guest gives memory back by.
    pub balloon: Option<Balloon>,
}

impl Host {
    fn needs(&self) -> impl Iterator<Item = &'static Need> + use<> {
        let announced = match (self.machine, self.acpi) {
            (Machine::Qemu, _) => QEMU,
            (Machine::Firecracker, true) => BY_EITHER,
            (Machine::Firecracker, false) => BY_COMMAND_LINE,
        };
        let more = if self.machine == Machine::Firecracker { FIRECRACKER } else { &[] };
        let balloon = if self.balloon.is_some() { BALLOON } else { &[] };
        let reports = self.balloon.is_some_and(|balloon| balloon.free_page_reporting);
        let reporting = if reports { REPORTING } else { &[] };
        [ALWAYS, announced, more, balloon, reporting].into_iter().flatten()
    }
}

/// A symbol that is not set as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Without `CONFIG_`.
    pub symbol: &'static str,
    /// It is set to `m`, and its module does not come along.
    pub is_module: bool,
    /// An error: the guest does not boot.
    pub severity: Severity,
    /// What does not work.
    pub what: &'static str,
}

/// What `config`, a kernel's `.config`, lacks. `modules`: names of those that the initramfs brings, `-` as `_`.
/// Nothing, if it is no configuration.
pub fn lint(config: &str, host: Host, modules: &[String]) -> Vec<Missing> {
    let set = |line: &'_ str| -> Option<(String, bool)> {
        let (symbol, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
        matches!(value.trim_end(), "y" | "m").then(|| (symbol.to_owned(), value.starts_with('m')))
    };
    let set: std::collections::HashMap<String, bool> = config.lines().filter_map(set).collect();
    if set.is_empty() {
        return Vec::new();
    }
    let is_met = |need: &&Need| {
        need.symbols.iter().any(|symbol| match set.get(*symbol) {
            Some(false) => true,
            Some(true) => need.module.is_some_and(|module| modules.iter().any(|m| m == module)),
            None => false,
        })
    };
    let missing = host.needs().filter(|need| !is_met(need));
    missing
        .map(|need| Missing {
            symbol: need.symbols[0],
            is_module: set.get(need.symbols[0]) == Some(&true),
            severity: need.severity,
            what: need.what,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(machine: Machine) -> Host {
        Host { machine, acpi: true, balloon: None }
    }

    fn lint(config: &str, machine: Machine, modules: &[String]) -> Vec<Missing> {
        super::lint(config, host(machine), modules)
    }

    fn needs(machine: Machine) -> impl Iterator<Item = &'static Need> {
        host(machine).needs()
    }

    /// Drivers as `set` says, all else built in.
    fn config(machine: Machine, set: &str) -> String {
        let lines = needs(machine).map(|need| {
            format!("CONFIG_{}={}\n", need.symbols[0], if need.module.is_some() { set } else { "y" })
        });
        lines.collect()
    }

    fn modules(machine: Machine) -> Vec<String> {
        needs(machine).filter_map(|need| need.module).map(str::to_owned).collect()
    }

    #[test]
    fn modules_do_if_the_initramfs_brings_them() {
        for machine in [Machine::Firecracker, Machine::Qemu] {
            assert_eq!(lint(&config(machine, "m"), machine, &modules(machine)), []);
            assert_eq!(lint(&config(machine, "y"), machine, &[]), []);
            let without = lint(&config(machine, "m"), machine, &[]);
            assert!(without.iter().all(|missing| missing.is_module), "{without:?}");
            let mut some = modules(machine);
            some.retain(|module| module != "overlay");
            let found = lint(&config(machine, "m"), machine, &some);
            let symbols: Vec<_> = found.iter().map(|missing| missing.symbol).collect();
            assert_eq!(symbols, ["OVERLAY_FS"]);
        }
    }

    #[test]
    fn what_the_initramfs_needs_cannot_be_a_module() {
        let machine = Machine::Qemu;
        let config = config(machine, "m").replace("CONFIG_ACPI=y", "CONFIG_ACPI=m");
        let found = lint(&config, machine, &modules(machine));
        let severity = Severity::Error;
        assert_eq!(
            found,
            [Missing { symbol: "ACPI", is_module: true, severity, what: "finding the devices" }]
        );
    }

    #[test]
    fn a_symbol_is_not_taken_for_another() {
        let config = config(Machine::Qemu, "y")
            .replace("CONFIG_ACPI=y", "# CONFIG_ACPI is not set\nCONFIG_ACPI_BUTTON=y\nCONFIG_XACPI=y");
        assert_eq!(lint(&config, Machine::Qemu, &[]).len(), 1);
    }

    #[test]
    fn a_control_channel_belongs_to_its_machine() {
        let symbols = |config: &str, machine| -> Vec<_> {
            lint(config, machine, &[]).iter().map(|m| (m.symbol, m.severity)).collect()
        };
        let qemu = config(Machine::Qemu, "y");
        assert_eq!(
            symbols(&qemu, Machine::Firecracker),
            [("VIRTIO_VSOCKETS", Severity::Error), ("SERIO_I8042", Severity::Warning)]
        );
        let firecracker = config(Machine::Firecracker, "y");
        assert_eq!(
            symbols(&firecracker, Machine::Qemu),
            [("PVH", Severity::Error), ("VIRTIO_CONSOLE", Severity::Error)]
        );
    }

    #[test]
    fn firecracker_can_do_without_acpi_but_not_without_any_announcement() {
        let without = config(Machine::Firecracker, "y").replace("CONFIG_ACPI=y", "# CONFIG_ACPI is not set");
        let errors = lint(&without, Machine::Firecracker, &[]);
        assert_eq!(errors.iter().map(|m| m.symbol).collect::<Vec<_>>(), ["ACPI"]);
        let with = format!("{without}CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n");
        assert_eq!(lint(&with, Machine::Firecracker, &[]), []);
    }

    #[test]
    fn a_firecracker_without_acpi_announces_its_devices_on_the_command_line_alone() {
        let old = Host { acpi: false, ..host(Machine::Firecracker) };
        let config = config(Machine::Firecracker, "y");
        let found = super::lint(&config, old, &[]);
        assert_eq!(found.iter().map(|m| m.symbol).collect::<Vec<_>>(), ["VIRTIO_MMIO_CMDLINE_DEVICES"]);
        let with = format!("{config}CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n");
        assert_eq!(super::lint(&with, old, &[]), []);
    }

    #[test]
    fn a_balloon_needs_its_driver_where_it_is_asked_for() {
        let config = config(Machine::Qemu, "y");
        let symbols = |config: &str, reporting, modules: &[String]| -> Vec<_> {
            let balloon = Balloon { free_page_reporting: reporting, ..Balloon::default() };
            let asked = Host { balloon: Some(balloon), ..host(Machine::Qemu) };
            super::lint(config, asked, modules).iter().map(|m| m.symbol).collect()
        };
        assert_eq!(symbols(&config, false, &[]), ["VIRTIO_BALLOON"]);
        assert_eq!(symbols(&config, true, &[]), ["VIRTIO_BALLOON", "PAGE_REPORTING"]);
        let module = format!("{config}CONFIG_VIRTIO_BALLOON=m\nCONFIG_PAGE_REPORTING=y\n");
        assert_eq!(symbols(&module, true, &["virtio_balloon".to_owned()]), [""; 0]);
        assert_eq!(symbols(&module, true, &[]), ["VIRTIO_BALLOON"]);
    }

    #[test]
    fn what_only_makes_a_guest_poorer_is_a_warning() {
        let config = config(Machine::Qemu, "y").replace("SERIAL_8250_CONSOLE=y", "SERIAL_8250_CONSOLE=m");
        let found = lint(&config, Machine::Qemu, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].severity, found[0].is_module), (Severity::Warning, true));
    }

    #[test]
    fn what_is_no_configuration_is_not_judged() {
        for text in ["", "hello", "# CONFIG_ACPI is not set\n"] {
            assert_eq!(lint(text, Machine::Qemu, &[]), []);
        }
    }
}
