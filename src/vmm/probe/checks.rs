//! The checks of `doctor`: each tries the thing itself and cleans up after.

use super::kvm::{Kvm, kvm};
use crate::home::Home;
use crate::net::netns::Netns;
use crate::net::tap::{self, TapConfig};
use crate::vmm::jail::cgroup::{self, Limits};
use crate::vmm::jail::{lease, remove_tree};
use crate::vmm::trial;
use fs_err as fs;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde::Serialize;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Below this many free bytes a first `up` may not get through: packages, two copies of an image, scratch.
const DISK_WANTED: u64 = 2 << 30;
/// Below this much available memory the default VM does not fit with its VMM.
const MEMORY_WANTED: u64 = 512 << 20;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It works.
    Ok,
    /// firegopher works without it, less well.
    Warn,
    /// firegopher does not work without it.
    Missing,
}

/// One finding about this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short and stable: `kvm`.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it, if it is not all right.
    pub help: Option<String>,
}

impl Check {
    pub(super) fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Check {
        Check { name, status, detail: detail.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Check {
        self.help = Some(help.into());
        self
    }
}

/// What there is to try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmms {
    /// A directory with Firecracker's two programs.
    pub firecracker: Option<PathBuf>,
    /// A tree of QEMU's in the store.
    pub qemu: Option<PathBuf>,
}

/// All checks, in the order to read them in. Nothing is left behind. `home` need not exist.
/// In each of `vmms` a guest of a few instructions is booted.
pub fn checks(home: &Home, vmms: &Vmms) -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let mut all = vec![architecture(), user(root), check_kvm(), tsc(), apt(), disk(home), memory()];
    if root {
        all.extend([network(), jail(home), uids(), cgroups()]);
    }
    all.extend(leftovers(home));
    all.extend(vmms.qemu.as_deref().map(|tree| check_qemu(home, tree)));
    all.extend(vmms.firecracker.as_deref().map(|dir| check_firecracker(home, dir, root)));
    all.push(ports(root));
    all.extend(super::guide::checks(Path::new("/")));
    all
}

fn architecture() -> Check {
    let machine = nix::sys::utsname::uname().map(|u| u.machine().to_string_lossy().into_owned());
    match machine.unwrap_or_default() {
        machine if machine == "x86_64" => Check::new("architecture", Status::Ok, machine),
        other => Check::new("architecture", Status::Missing, format!("{other}: only x86_64 is supported")),
    }
}

fn user(root: bool) -> Check {
    if root {
        Check::new("user", Status::Ok, "root: each VM gets a jail, a uid and a tap of its own")
    } else {
        Check::new(
            "user",
            Status::Warn,
            "not root: VMs run as you, without a jail, on QEMU's user networking",
        )
        .help("run as root to have each VM jailed")
    }
}

fn check_kvm() -> Check {
    match kvm() {
        Kvm::Hardware => Check::new("kvm", Status::Ok, "a VM was made; the CPU helps"),
        Kvm::Software(why) => {
            Check::new("kvm", Status::Warn, format!("software KVM ({why}): VMs are emulated instead"))
                .help("a host or cloud instance with hardware virtualisation boots many times faster")
        }
        Kvm::Absent(why) => Check::new("kvm", Status::Warn, format!("{why}: VMs are emulated"))
            .help("load kvm_intel or kvm_amd; in a VM, enable nested virtualisation"),
        Kvm::NoAccess => Check::new("kvm", Status::Warn, "/dev/kvm may not be opened: VMs are emulated")
            .help("join the group that owns /dev/kvm, usually kvm"),
    }
}

fn tsc() -> Check {
    Check::new("tsc", Status::Ok, format!("{:.3} GHz, measured", super::tsc_khz() as f64 / 1e6))
}

/// Has apt name the package lists of its sources, which needs neither network nor rights. Whether they can be reached
/// is found out by fetching them alone.
fn apt() -> Check {
    let mut command = Command::new("apt-get");
    // Neither its lists nor its locks are asked for.
    command.args(["-o", "Debug::NoLocking=true", "-o", "Dir::State::lists=/nonexistent/lists"]);
    command.args(["--print-uris", "update"]).env("LC_ALL", "C");
    match command.stdin(Stdio::null()).output() {
        Ok(output) => judge_apt(
            output.status.success(),
            &String::from_utf8_lossy(&output.stdout),
            &String::from_utf8_lossy(&output.stderr),
        ),
        Err(_) => {
            Check::new("apt", Status::Missing, "apt-get does not run: no Debian packages can be fetched")
                .help("use a Debian or Ubuntu host, or name kernel, image and vmm by path")
        }
    }
}

