//! Follows running VMs: their output to this process's, this process's signals to them.
//!
//! One thread decides and never waits for a reader: a thread for each VM reads its events and waits at the sink's gate
//! while too much is on its way, and the sink's threads write. So a reader that stops makes the workload of `run` wait
//! (through supervisor and guest, each with a bound of its own), and a signal still gets through.

mod ends;
mod output;

use self::ends::{Patience, Requests, asks_for_the_end};
use self::output::Shape;
use super::screen::{Look, Screen, Shown};
use super::signals::{self, Signals};
use super::sink::{Gate, Sink};
use super::stdio;
use crate::color;
use crate::error::{Error, Result};
use crate::manifest::model::Port;
use crate::name::Name;
use crate::supervise::logs::{Colours, Escaper};
use crate::supervise::{Client, Event, Outcome, Phase, Reason, Stream};
use nix::sys::signal::Signal;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// A VM that is followed.
pub(super) struct Followed {
    /// The VM.
    pub(super) name: Name,
    /// The connection to its supervisor.
    pub(super) client: Client,
    /// Started by this command: Ctrl-C stops it.
    pub(super) ours: bool,
    /// What to say once it runs.
    pub(super) ports: Vec<Port>,
}

enum Message {
    Event(usize, Event),
    /// The supervisor went away without an end.
    Lost(usize, Option<String>),
    Signal(Signal),
    /// An output cannot be written to: nobody reads it any more, or something is wrong with it.
    Unwritable(Stream, Option<io::Error>),
}

/// How to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `up -d`: until all workloads run or have ended.
    Detached,
    /// `up`: until all have ended. Signals stop the VMs; a closed terminal or output does not.
    Attached,
    /// `run`: as if the one workload ran in place of this process. Its output is this process's, byte for byte, and
    /// this process's signals are its own.
    InPlace,
}

/// What came of it.
pub(super) struct Followings {
    /// By VM; `None` for those that go on running.
    pub(super) outcomes: Vec<(Name, Option<Outcome>)>,
    /// The signal that asked for the end.
    pub(super) interrupted: Option<Signal>,
    /// It came while VMs were booting.
    pub(super) early: bool,
    /// Nobody read standard output any more.
    pub(super) closed: bool,
    /// Output was lost because it could not be written.
    pub(super) unwritten: bool,
}

impl Followings {
    /// Whether every VM runs or ended with 0, or was stopped because that was asked for.
    pub(super) fn all_well(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| {
            outcome
                .as_ref()
                .is_none_or(|o| o.is_success() || matches!(o.reason, Reason::Stopped | Reason::Killed))
        })
    }
}

/// Follows the VMs.
pub(super) fn follow(vms: Vec<Followed>, how: How, signals: Option<&Signals>) -> Result<Followings> {
    let (sender, messages) = channel();
    if let Some(signals) = signals {
        signals.deliver(sender.clone(), Message::Signal);
    }
    let together = stdio::same_place();
    let unwritable = sender.clone();
    let sink = Sink::start(
        together,
        Box::new(move |stream, error| drop(unwritable.send(Message::Unwritable(stream, Some(error))))),
    );
    let watched: &[Stream] = match how {
        How::Detached => &[],
        How::Attached => &[Stream::Stdout],
        How::InPlace => &[Stream::Stdout, Stream::Stderr],
    };
    for stream in watched {
        watch_reader(*stream, sender.clone());
    }
    let colours = [color::on(&io::stdout()), color::on(&io::stderr())];
    let shape = match how {
        How::InPlace => {
            let escaper = |terminal: bool, colour: bool| {
                terminal.then(|| Escaper::redrawing(if colour { Colours::Keep } else { Colours::Drop }))
            };
            Shape::Bytes([
                escaper(io::stdout().is_terminal(), colours[0]),
                escaper(io::stderr().is_terminal(), colours[1]),
            ])
        }
        _ => {
            let names = vms.iter().map(|vm| vm.name.as_str().to_owned());
            Shape::Lines(Screen::new(names, Look { colours, together, timestamps: false }))
        }
    };
    let mut follower = Follower {
        how,
        names: vms.iter().map(|vm| vm.name.clone()).collect(),
        ours: vms.iter().map(|vm| vm.ours).collect(),
        ports: vms.iter().map(|vm| vm.ports.clone()).collect(),
        commands: vms.iter().map(|vm| vm.client.try_clone()).collect::<Result<_>>()?,
        settled: vec![false; vms.len()],
        outcomes: vec![None; vms.len()],
        shape,
        sink,
        together,
        at_line_start: true,
        caret: false,
        unread: [false; 2],
        detached: false,
        asked: Requests::default(),
        patience: Patience::default(),
        hint: None,
        end: Followings {
            outcomes: Vec::new(),
            interrupted: None,
            early: false,
            closed: false,
            unwritten: false,
        },
    };
    let gate = follower.sink.gate();
    for (index, vm) in vms.into_iter().enumerate() {
        read_events(index, vm.client, sender.clone(), gate.clone());
    }
    drop(sender);
    follower.run(&messages)?;
    if let Some(signals) = signals {
        signals.end();
    }
    let mut end = follower.end;
    end.outcomes = follower.names.into_iter().zip(follower.outcomes).collect();
    Ok(end)
}

