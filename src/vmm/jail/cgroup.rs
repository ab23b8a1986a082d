//! Limits a VMM's memory, processes and CPU time by cgroups, v1 or v2, controller by controller.
//! A controller that the host lacks is a warning: the VM runs without that limit.

use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The group of all our groups.
const PARENT: &str = "firegopher";
/// The period of CPU quotas in microseconds, the kernel's own default.
const PERIOD: u64 = 100_000;
/// How long an emptied group may take to become removable: its last process is still being torn down.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a VMM may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Hundredths of a CPU.
    pub cpu_percent: u64,
}

/// The groups of one VMM.
#[derive(Debug, Default)]
pub struct Groups {
    /// Open `tasks` (v1) or `cgroup.procs` (v2) files: a process with one thread enters by writing "0".
    pub procs: Vec<OwnedFd>,
    /// What could not be limited, for the user.
    pub warnings: Vec<String>,
    members: Vec<Member>,
}

/// A controller that limits the VMM.
#[derive(Debug)]
struct Member {
    v2: bool,
    /// Index of the group's door in `procs`.
    door: usize,
    settings: Vec<(&'static str, String)>,
}

impl Groups {
    /// The jailer's arguments about groups. Those of v1 stay in `procs`, to be entered before the jailer is started:
    /// it would write its own pid, and that waits until no thread anywhere on the host is being made, 10 to 20 ms on
    /// some kernels, where "0" written by a process of one thread waits for nobody. v2 makes no such difference, and
    /// there the jailer told of no group enters the one that is called like its program, if there is one.
    pub(crate) fn hand_to_jailer(&mut self) -> Vec<OsString> {
        let theirs: Vec<&Member> = self.members.iter().filter(|m| m.v2).collect();
        if theirs.is_empty() {
            return ["--cgroup-version", "1"].map(OsString::from).into();
        }
        let mut args: Vec<OsString> =
            ["--cgroup-version", "2", "--parent-cgroup", PARENT].map(OsString::from).into();
        for (file, value) in theirs.iter().flat_map(|m| &m.settings) {
            args.push("--cgroup".into());
            args.push(format!("{file}={value}").into());
        }
        let doors: Vec<usize> = theirs.iter().map(|m| m.door).collect();
        let mut door = 0;
        self.procs.retain(|_| {
            door += 1;
            !doors.contains(&(door - 1))
        });
        self.members.clear();
        args
    }
}

/// Where the groups of the jail at `root` are recorded: beside it, not in it.
pub fn journal(root: &Path) -> PathBuf {
    let mut name: OsString = root.as_os_str().to_owned();
    name.push(".cgroups");
    name.into()
}

/// One place to limit things at: a directory of a hierarchy, and the files to write.
struct Plan {
    /// `memory`, for warnings.
    controller: &'static str,
    v2: bool,
    dir: PathBuf,
    settings: Vec<(&'static str, String)>,
}

/// Makes groups named `id` with `limits`. `journal` lists them before they exist.
pub fn create(id: &str, limits: Limits, journal: &Path) -> Result<Groups> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut groups = Groups::default();
    let plans = plan(&mounts, id, limits, &mut groups.warnings);
    let mut dirs: Vec<&PathBuf> = plans.iter().map(|plan| &plan.dir).collect();
    dirs.dedup();
    let record = serde_json::to_vec(&dirs).map_err(|e| Error::bug("cgroup paths are UTF-8").because(e))?;
    fs::write(journal, record).or_failed("cgroup.journal", || "cannot record the VM's cgroups")?;
    let mut entered: Vec<PathBuf> = Vec::new();
    for plan in &plans {
        match plan.apply() {
            Ok(procs) => {
                let door = entered.iter().position(|dir| *dir == plan.dir).unwrap_or_else(|| {
                    entered.push(plan.dir.clone());
                    groups.procs.push(procs);
                    groups.procs.len() - 1
                });
                groups.members.push(Member { v2: plan.v2, door, settings: plan.settings.clone() });
            }
            Err(e) => groups.warnings.push(format!("the VM's {} is not limited: {e}", plan.controller)),
        }
    }
    Ok(groups)
}

/// The groups that `journal` lists; none if there is no such record, and none that cannot be ours.
pub(super) fn dirs(journal: &Path) -> Vec<PathBuf> {
    let listed: Vec<PathBuf> =
        fs::read(journal).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    listed.into_iter().filter(|dir| is_ours(dir)).collect()
}

/// The processes in the groups that `journal` lists: those of a VMM that nobody wrote down before a crash.
pub fn members(journal: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = dirs(journal)
        .iter()
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Whether a path can be a group of ours, whatever a journal says.
fn is_ours(dir: &Path) -> bool {
    dir.parent().and_then(Path::file_name).is_some_and(|name| name == PARENT)
}

/// Removes the groups that `journal` lists, then `journal`. Their processes must have ended.
pub fn remove(journal: &Path) -> Result<()> {
    let dirs: Vec<PathBuf> = match fs::read(journal) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(), // Half a journal: nothing was made.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::failed("cgroup.journal", "cannot read the VM's cgroups").because(e)),
    };
    for dir in dirs {
        if !is_ours(&dir) {
            continue;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match std::fs::remove_dir(&dir) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                Err(e) if e.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(e) => {
                    return Err(
                        Error::failed("cgroup.remove", format!("cannot remove {}", dir.display())).because(e)
                    );
                }
            }
        }
        // Goes with the last VM; while others run it is not empty.
        if let Some(parent) = dir.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
    fs::remove_file(journal).or_failed("cgroup.journal", || "cannot remove the record of the VM's cgroups")
}

/// In which version of cgroups each controller is found, for people: `memory by v1`.
pub fn versions() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let limits = Limits { memory: 0, pids: 0, cpu_percent: 0 };
    let plans = plan(&mounts, "", limits, &mut Vec::new());
    plans.iter().map(|p| format!("{} by v{}", p.controller, if p.v2 { 2 } else { 1 })).collect()
}

