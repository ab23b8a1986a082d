//! Artifacts for real boots, made once per checkout, and a VM's worth of specification.

use firegopher::asset::{self, Apt, Silent};
use firegopher::digest::StepKey;
use firegopher::error::Result;
use firegopher::home::Home;
use firegopher::image::{self, BaseSource};
use firegopher::lock::AssetId;
use firegopher::manifest::model::{Port, Restart};
use firegopher::name::{Name, VmId};
use firegopher::net::{address, netns::Netns};
use firegopher::store::Store;
use firegopher::supervise::{self, Client, Event, Outcome, Phase, Stream, SuperviseSpec, VolumeSpec};
use firegopher::vmm::spec::{Drive, JailSpec, NetSpec, VmSpec, VmmBinary};
use firegopher_protocol::{Disk, RunConfig, RunUser, VolumeMount};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

#[path = "../support/skip.rs"]
mod skipping;

use skipping::skip_for_want_of_packages;

static INIT: &[u8] = include_bytes!(env!("FIREGOPHER_INIT"));

/// One VM and all it needs.
pub struct Bench {
    pub home: Home,
    pub spec: SuperviseSpec,
    netns: Option<Netns>,
    _dir: tempfile::TempDir,
}

/// `None`, with the reason printed, where packages cannot be had.
pub fn bench(vm: &str) -> Option<Bench> {
    static MADE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| match artifacts() {
        Ok(dir) => Ok(dir),
        Err(e) if matches!(e.code(), "asset.no-apt" | "asset.network" | "asset.no-sources") => {
            Err(e.to_string())
        }
        Err(e) => panic!("cannot make what the tests boot: {e}: {e:?}"),
    });
    let artifacts = match made {
        Ok(dir) => dir,
        Err(e) => {
            skip_for_want_of_packages(e);
            return None;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path());
    let (project, vm) = (Name::new("test").unwrap(), Name::new(vm).unwrap());
    let root = nix::unistd::geteuid().is_root();
    let subnet = address::lease(&home.project(&project), &vm).unwrap();
    let vm_dir = home.vm(&project, &vm);
    let id = VmId::derive(&project, &vm);
    let net = match root {
        true => NetSpec::Tap {
            name: id.tap_name(),
            host: subnet.host(),
            guest: subnet.guest(),
            mac: subnet.mac(),
        },
        false => NetSpec::User { forwards: Vec::new(), mac: subnet.mac() },
    };
    let drive = |role: &str, path: PathBuf, read_only| Drive { role: role.into(), path, read_only };
    let spec = SuperviseSpec {
        dir: vm_dir.clone(),
        home: home.root().to_owned(),
        boot_key: StepKey::new([0; 32]),
        vm_spec: VmSpec {
            id,
            vmm: VmmBinary::QemuTree(artifacts.join("qemu")),
            kvm: false,
            kernel: artifacts.join("kernel/vmlinux"),
            initramfs: artifacts.join("init.cpio.gz"),
            tuning: Default::default(),
            cpus: 1,
            memory: 256 << 20,
            drives: vec![
                drive("base", artifacts.join("base").join(image::BASE_IMAGE), true),
                drive("scratch", vm_dir.join("scratch.ext4"), false),
            ],
            net,
            jail: root.then(|| JailSpec { root: vm_dir.join("jail"), uid: 0, gid: 0 }),
        },
        run: RunConfig {
            argv: Vec::new(),
            env: Vec::new(),
            secrets: Vec::new(),
            workdir: "/".into(),
            make_workdir: false,
            user: RunUser::Id { uid: 0, gid: 0 },
            hostname: "web".into(),
            hosts: Vec::new(),
            dns: Vec::new(),
            network: None,
            layers: vec![Disk { index: 0, read_only: true }],
            scratch: Some(Disk { index: 1, read_only: false }),
            volumes: Vec::new(),
            sysctls: Vec::new(),
            limits: Vec::new(),
            no_new_privileges: false,
            grace_ms: 5000,
            clock_ms: 0,
            stdin: false,
            patient: false,
        },
        ports: Vec::new(),
        restart: Restart::No,
        boot_timeout: Duration::from_secs(120),
        ephemeral: false,
        scratch: Some(256 << 20),
        volumes: Vec::new(),
        project,
        vm,
    };
    Some(Bench { home, spec, netns: root.then(|| Netns::create().unwrap()), _dir: dir })
}

