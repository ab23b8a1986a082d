//! What is left when monitors, supervisors and jailers go: nothing.

use super::*;

#[test]
fn a_monitor_that_is_dropped_takes_its_vmm_along() {
    let Some(vm) = vm("dropped", &Stub::Halt.elf()) else { return };
    let launched = vm.launch(None);
    let pid = launched.pid;
    drop(launched);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "killed and reaped");
    vm.clean();
}

/// The test runs itself as a supervisor that gets killed.
#[test]
fn what_a_killed_supervisor_leaves_is_found_and_ended() {
    const CHILD: &str = "FIREGOPHER_TEST_SUPERVISOR";
    let Some(vm) = vm("orphan", &Stub::Halt.elf()) else { return };
    if std::env::var_os(CHILD).is_some() {
        let launched = vm.launch(None);
        heard(&launched);
        let (uid, root) = (vm.jail().uid, vm.jail().root.display());
        println!("vmm {} {uid} {root} {}", launched.pid, jail::name_of(&vm.spec.id, vm.jail()));
        std::thread::sleep(PATIENCE);
        return;
    }
    use std::io::BufRead;
    let scratch = tempfile::tempdir().unwrap();
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "vmm::firecracker::tests::ends::what_a_killed_supervisor_leaves_is_found_and_ended",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .env("TMPDIR", scratch.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let line =
        lines.map_while(Result::ok).find_map(|line| Some(line.rsplit_once("vmm ")?.1.to_owned())).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    let (pid, uid, root) = (fields[0], fields[1].parse().unwrap(), PathBuf::from(fields[2]));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(
        Path::new(&format!("/proc/{pid}")).exists(),
        "it outlives its supervisor until somebody cleans up"
    );
    // Also without a record of its cgroups: it is known by its root.
    fs::remove_file(cgroup::journal(&root)).unwrap();
    let jail = JailSpec { root: root.clone(), uid, gid: uid };
    jail::clean(&jail).unwrap();
    assert_eq!(processes_of(uid), Vec::<i32>::new());
    assert!(!root.exists());
    // Nobody knows its groups any more; they can go once its last process has been torn down.
    for controller in ["memory", "pids", "cpu", "."] {
        let group = Path::new("/sys/fs/cgroup").join(controller).join("firegopher").join(fields[3]);
        let begin = Instant::now();
        while group.exists() && std::fs::remove_dir(&group).is_err() {
            assert!(begin.elapsed() < PATIENCE, "{} cannot be removed", group.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn ten_guests_in_one_project_leave_nothing() {
    let Some(programs) = programs() else { return };
    let ns = Netns::create().unwrap();
    let taps = || {
        ns.run_in(|| fs::read_dir("/proc/thread-self/net/dev_snmp6").map(|d| d.count()).unwrap_or(0)).unwrap()
    };
    let before = taps();
    let mut vms: Vec<Vm> =
        (0..10).map(|n| vm_of(programs.clone(), &format!("many{n}"), &Stub::Halt.elf())).collect();
    let names: Vec<String> =
        vms.iter_mut().enumerate().map(|(n, vm)| tap_of(&ns, vm, n as u8 * 4 + 1)).collect();
    let mut running: Vec<Launched> = vms.iter().map(|vm| vm.launch(Some(&ns))).collect();
    let uids: std::collections::BTreeSet<u32> = vms.iter().map(|vm| vm.jail().uid).collect();
    assert_eq!(uids.len(), 10, "no uid twice");
    for launched in &mut running {
        heard(launched);
        block_on(launched.monitor.quit()).unwrap();
        ended(launched);
    }
    for (vm, tap) in vms.iter().zip(&names) {
        tap::remove(&ns, tap).unwrap();
        assert!(!exists(&ns, tap));
        vm.clean();
    }
    assert_eq!(taps(), before);
}

/// Kills the first child that the thread `tid` of this process has; says whether there was one.
fn kill_a_child_of(tid: i32, until: Instant) -> bool {
    while Instant::now() < until {
        let children = std::fs::read_to_string(format!("/proc/self/task/{tid}/children")).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            return nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).is_ok();
        }
    }
    false
}

#[test]
fn a_jailer_killed_at_any_moment_leaves_nothing() {
    let mut killed = 0;
    for (n, pause) in [0, 1, 2, 4, 6, 8, 10, 12, 15, 20].into_iter().enumerate() {
        let Some(vm) = vm(&format!("killed{n}"), &Stub::Halt.elf()) else { return };
        let error = std::thread::scope(|scope| {
            let tid = nix::unistd::gettid().as_raw();
            let killer = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(pause));
                kill_a_child_of(tid, Instant::now() + Duration::from_secs(5))
            });
            // Dropped at once if it came up after all: that ends it.
            let error = backend(&vm.spec).launch(&vm.spec, None).err();
            killer.join().unwrap();
            error
        });
        if let Some(error) = &error {
            assert_eq!(error.code(), "vmm.jailer", "{error}");
            killed += 1;
        }
        vm.clean();
    }
    println!("{killed} of 10 jailers were killed at work");
    assert!(killed > 0, "none was killed: the pauses are too long for this host");
}
