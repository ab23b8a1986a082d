//! Real jails, with stub guests: they run where `FIREGOPHER_TEST_FIRECRACKER` names the two programs' directory.

mod ends;
mod refusals;

use super::stub::Stub;
use super::*;
use crate::name::{Name, VmId};
use crate::net::tap;
use crate::vmm::jail;
use crate::vmm::room::{Machine, check_devices};
use crate::vmm::spec::{Drive, firecracker_programs};
use crate::vmm::{Ended, backend};
use fs_err as fs;
use std::future::Future;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Stub guests take 50 ms; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        crate::testing::skip("needs root");
    }
    root
}

/// The two programs; `None`, and a word about it, where there are none.
fn programs() -> Option<[PathBuf; 2]> {
    let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER") else {
        crate::testing::skip("no firecracker");
        return None;
    };
    root().then(|| firecracker_programs(Path::new(&dir)).map(|p| p.canonicalize().unwrap()))
}

struct Vm {
    spec: VmSpec,
    dir: tempfile::TempDir,
}

/// A VM that boots `kernel`, with a read-only and a writable drive.
fn vm_of(programs: [PathBuf; 2], tag: &str, kernel: &[u8]) -> Vm {
    let dir = tempfile::tempdir().unwrap();
    let [firecracker, jailer] = programs;
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
        path
    };
    let drive = |role: &str, read_only| Drive {
        role: role.to_owned(),
        path: put(role, &vec![7; 1 << 20]),
        read_only,
    };
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1_960_000_000);
    let uid = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = |s: &str| Name::new(s).unwrap();
    let spec = VmSpec {
        id: VmId::derive(&name(&format!("fc-{}", std::process::id())), &name(tag)),
        vmm: VmmBinary::Firecracker { firecracker, jailer },
        kvm: true,
        kernel: put("kernel", kernel),
        initramfs: put("initramfs", &[0; 512]),
        tuning: Default::default(),
        cpus: 1,
        memory: 128 << 20,
        drives: vec![drive("base", true), drive("scratch", false)],
        net: NetSpec::None,
        jail: Some(JailSpec { root: dir.path().join("jail"), uid, gid: uid }),
    };
    Vm { spec, dir }
}

fn vm(tag: &str, kernel: &[u8]) -> Option<Vm> {
    Some(vm_of(programs()?, tag, kernel))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn ended(launched: &mut Launched) -> Ended {
    block_on(async { tokio::time::timeout(PATIENCE, launched.monitor.ended()).await.unwrap().unwrap() })
}

/// All that was printed; the VMM has ended.
fn console(launched: &Launched) -> String {
    let mut all = Vec::new();
    launched.console.reader().unwrap().read_to_end(&mut all).unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits until the guest has printed its command line.
fn heard(launched: &Launched) -> String {
    let mut reader = launched.console.reader().unwrap();
    let mut all = Vec::new();
    // Firecracker appends arguments of its own.
    while !(all.ends_with(b"\n") && String::from_utf8_lossy(&all).contains("firegopher.end=reset")) {
        let poll = nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN);
        let ready = nix::poll::poll(&mut [poll], 30_000_u16).unwrap();
        let mut byte = [0];
        assert!(ready == 1 && reader.read(&mut byte).unwrap() == 1, "{}", String::from_utf8_lossy(&all));
        all.push(byte[0]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

impl Drop for Vm {
    /// However a test ends, its processes and cgroups end with it.
    fn drop(&mut self) {
        let cleaned = self.spec.jail.as_ref().map_or(Ok(()), jail::clean);
        assert!(cleaned.is_ok() || std::thread::panicking(), "{cleaned:?}");
    }
}

impl Vm {
    fn launch(&self, ns: Option<&Netns>) -> Launched {
        let launched = backend(&self.spec).launch(&self.spec, ns).unwrap();
        println!("{:?} {:?}", launched.timings, launched.warnings);
        launched
    }

    fn jail(&self) -> &JailSpec {
        self.spec.jail.as_ref().unwrap()
    }

    fn inside(&self) -> PathBuf {
        let VmmBinary::Firecracker { firecracker, .. } = &self.spec.vmm else { unreachable!() };
        stage::root_of(&self.jail().root, firecracker, &jail::name_of(&self.spec.id, self.jail()))
    }

    /// Cleans up and looks for what a VM could leave.
    fn clean(&self) {
        jail::clean(self.jail()).unwrap();
        assert_eq!(
            fs::read_dir(self.dir.path()).unwrap().count(),
            4,
            "only kernel, initramfs and drives are left"
        );
        assert_eq!(processes_of(self.jail().uid), Vec::<i32>::new());
        for controller in ["memory", "pids", "cpu", "."] {
            let group = Path::new("/sys/fs/cgroup")
                .join(controller)
                .join("firegopher")
                .join(jail::name_of(&self.spec.id, self.jail()));
            assert!(!group.exists(), "{} is left", group.display());
        }
    }
}

fn processes_of(uid: u32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|s| s.contains(&format!("Uid:\t{uid}\t")) && !s.contains("State:\tZ"))
    })
    .collect()
}

fn tap_of(ns: &Netns, vm: &mut Vm, last: u8) -> String {
    let (host, guest) = (Ipv4Addr::new(172, 19, 0, last), Ipv4Addr::new(172, 19, 0, last + 1));
    let name = vm.spec.id.tap_name();
    vm.spec.net = NetSpec::Tap { name: name.clone(), host, guest, mac: [2, 0, 172, 19, 0, last] };
    assert!(!exists(ns, &name));
    name
}

fn exists(ns: &Netns, name: &str) -> bool {
    ns.run_in(|| nix::net::if_::if_nametoindex(name).is_ok()).unwrap()
}

#[test]
fn a_jailed_guest_runs_to_its_end_and_nothing_is_left() {
    let Some(mut vm) = vm("whole", &Stub::Reset.elf()) else { return };
    let ns = Netns::create().unwrap();
    let tap = tap_of(&ns, &mut vm, 1);
    let begin = Instant::now();
    let mut launched = vm.launch(Some(&ns));
    let end = ended(&mut launched);
    println!("ended after {:?}", begin.elapsed());
    assert_eq!(end, Ended::GuestReset, "{}", launched.monitor.stderr_so_far());
    let text = console(&launched);
    assert!(text.contains("console=ttyS0") && text.contains("firegopher.end=reset"), "{text:?}");
    assert!(nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(launched.pid), None).is_err(), "reaped");
    assert!(exists(&ns, &tap), "the tap outlives its VMM");
    tap::remove(&ns, &tap).unwrap();
    vm.clean();
}

