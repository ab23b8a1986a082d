//! What the host says of the kernel's parameters and of the workload's resources. All of it must hold: a workload that
//! was promised more than it gets fails later, and elsewhere.

use crate::failure::{Context, Failure, Result};
use firegopher_protocol::{Limit, Resource};
use nix::errno::Errno;
use nix::sys::resource::{self, RLIM_INFINITY, getrlimit, setrlimit};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Open files unless the VM has a limit of its own: the soft limit leaves room for any server without making programs
/// that close every possible descriptor crawl; the hard one is the kernel's own ceiling (fs.nr_open).
const NOFILE: (u64, u64) = (65_536, 1_048_576);

/// What container engines set: everybody may listen on low ports and send ICMP echo requests, as there is nobody else in
/// the guest to be kept from it.
const DEFAULTS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")];

/// Sets what nobody asked for, and what the host says may set again. A kernel without IPv4, or older than these
/// parameters, has no such limits to lift or keeps them.
pub fn default_sysctls(dir: &Path) {
    for (path, value) in DEFAULTS {
        // Never created: what is not there is no parameter.
        let file = OpenOptions::new().write(true).open(dir.join(path));
        let _ = file.and_then(|mut file| file.write_all(value.as_bytes()));
    }
}

/// Sets kernel parameters in their order, by their paths below `dir`, which is /proc/sys.
pub fn set_sysctls(sysctls: &[(String, String)], dir: &Path) -> Result<()> {
    for (path, value) in sysctls {
        let what = || format!("setting the sysctl {} to {value:?}", dotted(path));
        // Never created: what is not there is no parameter.
        let mut file = match OpenOptions::new().write(true).open(dir.join(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Failure::new(format!(
                    "{}: the guest's kernel has no such parameter, or not without a driver that it lacks",
                    what()
                )));
            }
            other => other.context(what)?,
        };
        file.write_all(format!("{value}\n").as_bytes()).context(what)?;
    }
    Ok(())
}

/// As manifests have it: dots and slashes change places.
fn dotted(path: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    path.chars().map(swap).collect()
}

/// Sets this process's limits, while it may still raise them.
pub fn set_limits(limits: &[Limit]) -> Result<()> {
    if !limits.iter().any(|limit| limit.resource == Resource::Nofile) {
        default_files().context(|| format!("setting the limit nofile to {}", NOFILE.1))?;
    }
    for limit in limits {
        let number = |value: Option<u64>| value.unwrap_or(RLIM_INFINITY);
        let done = setrlimit(of(limit.resource), number(limit.soft), number(limit.hard));
        let ceiling = match (&done, limit.resource) {
            (Err(Errno::EPERM), Resource::Nofile) => " (the kernel's ceiling is the sysctl fs.nr_open)",
            _ => "",
        };
        done.context(|| format!("setting the limit {}{ceiling}", describe(limit)))?;
    }
    Ok(())
}

fn describe(limit: &Limit) -> String {
    let text = |value: Option<u64>| value.map_or("unlimited".to_owned(), |number| number.to_string());
    let (name, soft, hard) = (limit.resource.name(), text(limit.soft), text(limit.hard));
    if soft == hard {
        format!("{name} to {hard}")
    } else {
        format!("{name} to {soft} (soft) and {hard} (hard)")
    }
}

/// Where the ceiling cannot be raised, what there is will do.
fn default_files() -> nix::Result<()> {
    let files = resource::Resource::RLIMIT_NOFILE;
    match setrlimit(files, NOFILE.0, NOFILE.1) {
        Err(Errno::EPERM) => {
            let (_, hard) = getrlimit(files)?;
            setrlimit(files, NOFILE.0.min(hard), hard)
        }
        other => other,
    }
}

fn of(resource: Resource) -> resource::Resource {
    use resource::Resource as To;
    match resource {
        Resource::As => To::RLIMIT_AS,
        Resource::Core => To::RLIMIT_CORE,
        Resource::Cpu => To::RLIMIT_CPU,
        Resource::Data => To::RLIMIT_DATA,
        Resource::Fsize => To::RLIMIT_FSIZE,
        Resource::Memlock => To::RLIMIT_MEMLOCK,
        Resource::Msgqueue => To::RLIMIT_MSGQUEUE,
        Resource::Nice => To::RLIMIT_NICE,
        Resource::Nofile => To::RLIMIT_NOFILE,
        Resource::Nproc => To::RLIMIT_NPROC,
        Resource::Rtprio => To::RLIMIT_RTPRIO,
        Resource::Rttime => To::RLIMIT_RTTIME,
        Resource::Sigpending => To::RLIMIT_SIGPENDING,
        Resource::Stack => To::RLIMIT_STACK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_parameter_that_is_not_there_is_named_and_not_made() {
        let dir = TempDir::new();
        std::fs::create_dir_all(dir.path().join("net/eth0.1")).unwrap();
        std::fs::write(dir.path().join("net/eth0.1/known"), "a longer text\n").unwrap();
        let sysctl = |path: &str| (path.to_owned(), "1 2".to_owned());
        let error =
            set_sysctls(&[sysctl("net/eth0.1/known"), sysctl("net/unknown")], dir.path()).unwrap_err();
        assert!(
            error.to_string().starts_with("setting the sysctl net.unknown to \"1 2\": the guest's kernel"),
            "{error}"
        );
        // Not cut off either: what lies in /proc/sys has no length.
        let known = std::fs::read_to_string(dir.path().join("net/eth0.1/known")).unwrap();
        assert!(known.starts_with("1 2\n"), "{known}");
        assert!(!dir.path().join("net/unknown").exists());
        let error = set_sysctls(&[sysctl("net/eth0.1")], dir.path()).unwrap_err();
        assert!(error.to_string().starts_with("setting the sysctl net.eth0/1 to"), "{error}");
    }

    #[test]
    fn defaults_are_set_where_the_kernel_has_them() {
        let dir = TempDir::new();
        default_sysctls(dir.path());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made");
        std::fs::create_dir_all(dir.path().join("net/ipv4")).unwrap();
        let known = dir.path().join("net/ipv4/ip_unprivileged_port_start");
        std::fs::write(&known, "1024").unwrap();
        default_sysctls(dir.path());
        assert_eq!(std::fs::read_to_string(known).unwrap(), "0024", "as /proc/sys takes it");
        assert!(!dir.path().join("net/ipv4/ping_group_range").exists());
    }

    #[test]
    fn limits_are_described_as_the_manifest_has_them() {
        let limit = |soft, hard| describe(&Limit { resource: Resource::Memlock, soft, hard });
        assert_eq!(limit(Some(1), Some(1)), "memlock to 1");
        assert_eq!(limit(None, None), "memlock to unlimited");
        assert_eq!(limit(Some(1), None), "memlock to 1 (soft) and unlimited (hard)");
    }
}