/// Decides, controller by controller, where its group goes. A controller lives in one hierarchy at a time.
fn plan(mounts: &str, id: &str, limits: Limits, warnings: &mut Vec<String>) -> Vec<Plan> {
    let quota = limits.cpu_percent * PERIOD / 100;
    let wanted = [
        (
            "memory",
            vec![("memory.limit_in_bytes", limits.memory.to_string())],
            vec![("memory.max", limits.memory.to_string())],
        ),
        ("pids", vec![("pids.max", limits.pids.to_string())], vec![("pids.max", limits.pids.to_string())]),
        (
            "cpu",
            vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            vec![("cpu.max", format!("{quota} {PERIOD}"))],
        ),
    ];
    let mut plans = Vec::new();
    for (controller, v1, v2) in wanted {
        if let Some(mount) = v1_mount(mounts, controller) {
            plans.push(Plan { controller, v2: false, dir: mount.join(PARENT).join(id), settings: v1 });
        } else if let Some(mount) = v2_mount(mounts, controller) {
            plans.push(Plan { controller, v2: true, dir: mount.join(PARENT).join(id), settings: v2 });
        } else {
            warnings.push(format!("the VM's {controller} is not limited: this host has no cgroup for it"));
        }
    }
    plans
}

/// Lines of /proc/self/mounts: device, mount point, type, options (fstab(5)).
fn mounts_of<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let (at, is, options) = (fields.next()?, fields.next()?, fields.next()?);
        (is == kind).then_some((at, options))
    })
}

fn v1_mount(mounts: &str, controller: &str) -> Option<PathBuf> {
    let mut of_kind = mounts_of(mounts, "cgroup");
    of_kind.find(|(_, options)| options.split(',').any(|o| o == controller)).map(|(at, _)| at.into())
}

