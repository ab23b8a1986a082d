//! Finds what a kernel's configuration lacks to boot as a guest, and says what would be missing.

use super::boot_args::Machine;

/// A symbol, whether its driver may be a module that the initramfs loads, and what is missing without it.
/// What the initramfs itself and the first lines on the console need cannot be a module.
const NEEDED: &[(&str, bool, &str)] = &[
    ("BLK_DEV_INITRD", false, "the initramfs that starts the guest"),
    ("RD_GZIP", false, "unpacking the initramfs"),
    ("BINFMT_ELF", false, "running any program"),
    ("ACPI", false, "finding the devices"),
    ("SERIAL_8250_CONSOLE", false, "the console"),
    ("DEVTMPFS", false, "/dev"),
    ("TMPFS", false, "/run and /tmp"),
    ("VIRTIO_MMIO", true, "every device"),
    ("VIRTIO_BLK", true, "the disks"),
    ("VIRTIO_NET", true, "the network"),
    ("EXT4_FS", true, "the root file system"),
    ("OVERLAY_FS", true, "a writable root over the sealed images"),
];
/// Likewise, under Firecracker.
const FIRECRACKER: &[(&str, bool, &str)] =
    &[("VIRTIO_VSOCKETS", true, "the control channel"), ("SERIO_I8042", true, "Ctrl-Alt-Del")];
/// Likewise, under QEMU.
const QEMU: &[(&str, bool, &str)] = &[("VIRTIO_CONSOLE", true, "the control channel")];

/// A symbol that is not set as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Without `CONFIG_`.
    pub symbol: &'static str,
    /// It is set to `m`, and must be `y`.
    pub is_module: bool,
    /// What does not work.
    pub what: &'static str,
}

/// What `config`, a kernel's `.config`, lacks. `modules`: whether the initramfs brings the kernel's modules.
pub fn lint(config: &str, machine: Machine, modules: bool) -> Vec<Missing> {
    let more = match machine {
        Machine::Firecracker => FIRECRACKER,
        Machine::Qemu => QEMU,
    };
    let mut found = Vec::new();
    for &(symbol, may_be_module, what) in NEEDED.iter().chain(more) {
        match value(config, symbol) {
            Some("y") => {}
            Some("m") if may_be_module && modules => {}
            value => found.push(Missing { symbol, is_module: value == Some("m"), what }),
        }
    }
    found
}

/// What a symbol is set to; `# CONFIG_X is not set` sets nothing.
fn value<'a>(config: &'a str, symbol: &str) -> Option<&'a str> {
    config.lines().find_map(|line| line.strip_prefix("CONFIG_")?.strip_prefix(symbol)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(machine: &[(&str, bool, &str)], set: &str) -> String {
        let lines = NEEDED.iter().chain(machine).map(|(symbol, may_be_module, _)| {
            format!("CONFIG_{symbol}={}\n", if *may_be_module { set } else { "y" })
        });
        lines.collect()
    }

    #[test]
    fn modules_do_if_the_initramfs_brings_them() {
        assert_eq!(lint(&config(FIRECRACKER, "m"), Machine::Firecracker, true), []);
        assert_eq!(lint(&config(QEMU, "y"), Machine::Qemu, false), []);
        let without: Vec<_> = lint(&config(QEMU, "m"), Machine::Qemu, false);
        assert!(without.iter().all(|missing| missing.is_module), "{without:?}");
        assert!(without.iter().any(|missing| missing.symbol == "OVERLAY_FS"), "{without:?}");
    }

    #[test]
    fn what_the_initramfs_needs_cannot_be_a_module() {
        let config = config(QEMU, "m").replace("CONFIG_ACPI=y", "CONFIG_ACPI=m");
        let found = lint(&config, Machine::Qemu, true);
        assert_eq!(found, [Missing { symbol: "ACPI", is_module: true, what: "finding the devices" }]);
    }

    #[test]
    fn a_symbol_is_not_taken_for_another() {
        let config = config(QEMU, "y")
            .replace("CONFIG_ACPI=y", "# CONFIG_ACPI is not set\nCONFIG_ACPI_BUTTON=y\nCONFIG_XACPI=y");
        assert_eq!(lint(&config, Machine::Qemu, true).len(), 1);
    }

    #[test]
    fn a_control_channel_belongs_to_its_machine() {
        let found = lint(&config(QEMU, "y"), Machine::Firecracker, true);
        let symbols: Vec<_> = found.iter().map(|missing| missing.symbol).collect();
        assert_eq!(symbols, ["VIRTIO_VSOCKETS", "SERIO_I8042"]);
    }
}
