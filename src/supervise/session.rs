//! One boot seen from the host: talks to the guest until its VMM has ended, and says how that came.

use super::console::Console;
use super::hub::Hub;
use super::machine::Machine;
use super::outcome::{Phase, Stream};
use super::pause::{Drives, Paused};
use super::process;
use super::record::Recorder;
use super::server::Command;
use super::spec::wipe;
use super::state::Status;
use crate::vmm::firecracker::Keyboard;
use crate::vmm::{Condition, Control};
use firegopher_protocol::{
    Decoder, ExitRecord, Frame, FromGuest, HEADER_LEN, MAX_PAYLOAD, PROTOCOL, RunConfig, STDIN_WINDOW,
    ToGuest, channel, encode_message,
};
use std::io;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

mod channels;
mod health;
mod stdin;

use channels::{accept, read, read_console, serial, sleep_until, stream, write};
use stdin::Stdin;

/// Bytes on their way to the guest; standard input waits beyond that.
const MAX_OUT: usize = 128 * 1024;
/// The same of signals, which may stand behind the settings.
const MAX_SIGNALS: usize = MAX_PAYLOAD + MAX_OUT;
/// Beyond that, for what closes outputs and ends the guest.
const MAX_LAST: usize = MAX_SIGNALS + 1024;
/// Warnings of one boot's guest that are told.
const MAX_WARNINGS: u32 = 64;

/// How patient a session is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the VMM's start to the guest's hello.
    pub boot: Duration,
    /// From asking the workload to end to killing the VMM. The guest itself kills the workload after its grace.
    pub stop: Duration,
    /// From Ctrl-Alt-Del to killing a VMM whose guest does not end.
    pub power_off: Duration,
    /// From the VMM's end to giving up on what it left in its channels.
    pub drain: Duration,
}

impl Patience {
    /// From acknowledging the exit record to killing a VMM that does not end. Its guest writes back what its volumes have
    /// not got yet, and has as long for that as its workload had to end, within a bound: one that hangs ends, too.
    fn power_off(&self) -> Duration {
        const MOST: Duration = Duration::from_secs(20);
        self.power_off.max(self.stop.min(MOST))
    }
}

/// What may explain a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hint {
    /// The VMM died, and its log holds what it said of that.
    VmmLog,
    /// The guest did not report in time.
    Silence,
}

/// How a boot ended.
#[derive(Debug, Default)]
pub(super) struct BootEnd {
    /// The guest's word on its workload.
    pub exit: Option<ExitRecord>,
    /// What went wrong, for the user.
    pub failure: Option<String>,
    /// Where to look further.
    pub hint: Option<Hint>,
    /// How to mend what ended the VMM, if that is known.
    pub help: Option<String>,
    /// Somebody asked for the end.
    pub stopped: bool,
    /// The VMM was killed because of that.
    pub killed: bool,
    /// When the workload was started.
    pub started: Option<Instant>,
}

/// What reaches a session from outside.
pub(super) struct Inbox<'a> {
    pub commands: &'a mut mpsc::Receiver<Command>,
    pub stdin: &'a mut mpsc::Receiver<Vec<u8>>,
}

