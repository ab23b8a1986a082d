//! Real boots, of a guest that these tests bring along (testdata/vmm/guest.rs).

use super::*;
use crate::name::{Name, VmId};
use crate::net::Port;
use crate::vmm::spec::{Drive, JailSpec};
use crate::vmm::{Circumstances, Ended, backend};
use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Emulated boots on a busy machine take seconds; hanging ones take forever.
const PATIENCE: Duration = Duration::from_secs(120);

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A VM that has not been started: one mebibyte drives that say DRIVEn, the first two read-only.
struct Vm {
    spec: VmSpec,
    dir: tempfile::TempDir,
    _turn: crate::testing::Turn,
}

/// `None`, and a word about it, where such a VM cannot be booted.
fn vm(tag: &str, jailed: bool) -> Option<Vm> {
    let files = crate::testing::artifacts()?;
    if jailed && !root() {
        crate::testing::skip("needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let drive = |n: usize| {
        let path = dir.path().join(format!("drive{n}"));
        let mut data = format!("DRIVE{n}").into_bytes();
        data.resize(1 << 20, 0);
        fs::write(&path, data).unwrap();
        Drive { role: format!("volume-{n}"), path, read_only: n < 2 }
    };
    let name = |s: &str| Name::new(s).unwrap();
    // Far from what leases hand out, different for tests that run at once.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1_950_000_000);
    let uid = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let spec = VmSpec {
        id: VmId::derive(&name(&format!("test-{}", std::process::id())), &name(tag)),
        vmm: VmmBinary::QemuTree(files.qemu.clone()),
        kvm: false,
        kernel: files.kernel.join("vmlinux"),
        initramfs: dir.path().join("initramfs"),
        tuning: Default::default(),
        cpus: 1,
        memory: 128 << 20,
        drives: (0..4).map(drive).collect(),
        net: NetSpec::None,
        jail: jailed.then(|| JailSpec { root: dir.path().join("jail"), uid, gid: uid }),
    };
    fs::write(&spec.initramfs, initramfs(&files.kernel.join("modules"))).unwrap();
    Some(Vm { spec, dir, _turn: crate::testing::turn() })
}

/// The guest and the kernel's modules as an uncompressed cpio (newc, cpio(5)).
fn initramfs(modules: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |name: &str, mode: u32, data: &[u8]| {
        let sizes = [mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let header: String = sizes.iter().map(|n| format!("{n:08x}")).collect();
        out.extend_from_slice(format!("07070100000000{header}{name}\0").as_bytes());
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    add("dev", 0o40755, b"");
    add("modules", 0o40755, b"");
    add("init", 0o100755, guest());
    for entry in fs::read_dir(modules).unwrap() {
        let entry = entry.unwrap();
        let name = format!("modules/{}", entry.file_name().to_str().unwrap());
        add(&name, 0o100644, &fs::read(entry.path()).unwrap());
    }
    add("TRAILER!!!", 0, b"");
    out
}

fn guest() -> &'static [u8] {
    static GUEST: OnceLock<Vec<u8>> = OnceLock::new();
    GUEST.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("guest");
        let options =
            ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cpanic=abort", "-Cstrip=symbols"];
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/vmm/guest.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let done =
            Command::new(rustc).args(["--edition=2024", "-O", source, "-o"]).arg(&out).args(options).status();
        assert!(done.unwrap().success());
        fs::read(out).unwrap()
    })
}

/// A VM whose guest has said hello.
struct Running {
    launched: Launched,
    lines: BufReader<UnixStream>,
    console: std::thread::JoinHandle<String>,
}

impl Drop for Vm {
    /// However a test ends, its processes and cgroups end with it.
    fn drop(&mut self) {
        let cleaned = self.spec.jail.as_ref().map_or(Ok(()), crate::vmm::jail::clean);
        assert!(cleaned.is_ok() || std::thread::panicking(), "{cleaned:?}");
    }
}

