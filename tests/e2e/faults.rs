//! Bad input and broken hosts: each gives an error that names what, where and how to mend it, leaves nothing
//! behind and loses nothing.

use crate::harness::{Project, free_port, guests, home, skip};
use firegopher::name::{Name, VmId};
use firegopher::net::{netns::Netns, tap};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sleeps until it is stopped.
pub const SLEEP: &str = r#"image { debian "busybox-static" }; memory "128MiB"
    run "/bin/busybox" "sleep" "1000""#;
const IMAGE: &str = r#"image { debian "busybox-static" }; memory "128MiB""#;

fn is_root() -> bool {
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
    let leases = fs::read_to_string(project.home().join("leases.json")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for state in project.state_dirs() {
        left.extend(processes_in(&state).into_iter().map(|pid| format!("process {pid}")));
        let name = state.file_name().unwrap().to_str().unwrap();
        if leases.contains(&format!("\"{name}\"")) {
            left.push(format!("uid leases: {leases}"));
        }
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
            let id = VmId::derive(&Name::new(name).unwrap(), &Name::new(&vm).unwrap());
            for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
                let group = hierarchy.path().join("firegopher").join(id.as_str());
                group.exists().then(|| left.push(group.display().to_string()));
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

fn pid_of(state: &serde_json::Value, what: &str) -> i32 {
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

fn files(dir: &Path) -> Vec<PathBuf> {
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

// --- Package sources --------------------------------------------------------------------------------------------

#[test]
fn a_host_without_apt_lacks_something() {
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
    project.manifest("vm \"a\" { run \"x\" }");
    let output = project.command(&["build"]).env("PATH", "/nonexistent").output().expect(69);
    output.says("this host has no apt-get").says("`path`");
    assert!(!project.path().join("firegopher.lock").exists());
    assert!(files(&project.home().join("v1/tmp")).is_empty());
}

#[test]
fn unreachable_sources_fail_in_apts_words() {
    if !Path::new("/usr/bin/apt-get").exists() {
        return skip("this host has no apt");
    }
    let own = tempfile::tempdir().unwrap();
    // Bound and dropped: nobody listens there.
    let source = format!("http://127.0.0.1:{}/debian", free_port());
    let project = Project::empty()
        .with_home(&own.path().join("home"))
        .env("APT_CONFIG", &apt_config(own.path(), &source));
    project.manifest("vm \"a\" { run \"x\" }");
    let output = project.run(&["up"]).expect(1);
    output.says("cannot fetch the package lists").says(&source).says("check this host's network");
    assert!(!project.path().join("firegopher.lock").exists(), "half a lock");
    assert!(files(&project.home().join("v1/tmp")).is_empty());
    assert!(files(&project.home().join("v1/objects")).is_empty());
    assert_clean(&project);
    // What needs no network still works.
    project.ok(&["plan"]);
    project.run(&["build", "--offline"]).expect(1).says("--offline");
}

#[test]
fn an_unknown_package_is_told_with_the_one_that_was_meant() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-statik\" }; run \"x\" }");
    let before = project.read("firegopher.lock");
    let output = project.run(&["build"]);
    if output.stderr.contains("network") {
        return skip("no package source answers");
    }
    output.expect(64).says("apt has no package busybox-statik").says("did you mean busybox-static?");
    assert_eq!(project.read("firegopher.lock"), before);
}

// --- Full disks -------------------------------------------------------------------------------------------------

/// Runs `test` with a tmpfs of this many bytes at a directory that only it can see.
fn on_small_disk(bytes: u64, test: impl FnOnce(&Path) + Send) {
    use nix::mount::{MsFlags, mount};
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        // A thread of its own: the namespace ends with it and with what it started.
        let run = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            let options = format!("size={bytes},mode=0700");
            mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
                .unwrap();
            test(dir.path());
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Leaves `bytes` free.
fn fill(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("filler");
    let free = nix::sys::statvfs::statvfs(dir).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    fs::write(&path, vec![1; free.saturating_sub(bytes) as usize]).unwrap();
    path
}

#[test]
fn a_disk_that_fills_up_while_fetching_publishes_nothing() {
    if !is_root() {
        return skip("mounting a small disk needs root");
    }
    on_small_disk(2 << 20, |disk| {
        let project = Project::empty().with_home(disk);
        project.manifest("vm \"a\" { run \"x\" }");
        let output = project.run(&["build"]);
        if output.stderr.contains("network") {
            return skip("no package source answers");
        }
        output.expect(1).says("space");
        assert!(files(&disk.join("v1/tmp")).is_empty());
        assert!(files(&disk.join("v1/objects")).is_empty());
        assert!(!project.path().join("firegopher.lock").exists());
    });
}

#[test]
fn a_disk_that_fills_up_while_building_or_booting_loses_nothing() {
    if !is_root() {
        return skip("mounting a small disk needs root");
    }
    let Some(_guests) = guests(1) else { return };
    on_small_disk(900 << 20, |disk| {
        let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(disk);
        home_with_packages(disk);
        for free in [1 << 20, 8 << 20] {
            let filler = fill(disk, free);
            let output = project.run(&["build"]).expect(1);
            output.says("no space left").says("free some space");
            assert!(files(&disk.join("v1/tmp")).is_empty());
            assert_objects_verify(disk);
            fs::remove_file(filler).unwrap();
        }
        project.ok(&["build"]);
        for free in [0, 8 << 10] {
            let filler = fill(disk, free);
            let output = project.run(&["up", "-d"]).expect(1);
            assert!(output.stderr.to_lowercase().contains("no space left"), "{output:?}");
            assert!(output.stderr.contains("free some space"), "{output:?}");
            assert_clean(&project);
            fs::remove_file(filler).unwrap();
        }
        project.up(&["-d"]);
        project.ok(&["down", "--kill"]);
        assert_clean(&project);
    });
}

// --- Ports and taps ---------------------------------------------------------------------------------------------

#[test]
fn a_taken_port_is_named_and_what_was_started_is_stopped_again() {
    let Some(_guests) = guests(2) else { return };
    let port = free_port();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP}; port {port} to=80 }}"));
    let output = project.run(&["up"]).expect(1);
    output.says(&format!("port 127.0.0.1:{port} of VM b is taken")).says("stopping a again").says("help:");
    assert_eq!(project.ps("a"), None);
    assert_eq!(project.ps("b").unwrap()["status"], "failed");
    assert_clean(&project);
    drop(taken);
    project.up(&["-d", "b"]);
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn a_taken_tap_name_is_told_and_left_alone() {
    if !is_root() {
        return skip("taps need root");
    }
    let Some(_guests) = guests(2) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP} }}"));
    project.up(&["-d", "a"]);
    let state = project.state("a");
    let path = format!("/proc/{}/fd/{}", pid_of(&state, "supervisor"), state["netns_fd"]);
    let namespace = Netns::from_fd(fs::File::open(path).unwrap().into());
    let name = Name::new(state["project"].as_str().unwrap()).unwrap();
    let config = tap::TapConfig {
        name: VmId::derive(&name, &Name::new("b").unwrap()).tap_name(),
        host: Ipv4Addr::new(10, 9, 8, 1),
        guest: Ipv4Addr::new(10, 9, 8, 2),
        mac: [2, 0, 0, 0, 0, 1],
        owner: None,
        persist: false,
    };
    let foreign = tap::create(&namespace, &config).unwrap();
    for _ in 0..2 {
        let output = project.run(&["up", "-d", "b"]).expect(1);
        output.says(&format!("a network device named {} exists already", config.name)).says("help:");
    }
    assert_eq!(project.ps("a").unwrap()["status"], "running");
    drop(foreign);
    project.up(&["-d", "b"]);
    project.ok(&["down", "--kill"]);
    drop(namespace);
    assert_clean(&project);
}