/// Kernel, VMM, base image and initramfs, kept between runs.
fn artifacts() -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("supervise-{}", nix::unistd::geteuid()));
    let home = Home::new(dir.join("home"));
    let (store, apt) = (Store::open(home.clone())?, Apt::new(&home));
    let ids = [
        AssetId::kernel("linux-image-cloud-amd64"),
        AssetId::Vmm,
        AssetId::image(["base-files", "busybox-static"]),
    ];
    let debs = || -> Result<Vec<Vec<PathBuf>>> {
        let pins = asset::resolve_all(&store, &apt, &ids, &Silent)?;
        pins.iter().map(|p| asset::fetch_debs(&store, &apt, &AssetId::Vmm, &p.packages, &Silent)).collect()
    };
    if !dir.join("done").exists() {
        for part in ["kernel", "qemu", "base"] {
            let _ = std::fs::remove_dir_all(dir.join(part));
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let debs = debs()?;
        asset::kernel_tree(&debs[0], &dir.join("kernel"))?;
        asset::qemu_tree(&debs[1], &dir.join("qemu"))?;
        image::build_base(BaseSource::Debs(&debs[2]), &dir.join("base"), &dir)?;
        // As the store publishes it: readable by every jail.
        let sealed = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        std::fs::set_permissions(dir.join("base").join(image::BASE_IMAGE), sealed).unwrap();
        std::fs::write(dir.join("done"), b"").unwrap();
    }
    // Never an older init than this build's.
    let initramfs = dir.join("init.cpio.gz");
    let _ = std::fs::remove_file(&initramfs);
    image::write_initramfs(INIT, &asset::kernel::module_paths(&dir.join("kernel"))?, &initramfs)?;
    Ok(dir)
}

impl Bench {
    pub fn spawn(&self) -> Result<Client> {
        self.spawn_spec(&self.spec)
    }

    pub fn spawn_spec(&self, spec: &SuperviseSpec) -> Result<Client> {
        supervise::spawn_with(Path::new(env!("CARGO_BIN_EXE_firegopher")), spec, self.netns.as_ref())
    }

    /// Identifies the project's namespace; `None` without root.
    pub fn netns_id(&self) -> Option<(u64, u64)> {
        self.netns.as_ref().map(|ns| ns.id().unwrap())
    }

    /// Another VM of the project.
    pub fn sibling(&self, vm: &str) -> SuperviseSpec {
        let mut spec = self.spec.clone();
        spec.vm = Name::new(vm).unwrap();
        spec.dir = self.home.vm(&spec.project, &spec.vm);
        spec.vm_spec.id = VmId::derive(&spec.project, &spec.vm);
        if let Some(jail) = &mut spec.vm_spec.jail {
            jail.root = spec.dir.join("jail");
        }
        spec
    }

    pub fn publish(&mut self, port: Port) {
        if let NetSpec::User { forwards, .. } = &mut self.spec.vm_spec.net {
            forwards.push(port.clone());
        }
        self.spec.ports.push(port);
    }

    pub fn volume(&mut self, volume: VolumeSpec) {
        let disk = Disk { index: self.spec.vm_spec.drives.len() as u8, read_only: false };
        let (role, path) = (format!("volume-{}", volume.name), volume.path.clone());
        self.spec.vm_spec.drives.push(Drive { role, path, read_only: false });
        let at = format!("/{}", volume.name);
        self.spec.run.volumes.push(VolumeMount { name: volume.name.clone(), disk, at });
        self.spec.volumes.push(volume);
    }