impl Vm {
    fn start(&self, ns: Option<&Netns>) -> Running {
        let begin = Instant::now();
        let launched = backend(&self.spec).launch(&self.spec, ns).unwrap();
        println!("launched in {:?}: {:?} {:?}", begin.elapsed(), launched.timings, launched.warnings);
        let mut output = launched.console.reader().unwrap();
        let console = std::thread::spawn(move || {
            let mut all = [0; 1].to_vec();
            let _ = output.read_exact(&mut all); // Ends without a byte if the VMM does.
            println!("first console byte after {:?}", begin.elapsed());
            let _ = output.read_to_end(&mut all);
            String::from_utf8_lossy(&all).into_owned()
        });
        let control = launched.control.connected().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(control.try_clone().unwrap());
        let mut running = Running { launched, lines, console };
        assert_eq!(running.hear(), "hello", "{}", running.launched.monitor.stderr_so_far());
        println!("hello after {:?}", begin.elapsed());
        running
    }

    fn clean(&self) {
        if let Some(jail) = &self.spec.jail {
            jail::clean(jail).unwrap();
        }
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 5, "only drives and initramfs are left");
    }
}

impl Running {
    fn say(&self, order: &str) {
        self.launched.control.connected().unwrap().write_all(format!("{order}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, order: &str) -> String {
        self.say(order);
        self.hear()
    }

    /// How the VM ends, and its console.
    fn end(mut self) -> (Ended, String) {
        let ended = wait(&mut self.launched.monitor);
        (ended, self.console.join().unwrap())
    }
}

fn wait(monitor: &mut Monitor) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, monitor.ended()).await.unwrap().unwrap() })
}

#[test]
fn drives_keep_their_order_and_read_only_ones_cannot_be_written() {
    let Some(vm) = vm("drives", root()) else { return };
    let mut running = vm.start(None);
    let drives = running.ask("drives");
    assert_eq!(drives, "vda=DRIVE0=drive0=ro vdb=DRIVE1=drive1=ro vdc=DRIVE2=drive2=rw vdd=DRIVE3=drive3=rw");
    running.say("poweroff");
    let (ended, console) = running.end();
    assert_eq!(ended, Ended::GuestShutdown, "{console}");
    vm.clean();
}

#[test]
fn a_jailed_guest_is_reached_through_its_tap_and_reaches_nothing() {
    let Some(mut vm) = vm("jailed", true) else { return };
    let begin = Instant::now();
    let ns = Netns::create().unwrap();
    println!("namespace made in {:?}", begin.elapsed());
    let (host, guest) = (Ipv4Addr::new(172, 19, 0, 1), Ipv4Addr::new(172, 19, 0, 2));
    let tap = vm.spec.id.tap_name();
    vm.spec.net = NetSpec::Tap { name: tap.clone(), host, guest, mac: [2, 0, 172, 19, 0, 2] };
    let mut running = vm.start(Some(&ns));
    assert_eq!(running.ask("serve 172.19.0.2 255.255.255.252"), "serving 0");
    let stream = ns.connect(SocketAddrV4::new(guest, 80)).unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut answer = String::new();
    TcpStream::read_to_string(&mut { stream }, &mut answer).unwrap();
    assert_eq!(answer, "hi");
    // A service on the host: on loopback, and on every address it has.
    let service = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = service.local_addr().unwrap().port();
    for to in
        [format!("{host}:{port}"), "169.254.169.254:80".into(), "192.0.2.1:80".into(), "10.0.0.1:53".into()]
    {
        let heard = running.ask(&format!("try {to}"));
        assert!(heard.starts_with("not reached"), "{to}: {heard}");
    }
    assert!(ns.run_in(|| nix::net::if_::if_nametoindex(tap.as_str()).is_ok()).unwrap());
    running.say("poweroff");
    assert_eq!(running.end().0, Ended::GuestShutdown);
    assert!(ns.run_in(|| nix::net::if_::if_nametoindex(tap.as_str()).is_err()).unwrap(), "the tap is gone");
    vm.clean();
}

