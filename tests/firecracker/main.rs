//! Supervised Firecracker VMs: the built binary and stub guests, where `FIREGOPHER_TEST_FIRECRACKER` names a
//! directory with `firecracker` and `jailer`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli;
mod interrupts;
mod limits;
mod many;
#[expect(dead_code, reason = "these tests need no packages")]
#[path = "../support/skip.rs"]
mod skipping;
mod starts;
mod stopping;
mod vsock;

use firegopher::digest::StepKey;
use firegopher::home::Home;
use firegopher::manifest::model::Restart;
use firegopher::name::{Name, VmId};
use firegopher::net::{address, netns::Netns};
use firegopher::supervise::{self, Client, Event, Outcome, Reason, State, Status, SuperviseSpec};
use firegopher::vmm::firecracker::stub::Stub;
use firegopher::vmm::spec::{Drive, JailSpec, NetSpec, VmSpec, VmmBinary, firecracker_programs};
use firegopher_protocol::{Disk, RunConfig, RunUser};
use skipping::skip;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A project of stub guests.
struct Project {
    home: Home,
    name: Name,
    netns: Netns,
    programs: [PathBuf; 2],
    dir: tempfile::TempDir,
}

fn project() -> Option<Project> {
    let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER") else {
        skip("no firecracker");
        return None;
    };
    if !nix::unistd::geteuid().is_root() {
        skip("needs root");
        return None;
    }
    let programs = firecracker_programs(Path::new(&dir)).map(|p| p.canonicalize().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().join("home"));
    for (name, bytes) in [
        ("resetting", Stub::Reset.elf()),
        ("halting", Stub::Halt.elf()),
        ("flooding", Stub::Flood.elf()),
        ("typed-at", Stub::Keys.elf()),
        ("initramfs", vec![0; 512]),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    }
    let name = Name::new(format!("stubs-{}", std::process::id())).unwrap();
    Some(Project { home, name, netns: Netns::create().unwrap(), programs, dir })
}

impl Project {
    fn spec(&self, vm: &str, kernel: &str) -> SuperviseSpec {
        let vm = Name::new(vm).unwrap();
        let id = VmId::derive(&self.name, &vm);
        let subnet = address::lease(&self.home.project(&self.name), &vm).unwrap();
        let dir = self.home.vm(&self.name, &vm);
        let [firecracker, jailer] = self.programs.clone();
        let scratch = Drive { role: "scratch".into(), path: dir.join("scratch.ext4"), read_only: false };
        SuperviseSpec {
            project: self.name.clone(),
            home: self.home.root().to_owned(),
            boot_key: StepKey::new([0; 32]),
            vm_spec: VmSpec {
                vmm: VmmBinary::Firecracker { firecracker, jailer },
                kvm: true,
                kernel: self.dir.path().join(kernel),
                initramfs: self.dir.path().join("initramfs"),
                tuning: Default::default(),
                cpus: 1,
                memory: 128 << 20,
                drives: vec![scratch],
                net: NetSpec::Tap {
                    name: id.tap_name(),
                    host: subnet.host(),
                    guest: subnet.guest(),
                    mac: subnet.mac(),
                },
                jail: Some(JailSpec { root: dir.join("jail"), uid: 0, gid: 0 }),
                id,
            },
            run: RunConfig {
                argv: vec!["true".into()],
                env: Vec::new(),
                secrets: Vec::new(),
                workdir: "/".into(),
                make_workdir: false,
                user: RunUser::Id { uid: 0, gid: 0 },
                hostname: "stub".into(),
                hosts: Vec::new(),
                dns: Vec::new(),
                network: None,
                layers: Vec::new(),
                scratch: Some(Disk { index: 0, read_only: false }),
                volumes: Vec::new(),
                sysctls: Vec::new(),
                limits: Vec::new(),
                no_new_privileges: false,
                grace_ms: 1000,
                clock_ms: 0,
                stdin: false,
                patient: false,
            },
            ports: Vec::new(),
            restart: Restart::No,
            boot_timeout: Duration::from_secs(60),
            ephemeral: false,
            scratch: Some(64 << 20),
            volumes: Vec::new(),
            dir,
            vm,
        }
    }

    fn up(&self, spec: &SuperviseSpec) -> Client {
        self.try_up(spec).unwrap()
    }

    fn try_up(&self, spec: &SuperviseSpec) -> firegopher::error::Result<Client> {
        supervise::spawn_with(Path::new(env!("CARGO_BIN_EXE_firegopher")), spec, Some(&self.netns))
    }

