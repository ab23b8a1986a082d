//! How a VM's machine differs from the plain one: console, memory pages, balloon, CPU template, MTU and rate limits;
//! and which VMM can do it. What one cannot do is an error, never dropped.

use super::firecracker::config::{CpuChanges, CpuTemplate};
use super::firecracker::version::Need;
use crate::error::{Error, Result};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of a huge page.
pub const PAGE: u64 = 2 << 20;

/// Everything that is not set is as the VMM has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// What the guest's kernel says on its console.
    pub console: Console,
    /// What backs the guest's memory.
    pub huge_pages: Option<HugePages>,
    /// A device that gives guest memory back to the host.
    pub balloon: Option<Balloon>,
    /// A set of CPU features by name.
    pub cpu_template: Option<CpuTemplate>,
    /// CPU features added or removed by a file. Its digest stands in keys, not its name.
    pub cpu_file: Option<CpuFile>,
    /// Of the guest's network, in bytes.
    pub mtu: Option<u16>,
    /// What the guest may receive.
    pub receive: Rate,
    /// What the guest may send.
    pub send: Rate,
    /// What the guest may read from and write to its scratch disk.
    pub scratch: Rate,
    /// The same of volumes, by their names.
    pub volumes: BTreeMap<String, Rate>,
}

/// What the guest's kernel says on its console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// Warnings and errors.
    #[default]
    Quiet,
    /// All it does, from its first line on, which slows the boot.
    All,
}

/// What backs the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// Pages of 2 MiB, reserved on the host beforehand.
    Reserved,
    /// Those that the host's kernel finds by itself.
    Transparent,
}

/// A device that gives guest memory back to the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Taken from the guest once its driver runs, in bytes: whole MiB.
    pub amount: u64,
    /// Gives memory back to the guest rather than have it kill processes.
    pub deflate_on_oom: bool,
    /// The guest tells what it frees, and the host takes it until it is used again.
    pub free_page_reporting: bool,
}

/// A CPU template of the user's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFile {
    /// As the manifest names it.
    pub path: PathBuf,
    /// What it says; none before a boot.
    pub changes: Option<CpuChanges>,
}

/// Limits of a device, each second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes.
    pub bandwidth: Option<u64>,
    /// Operations or packets.
    pub ops: Option<u32>,
}

impl Rate {
    /// Whether anything is limited.
    pub fn is_limit(self) -> bool {
        self != Rate::default()
    }
}

impl Tuning {
    /// The limits of a drive, by its role in `VmSpec`.
    pub fn of_drive(&self, role: &str) -> Rate {
        match role.strip_prefix("volume-") {
            Some(volume) => self.volumes.get(volume).copied().unwrap_or_default(),
            None if role == "scratch" => self.scratch,
            None => Rate::default(),
        }
    }

    /// What is set of the machine, as named values.
    pub fn machine_fields(&self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        if self.console == Console::All {
            fields.push(("console".to_owned(), "all".to_owned()));
        }
        if let Some(pages) = self.huge_pages {
            fields.push(("huge-pages".to_owned(), format!("{pages:?}").to_lowercase()));
        }
        if let Some(balloon) = self.balloon {
            let words = [
                (balloon.deflate_on_oom, ", deflate on oom"),
                (balloon.free_page_reporting, ", free page reporting"),
            ];
            let words: String = words.iter().filter_map(|(set, word)| set.then_some(*word)).collect();
            fields.push(("balloon".to_owned(), format!("{}{words}", Bytes(balloon.amount))));
        }
        if let Some(template) = self.cpu_template {
            fields.push(("cpu-template".to_owned(), format!("{template:?}")));
        }
        rate_fields(&mut fields, "scratch", self.scratch);
        for (name, rate) in &self.volumes {
            rate_fields(&mut fields, &format!("volume {name}"), *rate);
        }
        fields
    }

