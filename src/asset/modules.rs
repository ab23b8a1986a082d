//! Which kernel modules a guest loads, in which order, and what a kernel must bring.

use super::elf::{ModuleInfo, module_name};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A driver that guests want: built in or a module.
struct Driver {
    module: &'static str,
    /// The option that no guest can do without.
    required: Option<&'static str>,
}

const fn required(module: &'static str, option: &'static str) -> Driver {
    Driver { module, required: Some(option) }
}

const fn wanted(module: &'static str) -> Driver {
    Driver { module, required: None }
}

/// In load order.
const DRIVERS: &[Driver] = &[
    required("virtio_mmio", "VIRTIO_MMIO"),
    required("virtio_blk", "VIRTIO_BLK"),
    required("virtio_net", "VIRTIO_NET"),
    // Firecracker's control channel, and QEMU's.
    wanted("vmw_vsock_virtio_transport"),
    wanted("virtio_console"),
    wanted("virtio_balloon"),
    // Entropy of the host's; nothing waits for it, so it is no must.
    wanted("virtio_rng"),
    wanted("pvpanic"),
    wanted("pvpanic_mmio"),
    required("overlay", "OVERLAY_FS"),
    // ext4 asks for "crc32c" by its crypto alias, which is this module where it is no library.
    wanted("crc32c_generic"),
    required("ext4", "EXT4_FS"),
];

/// What the drivers above depend on in known kernels: read in the same pass over the package.
const LIKELY: &[&str] = &[
    "virtio",
    "virtio_ring",
    "failover",
    "net_failover",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "rng_core",
    "mbcache",
    "jbd2",
    "crc16",
    "crc32c",
    "libcrc32c",
];

/// The modules to read before anything is known about dependencies.
pub(super) fn first_guess() -> BTreeSet<String> {
    DRIVERS.iter().map(|d| d.module).chain(LIKELY.iter().copied()).map(str::to_owned).collect()
}

/// A kernel's modules as far as they were read.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// By module name: file name without compression suffix, and uncompressed bytes' information.
    pub loaded: BTreeMap<String, ModuleInfo>,
    /// Module names that the kernel has compiled in.
    pub builtin: BTreeSet<String>,
    /// Names of all modules that the packages hold.
    pub present: BTreeSet<String>,
}

/// An ordered list of modules, or those that have to be read first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Complete(Vec<String>),
    Unread(BTreeSet<String>),
}

impl Modules {
    /// The wanted modules, each after all it depends on.
    ///
    /// # Errors
    /// Failed if a dependency is in none of the packages.
    pub(super) fn order(&self) -> Result<Order> {
        let mut order = Vec::new();
        let mut unread = BTreeSet::new();
        for driver in DRIVERS {
            if self.present.contains(driver.module) {
                self.visit(driver.module, &mut order, &mut unread, &mut BTreeSet::new())?;
            }
        }
        Ok(if unread.is_empty() { Order::Complete(order) } else { Order::Unread(unread) })
    }

