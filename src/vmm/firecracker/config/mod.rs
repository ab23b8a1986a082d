//! The file given to `--config-file`: field names and values exactly as Firecracker reads them, one module a
//! device. Fields left `None` are not written, so that the same file serves versions that do not know them.

mod balloon;
mod boot_source;
mod cpu;
mod drive;
mod entropy;
mod logger;
mod machine;
mod metrics;
mod network;
mod rate_limiter;
mod vsock;

pub use balloon::Balloon;
pub use boot_source::BootSource;
pub use cpu::{
    Bitmap, Capability, CpuChanges, CpuTemplate, CpuidLeaf, CpuidRegister, MAX_CPU_BYTES, MsrModifier,
    Number, Register,
};
pub use drive::{CacheType, Drive, IoEngine};
pub use entropy::Entropy;
pub use logger::{Level, Logger};
pub use machine::{HugePages, Machine};
pub use metrics::Metrics;
pub use network::NetworkInterface;
pub use rate_limiter::{RateLimiter, TokenBucket};
pub use vsock::{GUEST_CID, Vsock};

use super::version::Need;
use crate::error::{Error, Result};
use crate::vmm::spec::{NetSpec, VmSpec};
use crate::vmm::tuning;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where things are inside the jail: absolute paths with the jail as `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailPaths {
    /// ELF vmlinux.
    pub kernel: PathBuf,
    /// gzip cpio; a stub kernel needs none.
    pub initramfs: Option<PathBuf>,
    /// In the order of `VmSpec::drives`.
    pub drives: Vec<PathBuf>,
    /// The unix socket of the vsock device. Firecracker makes it and connects to `PATH_PORT` for the guest.
    pub vsock: PathBuf,
    /// A CPU template, if there is one.
    pub cpu: PathBuf,
    /// Where Firecracker logs; its stdout otherwise, in the midst of the console.
    pub log: Option<PathBuf>,
    /// Where metrics are flushed to.
    pub metrics: Option<PathBuf>,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// What is booted.
    pub boot_source: BootSource,
    /// The disks: the guest sees them in this order, vda first.
    pub drives: Vec<Drive>,
    /// CPUs and memory.
    pub machine_config: Machine,
    /// The network devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The guest's way to the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// The source of random numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// A device that takes memory back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// A file of CPU features added or removed. In place of its name it could stand itself, from 1.13 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<PathBuf>,
    /// Firecracker's own log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// Firecracker's metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
}

impl Config {
    /// The file's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: strings, numbers and lists always serialise")
    }

    /// What a version of Firecracker must have to read this file.
    pub fn needs(&self) -> Vec<Need> {
        let balloon = self.balloon.as_ref();
        let huge_pages = self.machine_config.huge_pages;
        let used = [
            (Need::HugePages, huge_pages == Some(HugePages::Hugetlbfs2M)),
            (Need::TransparentHugePages, huge_pages == Some(HugePages::Transparent)),
            (Need::Balloon, balloon.is_some()),
            (Need::FreePages, balloon.is_some_and(|b| b.free_page_reporting.is_some())),
        ];
        used.into_iter().filter_map(|(need, used)| used.then_some(need)).collect()
    }
}

/// What Firecracker is told for `spec`, whose files stand at `paths` in the jail, with these kernel arguments.
///
/// # Errors
/// User networking, which Firecracker does not have; sizes it cannot express.
pub fn config(spec: &VmSpec, paths: &JailPaths, kernel_args: &str) -> Result<Config> {
    if spec.drives.len() != paths.drives.len() {
        return Err(Error::bug(format!("{} drives at {} paths", spec.drives.len(), paths.drives.len())));
    }
    let network_interfaces = match &spec.net {
        NetSpec::None => Vec::new(),
        NetSpec::Tap { name, mac, .. } => vec![NetworkInterface::new(name, *mac, &spec.tuning)],
        NetSpec::User { .. } => {
            return Err(Error::host("firecracker.user-network", "Firecracker has no user networking")
                .help("run as root, or choose `vmm \"qemu\"`"));
        }
    };
    let drives = spec.drives.iter().zip(&paths.drives).enumerate();
    Ok(Config {
        boot_source: BootSource {
            kernel_image_path: paths.kernel.clone(),
            initrd_path: paths.initramfs.clone(),
            boot_args: Some(kernel_args.to_owned()),
        },
        drives: drives
            .map(|(n, (drive, path))| Drive::new(n, drive, path, spec.tuning.of_drive(&drive.role)))
            .collect(),
        machine_config: machine(spec)?,
        network_interfaces,
        vsock: Some(Vsock { guest_cid: GUEST_CID, uds_path: paths.vsock.clone() }),
        entropy: Some(Entropy::default()),
        balloon: spec.tuning.balloon.map(Balloon::new),
        cpu_config: spec.tuning.cpu_file.as_ref().map(|_| paths.cpu.clone()),
        logger: paths.log.clone().map(Logger::to),
        metrics: paths.metrics.clone().map(|metrics_path| Metrics { metrics_path }),
    })
}

fn machine(spec: &VmSpec) -> Result<Machine> {
    let mut machine = Machine::new(spec.cpus, spec.memory)?;
    machine.cpu_template = spec.tuning.cpu_template;
    match spec.tuning.huge_pages {
        None => Ok(machine),
        Some(tuning::HugePages::Reserved) => machine.with_huge_pages(HugePages::Hugetlbfs2M),
        Some(tuning::HugePages::Transparent) => machine.with_huge_pages(HugePages::Transparent),
    }
}

#[cfg(test)]
pub(crate) mod tests;