// --- Processes that are killed ----------------------------------------------------------------------------------

#[test]
fn a_killed_vmm_is_told_with_the_end_of_its_console() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    let up = project.command(&["up"]).spawn();
    project.wait_status("a", "running");
    kill9(pid_of(&project.state("a"), "vmm"));
    let output = up.wait(Duration::from_secs(60)).expect(1);
    output.says("a failed: the VM ended while the workload ran").says("SIGKILL").says("console");
    let row = project.ps("a").unwrap();
    assert_eq!(row["status"], "failed");
    assert!(row["detail"].as_str().unwrap().contains("SIGKILL"), "{row}");
    assert_clean(&project);
    project.up(&["-d"]);
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn a_killed_supervisor_takes_its_vm_along_and_the_next_command_cleans_up() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    for next in ["up", "down"] {
        project.up(&["-d"]);
        let state = project.state("a");
        kill9(pid_of(&state, "supervisor"));
        let row = project.wait_status("a", "lost");
        assert!(row["detail"].as_str().unwrap().contains("cleans up"), "{row}");
        let vmm = PathBuf::from(format!("/proc/{}/root", pid_of(&state, "vmm")));
        let begun = Instant::now();
        // A zombie has no root any more.
        while fs::read_link(&vmm).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the VMM outlived its supervisor");
            std::thread::sleep(Duration::from_millis(10));
        }
        match next {
            "up" => drop(project.up(&["-d"])),
            _ => drop(project.ok(&["down"])),
        }
        if next == "up" {
            assert_eq!(project.ps("a").unwrap()["status"], "running");
            project.ok(&["down", "--kill"]);
        }
        assert_eq!(project.ps("a"), None);
        assert_clean(&project);
    }
}