#[test]
fn a_jailed_vmm_has_nothing_but_its_jail() {
    let Some(vm) = vm("confined", true) else { return };
    // Another descriptor that must not leak, inheritable on purpose.
    let leak = File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let running = vm.start(None);
    let proc = PathBuf::from(format!("/proc/{}", running.launched.pid));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let uid = vm.spec.jail.as_ref().unwrap().uid;
    for want in [
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        "Groups:\t \n".to_owned(),
        "CapEff:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
    ] {
        assert!(status.contains(&want), "{want:?} is not in\n{status}");
    }
    let root = vm.spec.jail.as_ref().unwrap().root.canonicalize().unwrap();
    assert_eq!(fs::read_link(proc.join("root")).unwrap(), root);
    assert!(fs::read_to_string(proc.join("limits")).unwrap().contains("Max core file size        0"));
    // A heading at most.
    assert!(fs::read_to_string(proc.join("net/route")).unwrap().lines().count() <= 1, "no network");
    for entry in fs::read_dir(proc.join("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let text = target.to_string_lossy();
        let fine = target.starts_with(&root) || text == "/dev/null" || !text.starts_with('/');
        assert!(fine, "{text} is open");
    }
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    assert_eq!(stat.split(' ').nth(5).unwrap(), running.launched.pid.to_string(), "a session of its own");
    assert_limited(&vm, &running.launched);
    running.say("poweroff");
    assert_eq!(running.end().0, Ended::GuestShutdown);
    vm.clean();
}

/// Whether the groups of a running VM hold it, and limit it as it should be. What this host cannot limit is skipped.
fn assert_limited(vm: &Vm, launched: &Launched) {
    let record = fs::read(cgroup::journal(&vm.spec.jail.as_ref().unwrap().root)).unwrap();
    let groups: Vec<PathBuf> = serde_json::from_slice(&record).unwrap();
    // Of each controller the file of cgroup v1, that of v2, and what either holds.
    let (memory, pids) = (Budget::of(&vm.spec).total().to_string(), (THREADS + 1).to_string());
    for (controller, v1, v2) in [
        ("memory", ("memory.limit_in_bytes", &*memory), ("memory.max", &*memory)),
        ("pids", ("pids.max", &*pids), ("pids.max", &*pids)),
        ("cpu", ("cpu.cfs_quota_us", "200000"), ("cpu.max", "200000 100000")),
    ] {
        if let Some(warning) =
            launched.warnings.iter().find(|w| w.contains(&format!("VM's {controller} is not")))
        {
            crate::testing::skip(warning);
            continue;
        }
        let found = groups.iter().find_map(|group| {
            let read = |(file, wanted)| fs::read_to_string(group.join(file)).ok().map(|text| (text, wanted));
            read(v1).or_else(|| read(v2)).map(|found| (group, found))
        });
        let (group, (text, wanted)) =
            found.unwrap_or_else(|| panic!("no limit of {controller} in {groups:?}"));
        assert_eq!(text.trim(), wanted, "{controller}");
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|pid| pid == launched.pid.to_string()), "{controller}: {inside}");
    }
}

#[test]
fn a_vmm_that_its_groups_limit_kills_is_said_to_have_reached_it() {
    let Some(mut vm) = vm("starved", true) else { return };
    vm.spec.memory = 256 << 20;
    let circumstances = Circumstances::note(&vm.spec);
    let running = vm.start(None);
    let record = fs::read(cgroup::journal(&vm.spec.jail.as_ref().unwrap().root)).unwrap();
    let groups: Vec<PathBuf> = serde_json::from_slice(&record).unwrap();
    let files = [("memory.usage_in_bytes", "memory.limit_in_bytes"), ("memory.current", "memory.max")];
    let lowered =
        groups.iter().flat_map(|group| files.map(|file| (group, file))).find_map(|(group, file)| {
            let used: u64 = fs::read_to_string(group.join(file.0)).ok()?.trim().parse().ok()?;
            fs::write(group.join(file.1), (used + (8 << 20)).to_string()).ok()
        });
    if lowered.is_none() {
        crate::testing::skip("no cgroup limits memory here");
    } else {
        running.say("fill 150");
        let mut running = running;
        let ended = wait(&mut running.launched.monitor);
        let Ended::Died(death) = ended else { panic!("{ended}") };
        let cause = circumstances.explain(&death).unwrap();
        println!("{cause:?}");
        assert!(cause.words.contains("it reached its own limit of"), "{cause:?}");
        assert!(cause.words.contains("256 MiB for the guest"), "{cause:?}");
    }
    vm.clean();
}

