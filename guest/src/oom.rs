//! Whether the kernel's out-of-memory killer was at work. Every process of a guest is the workload's or its
//! descendant's, so the kernel's own count tells it, and no memory controller has to be switched on for it.

use std::fs;

/// How many processes the kernel has killed for want of memory since its start, within a cgroup's limit or the
/// machine's.
pub fn kills() -> u64 {
    count(&fs::read_to_string("/proc/vmstat").unwrap_or_default())
}

fn count(vmstat: &str) -> u64 {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn the_kernels_count_is_found() {
        assert_eq!(count("pgfault 5\noom_kill 3\nnuma_hit 1\n"), 3);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn this_kernel_has_the_count() {
        assert!(std::fs::read_to_string("/proc/vmstat").unwrap().contains("\noom_kill "));
    }
}