// --- Two at once ------------------------------------------------------------------------------------------------

#[test]
fn of_two_ups_at_once_the_second_has_nothing_to_do() {
    let Some(_guests) = guests(1) else { return };
    // Built anew, so that the first holds the project for long enough.
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    home_with_packages(project.home());
    let first = project.command(&["up", "-d"]).spawn();
    std::thread::sleep(Duration::from_millis(700));
    let who = format!("waiting for firegopher up (pid {})", first.pid());
    let second = project.command(&["up", "-d"]).spawn();
    let second = second.wait(Duration::from_secs(200)).expect(0);
    let first = first.wait(Duration::from_secs(200)).expect(0).says("a runs");
    assert!(first.stderr.contains("image "), "{first:?}");
    assert!(second.stderr.contains(&who) && second.stderr.contains("which works on project"), "{second:?}");
    assert!(second.stderr.contains("a runs"), "{second:?}");
    assert!(!second.stderr.contains("image "), "built twice: {second:?}");
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn two_projects_building_the_same_build_it_once() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let at = own.path().join("home");
    home_with_packages(&at);
    let projects = [0, 1].map(|_| Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&at));
    let running = projects.each_ref().map(|p| p.command(&["build"]).spawn());
    let said = running.map(|r| r.wait(Duration::from_secs(200)).expect(0).stderr).concat();
    for step in ["fetch kernel", "fetch vmm", "fetch image", "initramfs"] {
        let done = said.lines().filter(|l| l.starts_with(step) && l.ends_with(" s)")).count();
        assert_eq!(done, 1, "{step}:\n{said}");
    }
    assert!(said.contains("waiting for firegopher"), "{said}");
    assert_objects_verify(&at);
}

#[test]
fn a_manifest_that_changes_while_up_waits_is_read_again() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.ok(&["build"]);
    let held = firegopher::store::lock_file(&project.state_dir().join("lock"), &|_| ()).unwrap();
    let waiting = project.command(&["up", "-d"]).spawn();
    std::thread::sleep(Duration::from_millis(1500));
    project.manifest("vm \"a\" { run }");
    drop(held);
    waiting.wait(Duration::from_secs(60)).expect(64).says("run");
    project.manifest(&format!("vm \"a\" {{ {SLEEP} }}"));
    assert_eq!(project.ps("a"), None);
}

// --- Guests that do not come up ---------------------------------------------------------------------------------

/// A kernel that is entered (by the PVH note that QEMU looks for) and then does nothing.
fn silent_kernel() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
    elf.extend_from_slice(&62u16.to_le_bytes()); // EM_X86_64
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&LOAD.to_le_bytes());
    elf.extend_from_slice(&64u64.to_le_bytes()); // program headers
    elf.extend_from_slice(&0u64.to_le_bytes());
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, size: u64, align: u64| {
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(&5u32.to_le_bytes());
        for word in [offset, address, address, size, size, align] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
    };
    header(1, 0x1000, LOAD, 0x1000, 0x1000); // PT_LOAD
    header(4, 0x1100, LOAD + 0x100, 20, 4); // PT_NOTE
    elf.resize(0x2000, 0);
    elf[0x1000..0x1004].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp -4
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&(LOAD as u32).to_le_bytes());
    elf[0x1100..0x1114].copy_from_slice(&note);
    elf
}

#[test]
fn a_guest_that_never_says_hello_is_killed_when_its_time_is_up() {
    let Some(_guests) = guests(1) else { return };
    let project =
        Project::new(&format!("vm \"a\" {{ {SLEEP}; kernel {{ path \"vmlinux\" }}; boot-timeout \"5s\" }}"));
    project.write("vmlinux", silent_kernel());
    let output = project.run(&["up"]).expect(1);
    assert!(output.took < Duration::from_secs(30), "{output:?}");
    output.says("a failed: the guest did not report within 5 s").says("console");
    assert_clean(&project);
}