#[test]
fn a_jailed_vmm_has_nothing_but_its_jail_and_stays_up_until_it_is_killed() {
    let Some(mut vm) = vm("confined", &Stub::Halt.elf()) else { return };
    let ns = Netns::create().unwrap();
    let tap = tap_of(&ns, &mut vm, 5);
    // A descriptor that must not leak, inheritable on purpose.
    let leak = std::fs::File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut launched = vm.launch(Some(&ns));
    heard(&launched);
    let proc = PathBuf::from(format!("/proc/{}", launched.pid));
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let uid = vm.jail().uid;
    for want in [
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        "CapEff:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
        format!("NSpid:\t{}\t1", launched.pid),
    ] {
        assert!(status.contains(&want), "{want:?} is not in\n{status}");
    }
    let (there, here) = (fs::metadata(proc.join("root")).unwrap(), fs::metadata(vm.inside()).unwrap());
    assert_eq!((there.dev(), there.ino()), (here.dev(), here.ino()), "its root is the jail");
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    assert!(
        limits.contains("Max core file size        0") && limits.contains("Max open files            4096"),
        "{limits}"
    );
    let net = fs::metadata(proc.join("ns/net")).unwrap();
    assert_eq!((net.dev(), net.ino()), ns.id().unwrap(), "the project's namespace");
    for entry in fs::read_dir(proc.join("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        assert!(!target.starts_with("/etc"), "{} is open", target.display());
    }
    let groups = fs::read_to_string(proc.join("cgroup")).unwrap();
    for controller in ["memory", "pids", "cpu"] {
        let inside = groups.lines().any(|l| {
            l.ends_with(&format!("/firegopher/{}", jail::name_of(&vm.spec.id, vm.jail())))
                && (l.contains(&format!(":{controller}")) || l.starts_with("0::"))
        });
        assert!(inside || launched.warnings.iter().any(|w| w.contains(controller)), "{controller}: {groups}");
    }
    assert_eq!(vm.spec.drives[0].path.metadata().unwrap().uid(), 0, "a shared drive stays ours");
    assert_eq!(vm.spec.drives[1].path.metadata().unwrap().uid(), uid);
    // Halted: it is up and uses no CPU.
    let before = ticks(launched.pid);
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks(launched.pid) - before <= 2, "a halted guest costs nothing");
    block_on(launched.monitor.quit()).unwrap();
    let end = ended(&mut launched);
    assert!(matches!(end, Ended::Died(_)) && end.to_string().contains("SIGKILL"), "{end}");
    tap::remove(&ns, &tap).unwrap();
    vm.clean();
}