    /// What is set of the network, as named values.
    pub fn network_fields(&self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        if let Some(mtu) = self.mtu {
            fields.push(("mtu".to_owned(), mtu.to_string()));
        }
        rate_fields(&mut fields, "receive", self.receive);
        rate_fields(&mut fields, "send", self.send);
        fields
    }

    /// What a version of Firecracker must have for it.
    pub fn needs(&self) -> Vec<Need> {
        let used = [
            (Need::HugePages, self.huge_pages == Some(HugePages::Reserved)),
            (Need::TransparentHugePages, self.huge_pages == Some(HugePages::Transparent)),
            (Need::Balloon, self.balloon.is_some()),
            (Need::FreePages, self.balloon.is_some_and(|balloon| balloon.free_page_reporting)),
        ];
        used.into_iter().filter_map(|(need, used)| used.then_some(need)).collect()
    }

    /// Refuses what QEMU cannot do.
    ///
    /// # Errors
    /// `vmm.qemu-cannot` names the settings.
    pub fn check_qemu(&self, vm: &str) -> Result<()> {
        let mut cannot = Vec::new();
        if self.cpu_template.is_some() || self.cpu_file.is_some() {
            cannot.push("`cpu-template`");
        }
        if self.receive.is_limit() || self.send.is_limit() {
            cannot.push("the limits of `network`");
        }
        if cannot.is_empty() {
            return Ok(());
        }
        Err(Error::usage(
            "vmm.qemu-cannot",
            format!("VM {vm}: QEMU knows nothing of {}", cannot.join(" and ")),
        )
        .help(
            "Boot it with `vmm \"firecracker\"`, or remove the setting. `vmm \"auto\"` takes QEMU where the \
                 host's KVM has no hardware behind it.",
        ))
    }

    /// Refuses what this host cannot do now. `memory` in bytes.
    ///
    /// # Errors
    /// `vmm.huge-pages`, with the command that mends it.
    pub fn check_host(&self, memory: u64) -> Result<()> {
        self.check_host_with(memory, 0)
    }

    /// `check_host` of the time when `more` huge pages of 2 MiB will be free than are now.
    pub fn check_host_with(&self, memory: u64, more: i64) -> Result<()> {
        self.check_pages(memory, more, Path::new("/sys/kernel/mm"))
    }

    fn check_pages(&self, memory: u64, more: i64, sys: &Path) -> Result<()> {
        let read = |path: &str| std::fs::read_to_string(sys.join(path)).unwrap_or_default();
        match self.huge_pages {
            None => Ok(()),
            Some(HugePages::Transparent) => {
                if read("transparent_hugepage/enabled").contains("[never]") {
                    return Err(Error::host("vmm.huge-pages", "transparent huge pages are off on this host")
                        .help("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"));
                }
                Ok(())
            }
            Some(HugePages::Reserved) => {
                let number = |name: &str| -> u64 {
                    read(&format!("hugepages/hugepages-2048kB/{name}")).trim().parse().unwrap_or(0)
                };
                // A page that is promised is not free, although it counts as such.
                let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
                let free = free.saturating_add_signed(more);
                let wanted = memory.div_ceil(PAGE);
                if free >= wanted {
                    return Ok(());
                }
                let all = number("nr_hugepages") + wanted - free;
                let text = format!("the guest needs {wanted} huge pages of 2 MiB, this host has {free} left");
                Err(Error::host("vmm.huge-pages", text).help(format!("sysctl vm.nr_hugepages={all}")))
            }
        }
    }
}

/// How many huge pages of 2 MiB a process will give back at its end: those of its mappings, touched or only promised.
pub fn huge_pages_of(pid: i32) -> u64 {
    huge_pages_in(&std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default()) // Gone: none.
}

/// `smaps` of proc(5): of each mapping first its `Size`, then its `KernelPageSize`, both in kB.
fn huge_pages_in(smaps: &str) -> u64 {
    let number = |text: &str| text.trim().trim_end_matches(" kB").parse().unwrap_or(0_u64);
    let (mut size, mut pages) = (0, 0);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Size", value)) => size = number(value),
            Some(("KernelPageSize", value)) if number(value) == PAGE >> 10 => pages += size / (PAGE >> 10),
            _ => {}
        }
    }
    pages
}