    /// Of a VM whose supervisor was killed.
    fn assert_clean_after_reclaim(&self, spec: &SuperviseSpec) {
        supervise::reclaim(&self.home, &self.name, &spec.vm).unwrap();
        // The namespace has no other supervisor, so its taps go with it.
        let tap = spec.vm_spec.id.tap_name();
        if self.has_tap(&tap) {
            firegopher::net::tap::remove(&self.netns, &tap).unwrap();
        }
        self.assert_clean(spec);
    }

    fn stop(&self, spec: &SuperviseSpec) -> Outcome {
        supervise::stop(&self.home, &self.name, &spec.vm, false, Duration::from_secs(30)).unwrap().unwrap()
    }

    /// Looks for what a VM could leave.
    fn assert_clean(&self, spec: &SuperviseSpec) {
        let state = state(spec);
        let limit = Instant::now() + Duration::from_secs(10);
        while state.supervisor.is_alive() {
            assert!(Instant::now() < limit, "the supervisor does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut left: Vec<String> = std::fs::read_dir(&spec.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.ends_with(".log") && !n.ends_with(".log.1"))
            .collect();
        // A supervisor that was killed before its first effect has written none down.
        let journal = std::fs::read_to_string(spec.dir.join("journal.json"));
        let journal = journal.unwrap_or_else(|_| "\"effects\":[]".to_owned());
        assert!(journal.contains("\"effects\":[]"), "{journal}");
        left.retain(|name| name != "journal.json");
        left.sort();
        assert_eq!(left, ["lock", "state.json"]);
        let said = std::fs::read_to_string(spec.dir.join(supervise::SUPERVISOR_LOG)).unwrap();
        assert_eq!(said, "", "the supervisor complained");
        let (tap, id) = (spec.vm_spec.id.tap_name(), spec.vm_spec.id.as_str());
        assert!(!self.has_tap(&tap), "the tap {tap} is left");
        for controller in ["memory", "pids", "cpu", "."] {
            let parent = Path::new("/sys/fs/cgroup").join(controller).join("firegopher");
            let groups = std::fs::read_dir(parent).into_iter().flatten().flatten();
            let left = groups.filter(|g| g.file_name().to_string_lossy().starts_with(id)).count();
            assert_eq!(left, 0, "a group of {controller} is left");
        }
        let lease = firegopher::vmm::jail::lease::held(&self.home, &self.name, &spec.vm);
        assert_eq!(lease, None, "a uid lease is left");
        assert_eq!(processes_of(id), 0);
    }

    fn has_tap(&self, tap: &str) -> bool {
        self.netns.run_in(|| nix::net::if_::if_nametoindex(tap).is_ok()).unwrap()
    }
}

impl Drop for Project {
    /// A test that failed half-way must not leave its VMs running.
    fn drop(&mut self) {
        for observed in supervise::observe(&self.home, &self.name).unwrap_or_default() {
            let _ = observed.state.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5));
            let _ = supervise::reclaim(&self.home, &self.name, &observed.state.vm);
        }
    }
}

/// Processes that name this VM on their command line, as Firecracker and its jailer do.
fn processes_of(id: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let names = |e: &std::fs::DirEntry| {
        std::fs::read(e.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(id))
    };
    entries.filter(names).count()
}

fn children_of(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn state(spec: &SuperviseSpec) -> State {
    State::load(&spec.dir).unwrap().unwrap()
}

fn end_of(client: &mut Client) -> Outcome {
    loop {
        match client.next_event().unwrap().expect("an end comes first") {
            Event::Ended(outcome) => return outcome,
            Event::Warning(text) => println!("warning: {text}"),
            _ => {}
        }
    }
}

/// Waits until the guest has printed its command line.
fn wait_for_console(spec: &SuperviseSpec) {
    wait_for_text(spec, "firegopher.end=reset");
}

fn wait_for_text(spec: &SuperviseSpec, wanted: &str) {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        let text = std::fs::read_to_string(spec.dir.join("console.log")).unwrap_or_default();
        if text.contains(wanted) && state(spec).vmm.is_some() {
            return;
        }
        assert!(Instant::now() < limit, "the guest never spoke: {text:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_that_ends_without_a_report_is_told_with_its_console() {
    let Some(project) = project() else { return };
    let spec = project.spec("brief", "resetting");
    let mut client = project.up(&spec);
    let outcome = end_of(&mut client);
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Failed, 125));
    let message = outcome.message.unwrap();
    assert!(
        message.contains("before the workload ran") && message.contains("the guest reset itself"),
        "{message}"
    );
    assert!(
        message.contains("the end of its console") && message.contains("firegopher.end=reset"),
        "{message}"
    );
    let state = state(&spec);
    let since = |event: &str| (state.events[event].mono_ns - state.events["supervisor-start"].mono_ns) / 1000;
    for event in ["boot", "vmm-exec", "console", "ended"] {
        println!("{event}: {} us after the supervisor's start", since(event));
    }
    println!("{:?}", state.launch_us);
    project.assert_clean(&spec);
}

