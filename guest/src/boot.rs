//! The life of a guest, from the kernel's hand-over to power-off.

use crate::control::{Control, Incoming};
use crate::failure::{Context, Failure, Result};
use crate::shutdown::{self, End};
use crate::trace::Trace;
use crate::workload::Launch;
use crate::{console, identity, limits, modules, mounts, net, oom, root, supervise, user, volumes, workdir};
use firegopher_protocol::{EXIT_LINE, ExitRecord, FromGuest, PROTOCOL, RunConfig, ToGuest};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest wait for the control channel to appear.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for the host's start message. The host's own boot deadline is shorter.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for the exit record's acknowledgement, and the time between repetitions.
const ACK_PATIENCE: Duration = Duration::from_secs(5);
const ACK_REPEAT: Duration = Duration::from_millis(500);

/// Whether the machine ends by a reset, for the panic hook.
static RESET: AtomicBool = AtomicBool::new(false);

/// What a boot has built up so far.
struct Guest {
    control: Control,
    mounted: Vec<PathBuf>,
    trace: Trace,
    traced: bool,
    /// Output and the record are waited with for as long as the host does not take them.
    patient: bool,
}

/// All of PID 1.
pub fn run() -> ! {
    live_and_end(Guest::live)
}

/// Lives a life and ends the machine: every path ends in `shutdown`.
fn live_and_end(life: impl FnOnce(&mut Guest) -> Result<ExitRecord>) -> ! {
    std::panic::set_hook(Box::new(|info| {
        // The payload might quote data; the place is enough to find the defect.
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let failed = Some(format!("this is a bug in firegopher's guest init, at {place}"));
        print_record(&ExitRecord { failed, ..ExitRecord::default() });
        nix::unistd::sync();
        shutdown::machine(if RESET.load(Ordering::Relaxed) { End::Reset } else { End::PowerOff })
    }));
    let mut guest = Guest {
        control: Control::closed(),
        mounted: Vec::new(),
        trace: Trace::default(),
        traced: false,
        patient: false,
    };
    guest.trace.mark("init");
    let early = mounts::early();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let end = End::from_command_line(&command_line);
    RESET.store(end == End::Reset, Ordering::Relaxed);
    guest.traced = command_line.split_whitespace().any(|word| word == "firegopher.trace");
    let record = early.and_then(|()| life(&mut guest)).unwrap_or_else(|failure| ExitRecord {
        failed: Some(failure.into_message()),
        ..ExitRecord::default()
    });
    report(&mut guest.control, &record, (!guest.patient).then_some(ACK_PATIENCE));
    shutdown::now(end, &guest.mounted)
}

impl Guest {
    fn live(&mut self) -> Result<ExitRecord> {
        modules::load(Path::new("/modules"));
        self.trace.mark("modules");
        self.control = Control::open(CHANNEL_PATIENCE)?;
        self.trace.mark("channel");
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim_end().to_owned();
        self.control.send(FromGuest::Hello { protocol: PROTOCOL, kernel: kernel.clone() });
        let config = self.await_start()?;
        self.trace.mark("start");
        let mut warnings: Vec<String> = Vec::new();
        warnings.extend(set_clock(config.clock_ms).err().map(|f| f.to_string()));
        root::enter(&config.layers, config.scratch.as_ref(), &kernel)?;
        self.trace.mark("root");
        warnings.extend(mounts::late()?);
        self.trace.mark("mounts");
        net::configure(config.network.as_ref())?;
        self.trace.mark("network");
        let account = user::resolve(&config.user, Path::new("/"))?;
        volumes::mount_all(&config.volumes, account.uid, account.gid, &mut self.mounted)?;
        self.trace.mark("volumes");
        warnings.extend(user::make_home(&account, Path::new("/")).err().map(|f| f.to_string()));
        if config.make_workdir {
            workdir::make(&config.workdir, &account, Path::new("/"))?;
        }
        warnings.extend(identity::apply(&config, Path::new("/")));
        self.trace.mark("files");
        for message in warnings {
            self.control.send(FromGuest::Warning { message });
        }
        // After the network, whose parameters come with its devices.
        limits::default_sysctls(Path::new("/proc/sys"));
        limits::set_sysctls(&config.sysctls, Path::new("/proc/sys"))?;
        let signals = child_signals()?;
        let killed_before = oom::kills();
        let workload = Launch::new(&config, &account)?.start()?;
        self.control.send(FromGuest::Started { pid: workload.pid.as_raw() });
        self.trace.mark("exec");
        if self.traced {
            console::say(&self.trace.line());
        }
        let grace = Duration::from_millis(config.grace_ms);
        // The secrets in it have reached the one process that is to have them.
        self.patient = config.patient;
        drop(config);
        let stalled = (!self.patient).then_some(supervise::STALLED);
        let mut record = supervise::run(&mut self.control, &signals, workload, grace, stalled);
        record.oom = oom::kills() > killed_before;
        Ok(record)
    }

    fn await_start(&mut self) -> Result<Box<RunConfig>> {
        let end = Instant::now() + START_PATIENCE;
        loop {
            match self.control.wait(end.saturating_duration_since(Instant::now())) {
                Some(Incoming::Message(ToGuest::Start(config))) => return Ok(config),
                Some(Incoming::Message(ToGuest::Stop)) => {
                    return Err(Failure::new("stopped before it was started"));
                }
                Some(_) => {}
                None => return Err(Failure::new("the host sent no start message")),
            }
        }
    }
}