    /// Whether any file of the VM's directory holds this text; what the guest itself wrote to a disk is its own.
    pub fn holds(&self, text: &str) -> bool {
        let has = |path: &Path| {
            std::fs::read(path).is_ok_and(|b| b.windows(text.len()).any(|w| w == text.as_bytes()))
        };
        let entries = std::fs::read_dir(&self.spec.dir).unwrap();
        entries
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file() && p.extension().is_none_or(|e| e != "ext4"))
            .any(|p| has(&p))
    }

    /// Waits for the supervisor's own end, then looks for what a VM could leave.
    pub fn assert_clean(&self) {
        let state = supervise::State::load(&self.spec.dir).unwrap().unwrap();
        for _ in 0..1000 {
            if !state.supervisor.is_alive() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!state.supervisor.is_alive(), "the supervisor does not end");
        let mut left: Vec<String> = std::fs::read_dir(&self.spec.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.ends_with(".log") && !n.ends_with(".log.1"))
            .collect();
        left.sort();
        assert_eq!(left, ["journal.json", "lock", "state.json"]);
        let journal = std::fs::read_to_string(self.spec.dir.join("journal.json")).unwrap();
        assert!(journal.contains("\"effects\":[]"), "{journal}");
        let said = std::fs::read_to_string(self.spec.dir.join(supervise::SUPERVISOR_LOG)).unwrap();
        assert_eq!(said, "", "the supervisor complained");
        if let Some(netns) = &self.netns {
            let tap = self.spec.vm_spec.id.tap_name();
            let found = netns.run_in(|| nix::net::if_::if_nametoindex(tap.as_str()).is_ok()).unwrap();
            assert!(!found, "the tap {tap} is left");
        }
        let id = self.spec.vm_spec.id.as_str();
        for controller in ["memory", "pids", "cpu", ""] {
            let parent = Path::new("/sys/fs/cgroup").join(controller).join("firegopher");
            let groups = std::fs::read_dir(parent).into_iter().flatten().flatten();
            let left = groups.filter(|g| g.file_name().to_string_lossy().starts_with(id)).count();
            assert_eq!(left, 0, "a group of {controller} is left");
        }
        let lease = firegopher::vmm::jail::lease::held(&self.home, &self.spec.project, &self.spec.vm);
        assert_eq!(lease, None, "a uid lease is left");
    }
}

impl Drop for Bench {
    /// A test that failed half-way must not leave its VM running.
    fn drop(&mut self) {
        if let Ok(Some(state)) = supervise::State::load(&self.spec.dir) {
            let _ = state.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5));
            let _ = supervise::reclaim(&self.home, &self.spec.project, &self.spec.vm);
        }
    }
}

/// Everything a client is told until the end.
#[derive(Debug, Default)]
pub struct Told {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub ended: Option<Outcome>,
}

pub fn listen(client: &mut Client) -> Told {
    let mut told = Told::default();
    while let Some(event) = client.next_event().unwrap() {
        match event {
            Event::Output { stream: Stream::Stdout, bytes } => told.stdout.extend(bytes),
            Event::Output { stream: Stream::Stderr, bytes } => told.stderr.extend(bytes),
            Event::Warning(text) => println!("warning: {text}"),
            Event::Phase(_) => {}
            Event::Ended(outcome) => told.ended = Some(outcome),
        }
    }
    told
}

pub fn wait_for(client: &mut Client, phase: Phase) {
    while let Some(event) = client.next_event().unwrap() {
        match event {
            Event::Phase(now) if now == phase => return,
            Event::Ended(outcome) => panic!("{phase:?} never came: {outcome:?}"),
            Event::Warning(text) => println!("warning: {text}"),
            _ => {}
        }
    }
    panic!("{phase:?} never came");
}
