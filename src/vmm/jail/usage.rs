//! What a VMM's cgroups counted of limits that were reached: read before they are removed, to say why it died.

use fs_err as fs;
use std::path::{Path, PathBuf};

/// What the groups of one VMM counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the group that limits memory, if there is one.
    pub memory: Option<Memory>,
    /// Of the group that limits processes and threads.
    pub pids: Option<Pids>,
}

/// Counters of a memory controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that were allowed; `None` without a limit.
    pub limit: Option<u64>,
    /// Bytes that were used at most, if this kernel counts them.
    pub peak: Option<u64>,
    /// Processes of the group that an out-of-memory killer killed, the group's own or the host's.
    pub killed: u64,
    /// How often the limit was reached and nothing could be given up.
    pub reached: u64,
}

/// Counters of a pids controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// Processes and threads that were allowed; `None` without a limit.
    pub limit: Option<u64>,
    /// How often one more was refused.
    pub refused: u64,
}

/// Reads what the groups that `journal` lists have counted. What a kernel does not count stays out.
pub fn usage(journal: &Path) -> Usage {
    let mut usage = Usage::default();
    for dir in super::cgroup::dirs(journal) {
        usage.memory = usage.memory.or_else(|| memory(&dir));
        usage.pids = usage.pids.or_else(|| pids(&dir));
    }
    usage
}

/// Of v2 if the group has its files, else of v1 (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).
fn memory(dir: &Path) -> Option<Memory> {
    if let Some(events) = read(dir, "memory.events") {
        return Some(Memory {
            limit: number(dir, "memory.max"),
            peak: number(dir, "memory.peak"),
            killed: field(&events, "oom_kill"),
            reached: field(&events, "oom"),
        });
    }
    let control = read(dir, "memory.oom_control")?;
    let killed = field(&control, "oom_kill");
    let (limit, peak) = (number(dir, "memory.limit_in_bytes"), number(dir, "memory.max_usage_in_bytes"));
    // Also counted where something could be given up; whoever was killed far below the limit was not by it.
    let failures = number(dir, "memory.failcnt").unwrap_or(0);
    let at_limit = limit.zip(peak).is_none_or(|(limit, peak)| peak + (4 << 20) >= limit);
    Some(Memory { limit, peak, killed, reached: if at_limit { failures } else { 0 } })
}

fn pids(dir: &Path) -> Option<Pids> {
    let events = read(dir, "pids.events")?;
    Some(Pids { limit: number(dir, "pids.max"), refused: field(&events, "max") })
}

fn read(dir: &Path, file: &str) -> Option<String> {
    let path: PathBuf = dir.join(file);
    fs::read_to_string(path).ok()
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.trim().parse().ok()
}

/// The number on the line that begins with `name`; 0 without such a line.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal, and a group of these files.
    fn usage_of(files: &[(&str, &str)]) -> Usage {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("firegopher").join("abc");
        fs::create_dir_all(&group).unwrap();
        for (name, text) in files {
            fs::write(group.join(name), text).unwrap();
        }
        let journal = dir.path().join("jail.cgroups");
        fs::write(&journal, serde_json::to_vec(&[&group]).unwrap()).unwrap();
        usage(&journal)
    }

    #[test]
    fn both_versions_of_cgroups_tell_of_an_out_of_memory_kill() {
        let v2 = usage_of(&[
            ("memory.events", "low 0\nhigh 0\nmax 812\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("memory.max", "536870912\n"),
            ("memory.peak", "536870912\n"),
            ("pids.events", "max 3\n"),
            ("pids.max", "129\n"),
        ]);
        let half = Some(512 << 20);
        assert_eq!(v2.memory, Some(Memory { limit: half, peak: half, killed: 1, reached: 1 }));
        assert_eq!(v2.pids, Some(Pids { limit: Some(129), refused: 3 }));
        let v1 = usage_of(&[
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("memory.limit_in_bytes", "536870912\n"),
            ("memory.max_usage_in_bytes", "536866816\n"),
            ("memory.failcnt", "77\n"),
        ]);
        let peak = Some((512 << 20) - 4096);
        assert_eq!(v1.memory, Some(Memory { limit: half, peak, killed: 1, reached: 77 }));
    }

    #[test]
    fn a_kill_far_below_the_limit_was_not_the_limits() {
        let v1 = usage_of(&[
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            ("memory.limit_in_bytes", "536870912\n"),
            ("memory.max_usage_in_bytes", "268435456\n"),
            ("memory.failcnt", "5\n"),
        ]);
        assert_eq!(v1.memory.map(|m| (m.killed, m.reached)), Some((1, 0)));
    }

    #[test]
    fn a_group_without_counters_and_no_group_tell_nothing() {
        assert_eq!(usage_of(&[]), Usage::default());
        assert_eq!(usage(Path::new("/nowhere/jail.cgroups")), Usage::default());
        assert_eq!(
            usage_of(&[("memory.events", "oom_kill 0\n"), ("memory.max", "max\n")]).memory.unwrap().limit,
            None
        );
    }
}