/// Sends the record until the host has it: what is written just before power-off may never arrive. It comes behind all
/// output, so who is patient with that is patient here: without a limit.
fn report(control: &mut Control, record: &ExitRecord, patience: Option<Duration>) {
    print_record(record);
    let end = patience.map(|patience| Instant::now() + patience);
    while control.fd().is_some() && end.is_none_or(|end| Instant::now() < end) {
        // One unsent record is enough.
        if !control.pending() {
            control.send(FromGuest::Exit(record.clone()));
        }
        let repeat = Instant::now() + ACK_REPEAT;
        let repeat = end.map_or(repeat, |end| repeat.min(end));
        while let Some(incoming) = control.wait(repeat.saturating_duration_since(Instant::now())) {
            if incoming == Incoming::Message(ToGuest::ExitAck) {
                return;
            }
        }
    }
}

fn print_record(record: &ExitRecord) {
    // Plain strings and numbers: there is no way to fail.
    let mut record = record.clone();
    record.clip();
    if let Ok(json) = serde_json::to_string(&record) {
        console::raw(&format!("{EXIT_LINE}{json}"));
    }
}

fn set_clock(milliseconds: u64) -> Result<()> {
    let time = TimeSpec::new((milliseconds / 1000) as i64, (milliseconds % 1000 * 1_000_000) as i64);
    clock_settime(ClockId::CLOCK_REALTIME, time).context(|| "setting the clock".to_owned())
}

/// SIGCHLD as something to poll.
pub fn child_signals() -> Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().context(|| "blocking SIGCHLD".to_owned())?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context(|| "watching for ended processes".to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::testing::{TempDir, as_pid_1, root};
    use firegopher_protocol::{Disk, RunUser};
    use nix::errno::Errno;
    use nix::mount::{MsFlags, mount};
    use nix::sys::wait::WaitStatus;

    /// Runs a life that panics as PID 1; how it ended and what its console shows.
    fn panics(reset: bool) -> (WaitStatus, String) {
        let dir = TempDir::new();
        let console = dir.path().join("console");
        fs::write(&console, "").unwrap();
        let ended = as_pid_1(|| {
            // What is mounted already is not mounted again, so the console stays where PID 1 looks.
            match mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>) {
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(errno) => panic!("/dev: {errno}"),
            }
            mount(Some(&console), "/dev/console", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            live_and_end(|_| {
                // The kernel command line is the host's here.
                RESET.store(reset, Ordering::Relaxed);
                panic!("a secret of {}", "the workload")
            })
        });
        (ended, fs::read_to_string(console).unwrap())
    }

    #[test]
    fn a_panic_is_reported_by_its_place_and_ends_the_machine() {
        if !root("a PID namespace") {
            return;
        }
        // reboot(2): of a PID namespace, a power-off is SIGINT to its first process, and a restart SIGHUP.
        for (reset, signal) in [(false, Signal::SIGINT), (true, Signal::SIGHUP)] {
            let (ended, console) = panics(reset);
            assert!(matches!(ended, WaitStatus::Signaled(_, by, _) if by == signal), "{ended:?}: {console}");
            let record = console.strip_prefix(EXIT_LINE).unwrap_or_else(|| panic!("{console:?}"));
            let record: ExitRecord = serde_json::from_str(record).unwrap();
            let failed = record.failed.unwrap();
            assert!(failed.starts_with("this is a bug in firegopher's guest init, at "), "{failed}");
            assert!(failed.contains("src/boot.rs:") && !console.contains("secret"), "{console}");
        }
    }

    #[test]
    fn the_record_waits_for_its_host_as_long_as_it_may() {
        use std::io::Write;
        let gives_up = |patience| {
            let (guest, mut host) = std::os::unix::net::UnixStream::pair().unwrap();
            let reporter = std::thread::spawn(move || {
                let mut control = Control::over(guest.into());
                report(&mut control, &ExitRecord { code: Some(0), ..ExitRecord::default() }, patience);
            });
            std::thread::sleep(Duration::from_secs(2));
            let gave_up = reporter.is_finished();
            let mut wire = Vec::new();
            firegopher_protocol::encode_message(&ToGuest::ExitAck, &mut wire).unwrap();
            let _ = host.write_all(&wire);
            reporter.join().unwrap();
            gave_up
        };
        assert!(!gives_up(None));
        assert!(gives_up(Some(Duration::from_millis(100))));
    }

    /// The least a guest can be told.
    pub fn config() -> RunConfig {
        RunConfig {
            argv: vec!["true".into()],
            env: vec![],
            secrets: vec![],
            workdir: "/".into(),
            make_workdir: false,
            user: RunUser::Name("root".into()),
            hostname: "guest".into(),
            hosts: vec![],
            dns: vec![],
            network: None,
            layers: vec![Disk { index: 0, read_only: true }],
            scratch: None,
            volumes: vec![],
            sysctls: vec![],
            limits: vec![],
            no_new_privileges: false,
            grace_ms: 1000,
            clock_ms: 0,
            stdin: false,
            patient: false,
        }
    }
}
