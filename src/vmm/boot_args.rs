//! Finds kernel arguments that keep a guest from booting, from being seen or from ending, and says why.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// CMDLINE_MAX_SIZE of Firecracker and COMMAND_LINE_SIZE of Linux on x86, without the NUL.
const MAX_LENGTH: usize = 2047;
/// From this level on the kernel prints what goes well (include/linux/kern_levels.h).
const WORDY: u32 = 5;
/// Given twice, the last one wins.
const SINGLE: &[&str] = &["panic", "reboot", "loglevel", "firegopher.end", "tsc", "acpi", "pci"];

/// Which machine the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// Firecracker on x86.
    Firecracker,
    /// QEMU's microvm.
    Qemu,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The VM does not do what it should.
    Error,
    /// It costs something, or has no effect.
    Warning,
}

/// Something wrong with an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The argument, or the one that is missing.
    pub argument: String,
    /// How bad it is.
    pub severity: Severity,
    /// Why, as a sentence without a full stop.
    pub reason: &'static str,
}

/// Looks at a kernel's arguments. `modules`: its drivers are modules.
pub fn lint(args: &str, machine: Machine, modules: bool) -> Vec<Finding> {
    let mut lint = Lint { args: split(args), machine, found: Vec::new() };
    lint.form(args);
    lint.devices(modules);
    lint.console();
    lint.end();
    lint.keyboard();
    lint.found
}

/// Refuses arguments that a guest cannot boot or end with, before it is tried. They are ours: this is a bug.
///
/// # Errors
/// Every finding that is an error, with its reason.
pub fn check(args: &str, machine: Machine) -> Result<()> {
    // Some kernel's drivers are modules.
    let found = lint(args, machine, true);
    let errors: Vec<String> = found
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| format!("{}: {}", finding.argument, finding.reason))
        .collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Error::bug(format!("no guest boots with these arguments: {}", errors.join("; ")))),
    }
}

/// A key and its value, in order. Arguments after `--` are init's.
fn split(args: &str) -> Vec<(&str, Option<&str>)> {
    let kernel = args.split_ascii_whitespace().take_while(|arg| *arg != "--");
    kernel.map(|arg| arg.split_once('=').map_or((arg, None), |(key, value)| (key, Some(value)))).collect()
}

struct Lint<'a> {
    args: Vec<(&'a str, Option<&'a str>)>,
    machine: Machine,
    found: Vec<Finding>,
}

impl<'a> Lint<'a> {
    fn has(&self, key: &str) -> bool {
        self.args.iter().any(|(k, _)| *k == key)
    }

