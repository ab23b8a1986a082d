//! A jailed Firecracker: from the exec of `firegopher up -d` to the first byte of a guest of a few instructions,
//! against the exec of the bare jailer on a jail that was staged beforehand. In pairs, so that a busy machine is busy
//! for both. Needs root, /dev/kvm and FIREGOPHER_TEST_FIRECRACKER, a directory with `firecracker` and `jailer`.
//!
//! The bare jailer is told what somebody would tell it by hand for the same machine: limits by `--cgroup`, so that it
//! makes the groups and enters them. firegopher's jailer is told of no group of v1: it is started in them, which saves
//! it a wait of some milliseconds (`Groups::hand_to_jailer`). That difference is part of what is compared.

mod common;

use common::{Project, Series, children_cpu, heading, mono_ns, rounds, wanted};
use firegopher::name::{Name, VmId};
use firegopher::net::netns::Netns;
use firegopher::net::tap::{self, TapConfig};
use firegopher::vmm::firecracker::config::{JailPaths, config};
use firegopher::vmm::firecracker::kernel_args;
use firegopher::vmm::firecracker::stub::Stub;
use firegopher::vmm::jail::remove_tree;
use firegopher::vmm::spec::{Drive, JailSpec, NetSpec, VmSpec, VmmBinary};
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const UID: u32 = 1_970_000_000;
const ID: &str = "bench-by-hand";
const PARENT: &str = "firegopher-bench";

fn main() {
    if !wanted("firecracker") {
        return;
    }
    let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER").map(PathBuf::from) else {
        return println!("skipped: FIREGOPHER_TEST_FIRECRACKER names no directory");
    };
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/kvm").exists() {
        return println!("skipped: needs root and /dev/kvm");
    }
    let project = project(&dir);
    let bare = Bare::new(&dir);
    let (mut up, mut hand, mut more) = (Series::default(), Series::default(), Series::default());
    let names = ["supervisor-start", "boot", "vmm-exec", "console"];
    let mut events = names.map(|_| Series::default());
    let mut parts = std::collections::BTreeMap::<String, Series>::new();
    let mut cpu = Series::default();
    // The first round only warms the page cache.
    for round in 0..=rounds(25) {
        let before = children_cpu();
        let begin = mono_ns();
        // The guest ends at once, which `up -d` tells as a failure.
        let output = project.command(&["up", "-d", "--offline"]).output().expect("the binary starts");
        let used = children_cpu() - before;
        let state = state(&project).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let at = |event: &str| state["events"][event]["mono_ns"].as_u64().map(|t| (t - begin) as f64 / 1e6);
        let first = at("console").unwrap_or_else(|| panic!("no word from the guest: {state}"));
        project.run(&["down"]);
        let by_hand = bare.boot();
        if round == 0 {
            continue;
        }
        for (series, name) in events.iter_mut().zip(names) {
            series.push(at(name).expect("a stamp"));
        }
        for (part, micros) in state["launch_us"].as_object().expect("parts") {
            parts.entry(part.clone()).or_default().push(micros.as_f64().unwrap_or(0.0) / 1e3);
        }
        cpu.millis(used);
        up.push(first);
        hand.push(by_hand);
        more.push(first - by_hand);
    }
    heading("from the exec of `firegopher up -d`, warm store, no ports, to");
    events.iter().zip(names).for_each(|(series, name)| series.report(name, "ms", None));
    parts.iter().for_each(|(part, s)| s.report(&format!("  of that: {part}"), "ms", None));
    cpu.report("user and system time of `up -d` itself", "ms", None);
    heading("to the guest's first byte");
    up.report("firegopher up -d", "ms", None);
    hand.report("the bare jailer, all staged", "ms", None);
    up.over(&hand).report("ratio of each pair", "", None);
    more.report("difference of each pair", "ms", 25.0);
}

fn project(dir: &Path) -> Project {
    let manifest = format!(
        "project \"bench-stub\"\nvm \"stub\" {{\n    kernel {{ path \"stub\" }}\n    \
         image {{ path \"root.tar\" }}\n    vmm \"firecracker\" {{ path {:?} }}\n    run \"true\"\n}}\n",
        dir.canonicalize().expect("it is there")
    );
    let project = Project::new("stub", &manifest);
    let put = |name: &str, bytes: &[u8]| fs::write(project.dir.join(name), bytes).expect("a file");
    put("stub", &Stub::Reset.elf());
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime, tar::Header::set_size] {
        set(&mut header, 0);
    }
    tar.append_data(&mut header, "etc/", std::io::empty()).expect("a directory");
    put("root.tar", &tar.into_inner().expect("a whole archive"));
    project.run(&["build"]);
    project
}

