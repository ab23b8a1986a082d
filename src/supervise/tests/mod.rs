//! Supervision against a fake VMM: a sleeping process, and a thread that plays the guest.

mod clients;
mod guests;
mod lives;
mod pauses;

use super::journal::{Effect, Journal};
use super::machine::{Machine, Platform, Proxies, VmmEnd};
use super::supervisor::{self, undo_common};
use super::*;
use crate::digest::StepKey;
use crate::error::Result;
use crate::manifest::model::{Port, Restart};
use crate::name::{Name, VmId};
use crate::vmm::spec::{NetSpec, VmSpec, VmmBinary};
use crate::vmm::{Condition, Pause, Watch};
use firegopher_protocol::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub const SECRET: &str = "hunter2-do-not-store";

pub fn spec(dir: &Path) -> SuperviseSpec {
    let (project, vm) = (Name::new("test").unwrap(), Name::new("web").unwrap());
    let id = VmId::derive(&project, &vm);
    SuperviseSpec {
        project,
        vm,
        dir: dir.join("state/test/web"),
        home: dir.to_owned(),
        boot_key: StepKey::new([7; 32]),
        vm_spec: VmSpec {
            id,
            vmm: VmmBinary::QemuPath { program: "/nonexistent".into(), firmware: "/nonexistent".into() },
            kvm: false,
            kernel: "/nonexistent".into(),
            initramfs: "/nonexistent".into(),
            tuning: Default::default(),
            cpus: 1,
            memory: 256 << 20,
            drives: Vec::new(),
            net: NetSpec::None,
            jail: None,
        },
        run: run_config(),
        ports: Vec::new(),
        restart: Restart::No,
        boot_timeout: Duration::from_secs(20),
        ephemeral: false,
        scratch: None,
        volumes: Vec::new(),
    }
}

pub fn run_config() -> RunConfig {
    RunConfig {
        argv: vec!["true".into()],
        env: Vec::new(),
        secrets: vec![("API_KEY".into(), SECRET.into())],
        workdir: "/".into(),
        make_workdir: false,
        user: RunUser::Id { uid: 0, gid: 0 },
        hostname: "web".into(),
        hosts: Vec::new(),
        dns: Vec::new(),
        network: None,
        layers: Vec::new(),
        scratch: None,
        volumes: Vec::new(),
        sysctls: Vec::new(),
        limits: Vec::new(),
        no_new_privileges: false,
        grace_ms: 500,
        clock_ms: 0,
        stdin: true,
        patient: false,
    }
}

type Script = Arc<dyn Fn(Guest) + Send + Sync>;

/// Starts `sleep` as the VMM and a thread as the guest.
#[derive(Clone)]
pub struct Fake {
    script: Script,
    pub undone: Arc<Mutex<Vec<Effect>>>,
}

impl Fake {
    pub fn new(script: impl Fn(Guest) + Send + Sync + 'static) -> Fake {
        Fake { script: Arc::new(script), undone: Arc::default() }
    }
}

impl Platform for Fake {
    fn lease(&self, _: &mut SuperviseSpec, _: &mut Journal) -> Result<()> {
        Ok(())
    }
    fn publish(&self, _: &SuperviseSpec, _: Vec<(TcpListener, Port)>) -> Result<Proxies> {
        Ok(Proxies::new())
    }
    fn network(&self, _: &SuperviseSpec) -> Option<Network> {
        None
    }
    fn forget(&self, _: &SuperviseSpec) {}
    fn launch(&self, spec: &SuperviseSpec, journal: &mut Journal) -> Result<Machine> {
        let scratch = super::effects::scratch_path(spec).map(|path| Effect::File { path });
        journal.will_all(scratch.into_iter().chain([Effect::Tap { name: "fg-fake".into() }]))?;
        super::effects::create_scratch(spec)?;
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        let pidfd = || super::process::pidfd_open(process.pid).unwrap();
        let (control, guest_control) = UnixStream::pair().unwrap();
        let (console, guest_console) = UnixStream::pair().unwrap();
        let (condition, seen) = tokio::sync::watch::channel(Condition::default());
        let (resume, resumed) = tokio::sync::mpsc::channel(1);
        let guest = Guest {
            control: guest_control,
            console: guest_console,
            vmm: process.clone(),
            condition,
            resumed,
            decoder: Decoder::default(),
        };
        let script = self.script.clone();
        std::thread::spawn(move || script(guest));
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || tell.send(child.wait().unwrap()));
        let ended = Box::pin(async move {
            VmmEnd { words: format!("the VMM died ({})", told.await.unwrap()), logged: true, help: None }
        });
        Ok(Machine {
            pidfd: pidfd(),
            process,
            control: crate::vmm::Control::Connected(control),
            console: Some(crate::vmm::Serial::Socket(console)),
            keyboard: None,
            watch: Watch { condition: seen, resume },
            drives: super::pause::Drives::of(&spec.vm_spec),
            timings: Vec::new(),
            warnings: Vec::new(),
            ended,
        })
    }
    fn undo(&self, effect: &Effect) -> Result<()> {
        self.undone.lock().unwrap().push(effect.clone());
        undo_common(effect).map(|_| ())
    }
}