    /// The value that counts.
    fn value(&self, key: &str) -> Option<&'a str> {
        self.args.iter().rev().find(|(k, _)| *k == key).and_then(|(_, value)| *value)
    }

    fn error(&mut self, argument: impl Into<String>, reason: &'static str) {
        self.found.push(Finding { argument: argument.into(), severity: Severity::Error, reason });
    }

    fn warn(&mut self, argument: impl Into<String>, reason: &'static str) {
        self.found.push(Finding { argument: argument.into(), severity: Severity::Warning, reason });
    }

    /// What holds whatever the arguments mean.
    fn form(&mut self, args: &str) {
        if args.len() > MAX_LENGTH {
            self.error(
                "…",
                "the command line is longer than 2047 bytes: the VMM refuses it or the kernel cuts it",
            );
        }
        if let Some(odd) = args.chars().find(|c| c.is_control() || !c.is_ascii()) {
            self.error(odd.escape_debug().to_string(), "only printable ASCII gets through to the kernel");
        }
        let mut values = BTreeMap::new();
        for (key, value) in self.args.clone() {
            if let Some(before) = values.insert(key, value)
                && before != value
                && SINGLE.contains(&key)
            {
                self.warn(key, "it is given twice: the last one wins");
            }
        }
    }

    /// What keeps the kernel from its devices.
    fn devices(&mut self, modules: bool) {
        if modules && self.has("nomodule") {
            self.error("nomodule", "the drivers of this kernel are modules: it finds no disk and no network");
        }
        if matches!(self.value("acpi"), Some("off" | "ht")) {
            self.error("acpi=off", "ACPI is what announces the devices");
        }
        if self.machine == Machine::Qemu && self.has("nosmp") {
            self.error("nosmp", "it takes the interrupt controller away, and the kernel panics");
        }
        for key in ["init", "rdinit"] {
            if self.has(key) {
                self.error(key, "it replaces the program that mounts the root and reports to the host");
            }
        }
        if self.has("root") {
            self.warn("root", "it has no effect: the initramfs mounts the root");
        }
        if self.machine == Machine::Firecracker && self.value("pci") != Some("off") {
            self.warn("pci=off", "without it the kernel looks for a PCI bus that is not there");
        }
    }

    /// What hides or slows the console.
    fn console(&mut self) {
        let serial: Vec<_> = self
            .args
            .iter()
            .filter_map(|(k, v)| v.filter(|v| *k == "console" && v.starts_with("ttyS")))
            .collect();
        if serial.is_empty() {
            self.warn("console=ttyS0", "without it nothing is seen of a boot that fails");
            return;
        }
        let level = self.value("loglevel").and_then(|level| level.parse().ok());
        let wordy = self.has("debug")
            || self.has("ignore_loglevel")
            || level.map_or(!self.has("quiet"), |level: u32| level >= WORDY);
        for console in serial {
            let (port, options) = console.split_once(',').unwrap_or((console, ""));
            let ports = self.value("8250.nr_uarts").and_then(|n| n.parse::<u32>().ok());
            let number = port["ttyS".len()..].parse::<u32>().unwrap_or(0);
            if ports.is_some_and(|ports| number >= ports) {
                self.error(
                    "8250.nr_uarts",
                    "it leaves no serial port for console=ttyS…: the console stays silent",
                );
            }
            if number > 0 {
                self.error(format!("console={port}"), "the machine has one serial port, ttyS0");
            }
            let digits = options.len() - options.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            if options[..digits].parse::<u32>().is_ok_and(|baud| baud < 115_200) {
                self.warn(format!("console={console}"), "the kernel paces what it waits for by this speed");
            }
            if wordy {
                self.warn(
                    format!("console={console}"),
                    "every byte on the serial port leaves the guest: add quiet, or lower loglevel below 5",
                );
            }
        }
    }

    /// What keeps the VM from ending.
    fn end(&mut self) {
        match self.value("panic") {
            None => self.error("panic", "without it a kernel that panics stays for ever"),
            Some("0") => self.error("panic=0", "a kernel that panics stays for ever"),
            Some(_) => {}
        }
        match self.machine {
            Machine::Firecracker => {
                if !self.value("reboot").is_some_and(|how| how.split(',').any(|how| how.starts_with('k'))) {
                    self.warn("reboot=k", "Firecracker ends by a reset through the keyboard controller");
                }
                if self.value("firegopher.end") != Some("reset") {
                    self.error(
                        "firegopher.end=reset",
                        "Firecracker has no power switch: the VM would not end",
                    );
                }
            }
            Machine::Qemu => {
                if self.value("reboot").is_some_and(|how| how.starts_with('k')) {
                    self.warn("reboot=k", "QEMU's microvm has no keyboard controller to reset by");
                }
            }
        }
    }

    /// What concerns the keyboard controller, which Firecracker has and QEMU's microvm has not.
    fn keyboard(&mut self) {
        let given: Vec<_> =
            self.args.iter().map(|(key, _)| *key).filter(|key| key.starts_with("i8042.")).collect();
        if self.machine == Machine::Qemu {
            for key in given {
                self.warn(key, "it has no effect: QEMU's microvm has no keyboard controller");
            }
            return;
        }
        for key in ["i8042.nokbd", "i8042.nopnp"] {
            if given.contains(&key) {
                self.warn(key, "it keeps Ctrl-Alt-Del from the guest");
            }
        }
        for key in ["i8042.noaux", "i8042.nomux", "i8042.dumbkbd"] {
            if !given.contains(&key) {
                self.warn(key, "without it the kernel probes for a mouse or a keyboard that is not there");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is wrong with it on Firecracker.
    const GOOD: &str = "console=ttyS0 quiet reboot=k panic=1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd \
                        firegopher.end=reset";

    fn findings(more: &str) -> Vec<(String, Severity)> {
        let found = lint(&format!("{GOOD} {more}"), Machine::Firecracker, true);
        found.into_iter().map(|finding| (finding.argument, finding.severity)).collect()
    }

    #[track_caller]
    fn one(more: &str, argument: &str, severity: Severity) {
        assert_eq!(findings(more), [(argument.to_owned(), severity)]);
    }

    #[test]
    fn good_arguments_pass() {
        assert_eq!(findings(""), []);
        assert_eq!(findings("-- init's own nomodule rdinit=/x"), []);
    }

    #[test]
    fn firecrackers_own_default_is_full_of_trouble() {
        let default = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd \
                       swiotlb=noforce console=ttyS0";
        let found = lint(default, Machine::Firecracker, true);
        let errors: Vec<_> =
            found.iter().filter(|f| f.severity == Severity::Error).map(|f| f.argument.as_str()).collect();
        assert_eq!(errors, ["nomodule", "8250.nr_uarts", "firegopher.end=reset"]);
    }

    #[test]
    fn what_keeps_a_guest_from_booting_is_an_error() {
        one("nomodule", "nomodule", Severity::Error);
        one("acpi=off", "acpi=off", Severity::Error);
        one("init=/bin/sh", "init", Severity::Error);
        one("root=/dev/vda", "root", Severity::Warning);
        assert_eq!(lint(&format!("{GOOD} nomodule"), Machine::Firecracker, false), []);
    }

    #[test]
    fn arguments_with_errors_are_refused_with_the_reason_and_others_go() {
        check(GOOD, Machine::Firecracker).unwrap();
        check(&format!("{GOOD} root=/dev/vda"), Machine::Firecracker).unwrap();
        let error = check(&format!("{GOOD} nomodule acpi=off"), Machine::Firecracker).unwrap_err();
        assert_eq!(error.code(), "bug");
        for words in ["nomodule: the drivers of this kernel", "acpi=off: ACPI is what announces"] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn what_hides_the_console_is_found() {
        one("8250.nr_uarts=0", "8250.nr_uarts", Severity::Error);
        assert_eq!(findings("8250.nr_uarts=1"), []);
        one("console=ttyS0,9600n8", "console=ttyS0,9600n8", Severity::Warning);
        one("loglevel=7", "console=ttyS0", Severity::Warning);
        one("console=ttyS1", "console=ttyS1", Severity::Error);
    }

    #[test]
    fn what_keeps_a_vm_from_ending_is_found() {
        let without = |arg: &str| lint(&GOOD.replace(arg, ""), Machine::Firecracker, true);
        for arg in ["panic=1", "reboot=k", "pci=off", "firegopher.end=reset", "i8042.noaux"] {
            assert_eq!(without(arg).len(), 1, "{arg}");
        }
        let both = findings("panic=0");
        assert!(both.contains(&("panic".to_owned(), Severity::Warning)), "{both:?}");
        assert!(both.contains(&("panic=0".to_owned(), Severity::Error)), "{both:?}");
    }

    #[test]
    fn the_keyboard_is_firecrackers_alone() {
        one("i8042.nokbd", "i8042.nokbd", Severity::Warning);
        let on_qemu = lint("console=ttyS0 quiet panic=-1 i8042.noaux reboot=k nosmp", Machine::Qemu, true);
        let arguments: Vec<_> = on_qemu.iter().map(|f| f.argument.as_str()).collect();
        assert_eq!(arguments, ["nosmp", "reboot=k", "i8042.noaux"]);
    }

    #[test]
    fn the_form_is_checked() {
        assert_eq!(findings(&"x".repeat(2048))[0].1, Severity::Error);
        assert_eq!(findings("a\nb")[0], ("\\n".to_owned(), Severity::Error));
        assert_eq!(findings("a=é")[0].1, Severity::Error);
    }
}
