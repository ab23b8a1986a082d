//! What Firecracker's guide to production hosts asks of a host (docs/prod-host-setup.md there), read from the
//! kernel's files. None of it keeps a VM from starting; each says what is at stake and how to mend it.

use super::checks::{Check, Status};
use std::fs;
use std::path::{Path, PathBuf};

/// The kernel's own; a lower one lets a guest keep a host thread busier with its timer.
const MIN_TIMER_PERIOD_US: u64 = 200;

/// All of it, of the host whose `/` is `root`.
pub(super) fn checks(root: &Path) -> Vec<Check> {
    let host = Host(root.to_owned());
    vec![
        host.swap(),
        host.smt(),
        host.ksm(),
        host.mitigations(),
        host.nx_huge_pages(),
        host.timer(),
        host.cgroup_moves(),
        host.huge_pages(),
    ]
}

struct Host(PathBuf);

impl Host {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.0.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn swap(&self) -> Check {
        // The first line is a heading.
        let swaps = self.read("proc/swaps").unwrap_or_default().lines().skip(1).count();
        if swaps == 0 {
            return Check::new("swap", Status::Ok, "off: no guest memory reaches a disk");
        }
        Check::new("swap", Status::Warn, "on: guest memory, secrets included, may be written to disk")
            .help("encrypt it, or turn it off (swapoff -a), if your guests hold secrets")
    }

    fn smt(&self) -> Check {
        match self.read("sys/devices/system/cpu/smt/active").as_deref() {
            Some("1") => {
                let text = "on: guests share cores with others, and what leaks between threads";
                Check::new("smt", Status::Warn, text).help(
                    "echo off > /sys/devices/system/cpu/smt/control (or boot with nosmt) where guests of \
                     different owners run",
                )
            }
            Some("0") => Check::new("smt", Status::Ok, "off"),
            _ => Check::new("smt", Status::Ok, "not told by this kernel"),
        }
    }

    fn ksm(&self) -> Check {
        match self.read("sys/kernel/mm/ksm/run").as_deref() {
            Some("1") => {
                Check::new("ksm", Status::Warn, "on: guests can learn of each other's memory by its timing")
                    .help("echo 2 > /sys/kernel/mm/ksm/run")
            }
            Some(_) => Check::new("ksm", Status::Ok, "off: no memory is shared between guests"),
            None => Check::new("ksm", Status::Ok, "not in this kernel"),
        }
    }