/// `'URI' NAME SIZE`, a line each.
fn judge_apt(done: bool, printed: &str, complained: &str) -> Check {
    let uris = printed.lines().filter_map(|line| line.strip_prefix('\'')?.split('\'').next());
    let mut from: Vec<&str> = uris
        .filter(|uri| uri.contains("Release"))
        .map(|uri| uri.split_once("://").map_or(uri, |(_, rest)| rest))
        .map(|rest| rest.split('/').next().unwrap_or_default())
        .map(|host| host.rsplit_once('@').map_or(host, |(_, host)| host))
        .map(|host| if host.is_empty() { "this host" } else { host })
        .collect();
    let suites = from.len();
    from.sort_unstable();
    from.dedup();
    let first = complained.lines().find_map(|line| line.strip_prefix("E: ")).unwrap_or("it does not say why");
    match suites {
        _ if !done => Check::new("apt", Status::Missing, format!("apt-get does not work: {first}"))
            .help("no Debian packages can be fetched until `apt-get update` works"),
        0 => Check::new("apt", Status::Missing, "apt has no sources: no Debian packages can be fetched")
            .help("add some to /etc/apt/sources.list.d, or name kernel, image and vmm by path"),
        _ => {
            let text = format!("{suites} suites from {}; reaching them was not tried", from.join(", "));
            Check::new("apt", Status::Ok, text)
        }
    }
}

/// What earlier trials left that were killed.
fn leftovers(home: &Home) -> Option<Check> {
    match trial::sweep(home) {
        Ok(0) => None,
        Ok(n) => {
            Some(Check::new("leftovers", Status::Ok, format!("what {n} killed trials had left was removed")))
        }
        Err(e) => Some(failed("leftovers", &e)),
    }
}

/// Boots a guest in QEMU as it is in the store.
fn check_qemu(home: &Home, tree: &Path) -> Check {
    const NAME: &str = "qemu";
    match trial::qemu(tree, home) {
        Ok(trial) => {
            let took = trial.took.as_millis();
            Check::new(
                NAME,
                Status::Ok,
                format!("a guest booted and ended in {took} ms, with the CPU emulated"),
            )
        }
        Err(e) => {
            let help = e.help_text().unwrap_or("`firegopher verify` tells whether the store is as it was");
            failed(NAME, &e).help(help)
        }
    }
}

fn disk(home: &Home) -> Check {
    let existing = home.root().ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = nix::sys::statvfs::statvfs(existing) else {
        return Check::new(
            "disk",
            Status::Warn,
            format!("cannot tell how much is free at {}", existing.display()),
        );
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let detail = format!("{:.1} GiB free at {}", gib(free), existing.display());
    if free >= DISK_WANTED {
        Check::new("disk", Status::Ok, detail)
    } else {
        Check::new("disk", Status::Warn, detail).help("`firegopher gc`, or FIREGOPHER_HOME on a larger disk")
    }
}

fn memory() -> Check {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    match kib.map(|kib| kib << 10) {
        Some(bytes) if bytes >= MEMORY_WANTED => {
            Check::new("memory", Status::Ok, format!("{:.1} GiB available", gib(bytes)))
        }
        Some(bytes) => Check::new("memory", Status::Warn, format!("{:.1} GiB available", gib(bytes)))
            .help("give VMs less with `memory`, or stop something"),
        None => Check::new("memory", Status::Warn, "/proc/meminfo does not tell what is available"),
    }
}

fn network() -> Check {
    let config = TapConfig {
        name: "fg-doctor".to_owned(),
        host: Ipv4Addr::new(172, 19, 0, 1),
        guest: Ipv4Addr::new(172, 19, 0, 2),
        mac: [2, 0, 172, 19, 0, 2],
        owner: None,
        persist: false,
        mtu: None,
    };
    match Netns::create().and_then(|ns| tap::create(&ns, &config)) {
        Ok(_) => Check::new("network", Status::Ok, "a namespace and a tap in it were made"),
        Err(e) => failed("network", &e).help(e.help_text().unwrap_or("VMs need namespaces and /dev/net/tun")),
    }
}

/// A directory with a device node, as every jail has one.
fn jail(home: &Home) -> Check {
    let existing = home.root().ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let dir: PathBuf = existing.join(format!(".firegopher-doctor-{}", std::process::id()));
    let attempt = || -> std::io::Result<()> {
        fs::create_dir(&dir)?;
        let null = dir.join("null");
        mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))?;
        fs::OpenOptions::new().read(true).open(&null)?;
        Ok(())
    };
    let outcome = attempt();
    let removed = remove_tree(&dir);
    match (outcome, removed) {
        (Ok(()), Ok(())) if no_exec(existing) => {
            let text = format!("{} is mounted noexec: no VMM runs from a jail there", existing.display());
            Check::new("jail", Status::Missing, text)
                .help("remount it with exec, or set FIREGOPHER_HOME to another file system")
        }
        (Ok(()), Ok(())) => {
            Check::new("jail", Status::Ok, format!("device nodes work at {}", existing.display()))
        }
        (Err(e), _) => failed("jail", &e).help("FIREGOPHER_HOME must not be on a file system mounted nodev"),
        (_, Err(e)) => failed("jail", &e),
    }
}

