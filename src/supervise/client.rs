//! A command's end of the connection to a supervisor: blocking, without a runtime.

use super::outcome::{Event, Stream};
use super::state::State;
use super::wire::{FromSupervisor, SOCKET_FILE, ToSupervisor, WIRE, error_from};
use crate::error::{Error, Result};
use firegopher_protocol::{Decoder, channel, encode_stream};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Output that came together is one event up to this many bytes.
const MAX_EVENT: usize = 32 * 1024;

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    dir: PathBuf,
    decoder: Decoder,
    events: VecDeque<Event>,
    ready: bool,
    ended: bool,
    closed: bool,
}

/// What waiting for an event came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Something happened.
    Event(Event),
    /// The time is over, or a signal came: look and call again.
    Timeout,
    /// The supervisor has gone. `Event::Ended` came before, unless it was killed.
    Closed,
}

impl Client {
    pub(super) fn new(stream: UnixStream, dir: &Path) -> Client {
        Client {
            stream,
            dir: dir.to_owned(),
            decoder: Decoder::default(),
            events: VecDeque::new(),
            ready: false,
            ended: false,
            closed: false,
        }
    }

    /// Connects to the supervisor of a VM's directory; `None` if there is none. Call `attach` for events.
    pub fn connect(dir: &Path) -> Result<Option<Client>> {
        let connect = || {
            // sun_path has 108 bytes; the directory's own path may be longer.
            let handle = std::fs::File::open(dir)?;
            UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd()))
        };
        match connect() {
            Ok(stream) => Ok(Some(Client::new(stream, dir))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => {
                let text = format!("cannot reach the supervisor in {}", dir.display());
                Err(Error::failed("supervise.connect", text).because(e))
            }
        }
    }

    /// Asks for output and events, from the oldest record in the log or from now on.
    pub fn attach(&mut self, from_start: bool) -> Result<()> {
        self.send(&ToSupervisor::Attach { wire: WIRE, from_start })
    }

    /// The next event, waiting for it; `None` once the supervisor has gone.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        loop {
            match self.poll_event(None)? {
                Next::Event(event) => return Ok(Some(event)),
                Next::Timeout => {}
                Next::Closed => return Ok(None),
            }
        }
    }

    /// The next event, waiting at most this long (`None`: until a signal interrupts). With a zero timeout it only
    /// looks: for use with `as_fd` in a poll of one's own, call it until `Timeout` before polling.
    pub fn poll_event(&mut self, timeout: Option<Duration>) -> Result<Next> {
        let until = timeout.map(|t| Instant::now() + t);
        loop {
            self.decode()?;
            if let Some(event) = self.events.pop_front() {
                return Ok(Next::Event(event));
            }
            if self.closed {
                return Ok(self.close());
            }
            let left = until.map(|u| u.saturating_duration_since(Instant::now()));
            let timeout = match left {
                // Rounded up, or the last millisecond would spin.
                Some(left) => {
                    PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Next::Timeout),
                Ok(_) => self.fill()?,
                Err(e) => return Err(self.broken(e.into())),
            }
        }
    }

    /// Stops the VM: gracefully, or at once. Over a connection of its own, so that it does not wait behind
    /// standard input.
    pub fn stop(&self, kill: bool) -> Result<()> {
        self.command(&ToSupervisor::Stop { kill })
    }

    /// Sends a signal to the workload.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.command(&ToSupervisor::Signal { signal })
    }

    /// Tells the supervisor of an ephemeral VM that nobody reads this output any more: the workload's next write to
    /// it is ended by SIGPIPE.
    pub fn close_output(&self, stream: Stream) -> Result<()> {
        self.command(&ToSupervisor::CloseOutput { stream })
    }

    /// Sends standard input; empty closes it. Blocks while the workload does not read.
    pub fn stdin(&mut self, bytes: &[u8]) -> Result<()> {
        let mut out = Vec::new();
        for piece in bytes.chunks(32 * 1024) {
            encode_stream(channel::STDIN, piece, &mut out);
        }
        if bytes.is_empty() {
            encode_stream(channel::STDIN, &[], &mut out);
        }
        self.write(&out)
    }

    /// A second handle on the connection for a thread that sends standard input.
    pub fn try_clone(&self) -> Result<Client> {
        let stream = self.stream.try_clone().map_err(|e| self.broken(e))?;
        Ok(Client::new(stream, &self.dir))
    }

    fn command(&self, message: &ToSupervisor) -> Result<()> {
        match Client::connect(&self.dir)? {
            // Gone already, and the VM with it.
            None => Ok(()),
            Some(mut client) => {
                client.send(message)?;
                // Read before the connection is closed: wait for the supervisor's side of it.
                let _ = client.stream.shutdown(std::net::Shutdown::Write);
                let _ = client.stream.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = client.stream.read(&mut [0; 64]);
                Ok(())
            }
        }
    }

    fn send(&mut self, value: &ToSupervisor) -> Result<()> {
        self.write(&value.frame())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            // What it said before it went is still to be read.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|e| self.broken(e)),
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut buffer = [0; 32 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
            Err(e) => return Err(self.broken(e)),
        }
        Ok(())
    }

    fn decode(&mut self) -> Result<()> {
        while let Some(frame) = self.decoder.frame().map_err(|e| self.broken(io::Error::other(e)))? {
            let event = match frame.channel {
                channel::STDOUT => {
                    self.output(Stream::Stdout, frame.payload);
                    continue;
                }
                channel::STDERR => {
                    self.output(Stream::Stderr, frame.payload);
                    continue;
                }
                channel::CONTROL => {
                    let message =
                        serde_json::from_slice(&frame.payload).map_err(|e| self.foreign(e.to_string()))?;
                    match message {
                        FromSupervisor::Ready { wire } if wire != WIRE => {
                            return Err(self.foreign(format!("its version is {wire}, this one's {WIRE}")));
                        }
                        FromSupervisor::Ready { .. } => {
                            self.ready = true;
                            continue;
                        }
                        FromSupervisor::Refused { kind, code, message, help } => {
                            return Err(error_from(kind, &code, message, help));
                        }
                        FromSupervisor::Phase { phase } => Event::Phase(phase),
                        FromSupervisor::Warning { message } => Event::Warning(message),
                        FromSupervisor::Ended { outcome } => {
                            self.ended = true;
                            Event::Ended(outcome)
                        }
                    }
                }
                _ => continue,
            };
            self.events.push_back(event);
        }
        Ok(())
    }

    /// A frame holds a line: short ones that came together become one event.
    fn output(&mut self, stream: Stream, bytes: Vec<u8>) {
        match self.events.back_mut() {
            Some(Event::Output { stream: last, bytes: kept })
                if *last == stream && kept.len() + bytes.len() <= MAX_EVENT =>
            {
                kept.extend_from_slice(&bytes);
            }
            _ => self.events.push_back(Event::Output { stream, bytes }),
        }
    }

    /// Waits until the supervisor has prepared the boot, or refused it.
    pub(super) fn wait_ready(&mut self, timeout: Duration) -> Result<bool> {
        let until = Instant::now() + timeout;
        loop {
            self.decode()?;
            if self.ready || self.closed {
                return Ok(self.ready);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => self.fill()?,
                Err(e) => return Err(self.broken(e.into())),
            }
        }
    }

    /// The connection closed without `Ended`: the supervisor may have finished in between.
    fn close(&mut self) -> Next {
        if !self.ended
            && let Ok(Some(state)) = State::load(&self.dir)
            && let Some(outcome) = state.outcome()
        {
            self.ended = true;
            return Next::Event(Event::Ended(outcome));
        }
        Next::Closed
    }

    fn foreign(&self, why: String) -> Error {
        let text = format!("the supervisor in {} speaks another version", self.dir.display());
        Error::failed("supervise.version", text)
            .because(why)
            .help("stop the VM (firegopher down) and start it again")
    }

    fn broken(&self, e: io::Error) -> Error {
        let text = format!("the connection to the supervisor in {} broke", self.dir.display());
        Error::failed("supervise.connection", text).because(e)
    }
}

impl AsFd for Client {
    /// Readable when there may be an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