#[test]
fn a_file_that_is_no_kernel_is_refused_before_a_boot() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP}; kernel {{ path \"vmlinux\" }} }}"));
    let cut = silent_kernel()[..0x1800].to_vec();
    for bytes in [b"no kernel".to_vec(), Vec::new(), b"\x7fELF\x02\x01\x01".to_vec(), cut] {
        project.write("vmlinux", bytes);
        let output = project.run(&["up"]).expect(1);
        assert!(output.stderr.contains("vmlinux cannot be used as a kernel"), "{output:?}");
        assert!(output.stderr.contains("help: give it as vmlinux"), "{output:?}");
        assert!(!output.stderr.contains("a failed"), "it was booted: {output:?}");
        assert_clean(&project);
    }
}

#[test]
fn workloads_that_cannot_start_are_told_by_name() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new("vm \"a\" { run \"x\" }");
    project.write("app/run.txt", "no program");
    for (settings, message) in [
        (r#"run "/no/such""#, "cannot run \"/no/such\": there is no such file"),
        (
            r#"run "/app/run.txt"; workload "./app" to="/app""#,
            "cannot run \"/app/run.txt\": it is not executable",
        ),
        (r#"run "/bin/busybox" "pwd"; workdir "/no/where""#, "the working directory \"/no/where\""),
    ] {
        project.manifest(&format!("vm \"a\" {{ {IMAGE}; {settings} }}"));
        project.run(&["run"]).expect(125).says(message);
        assert_clean(&project);
    }
    project.run(&["up"]).expect(1).says("a failed: ");
    assert_eq!(project.ps("a").unwrap()["status"], "failed");
    assert_clean(&project);
}

#[test]
fn too_little_memory_is_said() {
    let Some(_guests) = guests(1) else { return };
    let tail = r#"image { debian "busybox-static" }; run "/bin/busybox" "tail" "/dev/zero""#;
    let project = Project::new(&format!("vm \"a\" {{ {tail}; memory \"64MiB\" }}"));
    let output = project.run(&["up"]).expect(1);
    output.says("the guest's kernel panicked").says("give it more with `memory`");
    assert_clean(&project);
    project.manifest(&format!("vm \"a\" {{ {tail}; memory \"128MiB\" }}"));
    project.run(&["up"]).expect(1).says("out of memory: give it more with `memory`");
    project.run(&["run"]).expect(137).says("out of memory: give it more with `memory`");
    assert_clean(&project);
}

// --- Hostile archives -------------------------------------------------------------------------------------------

fn tar_of(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o644);
        header.set_size(0);
        // Past the checks of the writer.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, &[][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn hostile_archives_publish_nothing() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP}; workload \"app.tar\" to=\"/app\" }}"));
    let cut = tar_of(&[("a", b'0', "")])[..300].to_vec();
    let mut lying = tar_of(&[("a", b'0', "")]);
    lying[124..135].copy_from_slice(b"77777777777");
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("..", tar_of(&[("../../etc/evil", b'0', "")])),
        ("absolute", tar_of(&[("/etc/evil", b'0', "")])),
        ("through a link", tar_of(&[("link", b'2', "/etc"), ("link/evil", b'0', "")])),
        ("hard link out", tar_of(&[("link", b'1', "../../etc/passwd")])),
        ("twice", tar_of(&[("a", b'0', ""), ("a", b'0', "")])),
        ("cut off", cut),
        ("lying", lying),
        ("no archive", b"nonsense".repeat(100)),
    ];
    for (what, bytes) in hostile {
        project.write("app.tar", bytes);
        let output = project.run(&["build"]);
        assert!(matches!(output.code, Some(1 | 64)), "{what}: {output:?}");
        assert!(output.stderr.contains("app.tar") && output.stderr.contains("error: "), "{what}: {output:?}");
        assert!(!output.stderr.contains("unpack app"), "{what}: {output:?}");
        assert!(project.run(&["plan", "--detailed-exitcode"]).code == Some(2), "{what} is in the store");
    }
}

// --- Secrets, homes, directories, locks -------------------------------------------------------------------------