fn read_events(index: usize, mut client: Client, sender: Sender<Message>, gate: Arc<Gate>) {
    std::thread::spawn(move || {
        loop {
            let message = match client.next_event() {
                Ok(Some(event)) => Message::Event(index, event),
                Ok(None) => Message::Lost(index, None),
                Err(error) => Message::Lost(index, Some(words(&error))),
            };
            if let Message::Event(_, Event::Output { bytes, .. }) = &message {
                gate.enter(bytes.len());
            }
            let last = !matches!(&message, Message::Event(_, event) if !matches!(event, Event::Ended(_)));
            if sender.send(message).is_err() || last {
                return;
            }
        }
    });
}

/// Tells when the reader of an output goes away, even while nothing is written.
fn watch_reader(stream: Stream, sender: Sender<Message>) {
    std::thread::spawn(move || {
        if stdio::wait_closed(stream, None) {
            // Nobody follows any more otherwise.
            let _ = sender.send(Message::Unwritable(stream, None));
        }
    });
}

/// An error in the form of a failed VM's message: with its causes, and its help on a line of its own.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(why) = cause {
        text += &format!(": {why}");
        cause = why.source();
    }
    if let Some(help) = error.help_text() {
        text += &format!("\nhelp: {help}");
    }
    text
}

struct Follower {
    how: How,
    names: Vec<Name>,
    ours: Vec<bool>,
    ports: Vec<Vec<Port>>,
    commands: Vec<Client>,
    /// It runs, or it ended.
    settled: Vec<bool>,
    outcomes: Vec<Option<Outcome>>,
    shape: Shape,
    sink: Sink,
    /// Both outputs end in one place.
    together: bool,
    /// Where the cursor of a terminal is, as far as bytes as they come tell.
    at_line_start: bool,
    /// A terminal has shown `^C` since.
    caret: bool,
    /// Outputs that nobody reads.
    unread: [bool; 2],
    /// The VMs are left to themselves.
    detached: bool,
    /// How often somebody asked for the end.
    asked: Requests,
    /// With those who read, once somebody asked for the end.
    patience: Patience,
    /// When to tell how to end a workload that ignores its signal.
    hint: Option<Instant>,
    end: Followings,
}

