//! A supervisor's life: prepare, boot, watch, restart, clean up, say how it ended.

use super::clock::wall_ms;
use super::console::Console;
use super::effects::{self, private_dir, remove_file};
use super::hub::Hub;
use super::journal::{Effect, Journal, chain};
use super::logs::{CONSOLE_LOG, MAX_BYTES, VmmLog, WORKLOAD_LOG, WorkloadLog};
use super::machine::Platform;
use super::outcome::{Outcome, Phase, Reason};
use super::process::Process;
use super::record::Recorder;
use super::restart::Backoff;
use super::server::{self, Command, Door};
use super::session::{self, BootEnd, Hint, Inbox, Patience};
use super::spec::{SuperviseSpec, wipe_secrets};
use super::state::{STATE_VERSION, State, Status};
use crate::error::{Context, Error, Result};
use crate::manifest::model::{Port, Restart};
use crate::vmm::probe;
use crate::vmm::spec::VmmBinary;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

/// Lines of the console shown with a failure.
const TAIL_LINES: usize = 15;
/// Beyond the guest's own grace before its VMM is killed: a busy emulator is slow to say goodbye.
const STOP_MARGIN: Duration = Duration::from_secs(5);
const POWER_OFF: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(2);
/// How long ended VMs wait for clients that do not read.
const LINGER: Duration = Duration::from_secs(5);

/// A VM whose supervisor holds all it needs to boot it.
pub(super) struct Prepared {
    spec: SuperviseSpec,
    journal: Journal,
    state: State,
    taken: Taken,
}

/// The file that a supervisor keeps locked for its life, in its VM's directory.
const LOCK_FILE: &str = "lock";
/// Who only looks whether the lock is held (`is_locked`) has it for an instant.
const GLANCE: Duration = Duration::from_millis(500);

/// Takes the VM's lock; `None` if somebody holds it.
pub(super) fn lock(dir: &Path) -> Result<Option<File>> {
    let file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .or_failed("supervise.lock", || format!("cannot lock {}", dir.display()))?
        .into_file();
    let until = std::time::Instant::now() + GLANCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) if std::time::Instant::now() >= until => return Ok(None),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            Err(std::fs::TryLockError::Error(e)) => {
                return Err(
                    Error::failed("supervise.lock", format!("cannot lock {}", dir.display())).because(e)
                );
            }
        }
    }
}