#[test]
fn a_missing_secret_costs_no_running_vm() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.up(&["-d"]);
    project.manifest(&format!("vm \"a\" {{ {SLEEP}; secret \"KEY\" env=\"FIREGOPHER_TEST_UNSET\" }}"));
    let output = project.run(&["up", "-d"]).expect(64);
    output.says("VM a: the secret KEY comes from $FIREGOPHER_TEST_UNSET, which is not set").says("help:");
    assert_eq!(project.ps("a").unwrap()["status"], "running");
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn homes_that_others_own_or_enter_are_refused() {
    let own = tempfile::tempdir().unwrap();
    let at = own.path().join("home");
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    let project = Project::empty().with_home(&at);
    project.manifest("vm \"a\" { run \"x\" }");
    project.run(&["up"]).expect(1).says("is open to other users (mode 0755)").says("chmod 700");
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    if is_root() {
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&at, Some(1234), None).unwrap();
        project.run(&["up"]).expect(1).says("belongs to uid 1234").says("FIREGOPHER_HOME");
    }
    let nowhere = Project::empty().with_home(Path::new("/dev/null/home"));
    nowhere.manifest("vm \"a\" { run \"x\" }");
    nowhere.run(&["up"]).expect(1).says("/dev/null/home").says("FIREGOPHER_HOME");
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let project = Project::empty();
    let at = |dir: &str, command: &str| {
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_firegopher"));
        run.args(["-C", dir, command]).env("FIREGOPHER_HOME", project.home());
        crate::harness::Command::new(run).output()
    };
    for (dir, text) in
        [("/nonexistent/dir", "there is no directory"), ("/etc/passwd", "there is no directory")]
    {
        for command in ["up", "plan", "down", "ps", "init"] {
            at(dir, command).expect(64).says(text).says(dir);
        }
    }
    project.run(&["up"]).expect(64).says("there is no firegopher.kdl").says("firegopher init");
}

#[test]
fn a_read_only_project_needs_a_whole_lock() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let Some(_guests) = guests(1) else { return };
    let public = crate::harness::public_dir();
    let exe = public.path().join("firegopher");
    fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    let at = public.path().join("home");
    home_with_packages(&at);
    crate::harness::chown_tree(&at, 65534);
    let project =
        Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&at).with_exe(&exe).as_user(65534);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o555)).unwrap();
    project.ok(&["build"]);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(project.path().join("firegopher.lock")).unwrap();
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let output = project.run(&["build"]);
    if !output.stderr.contains("network") {
        output.expect(1).says("cannot write").says("firegopher.lock");
    }
    assert_eq!(fs::read_dir(project.path()).unwrap().count(), 1);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn lock_files_that_cannot_be_used_say_what_to_do() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    let good = project.read("firegopher.lock");
    let other = good.replace("\"bookworm\"", "\"elsewhere\"").replace("\"trixie\"", "\"elsewhere\"");
    for (lock, texts) in [
        ("garbage", ["is not a lock file", "firegopher lock"]),
        ("format = 99\n", ["has format 99", "newer"]),
        ("\0\u{fffd}", ["is not a lock file", "firegopher lock"]),
        (&other, ["elsewhere", "firegopher update"]),
    ] {
        project.write("firegopher.lock", lock);
        let output = project.run(&["build"]).expect(64);
        texts.iter().for_each(|text| assert!(output.stderr.contains(text), "{text}: {output:?}"));
        assert_eq!(project.read("firegopher.lock"), lock, "a lock is never lost");
    }
}

// --- Volumes ----------------------------------------------------------------------------------------------------

#[test]
fn volumes_keep_their_size_and_belong_to_one_vm() {
    let Some(_guests) = guests(1) else { return };
    let with = |size: &str| format!("vm \"a\" {{ {SLEEP}; volume \"data\" at=\"/data\" size=\"{size}\" }}");
    let project = Project::new(&with("64MiB"));
    project.up(&["-d"]);
    let volumes = project.home().join("volumes").join(project.state_dir().file_name().unwrap());
    let volume = volumes.join("data.ext4");
    assert_eq!(fs::metadata(&volume).unwrap().len(), 64 << 20);

    let shared = project.run(&["run", "a"]).expect(125);
    shared.says("volume data").says("is used by another VM").says("stop the other one first");
    assert_eq!(project.ps("a").unwrap()["status"], "running");

    project.ok(&["down", "--kill"]);
    assert_clean(&project);
    let inode = fs::metadata(&volume).unwrap().ino();
    project.manifest(&with("128MiB"));
    project.run(&["up"]).expect(64).says("volume data").says("keeps its size").says("down --volumes");
    assert_eq!(fs::metadata(&volume).unwrap().ino(), inode, "the data is still there");
    assert_clean(&project);
}