/// User and system time of a process, in clock ticks (proc(5), fields 14 and 15).
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn what_a_vmm_does_to_its_jail_harms_nobody() {
    let Some(vm) = vm("hostile", &Stub::Halt.elf()) else { return };
    let mut launched = vm.launch(None);
    heard(&launched);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "x").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(outside.path().join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let inside = vm.inside();
    // As its uid, which owns the directory.
    let uid = vm.jail().uid.to_string();
    let script = format!(
        "cd /proc/{pid}/root && rm -f drives kernel initramfs config.json log v.sock_1024 firecracker.pid; \
         mv drives d; for n in drives kernel config.json log v.sock_1024 firecracker.pid; do ln -s {out}/precious $n; done; \
         ln -s {out} deep; rm -f run/api.sock; ln -s {out}/socket run/api.sock; mkdir -p a/b/c; ln -s / a/b/c/root",
        pid = launched.pid,
        out = outside.path().display(),
    );
    let done = Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "sh", "-c", &script])
        .current_dir(&inside)
        .status();
    // The levels above are closed to it: it can only work from a descriptor, so root plays its part.
    if !done.is_ok_and(|s| s.success()) {
        let status = Command::new("sh").args(["-c", &script]).status().unwrap();
        println!("as root: {status}");
    }
    assert!(inside.join("deep").is_symlink() && inside.join("run/api.sock").is_symlink());
    // The API is not sought beyond a link.
    let keyboard = launched.keyboard.take().unwrap();
    assert!(block_on(keyboard.ctrl_alt_del()).is_err());
    assert!(listener.accept().is_err(), "nobody connected");
    block_on(launched.monitor.quit()).unwrap();
    ended(&mut launched);
    jail::clean(vm.jail()).unwrap();
    assert!(!vm.jail().root.exists());
    let precious = outside.path().join("precious").metadata().unwrap();
    assert_eq!((precious.uid(), precious.len()), (0, 1));
}

#[test]
fn as_many_devices_as_are_counted_fit_and_not_one_more() {
    let Some(programs) = programs() else { return };
    let machine = Machine::Firecracker(version::of(&programs[0]).unwrap());
    let most = (1..).take_while(|drives| check_devices(machine, *drives, false).is_ok()).count();
    let ns = Netns::create().unwrap();
    for (tag, drives, fits) in [("full", most, true), ("crowded", most + 1, false)] {
        let mut vm = vm_of(programs.clone(), tag, &Stub::Reset.elf());
        let tap = tap_of(&ns, &mut vm, 1);
        let base = vm.spec.drives[0].clone();
        vm.spec.drives = (0..drives).map(|n| Drive { role: format!("volume-{n}"), ..base.clone() }).collect();
        let end = ended(&mut vm.launch(Some(&ns)));
        assert_eq!(end == Ended::GuestReset, fits, "{drives} drives: {end}");
        tap::remove(&ns, &tap).unwrap();
        vm.clean();
    }
}

#[test]
fn a_jail_in_the_way_is_an_error_and_never_reused() {
    let Some(vm) = vm("taken", &Stub::Reset.elf()) else { return };
    fs::create_dir(&vm.jail().root).unwrap();
    let error = backend(&vm.spec).launch(&vm.spec, None).unwrap_err();
    assert_eq!(error.code(), "jail.make");
    vm.clean();
    let mut launched = vm.launch(None);
    assert_eq!(ended(&mut launched), Ended::GuestReset);
    assert_eq!(
        backend(&vm.spec).launch(&vm.spec, None).unwrap_err().code(),
        "jail.make",
        "not even one of its own"
    );
    vm.clean();
}

#[test]
fn an_exec_that_fails_is_told_although_the_jailer_ends_well() {
    let Some([firecracker, jailer]) = programs() else { return };
    let dir = tempfile::tempdir().unwrap();
    // The header of a program, and nothing behind it.
    let broken = dir.path().join("firecracker");
    let mut bytes = fs::read(&firecracker).unwrap();
    bytes.truncate(64);
    fs::write(&broken, bytes).unwrap();
    fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
    let vm = vm_of([broken, jailer], "noexec", &Stub::Reset.elf());
    let mut launched = vm.launch(None);
    let end = ended(&mut launched);
    println!("{end}");
    assert!(matches!(&end, Ended::Died(death) if death.stderr.to_lowercase().contains("exec")), "{end}");
    vm.clean();
}

