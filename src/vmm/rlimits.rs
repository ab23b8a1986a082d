//! What a VMM inherits of its caller's resource limits: none that would kill it later, as far as they can be raised;
//! one that cannot be raised and would keep it from running is an error before it is started.

use super::memory::Budget;
use super::spec::VmSpec;
use crate::error::{Error, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// The limits that are raised: by number, as what raises them runs between fork and exec.
const RAISED: [libc::__rlimit_resource_t; 5] =
    [libc::RLIMIT_AS, libc::RLIMIT_CPU, libc::RLIMIT_DATA, libc::RLIMIT_FSIZE, libc::RLIMIT_NPROC];
/// Address space for programs, libraries and threads' stacks besides what is in the budget.
const MAPPINGS: u64 = 512 << 20;
/// Descriptors besides drives.
const FILES: u64 = 64;

/// Raises soft limits to the hard ones, and hard ones where that is allowed: only what memory, CPU time and files of a
/// user's other programs are bounded by. Descriptors are not: `descriptors` has those. Makes system calls only.
pub(crate) fn raise() {
    for resource in RAISED {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is a valid place for a limit for the length of the calls, which keep no pointer. What cannot
        // be raised stays as it is: `check` has looked at that.
        unsafe {
            if libc::getrlimit(resource, &raw mut limit) < 0 {
                continue;
            }
            let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            if libc::setrlimit(resource, &raw const none) == 0 {
                continue;
            }
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(resource, &raw const limit);
        }
    }
}

/// Whether the hard limits of this process let a VMM of `spec` run. Nobody but root can raise them.
///
/// # Errors
/// `vmm.ulimit`, naming the limit, what is needed and the shell's command for it.
pub(super) fn check(spec: &VmSpec) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let sizes = spec.drives.iter().filter(|drive| !drive.read_only);
    let largest = sizes.filter_map(|drive| std::fs::metadata(&drive.path).ok()).map(|meta| meta.len()).max();
    let hard = |resource| getrlimit(resource).map_or(RLIM_INFINITY, |(_, hard)| hard);
    judge(spec, largest.unwrap_or(0), &hard)
}

fn judge(spec: &VmSpec, largest: u64, hard: &dyn Fn(Resource) -> u64) -> Result<()> {
    let mapped = Budget::of(spec).total() + MAPPINGS;
    for (resource, needed, what, flag) in [
        (Resource::RLIMIT_AS, mapped, "bytes of address space", "v"),
        (Resource::RLIMIT_DATA, mapped, "bytes of data", "d"),
        (Resource::RLIMIT_FSIZE, largest, "bytes in a file", "f"),
        (Resource::RLIMIT_NOFILE, FILES + spec.drives.len() as u64, "open files", "n"),
    ] {
        let most = hard(resource);
        if most < needed {
            let text =
                format!("the VMM needs {needed} {what}, and this process may have {most} ({resource:?})");
            return Err(Error::host("vmm.ulimit", text).help(format!(
                "raise the limit of this shell, which `ulimit -H{flag}` shows, or run as root"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::firecracker::config::tests::spec;

    #[test]
    fn a_hard_limit_that_a_vmm_cannot_live_with_is_named() {
        let unlimited = |_| RLIM_INFINITY;
        judge(&spec(), 1 << 30, &unlimited).unwrap();
        for (limited, flag) in [
            (Resource::RLIMIT_AS, "-Hv"),
            (Resource::RLIMIT_DATA, "-Hd"),
            (Resource::RLIMIT_FSIZE, "-Hf"),
            (Resource::RLIMIT_NOFILE, "-Hn"),
        ] {
            let hard = move |resource| if resource == limited { 16 } else { RLIM_INFINITY };
            let error = judge(&spec(), 1 << 30, &hard).unwrap_err();
            assert_eq!(error.code(), "vmm.ulimit");
            assert!(error.to_string().contains(&format!("{limited:?}")), "{error}");
            assert!(error.help_text().unwrap().contains(flag), "{error:?}");
        }
    }
}