fn rate_fields(fields: &mut Vec<(String, String)>, what: &str, rate: Rate) {
    if let Some(bytes) = rate.bandwidth {
        fields.push((format!("{what} bandwidth"), format!("{}/s", Bytes(bytes))));
    }
    if let Some(ops) = rate.ops {
        fields.push((format!("{what} ops"), format!("{ops}/s")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_cannot_do_is_refused_by_name() {
        Tuning { console: Console::All, mtu: Some(1400), ..Tuning::default() }.check_qemu("web").unwrap();
        let limited = Rate { bandwidth: Some(1 << 20), ops: None };
        Tuning { scratch: limited, huge_pages: Some(HugePages::Reserved), ..Tuning::default() }
            .check_qemu("web")
            .unwrap();
        let all = Tuning { send: limited, cpu_template: Some(CpuTemplate::T2), ..Tuning::default() };
        let error = all.check_qemu("web").unwrap_err();
        assert_eq!(error.code(), "vmm.qemu-cannot");
        assert!(
            error.to_string().contains("cpu-template") && error.to_string().contains("network"),
            "{error}"
        );
    }

    #[test]
    fn huge_pages_that_are_not_there_are_refused_with_the_remedy() {
        let sys = tempfile::tempdir().unwrap();
        let reserved = Tuning { huge_pages: Some(HugePages::Reserved), ..Tuning::default() };
        let dir = sys.path().join("hugepages/hugepages-2048kB");
        fs_err::create_dir_all(&dir).unwrap();
        for (name, value) in
            [("nr_hugepages", "100\n"), ("free_hugepages", "70\n"), ("resv_hugepages", "6\n")]
        {
            fs_err::write(dir.join(name), value).unwrap();
        }
        reserved.check_pages(128 << 20, 0, sys.path()).unwrap();
        let error = reserved.check_pages(256 << 20, 0, sys.path()).unwrap_err();
        assert_eq!(error.code(), "vmm.huge-pages");
        assert_eq!(error.help_text(), Some("sysctl vm.nr_hugepages=164"));
        reserved.check_pages(256 << 20, 64, sys.path()).unwrap();
        let promised = reserved.check_pages(128 << 20, -64, sys.path()).unwrap_err();
        assert_eq!(promised.help_text(), Some("sysctl vm.nr_hugepages=164"));
        let transparent = Tuning { huge_pages: Some(HugePages::Transparent), ..Tuning::default() };
        transparent.check_pages(1 << 30, 0, sys.path()).unwrap();
        fs_err::create_dir(sys.path().join("transparent_hugepage")).unwrap();
        fs_err::write(sys.path().join("transparent_hugepage/enabled"), "always madvise [never]\n").unwrap();
        assert_eq!(transparent.check_pages(1 << 30, 0, sys.path()).unwrap_err().code(), "vmm.huge-pages");
    }

    #[test]
    fn the_huge_pages_of_a_process_are_counted_by_mapping() {
        let smaps = "7f00-7f40 rw-p 0 00:0f 1 /anon_hugepage (deleted)\nSize:             131072 kB\n\
                     KernelPageSize:     2048 kB\nPrivate_Hugetlb:       0 kB\n\
                     5500-5600 r-xp 0 08:01 2 /firecracker\nSize:               2048 kB\nKernelPageSize:        4 kB\n\
                     7f80-7f90 rw-p 0 00:0f 3 /other\nSize:               4096 kB\nKernelPageSize:     2048 kB\n";
        assert_eq!(huge_pages_in(smaps), 66);
        assert_eq!(huge_pages_of(std::process::id() as i32), 0);
        assert_eq!(huge_pages_of(i32::MAX), 0);
    }

    #[test]
    fn what_is_not_set_changes_no_key() {
        assert_eq!(Tuning::default().machine_fields(), []);
        assert_eq!(Tuning::default().network_fields(), []);
    }
}