/// The guest's side.
pub struct Guest {
    pub control: UnixStream,
    pub console: UnixStream,
    pub vmm: Process,
    /// What the VMM reports.
    pub condition: tokio::sync::watch::Sender<Condition>,
    /// What the VMM is asked.
    pub resumed: tokio::sync::mpsc::Receiver<()>,
    decoder: Decoder,
}

impl Guest {
    /// The VMM stops it.
    pub fn pause(&self, why: Pause) {
        self.condition.send_modify(|c| {
            c.paused = Some(why);
            c.pauses += 1;
        });
    }
    /// Waits until the VMM is asked to let it go on, and does so.
    pub fn await_resume(&mut self) {
        self.resumed.blocking_recv().expect("the session has ended");
        self.condition.send_modify(|c| c.paused = None);
    }
    pub fn say(&mut self, message: &FromGuest) {
        let mut out = Vec::new();
        encode_message(message, &mut out).unwrap();
        let _ = self.control.write_all(&out);
    }
    pub fn out(&mut self, on: u16, bytes: &[u8]) {
        let mut out = Vec::new();
        encode_stream(on, bytes, &mut out);
        let _ = self.control.write_all(&out);
    }
    pub fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 4096];
            match self.control.read(&mut buffer) {
                Ok(n @ 1..) => self.decoder.push(&buffer[..n]),
                _ => return None,
            }
        }
    }
    pub fn hear(&mut self) -> Option<ToGuest> {
        loop {
            let frame = self.frame()?;
            if frame.channel == channel::CONTROL {
                return Some(serde_json::from_slice(&frame.payload).unwrap());
            }
        }
    }
    /// Hello, Start, Started.
    pub fn start(&mut self) -> RunConfig {
        self.say(&FromGuest::Hello { protocol: PROTOCOL, kernel: "6.1.0-test".into() });
        let Some(ToGuest::Start(run)) = self.hear() else { panic!("no start") };
        self.say(&FromGuest::Started { pid: 2 });
        *run
    }
    /// Exit, its acknowledgement, power off.
    pub fn exit(mut self, code: i32) {
        self.say(&FromGuest::Exit(ExitRecord { code: Some(code), ..Default::default() }));
        while self.hear().is_some_and(|m| m != ToGuest::ExitAck) {}
        self.power_off();
    }
    pub fn power_off(self) {
        self.vmm.signal(libc::SIGKILL).unwrap();
    }
    /// Waits to be killed.
    pub fn hang(mut self) {
        while self.frame().is_some() {}
    }
}

/// Runs a supervisor on a thread of its own; returns its first client.
pub fn start(spec: SuperviseSpec, fake: &Fake) -> Result<(Client, JoinHandle<Outcome>)> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let dir = spec.dir.clone();
    let prepared = supervisor::prepare(spec, fake, None)?;
    let fake = fake.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            theirs.set_nonblocking(true).unwrap();
            let first = tokio::net::UnixStream::from_std(theirs).unwrap();
            supervisor::supervise(prepared, &fake, Some(first), None).await.unwrap()
        })
    });
    Ok((Client::new(ours, &dir), thread))
}

/// Everything a client is told until the end.
#[derive(Debug, Default)]
pub struct Told {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub phases: Vec<Phase>,
    pub warnings: Vec<String>,
    pub ended: Option<Outcome>,
}

pub fn listen(client: &mut Client) -> Told {
    let mut told = Told::default();
    while let Some(event) = client.next_event().unwrap() {
        match event {
            Event::Phase(phase) => told.phases.push(phase),
            Event::Output { stream: Stream::Stdout, bytes } => told.stdout.extend(bytes),
            Event::Output { stream: Stream::Stderr, bytes } => told.stderr.extend(bytes),
            Event::Warning(text) => told.warnings.push(text),
            Event::Ended(outcome) => told.ended = Some(outcome),
        }
    }
    told
}

pub fn wait_for(client: &mut Client, phase: Phase) {
    while let Some(event) = client.next_event().unwrap() {
        if event == Event::Phase(phase) {
            return;
        }
    }
    panic!("{phase:?} never came");
}

/// What is left of a VM in its directory.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