    /// What the kernel says of the CPU's known faults.
    fn mitigations(&self) -> Check {
        let entries = fs::read_dir(self.0.join("sys/devices/system/cpu/vulnerabilities"));
        let mut open: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                let text = fs::read_to_string(e.path()).ok()?.to_lowercase();
                match text.replace("smt vulnerable", "") {
                    // KVM's own guard against it is judged on its own, below.
                    _ if name == "itlb_multihit" => None,
                    rest if rest.contains("vulnerable") => Some(name),
                    rest if rest != text => Some(format!("{name} (between threads of a core)")),
                    _ => None,
                }
            })
            .collect();
        open.sort();
        if open.is_empty() {
            return Check::new("mitigations", Status::Ok, "no fault of the CPU is known and open");
        }
        let text = format!("open faults of the CPU: {}", open.join(", "));
        Check::new("mitigations", Status::Warn, text).help(
            "where guests are not trusted, update microcode and kernel, boot without mitigations=off, and turn \
             SMT off for what threads of a core see of each other",
        )
    }

    /// KVM's guard against a fault of some CPUs costs a thread for each VM, whose making slows the boot.
    fn nx_huge_pages(&self) -> Check {
        const NAME: &str = "nx-huge-pages";
        let Some(setting) = self.read("sys/module/kvm/parameters/nx_huge_pages") else {
            return Check::new(NAME, Status::Ok, "not told by this kernel");
        };
        let fault = self.read("sys/devices/system/cpu/vulnerabilities/itlb_multihit").unwrap_or_default();
        let safe = fault.contains("Not affected");
        let off = matches!(setting.as_str(), "never" | "N" | "0");
        match (off, safe) {
            (true, true) => Check::new(NAME, Status::Ok, "off, and this CPU does not need it"),
            (true, false) => Check::new(
                NAME,
                Status::Warn,
                "off although this CPU has the fault: a guest can stop the host",
            )
            .help("load the module kvm without nx_huge_pages=never"),
            (false, true) => Check::new(
                NAME,
                Status::Ok,
                "KVM decides; this CPU does not need it, nx_huge_pages=never saves a thread for each VM",
            ),
            _ => Check::new(NAME, Status::Ok, "on, as this CPU needs it"),
        }
    }

    /// How often a guest's emulated timer may fire.
    fn timer(&self) -> Check {
        const NAME: &str = "kvm-timer";
        let path = "sys/module/kvm/parameters/min_timer_period_us";
        let Some(period) = self.read(path).and_then(|text| text.parse::<u64>().ok()) else {
            return Check::new(NAME, Status::Ok, "not told by this kernel");
        };
        let text = format!("a guest's timer fires every {period} us at most");
        if period >= MIN_TIMER_PERIOD_US {
            return Check::new(NAME, Status::Ok, text);
        }
        Check::new(NAME, Status::Warn, text).help(
            "a guest can keep a kernel thread of the host busy, outside of its cgroup: load the module kvm with \
             min_timer_period_us=200 or more",
        )
    }

    /// Since Linux 6.0 moving a process between cgroups of v2 waits for all CPUs, unless told otherwise.
    fn cgroup_moves(&self) -> Check {
        const NAME: &str = "cgroup-moves";
        let release = self.read("proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
        let old = numbers.next().is_some_and(|major| major < 6);
        let mounts = self.read("proc/mounts").unwrap_or_default();
        let asked = mounts.contains("favordynmods")
            || self.read("proc/cmdline").unwrap_or_default().contains("cgroup_favordynmods");
        // A process of one thread enters groups of v1 by itself, which waits for nobody.
        let v1 = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup"));
        if old || asked || v1 {
            return Check::new(NAME, Status::Ok, "processes enter cgroups without a wait");
        }
        let text = "each jail waits some ms to enter its cgroups; to save them: \
                    mount -o remount,favordynmods /sys/fs/cgroup";
        Check::new(NAME, Status::Ok, text)
    }

    fn huge_pages(&self) -> Check {
        let number = |name: &str| -> u64 {
            let path = format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
            self.read(&path).and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let (all, free) = (number("nr_hugepages"), number("free_hugepages"));
        let thp = self.read("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let chosen = thp.split(['[', ']']).nth(1).unwrap_or("not in this kernel");
        let text = format!("{free} of {all} reserved ones of 2 MiB are free; transparent ones: {chosen}");
        Check::new("huge-pages", Status::Ok, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Check>) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        let found = checks(dir.path());
        (dir, found)
    }

    fn of<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_host_as_the_guide_wants_it_has_no_remarks() {
        let (_dir, found) = host(&[
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
            ("sys/devices/system/cpu/smt/active", "0\n"),
            ("sys/kernel/mm/ksm/run", "0\n"),
            ("sys/devices/system/cpu/vulnerabilities/l1tf", "Mitigation: PTE Inversion\n"),
            ("sys/devices/system/cpu/vulnerabilities/itlb_multihit", "Not affected\n"),
            ("sys/module/kvm/parameters/nx_huge_pages", "never\n"),
            ("sys/module/kvm/parameters/min_timer_period_us", "200\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-40-amd64\n"),
            ("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n"),
        ]);
        assert!(found.iter().all(|c| c.status == Status::Ok && c.help.is_none()), "{found:?}");
        assert!(of(&found, "cgroup-moves").detail.contains("without a wait"));
    }

    #[test]
    fn everything_against_the_guide_is_told_with_its_remedy() {
        let (_dir, found) = host(&[
            ("proc/swaps", "Filename\tType\n/dev/sda2 partition\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/kernel/mm/ksm/run", "1\n"),
            ("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable; SMT vulnerable\n"),
            ("sys/devices/system/cpu/vulnerabilities/itlb_multihit", "KVM: Vulnerable\n"),
            ("sys/module/kvm/parameters/nx_huge_pages", "never\n"),
            ("sys/module/kvm/parameters/min_timer_period_us", "50\n"),
        ]);
        for name in ["swap", "smt", "ksm", "mitigations", "nx-huge-pages", "kvm-timer"] {
            let check = of(&found, name);
            assert!(check.status == Status::Warn && check.help.is_some(), "{check:?}");
        }
        assert!(of(&found, "mitigations").detail.contains("mds"));
    }

    #[test]
    fn a_fault_that_is_mended_but_for_smt_is_open() {
        let mitigations = |texts: &[(&str, &str)]| {
            let path = |name: &str| format!("sys/devices/system/cpu/vulnerabilities/{name}");
            let files: Vec<_> = texts.iter().map(|(name, text)| (path(name), *text)).collect();
            let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            let (_dir, found) = host(&files);
            of(&found, "mitigations").clone()
        };
        let found = mitigations(&[
            ("mds", "Mitigation: Clear CPU buffers; SMT vulnerable\n"),
            ("spectre_v2", "Mitigation: Enhanced IBRS; BHI: Vulnerable\n"),
            ("l1tf", "Mitigation: PTE Inversion; VMX: flush not necessary, SMT disabled\n"),
            ("meltdown", "Not affected\n"),
        ]);
        assert_eq!(found.status, Status::Warn);
        assert_eq!(found.detail, "open faults of the CPU: mds (between threads of a core), spectre_v2");
        assert_eq!(mitigations(&[("itlb_multihit", "KVM: Vulnerable\n")]).status, Status::Ok);
    }

    #[test]
    fn a_new_kernel_is_told_how_to_let_processes_enter_cgroups_at_once() {
        let moves = |mounts: &str, release: &str| {
            let (_dir, found) = host(&[("proc/mounts", mounts), ("proc/sys/kernel/osrelease", release)]);
            of(&found, "cgroup-moves").detail.clone()
        };
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert!(moves(v2, "6.1.0").contains("remount,favordynmods"));
        assert!(moves(v2, "5.10.0").contains("without a wait"));
        let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
        assert!(moves(v1, "6.12.1").contains("without a wait"));
    }
}