#[test]
fn a_jailer_that_fails_is_quoted_and_one_that_does_nothing_is_no_start() {
    let Some(mut vm) = vm("refused", &Stub::Reset.elf()) else { return };
    let VmmBinary::Firecracker { jailer, .. } = &mut vm.spec.vmm else { unreachable!() };
    let other = vm.dir.path().join("jailer");
    *jailer = other.clone();
    // Neither is a jailer. One is told of options that it does not have and says so, the other ends well.
    for (program, words) in [("/bin/cat", "--id"), ("/bin/true", "did not leave a VMM behind")] {
        fs::copy(program, &other).unwrap();
        let error = backend(&vm.spec).launch(&vm.spec, None).unwrap_err();
        assert_eq!(error.code(), "vmm.jailer", "{error}");
        assert!(error.to_string().contains(words), "{error}");
        fs::remove_file(&other).unwrap();
        vm.clean();
    }
}

#[test]
fn a_console_nobody_reads_neither_grows_nor_stops_the_vmm() {
    let Some(vm) = vm("flood", &Stub::Flood.elf()) else { return };
    let mut launched = vm.launch(None);
    std::thread::sleep(Duration::from_millis(500));
    // Its API answers although its console is full.
    block_on(launched.keyboard.as_ref().unwrap().ctrl_alt_del()).unwrap();
    block_on(launched.monitor.quit()).unwrap();
    ended(&mut launched);
    let kept = console(&launched).len();
    assert!(kept > 0 && kept < 1 << 20, "{kept} bytes were kept");
    vm.clean();
}

#[test]
fn the_keyboard_answers_and_a_dead_api_is_an_error_soon() {
    let Some(vm) = vm("api", &Stub::Halt.elf()) else { return };
    let mut launched = vm.launch(None);
    heard(&launched);
    let keyboard = launched.keyboard.take().unwrap();
    block_on(keyboard.ctrl_alt_del()).unwrap();
    // Stopped: it accepts, as the kernel does that, and never answers.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(launched.pid), nix::sys::signal::Signal::SIGSTOP)
        .unwrap();
    let begin = Instant::now();
    assert!(block_on(keyboard.ctrl_alt_del()).is_err());
    assert!(begin.elapsed() < Duration::from_secs(5));
    fs::remove_file(vm.inside().join("run/api.sock")).unwrap();
    assert!(block_on(keyboard.ctrl_alt_del()).is_err());
    block_on(launched.monitor.quit()).unwrap();
    ended(&mut launched);
    vm.clean();
}

/// It takes half a minute where KVM is emulated.
#[test]
fn a_debian_kernel_prints_its_first_lines() {
    let Some(mut vm) = vm("debian", &Stub::Reset.elf()) else { return };
    let Some(files) = crate::testing::artifacts() else { return };
    vm.spec.kernel = files.kernel.join("vmlinux");
    vm.spec.memory = 256 << 20;
    vm.spec.tuning.console = Console::All;
    let mut launched = vm.launch(None);
    let begin = Instant::now();
    let mut reader = launched.console.reader().unwrap();
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&all).contains("Linux version") {
        let left = Duration::from_secs(120).saturating_sub(begin.elapsed()).as_millis() as u16;
        let poll = nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN);
        let ready = nix::poll::poll(&mut [poll], left).unwrap();
        let got = if ready == 1 { reader.read(&mut chunk).unwrap() } else { 0 };
        assert!(got > 0, "{}\n{}", launched.monitor.stderr_so_far(), String::from_utf8_lossy(&all));
        all.extend_from_slice(&chunk[..got]);
    }
    println!("after {:?}:\n{}", begin.elapsed(), String::from_utf8_lossy(&all));
    block_on(launched.monitor.quit()).unwrap();
    ended(&mut launched);
    vm.clean();
}

#[test]
fn seccomp_is_never_switched_off() {
    let Some(vm) = vm("filters", &Stub::Halt.elf()) else { return };
    let launched = vm.launch(None);
    heard(&launched);
    let proc = PathBuf::from(format!("/proc/{}", launched.pid));
    let words = fs::read_to_string(proc.join("cmdline")).unwrap();
    assert!(words.contains("--config-file") && !words.contains("seccomp"), "{words:?}");
    // Every thread, the API's and the vCPU's included.
    for thread in fs::read_dir(proc.join("task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let name = status.lines().next().unwrap().to_owned();
        assert!(status.contains("Seccomp:\t2"), "{name} has no filter");
        println!("{name}: filtered");
    }
}
