//! The kernel's command line under Firecracker. Firecracker's own default is never used: it contains
//! `nomodule`, and the drivers of distributions' kernels are modules.

/// Why each is there:
/// - `reboot=k panic=1`: Firecracker ends when the guest resets by the keyboard controller, the only way it has.
/// - `pci=off`: there is no PCI bus to look for.
/// - `i8042.…`: there is a keyboard controller, but neither a mouse nor anything to multiplex or to probe.
///   The keyboard itself stays: Ctrl-Alt-Del comes through it.
/// - `cryptomgr.notests`: the self tests of ciphers prove nothing about a VM.
const ALWAYS: &str = "console=ttyS0 reboot=k panic=1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd \
                      cryptomgr.notests firegopher.end=reset";
/// Every byte on the serial port costs an exit to Firecracker.
const QUIET: &str = "quiet loglevel=4";

/// From the first line on: without it a kernel is silent until its serial driver is there.
const WORDY: &str = "earlyprintk=ttyS0";

/// The command line. `wordy` lets the kernel tell all it does on the console, which slows the boot.
pub fn build(wordy: bool) -> String {
    if wordy { format!("{ALWAYS} {WORDY}") } else { format!("{ALWAYS} {QUIET}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::boot_args::{Machine, lint};

    #[test]
    fn our_own_arguments_pass_the_linter() {
        assert_eq!(lint(&build(false), Machine::Firecracker, true), []);
    }

    #[test]
    fn a_wordy_console_is_the_only_thing_the_linter_finds() {
        let found = lint(&build(true), Machine::Firecracker, true);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].argument, "console=ttyS0");
    }
}
