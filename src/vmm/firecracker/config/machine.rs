//! CPUs and memory.

use super::CpuTemplate;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// MAX_SUPPORTED_VCPUS of Firecracker.
const MAX_CPUS: u32 = 32;
const MIB: u64 = 1 << 20;

/// `machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// 1 to 32; with `smt` 1 or an even number.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
    /// Shows pairs of CPUs as threads of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// Remembers which pages were written, for snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// A set of CPU features by name; deprecated there in favour of `cpu-config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// What backs the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary pages.
    None,
    /// hugetlbfs pages of 2 MiB, reserved on the host beforehand; from 1.7 on.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
    /// Transparent huge pages; from 1.17 on.
    Transparent,
}

impl Machine {
    /// A machine with so many CPUs and bytes of memory.
    ///
    /// # Errors
    /// More CPUs than Firecracker has, or memory that is no whole number of MiB.
    pub fn new(cpus: u32, memory: u64) -> Result<Machine> {
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(Error::usage(
                "firecracker.cpus",
                format!("Firecracker runs 1 to {MAX_CPUS} CPUs, not {cpus}"),
            ));
        }
        if memory == 0 || !memory.is_multiple_of(MIB) {
            return Err(Error::usage(
                "firecracker.memory",
                format!("Firecracker takes memory in whole MiB, not {memory} bytes"),
            ));
        }
        Ok(Machine {
            vcpu_count: cpus,
            mem_size_mib: memory / MIB,
            smt: None,
            track_dirty_pages: None,
            cpu_template: None,
            huge_pages: None,
        })
    }

    /// Backs the memory with huge pages.
    ///
    /// # Errors
    /// Memory that is no whole number of huge pages.
    pub fn with_huge_pages(mut self, pages: HugePages) -> Result<Machine> {
        if pages != HugePages::None && !self.mem_size_mib.is_multiple_of(2) {
            return Err(Error::usage(
                "firecracker.huge-pages",
                format!("{} MiB of memory is no whole number of 2 MiB pages", self.mem_size_mib),
            ));
        }
        self.huge_pages = Some(pages);
        Ok(self)
    }
}