fn no_exec(dir: &Path) -> bool {
    let flags = nix::sys::statvfs::statvfs(dir).map(|stat| stat.flags());
    flags.is_ok_and(|flags| flags.contains(nix::sys::statvfs::FsFlags::ST_NOEXEC))
}

fn cgroups() -> Check {
    let journal =
        cgroup::journal(&std::env::temp_dir().join(format!("firegopher-doctor-{}", std::process::id())));
    let limits = Limits { memory: 256 << 20, pids: 64, cpu_percent: 100 };
    let made = cgroup::create(&format!("doctor-{}", std::process::id()), limits, &journal);
    let removed = cgroup::remove(&journal);
    match (made, removed) {
        (Ok(groups), Ok(())) if groups.warnings.is_empty() => {
            let versions = cgroup::versions().join(", ");
            Check::new("cgroups", Status::Ok, format!("memory, pids and cpu can be limited ({versions})"))
        }
        (Ok(groups), Ok(())) => Check::new("cgroups", Status::Warn, groups.warnings.join("; "))
            .help("VMs run without these limits; enable the controllers to have them"),
        (Err(e), _) | (_, Err(e)) => failed("cgroups", &e),
    }
}

fn uids() -> Check {
    match lease::free() {
        Ok(uid) => Check::new("uids", Status::Ok, format!("each jail gets a uid of its own, such as {uid}")),
        Err(e) => failed("uids", &e)
            .help("ids from 1900000000 on are given to others: see /etc/subuid, /etc/passwd"),
    }
}

/// Boots a guest through the jailer.
fn check_firecracker(home: &Home, dir: &Path, root: bool) -> Check {
    const NAME: &str = "firecracker";
    if !root {
        return Check::new(NAME, Status::Warn, "not tried: its jail needs root")
            .help("run `firegopher doctor` as root");
    }
    match trial::firecracker(dir, home) {
        Ok(trial) => {
            let took = trial.took.as_millis();
            match kvm() {
                Kvm::Hardware => {
                    Check::new(NAME, Status::Ok, format!("a jailed guest booted and ended in {took} ms"))
                }
                _ => Check::new(
                    NAME,
                    Status::Warn,
                    format!("a jailed guest of a few instructions ended in {took} ms, but KVM has no hardware here"),
                )
                .help("stock kernels crawl or die on it: use `vmm \"qemu\"` on this host"),
            }
        }
        Err(e) => {
            let check = failed(NAME, &e);
            match e.help_text() {
                Some(help) => check.help(help),
                None => check,
            }
        }
    }
}

fn ports(root: bool) -> Check {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(_) if root => Check::new("ports", Status::Ok, "any port can be published"),
        Ok(_) => Check::new("ports", Status::Ok, format!("ports from {} on can be published", first.trim())),
        Err(e) => failed("ports", &e),
    }
}

/// What fails here keeps VMs from starting as this user.
fn failed(name: &'static str, error: &dyn std::error::Error) -> Check {
    let mut detail = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        detail += &format!(": {e}");
        cause = e.source();
    }
    Check::new(name, Status::Missing, detail)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_sources_are_counted_and_their_absence_is_told() {
        let printed = "'http://deb.example.org/debian/dists/bookworm/InRelease' deb.example.org_debian 0 \n\
                       'http://deb.example.org/debian/dists/bookworm-updates/InRelease' deb.example.org_debian 0 \n\
                       'https://user:secret@other.example.org/x/InRelease' other 0 \n";
        let found = judge_apt(true, printed, "");
        assert_eq!(found.status, Status::Ok);
        assert_eq!(
            found.detail,
            "3 suites from deb.example.org, other.example.org; reaching them was not tried"
        );
        let found = judge_apt(true, "", "");
        assert!(found.status == Status::Missing && found.detail.contains("no sources"), "{found:?}");
        let found = judge_apt(false, printed, "W: old\nE: Malformed entry 1\n");
        assert_eq!(found.detail, "apt-get does not work: Malformed entry 1");
    }

    #[test]
    fn a_doctor_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let found = checks(&Home::new(dir.path()), &Vmms::default());
        for check in &found {
            println!("{:?}", check);
            assert!(check.status == Status::Ok || check.help.is_some() || check.status == Status::Missing);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