/// Whether somebody holds the VM's lock. What cannot be looked at counts as held: it may be in use.
pub(super) fn is_locked(dir: &Path) -> bool {
    match File::open(dir.join(LOCK_FILE)) {
        // Shared, so that two who look do not see each other.
        Ok(file) => file.try_lock_shared().is_err(),
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Checks and takes everything that can be checked and taken before a boot, so that its failure is the answer to
/// the command that asked for the VM. After an error nothing is left but a state that tells it.
pub(super) fn prepare(
    mut spec: SuperviseSpec,
    platform: &dyn Platform,
    netns_fd: Option<i32>,
) -> Result<Prepared> {
    private_dir(&spec.dir)?;
    let Some(lock) = lock(&spec.dir)? else {
        return Err(Error::failed("supervise.running", format!("VM {} runs already", spec.vm))
            .help("stop it first: firegopher down"));
    };
    let mut journal = Journal::open(&spec.dir)?;
    journal.undo(|_| true, |e| platform.undo(e))?;
    if let Some(jail) = spec.vm_spec.jail.clone().filter(|jail| jail.root.exists()) {
        // After a power failure there may be a jail and no journal.
        platform.undo(&Effect::Jail { jail })?;
    }
    let supervisor = Process::current().or_failed("supervise.identity", || "cannot read /proc/self/stat")?;
    let mut state = State {
        version: STATE_VERSION,
        project: spec.project.clone(),
        vm: spec.vm.clone(),
        id: spec.vm_spec.id.clone(),
        status: Status::Starting,
        supervisor,
        vmm: None,
        boot_key: spec.boot_key,
        objects: spec.objects(),
        paused: None,
        exit: None,
        reason: None,
        error: None,
        ports: spec.ports.clone(),
        uid: None,
        restarts: 0,
        ephemeral: spec.ephemeral,
        kernel: None,
        netns_fd,
        started_ms: wall_ms(),
        ended_ms: None,
        launch_us: BTreeMap::new(),
        events: BTreeMap::from([("supervisor-start".to_owned(), super::clock::Stamp::now())]),
    };
    state.save(&spec.dir)?;
    let result = take(&mut spec, platform, &mut journal);
    match result {
        Ok(mut taken) => {
            taken.locks.push(lock);
            state.uid = spec.vm_spec.jail.as_ref().map(|j| j.uid);
            Ok(Prepared { spec, journal, state, taken })
        }
        Err(e) => {
            state.status = Status::Failed;
            state.reason = Some(Reason::Failed);
            state.error = Some(chain(&e));
            state.ended_ms = Some(wall_ms());
            // On a full disk these fail for the same reason; the first error is the one to tell. What cannot be
            // undone stays in the journal.
            let cleaned = journal.undo(|_| true, |e| platform.undo(e)).and_then(|()| state.save(&spec.dir));
            if let Err(second) = cleaned {
                super::log_line(&chain(&second));
            } else if spec.ephemeral {
                discard(&spec.dir);
            }
            let _ = journal.settle();
            Err(e)
        }
    }
}

/// What a VM holds from before its first boot until its end.
struct Taken {
    /// Bound on the host; empty where the VMM publishes.
    ports: Vec<(std::net::TcpListener, Port)>,
    /// The volumes' locks, and the VM's.
    locks: Vec<File>,
    log: WorkloadLog,
    console: Console,
    listener: std::os::unix::net::UnixListener,
}

fn take(spec: &mut SuperviseSpec, platform: &dyn Platform, journal: &mut Journal) -> Result<Taken> {
    let logs = || format!("cannot start the logs of VM {}", spec.vm);
    let log =
        WorkloadLog::create(&spec.dir.join(WORKLOAD_LOG), MAX_BYTES).or_failed("supervise.log", logs)?;
    VmmLog::clear(&spec.dir).or_failed("supervise.log", logs)?;
    let console = Console::create(&spec.dir.join(CONSOLE_LOG), MAX_BYTES).or_failed("supervise.log", logs)?;
    let ports = effects::bind_ports(spec)?;
    let locks = effects::lock_volumes(spec)?;
    platform.lease(spec, journal)?;
    journal.will(Effect::File { path: spec.dir.join(super::wire::SOCKET_FILE) })?;
    let listener = server::bind(&spec.dir)
        .or_failed("supervise.socket", || format!("cannot make the control socket of VM {}", spec.vm))?;
    Ok(Taken { ports, locks, log, console, listener })
}

/// Boots and watches until the VM has ended for good. Runs on a `LocalSet`. `first` is the client that asked for
/// the VM: attached from the start. `term` are the SIGTERMs since this process began to be a supervisor.
pub(super) async fn supervise(
    prepared: Prepared,
    platform: &dyn Platform,
    first: Option<UnixStream>,
    term: Option<Signal>,
) -> Result<Outcome> {
    let Prepared { mut spec, mut journal, state, taken } = prepared;
    let Taken { ports, locks: _locks, log, mut console, listener } = taken;
    let hub = Hub::new(log, spec.ephemeral);
    let mut recorder = Recorder::new(state, spec.dir.clone(), hub.clone());
    let (commands_in, mut commands) = mpsc::channel(16);
    let (stdin_in, mut stdin) = mpsc::channel(4);
    let door = Door {
        hub: hub.clone(),
        commands: commands_in.clone(),
        stdin: stdin_in,
        ephemeral: spec.ephemeral,
        visitors: Rc::default(),
    };
    if let Some(first) = first {
        tokio::task::spawn_local(server::serve(first, door.clone(), Some(hub.attach(true))));
    }
    tokio::task::spawn_local(server::accept(listener, door));
    if let Some(term) = term {
        tokio::task::spawn_local(forward_sigterm(term, commands_in));
    }
    let proxies = platform.publish(&spec, ports)?;

    let mut backoff = Backoff::new(spec.restart);
    let outcome = loop {
        let inbox = Inbox { commands: &mut commands, stdin: &mut stdin };
        let (outcome, ran) =
            boot(&mut spec, platform, &mut journal, &hub, &mut console, &mut recorder, inbox).await;
        if let Err(e) = journal.undo(of_boot(&spec), |e| platform.undo(e)) {
            hub.warn(format!("after VM {}: {}", spec.vm, chain(&e)));
        }
        let Some(pause) = backoff.next(&outcome, ran) else { break outcome };
        recorder.update(|s| {
            s.status = Status::Restarting;
            s.vmm = None;
            s.paused = None;
            s.restarts += 1;
            s.exit = outcome.exit.clone();
            s.error = outcome.message.clone();
        });
        if let Some(message) = &outcome.message {
            hub.warn(message.clone());
        }
        hub.phase(Phase::Restarting);
        if stopped_within(pause, &mut commands).await {
            break Outcome { reason: Reason::Stopped, ..outcome };
        }
        recorder.update(|s| s.status = Status::Starting);
    };
    drop(proxies);
    wipe_secrets(&mut spec.run);
    finish(&outcome, &mut recorder, &hub, &spec, &mut commands).await;
    let undone = journal.undo(|_| true, |e| platform.undo(e));
    // What was removed may have made the space that the last state lacked.
    recorder.retry();
    if let Err(e) = undone {
        super::log_line(&chain(&e));
        recorder.update(|s| s.error = Some(chain(&e)));
    } else if spec.ephemeral {
        platform.forget(&spec);
        discard(&spec.dir);
    }
    // Whoever cleans up after a supervisor that did not get here does it, too.
    let _ = State::settle(&spec.dir).and_then(|()| journal.settle());
    Ok(outcome)
}

/// What one boot leaves; the socket and the lease stay for the next.
fn of_boot(spec: &SuperviseSpec) -> impl FnMut(&Effect) -> bool + use<> {
    let scratch = effects::scratch_path(spec);
    move |effect| match effect {
        Effect::Uid { .. } => false,
        Effect::File { path } => Some(path) == scratch.as_ref(),
        Effect::Vmm { .. } | Effect::Jail { .. } | Effect::Tap { .. } => true,
    }
}

async fn boot(
    spec: &mut SuperviseSpec,
    platform: &dyn Platform,
    journal: &mut Journal,
    hub: &Hub,
    console: &mut Console,
    recorder: &mut Recorder,
    inbox: Inbox<'_>,
) -> (Outcome, Duration) {
    hub.phase(Phase::Booting);
    recorder.stamp("boot");
    console.next_boot();
    let mut run = spec.run.clone();
    if spec.restart == Restart::No {
        wipe_secrets(&mut spec.run);
    }
    let mut launch = || -> Result<_> {
        let machine = platform.launch(spec, journal)?;
        journal.will(Effect::Vmm { process: machine.process.clone() }).inspect_err(|_| {
            // Not written down: it must not run.
            let _ = super::process::send(&machine.pidfd, libc::SIGKILL);
        })?;
        Ok(machine)
    };
    let machine = match launch() {
        Ok(machine) => machine,
        Err(e) => {
            wipe_secrets(&mut run);
            let help = e.help_text().map(|h| format!("\nhelp: {h}")).unwrap_or_default();
            let text = format!("it cannot be started: {}{help}", chain(&e));
            return (Outcome::failed(text), Duration::ZERO);
        }
    };
    recorder.stamp("vmm-exec");
    recorder.state.launch_us =
        machine.timings.iter().map(|(k, d)| ((*k).to_owned(), d.as_micros() as u64)).collect();
    machine.warnings.iter().for_each(|w| hub.warn(w.clone()));
    recorder.update(|s| s.vmm = Some(machine.process.clone()));
    if run.network.is_none() {
        run.network = platform.network(spec);
    }
    let patience = Patience {
        boot: spec.boot_timeout,
        stop: Duration::from_millis(run.grace_ms) + STOP_MARGIN,
        power_off: POWER_OFF,
        drain: DRAIN,
    };
    let end = session::run(machine, run, patience, hub, console, recorder, inbox).await;
    recorder.stamp("ended");
    let end = end.unwrap_or_else(|e| BootEnd {
        failure: Some(format!("the VM's channels cannot be used: {e}")),
        ..BootEnd::default()
    });
    let ran = end.started.map_or(Duration::ZERO, |s| s.elapsed());
    (outcome(end, console, spec), ran)
}

fn outcome(end: BootEnd, console: &Console, spec: &SuperviseSpec) -> Outcome {
    let reason = match (&end.exit, &end.failure) {
        (None, _) if end.killed => Reason::Killed,
        (Some(_), _) if end.stopped => Reason::Stopped,
        (Some(exit), _) if exit.failed.is_none() => Reason::Exited,
        (None, None) if end.stopped => Reason::Stopped,
        _ => Reason::Failed,
    };
    if reason != Reason::Failed {
        return Outcome { reason, exit: end.exit, message: None };
    }
    let failed = end.exit.as_ref().and_then(|e| e.failed.as_deref());
    let message = match (failed, end.failure) {
        (Some(failed), _) => {
            format!("the workload did not run: {}", super::logs::escaped(failed.as_bytes()))
        }
        (None, failure) => {
            let (mut text, help) = match console.panic() {
                Some((words, help)) => {
                    (format!("the guest's kernel panicked: {words}"), help.map(str::to_owned))
                }
                None => (failure.unwrap_or_default(), end.help.or_else(|| help_for(end.hint, spec))),
            };
            text.extend(help.map(|help| format!("\nhelp: {help}")));
            match console.last_lines(TAIL_LINES) {
                lines if lines.is_empty() => text.push_str("\nthe VM printed nothing on its console"),
                lines => {
                    text.push_str("\nthe end of its console:");
                    lines.lines().for_each(|l| text.push_str(&format!("\n  {l}")));
                }
            }
            text
        }
    };
    Outcome { reason, exit: end.exit, message: Some(message) }
}

fn help_for(hint: Option<Hint>, spec: &SuperviseSpec) -> Option<String> {
    match hint? {
        Hint::VmmLog => spec.vmm_log_help(),
        Hint::Silence => {
            let firecracker = matches!(spec.vm_spec.vmm, VmmBinary::Firecracker { .. });
            let why = firecracker.then(probe::kvm_without_hardware).flatten()?;
            Some(format!(
                "KVM has no hardware behind it here ({why}), and stock kernels crawl or die on it: \
                 write `vmm \"auto\"`, which takes QEMU instead, or give the guest more time with `boot-timeout`"
            ))
        }
    }
}

/// Waits out a pause; `true` if somebody asked for the end meanwhile.
async fn stopped_within(pause: Duration, commands: &mut mpsc::Receiver<Command>) -> bool {
    let asked = async {
        while let Some(command) = commands.recv().await {
            if matches!(command, Command::Stop { .. }) {
                return;
            }
        }
    };
    tokio::time::timeout(pause, asked).await.is_ok()
}

/// Writes the final state and lets clients read to the end.
async fn finish(
    outcome: &Outcome,
    recorder: &mut Recorder,
    hub: &Hub,
    spec: &SuperviseSpec,
    commands: &mut mpsc::Receiver<Command>,
) {
    recorder.update(|s| {
        s.status = if outcome.reason == Reason::Failed { Status::Failed } else { Status::Exited };
        s.vmm = None;
        s.paused = None;
        s.exit = outcome.exit.clone();
        s.reason = Some(outcome.reason);
        s.error = outcome.message.clone();
        s.ended_ms = Some(wall_ms());
    });
    hub.give_up_waiting();
    hub.tell_loss();
    hub.ended(outcome.clone());
    let read = async {
        while hub.attached() > 0 {
            hub.progress.notified().await;
        }
    };
    // An ephemeral VM's output exists nowhere else: wait until its client has it or has gone.
    let limit = if spec.ephemeral { Duration::from_secs(24 * 3600) } else { LINGER };
    tokio::select! {
        _ = tokio::time::timeout(limit, read) => {}
        _ = stopped_within(limit, commands) => {}
    }
}

/// SIGTERM stops gracefully, a second one kills. SIGHUP and SIGINT are the terminal's and mean nothing here.
async fn forward_sigterm(mut term: Signal, commands: mpsc::Sender<Command>) {
    let mut kill = false;
    while term.recv().await.is_some() {
        // A closed channel: the VM has ended.
        let _ = commands.send(Command::Stop { kill }).await;
        kill = true;
    }
}

/// Removes an ephemeral VM's directory.
pub(super) fn discard(dir: &Path) {
    // The socket and the locks inside are of no use to anybody any more; the next `gc` tries again.
    if let Err(e) = fs_err::remove_dir_all(dir) {
        super::log_line(&chain(&e));
    }
}

/// Undoes the effects that need no namespace: processes and files.
pub(super) fn undo_common(effect: &Effect) -> Result<bool> {
    match effect {
        Effect::Vmm { process } => {
            let gone = process
                .signal_and_wait(libc::SIGKILL, Duration::from_secs(10))
                .or_failed("supervise.kill", || format!("cannot kill the VMM with pid {}", process.pid))?;
            match gone {
                true => Ok(true),
                false => Err(Error::failed(
                    "supervise.kill",
                    format!("the VMM with pid {} does not end although it was killed", process.pid),
                )),
            }
        }
        Effect::File { path } => {
            remove_file(path)
                .or_failed("supervise.remove", || format!("cannot remove {}", path.display()))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
