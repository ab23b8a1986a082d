//! Refuses to go on with a kernel that cannot boot under the VMM of its VM, as far as its configuration tells.

use super::boot::version_for;
use super::{Outputs, Work};
use crate::asset::kernel::KernelInfo;
use crate::error::{Context, Error, Result};
use crate::image::vmlinux;
use crate::manifest::model::Vm;
use crate::plan::{Graph, Task};
use crate::vmm::boot_args::{Machine, Severity};
use crate::vmm::firecracker::version::{Need, Version};
use crate::vmm::kernel_config::{Host, Missing, lint};
use fs_err as fs;
use std::io::ErrorKind;
use std::path::Path;

/// Looks at the kernel of every VM. What only makes a guest poorer is a warning; of a kernel that does not tell its
/// configuration only the entry point is judged.
///
/// # Errors
/// `kernel.config`, naming every option that is missing and what for; `kernel.no-pvh`, under QEMU, for one without the
/// entry point that QEMU starts an ELF kernel at.
pub(super) fn check_kernels(graph: &Graph, done: &Outputs, work: &Work<'_>) -> Result<()> {
    for nodes in &graph.vms {
        let Task::Init(vm) = &graph.nodes[nodes.init].task else { continue };
        let tree = work.store.object_path(&done.outputs[nodes.kernel]);
        let version = version_for(vm, nodes.vmm, done, work)?;
        let kernel = &graph.nodes[nodes.kernel].subject;
        for warning in check_kernel(vm, kernel, &tree, version)? {
            work.ui.warning(&warning);
        }
    }
    Ok(())
}

/// Looks at the kernel of a VM, which is called `kernel` and lies in `tree`; returns what only makes its guest poorer.
/// `version` is Firecracker's, where that boots the VM.
///
/// # Errors
/// As of `check_kernels`.
pub fn check_kernel(vm: &Vm, kernel: &str, tree: &Path, version: Option<Version>) -> Result<Vec<String>> {
    let warnings = check(vm, kernel, tree, version)?;
    if version.is_none() {
        check_entry(vm, kernel, tree)?;
    }
    Ok(warnings)
}

/// `version` is Firecracker's, where that boots the VM.
fn check(vm: &Vm, kernel: &str, tree: &Path, version: Option<Version>) -> Result<Vec<String>> {
    let path = tree.join("config");
    let config = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).or_failed("store.io", || "cannot read the kernel's configuration"),
    };
    let modules: Vec<String> = KernelInfo::load(tree)?.modules.iter().map(|file| module_name(file)).collect();
    let (machine, vmm) = match version {
        Some(version) => (Machine::Firecracker, format!("Firecracker {version}")),
        None => (Machine::Qemu, "QEMU".to_owned()),
    };
    let acpi = version.is_none_or(|version| version.has(Need::Acpi));
    let host = Host { machine, acpi, balloon: vm.tuning.balloon };
    let (errors, warnings): (Vec<Missing>, Vec<Missing>) =
        lint(&config, host, &modules).into_iter().partition(|m| m.severity == Severity::Error);
    if !errors.is_empty() {
        return Err(Error::usage(
            "kernel.config",
            format!("VM {}: the kernel {kernel} cannot boot under {vmm}: it lacks {}", vm.name, listed(&errors)),
        )
        .help(
            "Use another kernel, such as the package linux-image-cloud-amd64, or build these options in (`=y`); \
             a kernel given as a file brings no modules.",
        ));
    }
    Ok(warnings
        .into_iter()
        .map(|m| format!("VM {}: the kernel {kernel} lacks {}", vm.name, listed(&[m])))
        .collect())
}

/// Demands the entry point that QEMU needs. Firecracker takes the ELF header's own.
fn check_entry(vm: &Vm, kernel: &str, tree: &Path) -> Result<()> {
    if vmlinux::has_pvh_entry(&tree.join("vmlinux")) != Some(false) {
        return Ok(());
    }
    let text = format!(
        "VM {}: the kernel {kernel} cannot boot under QEMU: it is an ELF file without a PVH entry point (the note \
         XEN_ELFNOTE_PHYS32_ENTRY)",
        vm.name
    );
    Err(Error::usage("kernel.no-pvh", text).help(
        "Use another kernel, such as the package linux-image-cloud-amd64, or build it with CONFIG_PVH=y; Firecracker \
         needs no such entry point.",
    ))
}

fn listed(missing: &[Missing]) -> String {
    let each = missing.iter().map(|m| {
        let module = if m.is_module { ", a module that is not there" } else { "" };
        format!("CONFIG_{} ({}{module})", m.symbol, m.what)
    });
    each.collect::<Vec<_>>().join(", ")
}