    fn visit(
        &self,
        name: &str,
        order: &mut Vec<String>,
        unread: &mut BTreeSet<String>,
        path: &mut BTreeSet<String>,
    ) -> Result<()> {
        // A cycle cannot load in any order: the kernel says so at boot.
        if order.iter().any(|n| n == name) || self.builtin.contains(name) || !path.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(info) = self.loaded.get(name) else {
            unread.insert(name.to_owned());
            return Ok(());
        };
        for dependency in &info.depends {
            if !self.present.contains(dependency) && !self.builtin.contains(dependency) {
                let message = format!("the kernel module {name} needs {dependency}, which its packages lack");
                return Err(Error::failed("asset.kernel-module", message));
            }
            self.visit(dependency, order, unread, path)?;
        }
        // Soft ones may be aliases of something else; what is no module here is not wanted.
        for soft in info.soft.iter().filter(|soft| self.present.contains(*soft)) {
            self.visit(soft, order, unread, path)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    /// Refuses a kernel whose packages hold no configuration and that lacks a driver, judged by its modules and its
    /// list of built-in ones.
    ///
    /// # Errors
    /// Usage, naming the options.
    pub(super) fn check_drivers(&self, kernel: &str) -> Result<()> {
        let has = |d: &&Driver| self.present.contains(d.module) || self.builtin.contains(d.module);
        let missing: Vec<String> = DRIVERS
            .iter()
            .filter(|driver| !has(driver))
            .filter_map(|driver| driver.required.map(|option| format!("CONFIG_{option}")))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!("the kernel {kernel} cannot boot a guest: it lacks {}", missing.join(", "));
        Err(Error::usage("kernel.config", message).help(
            "use another kernel, such as the package linux-image-cloud-amd64, or build these options in",
        ))
    }
}

/// The module name and its compression suffix (`""`, `xz`, `zst`, `gz`) of a path such as
/// `kernel/drivers/misc/pvpanic/pvpanic-mmio.ko.xz`.
pub(super) fn module_file(path: &str) -> Option<(String, &str)> {
    let file = path.rsplit('/').next()?;
    let (stem, suffix) = file.split_once(".ko")?;
    let suffix = if suffix.is_empty() { suffix } else { suffix.strip_prefix('.')? };
    matches!(suffix, "" | "xz" | "zst" | "gz").then(|| (module_name(stem), suffix))
}

/// The module names of `modules.builtin`.
pub(super) fn builtin(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| module_file(line.trim())).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &[&str], &[&str])], present: &[&str], builtin: &[&str]) -> Modules {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
        let mut all = Modules { builtin: names(builtin), present: names(present), ..Modules::default() };
        for (name, depends, soft) in modules {
            let list = |l: &[&str]| l.iter().map(|n| (*n).to_owned()).collect();
            all.present.insert((*name).to_owned());
            all.loaded.insert((*name).to_owned(), ModuleInfo { depends: list(depends), soft: list(soft) });
        }
        all
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let found = kernel(
            &[
                ("virtio_blk", &["virtio_ring", "virtio"], &[]),
                ("virtio", &["virtio_ring"], &[]),
                ("virtio_ring", &[], &[]),
                ("ext4", &["jbd2", "crc16"], &["crc32c", "crc32c_generic"]),
                ("jbd2", &[], &[]),
                ("crc32c_generic", &[], &[]),
            ],
            &[],
            &["crc16"],
        );
        let Order::Complete(order) = found.order().unwrap() else { panic!("all are read") };
        assert_eq!(order, ["virtio_ring", "virtio", "virtio_blk", "crc32c_generic", "jbd2", "ext4"]);
    }

    #[test]
    fn unread_dependencies_are_asked_for_and_missing_ones_named() {
        let found = kernel(&[("overlay", &["exportfs"], &[])], &["exportfs"], &[]);
        assert_eq!(found.order().unwrap(), Order::Unread(BTreeSet::from(["exportfs".to_owned()])));
        let error = kernel(&[("overlay", &["exportfs"], &[])], &[], &[]).order().unwrap_err();
        assert!(error.to_string().contains("overlay needs exportfs"), "{error}");
    }

    #[test]
    fn a_cycle_of_modules_ends() {
        let found = kernel(&[("overlay", &["a"], &[]), ("a", &["overlay"], &[])], &[], &[]);
        assert_eq!(found.order().unwrap(), Order::Complete(vec!["a".to_owned(), "overlay".to_owned()]));
    }

    #[test]
    fn without_a_config_the_modules_are_judged() {
        let error = kernel(&[], &["virtio_mmio"], &["virtio_blk", "ext4"]).check_drivers("x").unwrap_err();
        assert!(error.to_string().ends_with("it lacks CONFIG_VIRTIO_NET, CONFIG_OVERLAY_FS"), "{error}");
        let all = ["virtio_mmio", "virtio_blk", "virtio_net", "overlay", "ext4"];
        kernel(&[], &all[..2], &all[2..]).check_drivers("x").unwrap();
    }

    #[test]
    fn module_files_are_known_in_all_compressions() {
        let file = |path| module_file(path).map(|(name, suffix)| format!("{name} {suffix}"));
        assert_eq!(
            file("kernel/drivers/misc/pvpanic/pvpanic-mmio.ko.xz").as_deref(),
            Some("pvpanic_mmio xz")
        );
        assert_eq!(file("a.ko").as_deref(), Some("a "));
        assert_eq!(file("a.ko.sig"), None);
        assert_eq!(file("modules.order"), None);
        assert_eq!(builtin("kernel/fs/ext4/ext4.ko\nkernel/lib/crc16.ko\n").len(), 2);
    }
}