/// Who holds a lock on any byte of a file: 0 for a descriptor, a pid for a process, whose lock goes with any of its
/// descriptors (fcntl(2), F_OFD_GETLK); `None` where nobody does.
fn lock_holder(path: &Path) -> Option<i32> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: all zeros is a valid flock: from the first byte to the last.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: an open descriptor, and a flock that lives as long as the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    (lock.l_type != libc::F_UNLCK as i16).then_some(lock.l_pid.max(0))
}

/// Without /dev/null in the jail QEMU finds no locks of descriptors and takes those of processes.
#[test]
fn a_jailed_vmm_locks_what_it_writes_and_starts_on_nothing_that_is_locked() {
    let (Some(vm), Some(mut second)) = (vm("locks", true), vm("locked-out", true)) else { return };
    let running = vm.start(None);
    assert_eq!(lock_holder(&vm.spec.drives[2].path), Some(0), "a lock that lasts");
    second.spec.drives[2].path.clone_from(&vm.spec.drives[2].path);
    let mut launched = backend(&second.spec).launch(&second.spec, None).unwrap();
    let ended = wait(&mut launched.monitor);
    println!("{ended:?}");
    assert!(matches!(ended, Ended::Died(_)) && ended.to_string().contains("\"write\" lock"), "{ended}");
    second.clean();
    running.say("poweroff");
    assert_eq!(running.end().0, Ended::GuestShutdown);
    assert_eq!(lock_holder(&vm.spec.drives[2].path), None);
    vm.clean();
}

#[test]
fn a_guests_reset_panic_and_power_off_are_told_apart() {
    let wanted =
        [("reboot", Ended::GuestReset), ("panic", Ended::GuestPanic), ("poweroff", Ended::GuestShutdown)];
    for (order, want) in wanted {
        let Some(vm) = vm(order, root()) else { return };
        let running = vm.start(None);
        running.say(order);
        assert_eq!(running.end().0, want);
        vm.clean();
    }
}

#[test]
fn a_quit_a_signal_and_a_kill_are_told_apart() {
    for how in ["quit", "sigterm", "sigkill"] {
        let Some(vm) = vm(how, root()) else { return };
        let mut running = vm.start(None);
        let pid = Pid::from_raw(running.launched.pid);
        match how {
            "quit" => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let monitor = &mut running.launched.monitor;
                let ended = runtime.block_on(async {
                    // Waiting may be given up and taken up again.
                    let early = tokio::time::timeout(Duration::from_millis(10), monitor.ended()).await;
                    assert!(early.is_err());
                    monitor.quit().await.unwrap();
                    monitor.ended().await.unwrap()
                });
                assert_eq!(ended, Ended::HostQuit);
            }
            "sigterm" => {
                kill(pid, Signal::SIGTERM).unwrap();
                assert_eq!(wait(&mut running.launched.monitor), Ended::HostSignal);
            }
            _ => {
                kill(pid, Signal::SIGKILL).unwrap();
                let ended = wait(&mut running.launched.monitor);
                assert!(matches!(ended, Ended::Died(_)) && ended.to_string().contains("SIGKILL"), "{ended}");
            }
        }
        assert!(kill(pid, None).is_err(), "reaped");
        vm.clean();
    }
}

