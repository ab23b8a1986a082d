//! What a command may not leave behind, and homes prepared for tests that break things.

use crate::harness::{Project, home};
use firegopher::home::Home;
use firegopher::name::{Name, VmId};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sleeps until it is stopped.
pub const SLEEP: &str = r#"image { debian "busybox-static" }; memory "128MiB"
    run "/bin/busybox" "sleep" "1000""#;
pub const IMAGE: &str = r#"image { debian "busybox-static" }; memory "128MiB""#;

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Everything on the host that still belongs to a project none of whose VMs runs: processes, cgroups, mounts,
/// jails, disks, sockets, leases, and what its journals say is to be undone. A second is granted to the kernel.
#[track_caller]
pub fn assert_clean(project: &Project) {
    let begun = Instant::now();
    loop {
        let left = leftovers(project);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn leftovers(project: &Project) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for state in project.state_dirs() {
        left.extend(processes_in(&state).into_iter().map(|pid| format!("process {pid}")));
        let name = state.file_name().unwrap().to_str().unwrap();
        if mounts.contains(state.to_str().unwrap()) {
            left.push("a mount".to_owned());
        }
        for vm in fs::read_dir(&state).unwrap().flatten().filter(|e| e.path().is_dir()) {
            for file in ["jail", "jail.cgroups", "scratch.ext4", "sup.sock"] {
                let path = vm.path().join(file);
                path.symlink_metadata().is_ok().then(|| left.push(path.display().to_string()));
            }
            let journal = fs::read_to_string(vm.path().join("journal.json")).unwrap_or_default();
            if !journal.is_empty() && !journal.contains("\"effects\":[]") {
                left.push(journal);
            }
            let vm = vm.file_name().into_string().unwrap();
            let (of, vm) = (Name::new(name).unwrap(), Name::new(&vm).unwrap());
            let lease = firegopher::vmm::jail::lease::held(&Home::new(project.home()), &of, &vm);
            left.extend(lease.map(|uid| format!("the lease of uid {uid}")));
            let id = VmId::derive(&of, &vm);
            for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let groups =
                    fs::read_dir(hierarchy.path().join("firegopher")).into_iter().flatten().flatten();
                let ours = groups.filter(|g| g.file_name().to_string_lossy().starts_with(id.as_str()));
                left.extend(ours.map(|group| group.path().display().to_string()));
            }
        }
    }
    left
}

/// Processes with a root, a working directory or an open file below `dir`.
pub fn processes_in(dir: &Path) -> Vec<i32> {
    let below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    let uses = |proc: &Path| {
        below(proc.join("root"))
            || below(proc.join("cwd"))
            || fs::read_dir(proc.join("fd")).into_iter().flatten().flatten().any(|fd| below(fd.path()))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            *pid != std::process::id() as i32 && uses(&Path::new("/proc").join(pid.to_string()))
        })
        .collect()
}

/// What the process `pid` has left in `v1/tmp`.
pub fn temps_of(project: &Project, pid: i32) -> Vec<String> {
    let names = fs::read_dir(project.home().join("v1/tmp")).into_iter().flatten().flatten();
    let names = names.map(|e| e.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&format!("{pid}-"))).collect()
}

/// The pid of `what` in a VM's state.
pub fn pid_of(state: &serde_json::Value, what: &str) -> i32 {
    state[what]["pid"].as_i64().unwrap() as i32
}

pub fn kill9(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A home of its own with the packages of the warm store and nothing made of them.
pub fn home_with_packages(at: &Path) {
    let private = |dir: &Path| {
        fs::create_dir_all(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    };
    private(at);
    let warm = home().join("v1");
    private(&at.join("v1"));
    for action in files(&warm.join("actions")) {
        let Ok(text) = fs::read_to_string(&action) else { continue };
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        if record["kind"] != "deb" {
            continue;
        }
        let output = record["output"].as_str().unwrap();
        let hex = output.rsplit(':').next().unwrap();
        let object = warm.join("objects").join(&hex[..2]).join(hex);
        for from in [&action, &object] {
            let to = at.join("v1").join(from.strip_prefix(&warm).unwrap());
            private(to.parent().unwrap());
            private(to.parent().unwrap().parent().unwrap());
            // Sealed files are never written: a link is as good as a copy, where there can be one.
            if fs::hard_link(from, &to).is_err() {
                fs::copy(from, &to).unwrap();
            }
        }
    }
}

/// All files below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

/// Checks that every object of a store is what its name says.
pub fn assert_objects_verify(home: &Path) -> usize {
    let mut count = 0;
    for object in fs::read_dir(home.join("v1/objects"))
        .unwrap()
        .flatten()
        .flat_map(|d| fs::read_dir(d.path()).unwrap().flatten().collect::<Vec<_>>())
    {
        let name = object.file_name().into_string().unwrap();
        let digest = match object.file_type().unwrap().is_dir() {
            true => firegopher::store::tree_digest(&object.path()).unwrap().to_hex(),
            false => blake3::hash(&fs::read(object.path()).unwrap()).to_hex().to_string(),
        };
        assert_eq!(digest, name);
        count += 1;
    }
    count
}

/// An apt configuration with this one source, as `APT_CONFIG`.
pub fn apt_config(dir: &Path, source: &str) -> String {
    fs::create_dir_all(dir.join("parts")).unwrap();
    fs::write(dir.join("sources.list"), format!("deb [trusted=yes] {source} bookworm main\n")).unwrap();
    let conf = format!(
        "Dir::Etc::sourcelist \"{0}/sources.list\";\nDir::Etc::sourceparts \"{0}/parts\";\nAcquire::http::Proxy \"false\";\n",
        dir.display()
    );
    let path = dir.join("apt.conf");
    fs::write(&path, conf).unwrap();
    path.display().to_string()
}