fn v2_mount(mounts: &str, controller: &str) -> Option<PathBuf> {
    let (at, _) = mounts_of(mounts, "cgroup2").next()?;
    let controllers = fs::read_to_string(Path::new(at).join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|c| c == controller).then(|| at.into())
}

impl Plan {
    /// Makes the group, limits it and opens its door.
    fn apply(&self) -> io::Result<OwnedFd> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        let mount = parent.parent().unwrap_or(parent);
        // The last VM to go takes the parent with it, perhaps right now: then it is made again.
        let mut tries = 0;
        while let Err(e) = self.make_levels(mount, parent) {
            tries += 1;
            if e.kind() != ErrorKind::NotFound || tries == 10 {
                return Err(e);
            }
        }
        for (file, value) in &self.settings {
            write(&self.dir.join(file), value)?;
        }
        Ok(self.door()?.into())
    }

    /// The file a process enters by. v1 also moves single threads, and what it does for whole processes (waiting
    /// until no thread anywhere is being made) takes 10 to 20 ms; a process between fork and exec is one thread.
    fn door(&self) -> io::Result<File> {
        let open = |name: &str| OpenOptions::new().write(true).open(self.dir.join(name));
        match open("tasks") {
            Err(e) if e.kind() == ErrorKind::NotFound => open("cgroup.procs"),
            other => other,
        }
    }
}

