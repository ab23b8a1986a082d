//! Says what a VMM died of: from its status, from what its cgroups counted, and from what the host counted meanwhile.

use super::jail::{self, Usage, cgroup};
use super::memory::Budget;
use super::monitor::Death;
use super::spec::{VmSpec, VmmBinary};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

/// What has to be known of a boot to explain the end of its VMM.
#[derive(Debug, Clone)]
pub struct Circumstances {
    budget: Budget,
    firecracker: bool,
    /// Where its groups are recorded, if it has any.
    groups: Option<PathBuf>,
    /// Processes that the host had killed for want of memory before.
    host_kills: Option<u64>,
}

/// Why a VMM died, for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What happened: a sentence without its full stop.
    pub words: String,
    /// How to mend it.
    pub help: String,
}

impl Circumstances {
    /// Before a boot of `spec`.
    pub fn note(spec: &VmSpec) -> Circumstances {
        Circumstances {
            budget: Budget::of(spec),
            firecracker: matches!(spec.vmm, VmmBinary::Firecracker { .. }),
            groups: spec.jail.as_ref().map(|jail| cgroup::journal(&jail.root)),
            host_kills: host_kills(),
        }
    }

    /// Why the VMM died, if anything but its own words tells. Its groups must not be removed yet.
    pub fn explain(&self, death: &Death) -> Option<Cause> {
        let usage = self.groups.as_deref().map(jail::usage).unwrap_or_default();
        let host = self.host_kills.zip(host_kills()).map_or(0, |(before, now)| now.saturating_sub(before));
        self.judge(death, usage, host)
    }

    fn judge(&self, death: &Death, usage: Usage, host_kills: u64) -> Option<Cause> {
        // Nobody sends SIGKILL for want of threads, and a refusal may be long past.
        if death.status.signal() == Some(libc::SIGKILL) {
            return Some(self.killed(usage, host_kills));
        }
        if let Some(pids) = usage.pids.filter(|pids| pids.refused > 0 && !death.status.success()) {
            let limit = pids.limit.map_or("its limit".to_owned(), |limit| format!("its limit of {limit}"));
            return Some(Cause {
                words: format!("the VMM died ({}) when it wanted more threads than {limit}", death.status),
                help: "give the VM fewer `cpus`; a VMM that starts more threads than it has work for may be broken \
                       into by its guest"
                    .to_owned(),
            });
        }
        let signal = match (death.status.signal(), death.status.code()) {
            (Some(signal), _) => signal,
            (None, Some(code)) if self.firecracker => caught(code)?,
            _ => return None,
        };
        let cause = |words: &str, help: &str| {
            let words = format!("the VMM died ({}): {words}", death.status);
            Some(Cause { words, help: help.to_owned() })
        };
        match signal {
            libc::SIGSYS => cause(
                "it made a system call that its seccomp filter forbids",
                "another version of the VMM may not need that call; if it is a released one, its guest may have \
                 broken into it",
            ),
            libc::SIGXFSZ => cause(
                "it wrote beyond the size that files may have (RLIMIT_FSIZE)",
                "`ulimit -Hf` shows the limit that this shell hands on; a jailed VMM may write as much as its \
                 largest drive and its memory",
            ),
            libc::SIGXCPU => cause(
                "it used up its CPU time (RLIMIT_CPU)",
                "`ulimit -Ht` shows the limit that this shell hands on",
            ),
            libc::SIGBUS => cause(
                "a page of its memory could not be had",
                "reserved huge pages may have run out (grep Huge /proc/meminfo), or a disk image was cut short",
            ),
            libc::SIGSEGV | libc::SIGILL | libc::SIGABRT | libc::SIGFPE => cause(
                "it crashed",
                "this is a fault of the VMM, which its guest may have provoked; `firegopher update` moves to a newer \
                 one",
            ),
            _ => None,
        }
    }

    /// What is known of somebody's SIGKILL.
    fn killed(&self, usage: Usage, host_kills: u64) -> Cause {
        let memory = usage.memory.unwrap_or_default();
        let used = |peak: Option<u64>| peak.map(mib).unwrap_or_else(|| "an unknown amount".to_owned());
        let limit = memory.limit.unwrap_or(self.budget.total());
        let parts = format!(
            "{} for the guest, {} for the VMM itself",
            mib(self.budget.guest),
            mib(limit.saturating_sub(self.budget.guest))
        );
        if memory.killed > 0 && memory.reached > 0 {
            return Cause {
                words: format!(
                    "the VMM was killed because it ran out of memory: it reached its own limit of {} ({parts})",
                    mib(limit)
                ),
                help: format!(
                    "give the VM more `memory`, by which the limit rises; a VMM that takes more than {} for itself \
                     is a fault worth a report",
                    mib(limit.saturating_sub(self.budget.guest))
                ),
            };
        }
        if memory.killed > 0 {
            return Cause {
                words: format!(
                    "the VMM was killed because the host ran out of memory, or a cgroup that firegopher runs in \
                     reached its limit: the VMM had taken {} and might have taken {}",
                    used(memory.peak),
                    mib(limit)
                ),
                help: HOST_MEMORY.to_owned(),
            };
        }
        if host_kills > 0 && usage.memory.is_none() {
            return Cause {
                words: format!(
                    "the VMM was killed by SIGKILL, and the host ran out of memory while it ran: the kernel killed {}",
                    if host_kills == 1 {
                        "one process".to_owned()
                    } else {
                        format!("{host_kills} processes")
                    }
                ),
                help: HOST_MEMORY.to_owned(),
            };
        }
        let not_memory = match usage.memory {
            Some(memory) => format!(
                "neither its own limit of memory ({} of {} were used at most) nor the host's want of memory did it",
                used(memory.peak),
                mib(limit)
            ),
            None => "the host's want of memory did not do it".to_owned(),
        };
        Cause {
            words: format!("the VMM was killed from outside (SIGKILL): {not_memory}"),
            help: "somebody sent it: a person, a service manager that stops what it started, a container that ends"
                .to_owned(),
        }
    }
}