#[test]
fn a_halted_guest_stays_up_and_is_stopped() {
    let Some(project) = project() else { return };
    let spec = project.spec("halted", "halting");
    let client = project.up(&spec);
    wait_for_console(&spec);
    drop(client);
    let state = state(&spec);
    assert_eq!(state.status, Status::Starting, "it never said hello");
    assert!(state.vmm.as_ref().unwrap().is_alive());
    println!("supervisor: {} KiB resident", rss(state.supervisor.pid));
    let begin = Instant::now();
    assert_eq!(project.stop(&spec).reason, Reason::Stopped);
    assert!(begin.elapsed() < Duration::from_secs(5));
    project.assert_clean(&spec);
}

#[test]
fn a_guest_that_never_reports_is_killed_after_its_time() {
    let Some(project) = project() else { return };
    let mut spec = project.spec("mute", "halting");
    spec.boot_timeout = Duration::from_secs(1);
    let mut client = project.up(&spec);
    let outcome = end_of(&mut client);
    assert_eq!(outcome.reason, Reason::Failed);
    let message = outcome.message.unwrap();
    assert!(message.contains("did not report within 1 s"), "{message}");
    assert_eq!(message.contains("help: KVM has no hardware behind it"), software_kvm(), "{message}");
    project.assert_clean(&spec);
}

#[test]
fn a_killed_vmm_and_a_killed_supervisor_leave_nothing_while_a_neighbour_runs() {
    let Some(project) = project() else { return };
    let neighbour = project.spec("neighbour", "halting");
    let _keep = project.up(&neighbour);
    wait_for_console(&neighbour);
    let spec = project.spec("victim", "halting");
    let mut client = project.up(&spec);
    wait_for_console(&spec);
    let before = state(&spec);
    assert!(before.vmm.as_ref().unwrap().signal(libc::SIGKILL).unwrap());
    let outcome = end_of(&mut client);
    assert!(outcome.message.unwrap().contains("killed from outside (SIGKILL)"));
    project.assert_clean(&spec);

    let _client = project.up(&spec);
    wait_for_console(&spec);
    let before = state(&spec);
    assert!(before.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap());
    // Nobody asks for it: the process that waits for this does it.
    let begin = Instant::now();
    let vmm = before.vmm.unwrap();
    while vmm.is_alive() || state(&spec).status != Status::Failed {
        assert!(begin.elapsed() < Duration::from_secs(10), "the VMM outlives its supervisor");
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("all was gone {:?} after the supervisor", begin.elapsed());
    project.assert_clean(&spec);

    // Nor does it take the one that waits: then the next command cleans up.
    let _client = project.up(&spec);
    wait_for_console(&spec);
    let before = state(&spec);
    for pid in children_of(before.supervisor.pid) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        if name.trim() == "firegopher-wait" {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
    }
    before.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(project.has_tap(&spec.vm_spec.id.tap_name()), "it is there until somebody cleans up");
    supervise::reclaim(&project.home, &project.name, &spec.vm).unwrap();
    assert_eq!(state(&spec).status, Status::Failed);
    project.assert_clean(&spec);

    // And it boots again.
    let _client = project.up(&spec);
    wait_for_console(&spec);
    project.stop(&spec);
    assert!(state(&neighbour).vmm.unwrap().is_alive(), "nothing of the neighbour's was touched");
    project.stop(&neighbour);
    project.assert_clean(&neighbour);
}

/// What it leaves on disk is bounded by rotation, which guests are too slow to show.
#[test]
fn a_console_without_end_keeps_nobody_from_stopping_its_vm() {
    let Some(project) = project() else { return };
    let spec = project.spec("flood", "flooding");
    let _client = project.up(&spec);
    wait_for_text(&spec, "xxxx");
    println!("supervisor {} KiB", rss(state(&spec).supervisor.pid));
    assert_eq!(project.stop(&spec).reason, Reason::Stopped);
    project.assert_clean(&spec);
}

/// Whether this host's KVM has no hardware behind it: then that is told.
fn software_kvm() -> bool {
    matches!(firegopher::vmm::probe::kvm(), firegopher::vmm::probe::Kvm::Software(_))
}

/// In KiB.
fn rss(pid: i32) -> u64 {
    memory(pid, "VmRSS:")
}

/// A line of /proc/PID/status, in KiB.
fn memory(pid: i32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How a VM's jailer and VMM are called on their command lines, unlike those of another home's VM of that name.
fn jail_name(state: &State) -> String {
    format!("{}-{}", state.id.as_str(), state.uid.unwrap())
}