/// Talks to one machine until it has ended. `run` is sent at hello and its secrets are wiped then.
pub(super) async fn run(
    machine: Machine,
    run: RunConfig,
    patience: Patience,
    hub: &Hub,
    console: &mut Console,
    recorder: &mut Recorder,
    inbox: Inbox<'_>,
) -> io::Result<BootEnd> {
    let Machine { pidfd, control, console: console_stream, mut ended, keyboard, watch, drives, .. } = machine;
    let (mut control, mut control_write, mut door) = match control {
        Control::Connected(connected) => {
            let (read, write) = stream(connected)?.into_split();
            (Some(read), Some(write), None)
        }
        Control::Listening(listener) => {
            listener.set_nonblocking(true)?;
            (None, None, Some(UnixListener::from_std(listener)?))
        }
    };
    let (mut console_stream, _typed) = match console_stream.map(serial).transpose()? {
        Some((printed, typed)) => (Some(printed), typed),
        None => (None, None),
    };
    let mut session = Session {
        pidfd: &pidfd,
        patience,
        run: Some(run),
        stdin: Stdin { open: false, credit: STDIN_WINDOW, waiting: Vec::new() },
        hub,
        recorder,
        out: Vec::new(),
        deadline: Some(Instant::now() + patience.boot),
        decoder: Decoder::default(),
        end: BootEnd::default(),
        keyboard,
        silent: true,
        unread: Vec::new(),
        drives,
        paused: Paused::default(),
        resume: watch.resume,
        seen: Condition::default(),
        monitor_closed: None,
        held: None,
        warnings: 0,
        deaf: false,
    };
    let mut condition = watch.condition;
    // For what waits for a disk to have space.
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut from_guest = vec![0; 64 * 1024];
    let mut from_console = vec![0; 4 * 1024];
    let vmm = loop {
        let paused = hub.must_wait();
        let deadline = session.deadline;
        tokio::select! {
            vmm = &mut ended => break vmm,
            n = read(&mut control, &mut from_guest), if !paused && control.is_some() => match n {
                Ok(n) if n > 0 => {
                    if !session.bytes(&from_guest[..n]) {
                        control = None;
                    }
                }
                // The other end is the VMM's: its end is seen by `ended`.
                _ => control = None,
            },
            came = accept(&door), if door.is_some() => {
                // There is no second channel: the first one that comes is the guest's init.
                door = None;
                let (read, write) = came?.into_split();
                (control, control_write) = (Some(read), Some(write));
            }
            n = write(&mut control_write, &session.out), if control_write.is_some() && !session.out.is_empty() => match n {
                Ok(n) => session.sent(n),
                Err(_) => session.out.clear(),
            },
            n = read_console(&mut console_stream, &mut from_console), if console_stream.is_some() => match n {
                Ok(n) if n > 0 => session.console(console, &from_console[..n]),
                _ => console_stream = None,
            },
            Some(command) = inbox.commands.recv() => session.command(command),
            Some(bytes) = inbox.stdin.recv(), if session.wants_stdin() => session.stdin(bytes),
            Ok(()) = condition.changed() => {
                let now = condition.borrow_and_update().clone();
                session.condition(now);
            }
            _ = second.tick(), if session.is_waiting() => session.second(),
            _ = hub.progress.notified(), if paused => {}
            _ = sleep_until(deadline), if deadline.is_some() => session.late(),
        }
    };
    // The VMM is gone; what it had written is still in the sockets.
    let drained = async {
        // A guest that ended at once may have come to the door and not been let in.
        if let Some(door) = door
            && let Ok((last, _)) = door.into_std()?.accept()
        {
            control = Some(stream(last)?.into_split().0);
        }
        while let Ok(n @ 1..) = read(&mut control, &mut from_guest).await {
            while hub.must_wait() {
                hub.progress.notified().await;
            }
            if !session.bytes(&from_guest[..n]) {
                break;
            }
        }
        while let Ok(n @ 1..) = read_console(&mut console_stream, &mut from_console).await {
            session.console(console, &from_console[..n]);
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(patience.drain, drained).await;
    let mut end = session.end;
    if end.exit.is_none() {
        end.exit = console.exit_record();
    }
    if end.exit.is_none() && end.failure.is_none() && !end.stopped {
        let when = if end.started.is_some() { "while the workload ran" } else { "before the workload ran" };
        end.failure = Some(format!("the VM ended {when} and the guest did not say why: {}", vmm.words));
        end.hint = vmm.logged.then_some(Hint::VmmLog);
        end.help = vmm.help;
    }
    Ok(end)
}

struct Session<'a> {
    pidfd: &'a std::os::fd::OwnedFd,
    patience: Patience,
    /// Until it is sent.
    run: Option<RunConfig>,
    stdin: Stdin,
    hub: &'a Hub,
    recorder: &'a mut Recorder,
    out: Vec<u8>,
    deadline: Option<Instant>,
    decoder: Decoder,
    end: BootEnd,
    /// Until it was tried.
    keyboard: Option<Keyboard>,
    /// Until the console's first byte.
    silent: bool,
    /// Outputs that were closed before the guest was told what to run.
    unread: Vec<Stream>,
    drives: Drives,
    paused: Paused,
    /// Asks the VMM to let the guest go on.
    resume: mpsc::Sender<()>,
    /// The condition as it was told.
    seen: Condition,
    /// When the VMM's monitor closed, until that is told.
    monitor_closed: Option<Instant>,
    /// What is left until the deadline of a guest that stands still.
    held: Option<Duration>,
    /// The guest's own, so far.
    warnings: u32,
    /// That the guest does not listen was told.
    deaf: bool,
}

impl Session<'_> {
    fn console(&mut self, console: &mut Console, bytes: &[u8]) {
        if std::mem::take(&mut self.silent) {
            self.recorder.stamp("console");
        }
        console.push(bytes, self.hub);
    }

    /// Takes bytes from the guest; `false` closes the channel.
    fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.decoder.push(bytes);
        loop {
            let error = match self.decoder.frame() {
                Ok(None) => return true,
                Ok(Some(frame)) => match self.frame(frame) {
                    Ok(()) => continue,
                    Err(e) => e,
                },
                Err(e) => e.to_string(),
            };
            // The guest goes on; its end is still seen on the console and by the VMM's process.
            let text = format!("the guest's control channel was closed: {error}");
            match self.run {
                Some(_) => self.fail(text),
                None => self.hub.warn(text),
            }
            return false;
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), String> {
        match frame.channel {
            channel::STDOUT => self.hub.output(Stream::Stdout, &frame.payload),
            channel::STDERR => self.hub.output(Stream::Stderr, &frame.payload),
            channel::CONTROL => {
                let message =
                    serde_json::from_slice(&frame.payload).map_err(|e| format!("no message: {e}"))?;
                self.message(message);
            }
            other => return Err(format!("channel {other} is unknown")),
        }
        Ok(())
    }

    fn message(&mut self, mut message: FromGuest) {
        message.clip();
        match message {
            FromGuest::Hello { protocol, kernel } => self.hello(protocol, kernel),
            FromGuest::Warning { message } => {
                self.warnings = self.warnings.saturating_add(1);
                match self.warnings {
                    ..MAX_WARNINGS => {
                        self.hub.warn(format!("guest: {}", super::logs::escaped(message.as_bytes())))
                    }
                    MAX_WARNINGS => self.hub.warn("guest: it warns too often; no more of that is told"),
                    _ => {}
                }
            }
            // A guest could say it again and again.
            FromGuest::Started { .. } if self.end.started.is_some() => {}
            FromGuest::Started { .. } => {
                self.end.started = Some(Instant::now());
                self.recorder.stamp("started");
                if !self.end.stopped {
                    self.recorder.update(|s| s.status = Status::Running);
                    self.recorder.phase(Phase::Running);
                }
            }
            FromGuest::StdinTaken { bytes } => {
                // No more than was lent: the guest could send anything.
                self.stdin.credit = self.stdin.credit.saturating_add(bytes).min(STDIN_WINDOW);
                self.feed();
            }
            FromGuest::Exit(record) => {
                self.stdin.open = false;
                self.stdin.waiting.clear();
                self.say(&ToGuest::ExitAck, MAX_LAST);
                if self.end.exit.is_none() {
                    self.recorder.stamp("exit");
                    self.deadline = Some(Instant::now() + self.patience.power_off());
                }
                self.end.exit = Some(record);
            }
        }
    }

    fn hello(&mut self, protocol: u32, kernel: String) {
        let Some(mut run) = self.run.take() else { return };
        if protocol != PROTOCOL {
            super::spec::wipe_secrets(&mut run);
            return self
                .fail(format!("the guest speaks control protocol {protocol}, this firegopher {PROTOCOL}"));
        }
        run.clock_ms = super::clock::wall_ms();
        self.stdin.open = run.stdin;
        self.deadline = None;
        self.recorder.stamp("hello");
        self.recorder.update(|s| s.kernel = Some(super::logs::escaped(kernel.as_bytes())));
        self.recorder.phase(Phase::Guest);
        // Room beforehand: growing would leave copies of secrets in freed memory.
        self.out.reserve(HEADER_LEN + MAX_PAYLOAD);
        let mut start = ToGuest::Start(Box::new(run));
        if encode_message(&start, &mut self.out).is_err() {
            self.fail(format!(
                "environment and settings are too large: the guest accepts {MAX_PAYLOAD} bytes"
            ));
        }
        if let ToGuest::Start(run) = &mut start {
            super::spec::wipe_secrets(run);
        }
        for stream in std::mem::take(&mut self.unread) {
            self.close_output(stream);
        }
    }

    /// The first bytes of `out` were written.
    fn sent(&mut self, n: usize) {
        // They may hold secrets, and `drain` only moves what follows.
        let left = self.out.len() - n;
        self.out.copy_within(n.., 0);
        wipe(&mut self.out[left..]);
        self.out.truncate(left);
    }

    fn command(&mut self, command: Command) {
        match command {
            // A guest that waits for its settings runs nothing that could need grace.
            Command::Stop { kill: false }
                if self.run.is_some() && self.end.exit.is_none() && !self.end.stopped =>
            {
                self.stopping();
                self.kill();
            }
            // A guest that stands still notices none of these, and who sends one of these wants it to end.
            Command::Signal(libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
            | Command::Stop { kill: false }
                if !self.can_be_asked() =>
            {
                self.stopping();
                self.kill_paused();
            }
            // There is no workload yet, and the guest listens for its settings only.
            Command::Signal(_) if self.run.is_some() => {}
            Command::Signal(signal) => self.say(&ToGuest::Signal { signal }, MAX_SIGNALS),
            Command::CloseOutput(stream) if self.run.is_some() => {
                if !self.unread.contains(&stream) {
                    self.unread.push(stream);
                }
            }
            Command::CloseOutput(stream) => self.close_output(stream),
            Command::Stop { kill: false } if self.end.exit.is_some() || self.end.stopped => {
                self.end.stopped = true;
                if self.end.exit.is_some() {
                    // It may be gone while the guest stood still.
                    self.deadline.get_or_insert(Instant::now() + self.patience.power_off());
                }
            }
            Command::Stop { kill: false } => {
                self.stopping();
                self.say(&ToGuest::Stop, MAX_LAST);
                self.flush_metrics();
                self.recorder.phase(Phase::Stopping);
                self.deadline = Some(Instant::now() + self.patience.stop);
            }
            Command::Stop { kill: true } => {
                self.stopping();
                self.end.killed = true;
                self.kill();
            }
        }
    }

    fn close_output(&mut self, stream: Stream) {
        let channel = match stream {
            Stream::Stdout => channel::STDOUT,
            Stream::Stderr => channel::STDERR,
        };
        self.say(&ToGuest::CloseOutput { channel }, MAX_LAST);
    }

    /// Somebody wants it to end.
    fn stopping(&mut self) {
        self.end.stopped = true;
        self.recorder.update(|s| s.status = Status::Stopping);
        // Output that waits for space would keep the guest from ending.
        self.hub.give_up_waiting();
    }

    fn late(&mut self) {
        self.deadline = None;
        if self.end.exit.is_some() {
            // It said all it had to say, and only does not switch itself off.
            let seconds = self.patience.power_off().as_secs_f64();
            self.tell(format!(
                "the guest did not switch itself off within {seconds} s after its workload had ended, so its VMM is \
                 killed: what it had not yet written to its disks is lost"
            ));
            self.kill();
        } else if let (true, Some(keyboard)) = (self.end.stopped, self.keyboard.take()) {
            // Its init does not answer; its kernel may.
            self.deadline = Some(Instant::now() + self.patience.power_off);
            tokio::task::spawn_local(async move {
                if let Err(e) = keyboard.ctrl_alt_del().await {
                    super::log_line(&super::journal::chain(&e));
                }
            });
        } else if self.end.stopped {
            self.end.killed = true;
            self.kill();
        } else {
            self.end.hint = Some(Hint::Silence);
            self.fail(format!("the guest did not report within {} s", self.patience.boot.as_secs_f64()));
        }
    }

    /// A VMM that is killed writes none. The guest's own end comes later than the answer, or writes them as well.
    fn flush_metrics(&self) {
        let Some(keyboard) = self.keyboard.as_ref().and_then(Keyboard::share) else { return };
        tokio::task::spawn_local(async move {
            // Nothing depends on it, and one that does not answer is killed in the end.
            let _ = keyboard.flush_metrics().await;
        });
    }

    fn fail(&mut self, failure: String) {
        self.end.failure.get_or_insert(failure);
        self.kill();
    }

    fn kill(&mut self) {
        if let Err(e) = process::send(self.pidfd, libc::SIGKILL) {
            self.hub.warn_once(&format!("the VMM cannot be killed: {e}"));
        }
    }

    /// Sends a message, unless more than `most` bytes wait already: the guest does not read them.
    fn say(&mut self, to_guest: &ToGuest, most: usize) {
        if self.out.len() < most {
            // Only `Start` could be too large.
            encode_message(to_guest, &mut self.out).unwrap_or_else(|e| self.hub.warn_once(&e.to_string()));
        } else if !std::mem::replace(&mut self.deaf, true) {
            self.hub.warn_once("the guest does not listen: a signal or a message to it was dropped");
        }
    }
}