#[test]
fn user_networking_publishes_its_port_and_nothing_else_passes() {
    let Some(mut vm) = vm("user", false) else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = Port { address: Ipv4Addr::LOCALHOST.into(), host: free, guest: 80 };
    vm.spec.net = NetSpec::User { forwards: vec![forward], mac: [2, 0, 10, 0, 2, 15] };
    let mut running = vm.start(None);
    assert_eq!(running.ask("serve 10.0.2.15 255.255.255.0"), "serving 0");
    let mut answer = String::new();
    TcpStream::connect(("127.0.0.1", free)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hi");
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    // Unrestricted, slirp would lead this to the host's loopback.
    let heard = running.ask(&format!("try 10.0.2.2:{}", service.local_addr().unwrap().port()));
    assert!(heard.starts_with("not reached"), "{heard}");
    running.say("poweroff");
    assert_eq!(running.end().0, Ended::GuestShutdown);
}

/// Stands in for an installed QEMU: a script at a public place that starts the tree's.
#[test]
fn a_hosts_qemu_opens_only_what_it_is_handed() {
    let Some(mut vm) = vm("host", true) else { return };
    let VmmBinary::QemuTree(tree) = vm.spec.vmm.clone() else { unreachable!() };
    let public = tempfile::tempdir().unwrap();
    let script = public.path().join("qemu-system-x86_64");
    // The store is nobody's business but its owner's; an installed QEMU is everybody's.
    let copied = public.path().join("tree");
    assert!(Command::new("cp").arg("-a").arg(&tree).arg(&copied).status().unwrap().success());
    let tree = copied.display();
    let text = format!(
        "#!/bin/sh\nexport QEMU_MODULE_DIR={tree}/modules\n\
         exec {tree}/ld.so --library-path {tree}/lib {tree}/qemu-system-x86_64 -L {tree}/share \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    for path in [public.path(), &script] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    // Asked, it names the tree's data, whatever else this host has.
    let firmware = identify(&script).unwrap();
    assert!(firmware.starts_with(&copied), "{}", firmware.display());
    vm.spec.vmm = VmmBinary::QemuPath { program: script, firmware };
    let mut running = vm.start(None);
    assert!(running.ask("drives").ends_with("vdd=DRIVE3=drive3=rw"));
    running.say("poweroff");
    assert_eq!(running.end().0, Ended::GuestShutdown);
    vm.clean();
}

#[test]
fn a_published_port_that_is_taken_is_named_by_the_vmms_death() {
    let Some(mut vm) = vm("taken", false) else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap().port();
    let forward = Port { address: Ipv4Addr::LOCALHOST.into(), host, guest: 80 };
    vm.spec.net = NetSpec::User { forwards: vec![forward], mac: [2, 0, 10, 0, 2, 15] };
    let mut launched = backend(&vm.spec).launch(&vm.spec, None).unwrap();
    let ended = wait(&mut launched.monitor);
    assert!(ended.to_string().contains(&host.to_string()), "{ended}");
}

/// The test runs itself as a supervisor that gets killed.
#[test]
fn a_vmm_dies_with_its_supervisor() {
    const CHILD: &str = "FIREGOPHER_TEST_SUPERVISOR";
    let Some(vm) = vm("orphan", root()) else { return };
    if std::env::var_os(CHILD).is_some() {
        let running = vm.start(None);
        println!("vmm {}", running.launched.pid);
        // Never unwinds: it is killed while it waits.
        std::thread::sleep(PATIENCE);
        return;
    }
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "vmm::qemu::tests::a_vmm_dies_with_its_supervisor", "--nocapture"])
        .env(CHILD, "1")
        .env("TMPDIR", vm.dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let vmm =
        lines.map_while(Result::ok).find_map(|line| line.rsplit_once("vmm ")?.1.parse::<i32>().ok()).unwrap();
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    // Gone, or a zombie that waits for init.
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{vmm}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z")
    };
    while alive() {
        assert!(Instant::now() < deadline, "the VMM outlives its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    // What it left is found by the record beside the jail.
    for entry in fs::read_dir(vm.dir.path()).unwrap() {
        let left = entry.unwrap().path().join("jail");
        if left.exists() {
            jail::clean(&JailSpec { root: left.clone(), uid: 0, gid: 0 }).unwrap();
            assert!(!left.exists() && !cgroup::journal(&left).exists());
        }
    }
}
