//! QEMU's command line. Knows every option we use and why; starts nothing.

use super::CommandLine;
use crate::error::{Error, Result};
use crate::net::Port;
use crate::vmm::jail::Staged;
use crate::vmm::memory;
use crate::vmm::room;
use crate::vmm::spec::{NetSpec, VmSpec, VmmBinary};
use crate::vmm::tuning::HugePages;
use firegopher_protocol::PORT_NAME;
use serde_json::json;
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// x86-64-v2 on top of the plainest model, and a random seed: richer models boot slower under emulation
/// (each feature costs the kernel work), poorer ones do not run what compilers and wheels expect.
const TCG_CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand";
/// What seccomp takes from QEMU: obsolete calls, raising privileges, starting processes, changing limits.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wiring {
    pub control: RawFd,
    pub console: RawFd,
    pub qmp: RawFd,
    pub tap: Option<RawFd>,
}

/// The command line for `spec` with its files at `files`.
pub(super) fn build(
    spec: &VmSpec,
    files: &Staged,
    chrooted: bool,
    wiring: Wiring,
    kernel_args: &str,
) -> Result<CommandLine> {
    let (mut argv, env) = program(spec, chrooted);
    let mut arg = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        argv.push(flag.into());
        if !value.as_ref().is_empty() {
            argv.push(value.as_ref().to_owned());
        }
    };
    // `process=` names it in ps and top; it would be `ld.so` otherwise.
    arg("-name", &format!("{0},process={0}", spec.id.tap_name()));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arg(flag, &"");
    }
    arg("-display", &"none");
    arg("-sandbox", &SANDBOX);
    // Unbounded, its code grows to 1 GiB. -machine has no word for the size.
    let code = memory::code_buffer(room::host_memory()) >> 20;
    arg("-accel", &if spec.kvm { "kvm".to_owned() } else { format!("tcg,tb-size={code}") });
    // ACPI announces the virtio devices; without it, or without the timers, kernels stall for seconds.
    let mut machine = "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on,auto-kernel-cmdline=off".to_owned();
    // Transparent ones QEMU asks for by itself.
    if spec.tuning.huge_pages == Some(HugePages::Reserved) {
        // A file of hugetlbfs without its mount: nothing to reach from a jail. It fails at once if pages lack.
        let ram = json!({"qom-type": "memory-backend-memfd", "id": "ram", "size": spec.memory, "hugetlb": true, "hugetlbsize": 2 << 20});
        arg("-object", &ram.to_string());
        machine += ",memory-backend=ram";
    }
    arg("-machine", &machine);
    if let Some(firmware) = &files.firmware {
        arg("-bios", firmware);
    }
    arg("-cpu", &if spec.kvm { "host" } else { TCG_CPU });
    arg("-smp", &spec.cpus.to_string());
    arg("-m", &format!("size={}M", spec.memory >> 20));
    arg("-kernel", &files.kernel);
    arg("-initrd", &files.initramfs);
    arg("-append", &kernel_args);

    for (id, fd) in [("console", wiring.console), ("control", wiring.control), ("qmp", wiring.qmp)] {
        arg("-chardev", &format!("socket,id={id},fd={fd}"));
    }
    arg("-serial", &"chardev:console");
    arg("-mon", &"chardev=qmp,mode=control");
    arg("-device", &"pvpanic");

    // The kernel finds transports from the highest to the lowest. Each device is put on its own, so that
    // vda is the first drive; drives come first, as their minors count from 0.
    let mut buses = (0..room::TRANSPORTS).rev().map(|n| format!("virtio-mmio-bus.{n}"));
    room::check_devices(room::Machine::Qemu, spec.drives.len(), spec.tuning.balloon.is_some())?;
    let mut bus = || buses.next().ok_or_else(|| Error::bug("a device more than was counted"));
    for (n, (drive, path)) in spec.drives.iter().zip(&files.drives).enumerate() {
        let path = path.to_str().ok_or_else(|| not_utf8(path))?;
        let file = json!({"driver": "file", "filename": path, "read-only": drive.read_only, "locking": "on"});
        let node = json!({"driver": "raw", "node-name": format!("drive{n}"), "read-only": drive.read_only, "file": file});
        arg("-blockdev", &node.to_string());
        let mut top = format!("drive{n}");
        let rate = spec.tuning.of_drive(&drive.role);
        if rate.is_limit() {
            // 0 stands for no limit.
            let limits =
                json!({"bps-total": rate.bandwidth.unwrap_or(0), "iops-total": rate.ops.unwrap_or(0)});
            let group = json!({"qom-type": "throttle-group", "id": format!("rate{n}"), "limits": limits});
            arg("-object", &group.to_string());
            top = format!("limited{n}");
            let filter = json!({"driver": "throttle", "node-name": top, "throttle-group": format!("rate{n}"), "file": format!("drive{n}")});
            arg("-blockdev", &filter.to_string());
        }
        // The serial number lets the guest tell its drives apart whatever their order.
        arg("-device", &format!("virtio-blk-device,bus={},drive={top},serial=drive{n}", bus()?));
    }
    match &spec.net {
        NetSpec::None => {}
        NetSpec::Tap { mac, .. } => {
            let fd = wiring.tap.ok_or_else(|| Error::bug("a tap without a descriptor"))?;
            arg("-netdev", &json!({"type": "tap", "id": "net", "fd": fd.to_string()}).to_string());
            arg("-device", &format!("virtio-net-device,bus={},netdev=net,mac={}", bus()?, colons(mac)));
        }
        NetSpec::User { forwards, mac } => {
            // Not JSON: QEMU takes a list of forwards in this form only. `restrict` keeps the host's
            // loopback, which slirp would offer at 10.0.2.2, and the world out of reach.
            let mut user = "user,id=net,restrict=on,ipv6=off".to_owned();
            check_forwards(forwards)?;
            for port in forwards {
                user += &format!(",hostfwd=tcp:{}:{}-:{}", port.address, port.host, port.guest);
            }
            arg("-netdev", &user);
            arg("-device", &format!("virtio-net-device,bus={},netdev=net,mac={}", bus()?, colons(mac)));
        }
    }
    arg("-device", &format!("virtio-serial-device,bus={},max_ports=2", bus()?));
    arg("-device", &format!("virtserialport,chardev=control,name={PORT_NAME}"));
    if let Some(balloon) = spec.tuning.balloon {
        // How much it takes is told over QMP: the device starts empty.
        let on = |on: bool| if on { "on" } else { "off" };
        let (oom, reporting) = (on(balloon.deflate_on_oom), on(balloon.free_page_reporting));
        let device = format!(
            "virtio-balloon-device,bus={},id=balloon,deflate-on-oom={oom},free-page-reporting={reporting}",
            bus()?
        );
        arg("-device", &device);
    }
    arg("-object", &"rng-builtin,id=rng");
    arg("-device", &format!("virtio-rng-device,bus={},rng=rng", bus()?));
    Ok((argv, env))
}