impl Follower {
    fn run(&mut self, messages: &Receiver<Message>) -> Result<()> {
        while !self.is_done() {
            let wait = self.keep_time();
            let message = match wait {
                Some(wait) => messages.recv_timeout(wait),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        for vm in 0..self.names.len() {
            self.finish_lines(vm);
        }
        self.say_goodbye();
        // All is said; it has yet to be read.
        let begun = self.asked.count();
        let now = Instant::now();
        if !self.patience.is_begun() && self.asked.stand(now) {
            self.patience.begin(now);
        }
        while !self.sink.wait_idle(Duration::from_millis(50)) {
            while let Ok(message) = messages.try_recv() {
                match message {
                    Message::Signal(Signal::SIGTSTP) => signals::suspend(),
                    Message::Signal(signal) if asks_for_the_end(signal) => {
                        self.ask(signal);
                        // A second one is in a hurry.
                        if self.asked.count() > begun.max(1) {
                            return Ok(());
                        }
                    }
                    Message::Unwritable(stream, error) => self.unwritable(stream, error),
                    _ => {}
                }
            }
            self.keep_time();
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.detached
            || match self.how {
                How::Detached => self.settled.iter().all(|s| *s),
                How::Attached | How::InPlace => self.outcomes.iter().all(Option::is_some),
            }
    }

    /// Does what is due; how long until the next.
    fn keep_time(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let mut next = None;
        if let Shape::Lines(screen) = &mut self.shape {
            let mut shown = Shown::default();
            next = screen.flush_quiet(&mut shown);
            self.write(shown, 0);
        }
        let mut patience = std::mem::take(&mut self.patience);
        if let Some(left) = patience.check(now, self) {
            next = Some(next.map_or(left, |next| next.min(left)));
        }
        self.patience = patience;
        if let Some(at) = self.hint {
            let left = at.saturating_duration_since(now);
            if left.is_zero() {
                self.hint = None;
                if io::stderr().is_terminal() {
                    self.say("The workload still runs; press Ctrl-C twice to kill its VM.");
                }
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Event(vm, event) => self.event(vm, event),
            Message::Lost(vm, why) => {
                let why = why.unwrap_or_else(|| "its supervisor went away".to_owned());
                self.ended(vm, Outcome::failed(why));
            }
            Message::Unwritable(stream, error) => self.unwritable(stream, error),
            Message::Signal(signal) if self.how == How::InPlace => self.pass_on(signal)?,
            // A closed terminal kills nothing.
            Message::Signal(Signal::SIGHUP) => {
                self.patience.begin(Instant::now());
                self.detached = true;
            }
            Message::Signal(signal) => self.interrupt(signal)?,
        }
        Ok(())
    }

    fn event(&mut self, vm: usize, event: Event) {
        match event {
            Event::Phase(Phase::Running) => {
                if !self.settled[vm] {
                    self.settled[vm] = true;
                    self.note(&running(&self.names[vm], &self.ports[vm]));
                }
            }
            Event::Phase(Phase::Restarting) => {
                self.note(&format!("{}: the workload ended; starting again", self.names[vm]));
            }
            Event::Phase(_) => {}
            Event::Warning(text) => self.say(&format!("warning: {}: {text}", self.names[vm])),
            Event::Output { stream, bytes } => self.output(vm, stream, &bytes),
            Event::Ended(outcome) => self.ended(vm, outcome),
        }
    }

    fn ended(&mut self, vm: usize, outcome: Outcome) {
        self.finish_lines(vm);
        self.settled[vm] = true;
        self.hint = None;
        match self.how {
            How::Detached | How::Attached => {
                self.note(&format!("{} {}", self.names[vm], outcome.describe()));
            }
            // Stopped before there was a workload.
            How::InPlace if self.end.early => {}
            How::InPlace => {
                let piped = outcome.exit.as_ref().is_some_and(|exit| exit.signal == Some(libc::SIGPIPE));
                let by_itself = outcome.exit.as_ref().is_some_and(|exit| exit.code.is_some() && !exit.oom);
                if let Some(message) = outcome.failure() {
                    self.say(&format!("error: {message}"));
                } else if !piped && !by_itself {
                    // An exit code of 137 alone would leave one guessing.
                    self.say(&format!("the workload {}", outcome.describe()));
                }
            }
        }
        self.outcomes[vm] = Some(outcome);
    }
}

/// `web runs: 127.0.0.1:8080 (guest port 8000)`.
pub(super) fn running(vm: &Name, ports: &[Port]) -> String {
    if ports.is_empty() {
        return format!("{vm} runs");
    }
    let addresses: Vec<String> = ports
        .iter()
        .map(|p| format!("{} (guest port {})", std::net::SocketAddr::new(p.address, p.host), p.guest))
        .collect();
    format!("{vm} runs: {}", addresses.join(", "))
}