impl Plan {
    fn make_levels(&self, mount: &Path, parent: &Path) -> io::Result<()> {
        make(parent)?;
        if mount.join("cgroup.controllers").exists() {
            // v2: each level hands the controller down.
            for level in [mount, parent] {
                write(&level.join("cgroup.subtree_control"), &format!("+{}", self.controller))?;
            }
        }
        make(&self.dir)
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Plain write without create: fs::write would try to make the file.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let open: io::Result<File> = OpenOptions::new().write(true).open(file);
    open.and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()))
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory: 300 << 20, pids: 64, cpu_percent: 200 };

    #[test]
    fn each_controller_goes_where_its_hierarchy_is() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
        let mut warnings = Vec::new();
        let plans = plan(mounts, "abc", LIMITS, &mut warnings);
        let dirs: Vec<_> = plans.iter().map(|p| p.dir.to_str().unwrap()).collect();
        assert_eq!(
            dirs,
            ["/sys/fs/cgroup/memory/firegopher/abc", "/sys/fs/cgroup/cpu,cpuacct/firegopher/abc"]
        );
        assert_eq!(warnings.len(), 1, "pids is missing");
    }

    #[test]
    fn the_jailer_enters_groups_of_v2_and_those_of_v1_are_entered_before() {
        use std::os::fd::AsRawFd;
        let door = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
        let member = |v2, door, file| Member { v2, door, settings: vec![(file, "1".to_owned())] };
        let hand = |members: Vec<Member>, doors: usize| {
            let procs: Vec<OwnedFd> = (0..doors).map(|_| door()).collect();
            let before: Vec<i32> = procs.iter().map(AsRawFd::as_raw_fd).collect();
            let mut groups = Groups { procs, warnings: Vec::new(), members };
            let args = groups.hand_to_jailer();
            let text = args.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ");
            let left = |fd: &OwnedFd| before.iter().position(|b| *b == fd.as_raw_fd()).unwrap();
            (text, groups.procs.iter().map(left).collect::<Vec<_>>())
        };
        let mixed =
            vec![member(false, 0, "memory.x"), member(true, 1, "pids.max"), member(true, 1, "cpu.max")];
        let args = "--cgroup-version 2 --parent-cgroup firegopher --cgroup pids.max=1 --cgroup cpu.max=1";
        assert_eq!(hand(mixed, 2), (args.to_owned(), vec![0]));
        let old = vec![member(false, 0, "memory.x"), member(false, 1, "pids.max")];
        assert_eq!(hand(old, 2), ("--cgroup-version 1".to_owned(), vec![0, 1]));
        assert_eq!(hand(Vec::new(), 0), ("--cgroup-version 1".to_owned(), vec![]));
    }

    /// The files of a v2 hierarchy, in a directory that is none.
    #[test]
    fn on_v2_each_level_hands_the_controller_down_and_the_group_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let group = at(PARENT).join("abc");
        fs::create_dir_all(&group).unwrap();
        fs::write(at("cgroup.controllers"), "cpuset cpu memory pids").unwrap();
        for file in ["cgroup.subtree_control", "firegopher/cgroup.subtree_control"] {
            fs::write(at(file), "").unwrap();
        }
        for file in ["memory.max", "pids.max", "cpu.max", "cgroup.procs"] {
            fs::write(group.join(file), "").unwrap();
        }
        let mounts = format!("cgroup2 {} cgroup2 rw,nosuid 0 0\n", dir.path().display());
        let mut warnings = Vec::new();
        let plans = plan(&mounts, "abc", LIMITS, &mut warnings);
        assert_eq!((plans.len(), warnings.len()), (3, 0), "{warnings:?}");
        for plan in &plans {
            assert!(plan.v2 && plan.dir == group);
            plan.apply().unwrap();
            for level in ["cgroup.subtree_control", "firegopher/cgroup.subtree_control"] {
                let text = fs::read_to_string(at(level)).unwrap();
                assert!(text.contains(&format!("+{}", plan.controller)), "{text}");
                fs::write(at(level), "").unwrap();
            }
        }
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(read("memory.max"), (300 << 20).to_string());
        assert_eq!(read("pids.max"), "64");
        assert_eq!(read("cpu.max"), "200000 100000");
    }

    #[test]
    fn a_host_without_cgroups_only_warns() {
        let dir = tempfile::tempdir().unwrap();
        let mut warnings = Vec::new();
        assert!(plan("proc /proc proc rw 0 0\n", "abc", LIMITS, &mut warnings).is_empty());
        assert_eq!(warnings.len(), 3);
        remove(&dir.path().join("absent.cgroups")).unwrap();
    }

    #[test]
    fn a_group_is_made_limited_and_removed() {
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let book = journal(&dir.path().join("jail"));
        let groups = create("0123456789ab", LIMITS, &book).unwrap();
        if groups.procs.is_empty() {
            crate::testing::skip(format!("no cgroup controller here: {:?}", groups.warnings));
            return;
        }
        let dirs: Vec<PathBuf> = serde_json::from_slice(&fs::read(&book).unwrap()).unwrap();
        // A controller is in v1 or in v2, never in both.
        let expected = [
            ("memory.limit_in_bytes", (300_u64 << 20).to_string()),
            ("memory.max", (300_u64 << 20).to_string()),
            ("pids.max", "64".to_owned()),
            ("cpu.cfs_period_us", "100000".to_owned()),
            ("cpu.cfs_quota_us", "200000".to_owned()),
            ("cpu.max", "200000 100000".to_owned()),
        ];
        let mut controllers = std::collections::BTreeSet::new();
        for (file, value) in expected {
            for text in dirs.iter().filter_map(|dir| fs::read_to_string(dir.join(file)).ok()) {
                assert_eq!(text.trim(), value, "{file}");
                controllers.insert(file.split('.').next().unwrap());
            }
        }
        assert_eq!(controllers.len() + groups.warnings.len(), 3, "{controllers:?} {:?}", groups.warnings);
        remove(&book).unwrap();
        assert!(dirs.iter().all(|d| !d.exists()) && !book.exists());
    }

    #[test]
    fn a_forged_journal_removes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let book = dir.path().join("x.cgroups");
        fs::write(&book, serde_json::to_vec(&[&victim]).unwrap()).unwrap();
        remove(&book).unwrap();
        assert!(victim.exists());
    }
}