/// How QEMU itself is started: the store's through its own loader, the host's directly.
fn program(spec: &VmSpec, chrooted: bool) -> CommandLine {
    match &spec.vmm {
        VmmBinary::QemuPath { program: path, .. } | VmmBinary::Firecracker { firecracker: path, .. } => {
            (vec![path.into()], Vec::new())
        }
        VmmBinary::QemuTree(tree) => {
            let tree = if chrooted { PathBuf::from("/") } else { tree.clone() };
            let at = |name: &str| OsString::from(tree.join(name));
            let argv = vec![
                at("ld.so"),
                "--library-path".into(),
                at("lib"),
                at("qemu-system-x86_64"),
                "-L".into(),
                at("share"),
            ];
            // Else it looks for its accelerator where Debian would have installed it.
            (argv, vec![("QEMU_MODULE_DIR", at("modules"))])
        }
    }
}

fn colons(mac: &[u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Whether these ports can be published by QEMU's user networking.
///
/// # Errors
/// `vmm.user-net-ipv6`.
pub fn check_forwards(ports: &[Port]) -> Result<()> {
    match ports.iter().find(|port| !port.address.is_ipv4()) {
        None => Ok(()),
        Some(port) => Err(Error::host("vmm.user-net-ipv6", format!("{} cannot be published", port.address))
            .help("without root only IPv4 addresses of the host can be published")),
    }
}

fn not_utf8(path: &Path) -> Error {
    Error::failed("vmm.path", format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::firecracker::config::tests::spec;
    use crate::vmm::tuning::{Balloon, Rate};

    fn words(spec: &VmSpec) -> String {
        let drives = spec.drives.iter().map(|drive| drive.path.clone()).collect();
        let firmware = Some("/data/qboot.rom".into());
        let files = Staged { kernel: "/kernel".into(), initramfs: "/initramfs".into(), firmware, drives };
        let wiring = Wiring { control: 3, console: 4, qmp: 5, tap: Some(6) };
        let (argv, _) = build(spec, &files, false, wiring, "quiet").unwrap();
        argv.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_plain_machine_has_neither_limits_nor_pages_of_its_own() {
        let words = words(&spec());
        assert!(
            words.contains("-bios /data/qboot.rom")
                && !words.contains("throttle")
                && !words.contains("memory-backend")
                && !words.contains("balloon"),
            "{words}"
        );
    }

    #[test]
    fn emulation_is_told_how_much_code_it_may_keep() {
        let mut emulated = spec();
        emulated.kvm = false;
        let words = words(&emulated);
        let size = words.split_once("-accel tcg,tb-size=").expect(&words).1.split(' ').next().unwrap();
        assert_eq!(size.parse::<u64>().unwrap() << 20, memory::code_buffer(room::host_memory()));
        assert!(!words.contains("accel="), "QEMU takes one or the other: {words}");
    }

    #[test]
    fn rates_and_huge_pages_become_objects_of_their_own() {
        let mut tuned = spec();
        tuned.tuning.huge_pages = Some(HugePages::Reserved);
        tuned.tuning.balloon =
            Some(Balloon { amount: 64 << 20, deflate_on_oom: true, free_page_reporting: false });
        tuned.tuning.scratch = Rate { bandwidth: Some(1 << 20), ops: None };
        tuned.tuning.volumes.insert("data".to_owned(), Rate { bandwidth: None, ops: Some(50) });
        let words = words(&tuned);
        for part in [
            "\"hugetlb\":true,\"hugetlbsize\":2097152",
            ",memory-backend=ram",
            "{\"id\":\"rate1\",\"limits\":{\"bps-total\":1048576,\"iops-total\":0}",
            "{\"id\":\"rate2\",\"limits\":{\"bps-total\":0,\"iops-total\":50}",
            "{\"driver\":\"throttle\",\"file\":\"drive1\",\"node-name\":\"limited1\",\"throttle-group\":\"rate1\"}",
            ",id=balloon,deflate-on-oom=on,free-page-reporting=off",
            "drive=drive0,serial=drive0",
            "drive=limited1,serial=drive1",
            "drive=limited2,serial=drive2",
        ] {
            assert!(words.contains(part), "{part} is not in {words}");
        }
    }
}