/// `virtio_blk` for `03-virtio-blk.ko`.
fn module_name(file: &str) -> String {
    let bare = file.split_once('-').map_or(file, |(_, rest)| rest);
    bare.strip_suffix(".ko").unwrap_or(bare).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;
    use serde_json::json;

    const GOOD: &str = "64BIT BLK_DEV_INITRD RD_GZIP BINFMT_ELF DEVTMPFS PROC_FS SYSFS VIRTIO_MMIO VIRTIO_BLK \
                        VIRTIO_NET EXT4_FS OVERLAY_FS SERIAL_8250_CONSOLE TMPFS ACPI PVH VIRTIO_CONSOLE";

    fn tree(config: Option<&str>, modules: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kernel.json"), json!({"release": "6.1", "modules": modules}).to_string())
            .unwrap();
        if let Some(config) = config {
            fs::write(dir.path().join("config"), config).unwrap();
        }
        dir
    }

    fn vm(vmm: &str) -> Vm {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fc")).unwrap();
        let text = format!("vm \"web\" {{\n    {vmm}\n    run \"true\"\n}}\n");
        fs::write(dir.path().join(manifest::FILE_NAME), text).unwrap();
        manifest::load(dir.path()).unwrap().vms.remove(0)
    }

    fn on_firecracker(version: &str, tree: &Path) -> Result<Vec<String>> {
        check(&vm("vmm \"firecracker\" { path \"fc\" }"), "k", tree, Some(version.parse().unwrap()))
    }

    fn built_in() -> String {
        GOOD.split_whitespace().map(|symbol| format!("CONFIG_{symbol}=y\n")).collect()
    }

    #[test]
    fn a_kernel_without_a_configuration_is_not_judged() {
        assert_eq!(check(&vm(""), "k", tree(None, &[]).path(), None).unwrap(), [""; 0]);
    }

    #[test]
    fn an_option_that_is_missing_is_named_with_the_vm_and_what_it_is_for() {
        let config = built_in().replace("CONFIG_OVERLAY_FS=y", "CONFIG_OVERLAY_FS=m");
        let error = check(&vm(""), "vmlinux", tree(Some(&config), &[]).path(), None).unwrap_err();
        assert_eq!(error.code(), "kernel.config");
        assert_eq!(
            error.to_string(),
            "VM web: the kernel vmlinux cannot boot under QEMU: it lacks CONFIG_OVERLAY_FS \
             (a writable root over the sealed images, a module that is not there)"
        );
        let there = tree(Some(&config), &["00-virtio.ko", "01-overlay.ko"]);
        assert_eq!(check(&vm(""), "vmlinux", there.path(), None).unwrap(), [""; 0]);
    }

    #[test]
    fn the_vmm_decides_what_the_control_channel_needs() {
        let config = built_in();
        let tree = tree(Some(&config), &[]);
        check(&vm("vmm \"qemu\""), "k", tree.path(), None).unwrap();
        let error = on_firecracker("1.8.0", tree.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("under Firecracker 1.8.0: it lacks CONFIG_VIRTIO_VSOCKETS (the control channel)"),
            "{error}"
        );
    }

    #[test]
    fn an_old_firecracker_shows_its_devices_to_kernels_that_read_them_from_the_command_line() {
        let config = built_in() + "CONFIG_VIRTIO_VSOCKETS=y\nCONFIG_SERIO_I8042=y\n";
        let without = tree(Some(&config), &[]);
        assert_eq!(on_firecracker("1.8.0", without.path()).unwrap(), [""; 0]);
        let error = on_firecracker("1.7.0", without.path()).unwrap_err();
        let words =
            "under Firecracker 1.7.0: it lacks CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES (finding the devices)";
        assert!(error.to_string().ends_with(words), "{error}");
        let with = tree(Some(&(config + "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n")), &[]);
        assert_eq!(on_firecracker("1.7.0", with.path()).unwrap(), [""; 0]);
    }

    #[test]
    fn a_balloon_without_its_driver_is_refused() {
        let tree = tree(Some(&built_in()), &[]);
        let error = check(&vm("balloon \"64MiB\""), "k", tree.path(), None).unwrap_err();
        assert!(error.to_string().ends_with("it lacks CONFIG_VIRTIO_BALLOON (the balloon)"), "{error}");
    }

    #[test]
    fn what_makes_a_guest_poorer_is_a_warning() {
        let config = built_in().replace("CONFIG_SERIAL_8250_CONSOLE=y\n", "");
        let warnings = check(&vm(""), "k", tree(Some(&config), &[]).path(), None).unwrap();
        assert_eq!(
            warnings,
            [
                "VM web: the kernel k lacks CONFIG_SERIAL_8250_CONSOLE (the console, which shows why a boot fails)"
            ]
        );
    }

    #[test]
    fn under_qemu_a_kernel_says_where_it_is_entered() {
        let tree = tree(None, &[]);
        check_entry(&vm(""), "k", tree.path()).unwrap();
        // An ELF header (elf.h) that names no segments, and so no notes.
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        fs::write(tree.path().join("vmlinux"), elf).unwrap();
        let error = check_entry(&vm(""), "k", tree.path()).unwrap_err();
        assert_eq!(error.code(), "kernel.no-pvh");
        assert!(error.to_string().starts_with("VM web: the kernel k cannot boot under QEMU: "), "{error}");
        assert!(error.help_text().unwrap().contains("CONFIG_PVH=y"), "{error:?}");
    }

    #[test]
    fn modules_are_known_by_their_files() {
        assert_eq!(module_name("12-pvpanic-mmio.ko"), "pvpanic_mmio");
        assert_eq!(module_name("03-virtio_blk.ko"), "virtio_blk");
    }
}