fn state(project: &Project) -> Option<serde_json::Value> {
    let path = project.home.join("state/bench-stub/stub/state.json");
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// What firegopher does for each boot, done once.
struct Bare {
    dir: tempfile::TempDir,
    programs: PathBuf,
    netns: Netns,
    tap: TapConfig,
}

impl Bare {
    fn new(programs: &Path) -> Bare {
        let dir = tempfile::tempdir().expect("a directory");
        let tap = TapConfig {
            name: "fg-bench".to_owned(),
            host: Ipv4Addr::new(172, 19, 0, 1),
            guest: Ipv4Addr::new(172, 19, 0, 2),
            mac: [6, 0, 172, 19, 0, 2],
            owner: Some(UID),
            persist: true,
            mtu: None,
        };
        let programs = programs.canonicalize().expect("it is there");
        Bare { dir, programs, netns: Netns::create().expect("a namespace"), tap }
    }

    /// Milliseconds from the jailer's start to the guest's first byte.
    fn boot(&self) -> f64 {
        let base = self.dir.path().join("jail");
        let root = base.join("firecracker").join(ID).join("root");
        self.stage(&base, &root);
        drop(tap::create(&self.netns, &self.tap).expect("a tap"));
        let (mut printed, output) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(self.programs.join("jailer"));
        command.args(["--id", ID, "--uid", &UID.to_string(), "--gid", &UID.to_string()]);
        command.arg("--exec-file").arg(self.programs.join("firecracker"));
        command.arg("--chroot-base-dir").arg(&base);
        let netns = self.netns.as_fd().as_raw_fd();
        command.arg("--netns").arg(format!("/proc/{}/fd/{netns}", std::process::id()));
        command.args(["--resource-limit", "no-file=4096", "--resource-limit", "fsize=2147483648"]);
        command.args(["--parent-cgroup", PARENT]).args(cgroups());
        command.args(["--new-pid-ns", "--", "--config-file", "/config.json", "--api-sock", "/run/api.sock"]);
        command.args(["--log-path", "/log", "--level", "Warning"]);
        command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
        let begin = mono_ns();
        let mut jailer = command.spawn().expect("the jailer starts");
        drop(command);
        let mut byte = [0];
        printed.read_exact(&mut byte).expect("the guest prints");
        let took = (mono_ns() - begin) as f64 / 1e6;
        // Until the last writer has gone: the guest resets by itself.
        printed.read_to_end(&mut Vec::new()).expect("the guest ends");
        jailer.wait().expect("a child");
        tap::remove(&self.netns, &self.tap.name).expect("our tap");
        remove_tree(&base).expect("our jail");
        self.remove_cgroups();
        took
    }

    fn stage(&self, base: &Path, root: &Path) {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(root.join("drives")).expect("a jail");
        let put = |name: &str, bytes: &[u8], mode: u32| {
            let path = root.join(name);
            fs::write(&path, bytes).expect("a file");
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("its mode");
            path
        };
        put("kernel", &Stub::Reset.elf(), 0o444);
        put("initramfs", &[0; 512], 0o444);
        put("drives/00-base", &[0; 1 << 20], 0o444);
        let scratch = put("drives/01-scratch", &[], 0o600);
        fs::File::options().write(true).open(&scratch).and_then(|f| f.set_len(2 << 30)).expect("a size");
        for owned in [root, &scratch, &put("log", b"", 0o600)] {
            chown(owned, Some(UID), Some(UID)).expect("its owner");
        }
        fs::set_permissions(root.join("drives"), PermissionsExt::from_mode(0o755)).expect("its mode");
        let drive = |role: &str, read_only| Drive { role: role.to_owned(), path: "/".into(), read_only };
        let name = |text: &str| Name::new(text).expect("a name");
        let [firecracker, jailer] = firegopher::vmm::spec::firecracker_programs(&self.programs);
        let spec = VmSpec {
            id: VmId::derive(&name("bench"), &name("bare")),
            vmm: VmmBinary::Firecracker { firecracker, jailer },
            kvm: true,
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
            tuning: Default::default(),
            cpus: 1,
            memory: 256 << 20,
            drives: vec![drive("base", true), drive("scratch", false)],
            net: NetSpec::Tap {
                name: self.tap.name.clone(),
                host: self.tap.host,
                guest: self.tap.guest,
                mac: self.tap.mac,
            },
            jail: Some(JailSpec { root: base.to_owned(), uid: UID, gid: UID }),
        };
        let paths = JailPaths {
            cpu: "/cpu.json".into(),
            kernel: "/kernel".into(),
            initramfs: Some("/initramfs".into()),
            drives: vec!["/drives/00-base".into(), "/drives/01-scratch".into()],
            vsock: "/v.sock".into(),
            log: None,
            metrics: None,
        };
        let config = config(&spec, &paths, &kernel_args::build(false)).expect("a configuration");
        put("config.json", &config.to_json(), 0o444);
    }

    fn remove_cgroups(&self) {
        for controller in ["memory", "pids", "cpu", "."] {
            let parent = Path::new("/sys/fs/cgroup").join(controller).join(PARENT);
            // The last process is still being torn down for a moment.
            for _ in 0..200 {
                if fs::remove_dir(parent.join(ID)).is_ok() || !parent.join(ID).exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

/// The limits that firegopher sets, in the words of the jailer.
fn cgroups() -> Vec<String> {
    let memory = ((256_u64 + 64) << 20).to_string();
    let limits = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        vec![format!("memory.max={memory}"), "pids.max=17".into(), "cpu.max=200000 100000".into()]
    } else {
        vec![
            format!("memory.limit_in_bytes={memory}"),
            "pids.max=17".into(),
            "cpu.cfs_period_us=100000".into(),
            "cpu.cfs_quota_us=200000".into(),
        ]
    };
    let version = if limits.len() == 3 { "2" } else { "1" };
    let mut args = vec!["--cgroup-version".to_owned(), version.to_owned()];
    args.extend(limits.into_iter().flat_map(|limit| ["--cgroup".to_owned(), limit]));
    args
}