/// What mends a host without memory.
const HOST_MEMORY: &str =
    "free memory on this host (`free -m` shows what is available), run fewer VMs, or give them less `memory`";

/// The signal that Firecracker caught when it exits with `code` (its `FcExitCode`).
fn caught(code: i32) -> Option<i32> {
    Some(match code {
        148 => libc::SIGSYS,
        149 => libc::SIGBUS,
        150 => libc::SIGSEGV,
        151 => libc::SIGXFSZ,
        154 => libc::SIGXCPU,
        157 => libc::SIGILL,
        _ => return None,
    })
}

/// Processes that this host has killed for want of memory since it was started (proc(5), /proc/vmstat since Linux
/// 4.13), those of cgroups included.
fn host_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::jail::{Memory, Pids};
    use std::process::ExitStatus;

    const LIMIT: u64 = 512 << 20;

    fn circumstances(firecracker: bool) -> Circumstances {
        let budget = Budget { guest: 256 << 20, translation: 128 << 20, vmm: 128 << 20 };
        Circumstances { budget, firecracker, groups: None, host_kills: None }
    }

    fn death(raw: i32) -> Death {
        Death { status: ExitStatus::from_raw(raw), stderr: String::new() }
    }

    fn memory(killed: u64, reached: u64, peak: u64) -> Usage {
        let memory = Memory { limit: Some(LIMIT), peak: Some(peak), killed, reached };
        Usage { memory: Some(memory), pids: None }
    }

    fn killed(usage: Usage, host_kills: u64) -> Cause {
        circumstances(false).judge(&death(libc::SIGKILL), usage, host_kills).unwrap()
    }

    #[test]
    fn a_vmm_at_its_own_limit_is_told_with_figures() {
        let cause = killed(memory(1, 40, LIMIT), 1);
        assert_eq!(
            cause.words,
            "the VMM was killed because it ran out of memory: it reached its own limit of 512 MiB \
             (256 MiB for the guest, 256 MiB for the VMM itself)"
        );
        assert!(cause.help.contains("more `memory`"), "{cause:?}");
    }

    #[test]
    fn the_hosts_want_of_memory_is_told_apart_from_a_limit() {
        let cause = killed(memory(1, 0, 300 << 20), 1);
        assert!(cause.words.contains("the host ran out of memory"), "{cause:?}");
        assert!(cause.words.ends_with("had taken 300 MiB and might have taken 512 MiB"), "{cause:?}");
        // Without a group nothing tells whom it hit.
        let cause = killed(Usage::default(), 2);
        assert!(cause.words.contains("the kernel killed 2 processes"), "{cause:?}");
        assert!(cause.help.contains("free -m"), "{cause:?}");
    }

    #[test]
    fn somebody_elses_kill_is_said_to_be_that() {
        // Another process of the host was killed meanwhile, which this one's group would have counted.
        let cause = killed(memory(0, 3, 300 << 20), 1);
        assert!(cause.words.contains("killed from outside (SIGKILL)"), "{cause:?}");
        assert!(cause.words.contains("300 MiB of 512 MiB were used at most"), "{cause:?}");
        let cause = killed(Usage::default(), 0);
        assert!(cause.words.ends_with("the host's want of memory did not do it"), "{cause:?}");
    }

    #[test]
    fn every_limit_shows_itself_by_name() {
        let of = |raw, firecracker| circumstances(firecracker).judge(&death(raw), Usage::default(), 0);
        let says = |raw, firecracker, what: &str| {
            let cause = of(raw, firecracker).unwrap_or_else(|| panic!("nothing about {raw}"));
            assert!(cause.words.contains(what) && !cause.help.is_empty(), "{cause:?}");
        };
        let exit = |code| code << 8;
        says(libc::SIGSYS, false, "seccomp");
        says(exit(148), true, "seccomp");
        says(libc::SIGXFSZ, false, "RLIMIT_FSIZE");
        says(exit(151), true, "RLIMIT_FSIZE");
        says(libc::SIGXCPU, false, "RLIMIT_CPU");
        says(exit(154), true, "RLIMIT_CPU");
        says(exit(149), true, "could not be had");
        says(libc::SIGABRT, false, "crashed");
        says(exit(150), true, "crashed");
        assert_eq!(of(exit(1), false), None, "its own words tell");
        assert_eq!(of(exit(148), false), None, "QEMU has no such status");
        let pids = Usage { memory: None, pids: Some(Pids { limit: Some(129), refused: 1 }) };
        let cause = circumstances(false).judge(&death(libc::SIGABRT), pids, 0).unwrap();
        assert!(cause.words.ends_with("more threads than its limit of 129"), "{cause:?}");
    }

    #[test]
    fn a_kill_for_want_of_memory_outranks_an_earlier_refusal_of_a_thread() {
        let pids = Some(Pids { limit: Some(129), refused: 1 });
        let cause = killed(Usage { pids, ..memory(1, 40, LIMIT) }, 1);
        assert!(cause.words.contains("it ran out of memory"), "{cause:?}");
        let cause = killed(Usage { pids, ..memory(0, 0, LIMIT) }, 0);
        assert!(cause.words.contains("killed from outside"), "{cause:?}");
    }

    #[test]
    fn this_kernel_counts_its_out_of_memory_kills() {
        assert!(host_kills().is_some(), "/proc/vmstat has oom_kill since Linux 4.13");
    }
}
