//! The control channel to the host: finding and opening it, framing, and a bounded queue of what is yet to be sent.
//! A channel that fails or carries nonsense is closed; the guest goes on without it.

use crate::console;
use crate::failure::{Context, Failure, Result};
use firegopher_protocol::{
    Decoder, FromGuest, PORT_NAME, ToGuest, VSOCK_PORT, channel, encode_message, encode_stream,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Unsent bytes beyond which the workload's pipes are left unread. The workload then waits in its own `write`.
const QUEUE_LIMIT: usize = 256 * 1024;
/// The host's context id on vsock (linux/vm_sockets.h, VMADDR_CID_HOST).
const HOST_CID: u32 = 2;

/// What the host sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message of channel 0.
    Message(ToGuest),
    /// Bytes for the workload's standard input; empty closes it.
    Stdin(Vec<u8>),
}

/// The channel, open or closed for good.
pub struct Control {
    fd: Option<OwnedFd>,
    decoder: Decoder,
    incoming: VecDeque<Incoming>,
    out: Vec<u8>,
    sent: usize,
    /// Whether the host was ever there: a virtio port reads as ended until the host has opened its side.
    met: bool,
}

impl Control {
    /// Finds the channel: the virtio-serial port by its name, else vsock. The port's device appears some time after
    /// its driver was loaded, so both are tried until `patience` is over.
    pub fn open(patience: Duration) -> Result<Control> {
        let end = Instant::now() + patience;
        let mut pause = Duration::from_micros(500);
        loop {
            if let Some(device) = port_device(Path::new("/sys/class/virtio-ports")) {
                let fd = open(
                    Path::new("/dev").join(&device).as_path(),
                    OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )
                .context(|| format!("opening the control port /dev/{device}"))?;
                return Ok(Control::new(fd, false));
            }
            if let Ok(fd) = connect_vsock() {
                return Ok(Control::new(fd, true));
            }
            if Instant::now() >= end {
                return Err(Failure::new(
                    "no control channel: neither a virtio port of the expected name nor vsock answered",
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 5 / 4).min(Duration::from_millis(10));
        }
    }

    fn new(fd: OwnedFd, met: bool) -> Control {
        Control {
            fd: Some(fd),
            decoder: Decoder::default(),
            incoming: VecDeque::new(),
            out: Vec::new(),
            sent: 0,
            met,
        }
    }

    /// A channel over any stream, for tests.
    #[cfg(test)]
    pub fn over(fd: OwnedFd) -> Control {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        Control::new(fd, true)
    }

    /// A channel that is closed from the start: everything sent is dropped.
    pub fn closed() -> Control {
        Control {
            fd: None,
            decoder: Decoder::default(),
            incoming: VecDeque::new(),
            out: Vec::new(),
            sent: 0,
            met: true,
        }
    }

    /// The descriptor to poll, while open.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether bytes wait to be sent.
    pub fn pending(&self) -> bool {
        self.fd.is_some() && self.sent < self.out.len()
    }

    /// How many more bytes of output may be queued now. A closed channel swallows everything.
    pub fn room(&self) -> usize {
        QUEUE_LIMIT.saturating_sub(self.out.len() - self.sent)
    }

    /// Queues a message, its text cut to what the host accepts, and sends what can be sent.
    pub fn send(&mut self, mut message: FromGuest) {
        if self.fd.is_none() {
            return;
        }
        message.clip();
        match encode_message(&message, &mut self.out) {
            Ok(()) => {
                self.flush();
            }
            // A clipped text fits even if each of its bytes is escaped.
            Err(e) => console::say(&format!("a message to the host is not sent: {e}")),
        }
    }

    /// Queues bytes of a raw channel; `flush` sends them.
    pub fn queue(&mut self, channel: u16, bytes: &[u8]) {
        if self.fd.is_some() {
            encode_stream(channel, bytes, &mut self.out);
        }
    }

    /// Sends what the channel takes without waiting. Returns whether anything went out.
    pub fn flush(&mut self) -> bool {
        let before = self.sent;
        let mut progress = false;
        while let Some(fd) = &self.fd {
            let Some(rest) = self.out.get(self.sent..).filter(|r| !r.is_empty()) else { break };
            match write(fd, rest) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(n) => {
                    self.sent += n;
                    progress = true;
                }
                Err(Errno::EINTR) => {}
                Err(_) => self.close(),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > QUEUE_LIMIT / 4 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        progress || self.sent > before
    }

    /// Reads once and keeps whole frames for `next_incoming`. A peer that is gone or that sends what is no frame
    /// closes the channel.
    pub fn receive(&mut self) {
        let Some(fd) = &self.fd else { return };
        let mut buffer = [0; 16 * 1024];
        match read(fd, &mut buffer) {
            Ok(0) if !self.met => {}
            Ok(0) => self.close(),
            Ok(n) => {
                self.met = true;
                self.decoder.push(&buffer[..n]);
                if let Err(why) = self.decode() {
                    console::say(&format!("closing the control channel: {why}"));
                    self.send(FromGuest::Warning {
                        message: format!("the control channel is closed: {why}"),
                    });
                    self.close();
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.close(),
        }
    }

    fn decode(&mut self) -> Result<(), String> {
        while let Some(frame) = self.decoder.frame().map_err(|e| e.to_string())? {
            let incoming = match frame.channel {
                channel::CONTROL => {
                    // serde's own message quotes the input, and a start message holds secrets: only the place is told.
                    let message = serde_json::from_slice(&frame.payload).map_err(|e| {
                        format!("a control message is malformed at line {} column {}", e.line(), e.column())
                    })?;
                    Incoming::Message(message)
                }
                channel::STDIN => Incoming::Stdin(frame.payload),
                other => return Err(format!("a frame came for the unknown channel {other}")),
            };
            self.incoming.push_back(incoming);
        }
        Ok(())
    }

    /// The next whole thing the host sent, in order.
    pub fn next_incoming(&mut self) -> Option<Incoming> {
        self.incoming.pop_front()
    }

    /// Closes the channel and forgets what is unsent.
    pub fn close(&mut self) {
        self.fd = None;
        self.out = Vec::new();
        self.sent = 0;
    }

    /// Sends and receives until something arrived or `patience` is over.
    pub fn wait(&mut self, patience: Duration) -> Option<Incoming> {
        let end = Instant::now() + patience;
        loop {
            if let Some(incoming) = self.next_incoming() {
                return Some(incoming);
            }
            self.flush();
            let left = end.saturating_duration_since(Instant::now());
            let fd = self.fd.as_ref()?;
            if left.is_zero() {
                return None;
            }
            let mut interest = PollFlags::POLLIN;
            if self.sent < self.out.len() {
                interest |= PollFlags::POLLOUT;
            }
            let mut set = [PollFd::new(fd.as_fd(), interest)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let ready = poll(&mut set, timeout).is_ok_and(|n| n > 0);
            let events = set[0].revents().unwrap_or(PollFlags::empty());
            if ready {
                self.receive();
                if !self.met && events.contains(PollFlags::POLLHUP) {
                    // The host has not opened its side yet; poll says so at once, every time.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

/// The device name of our virtio-serial port. Its index is the order of devices, so only its name identifies it.
fn port_device(class: &Path) -> Option<String> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim_end() == PORT_NAME).then(|| entry.file_name().to_str().map(str::to_owned))?
    })
}

fn connect_vsock() -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &VsockAddr::new(HOST_CID, VSOCK_PORT))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Control, UnixStream) {
        let (guest, host) = UnixStream::pair().unwrap();
        (Control::over(guest.into()), host)
    }

    #[test]
    fn the_port_is_found_by_its_name_whatever_its_number() {
        let dir = crate::testing::TempDir::new();
        for (device, name) in [("vport1p1", "other\n"), ("vport3p2", "org.firegopher.control\n")] {
            fs::create_dir(dir.path().join(device)).unwrap();
            fs::write(dir.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(port_device(dir.path()).as_deref(), Some("vport3p2"));
        assert_eq!(port_device(Path::new("/nonexistent")), None);
    }

    #[test]
    fn messages_and_input_arrive_in_order() {
        let (mut control, mut host) = pair();
        let mut wire = Vec::new();
        encode_stream(channel::STDIN, b"abc", &mut wire);
        encode_message(&ToGuest::Stop, &mut wire).unwrap();
        encode_stream(channel::STDIN, b"", &mut wire);
        host.write_all(&wire).unwrap();
        control.receive();
        assert_eq!(control.next_incoming(), Some(Incoming::Stdin(b"abc".to_vec())));
        assert_eq!(control.next_incoming(), Some(Incoming::Message(ToGuest::Stop)));
        assert_eq!(control.next_incoming(), Some(Incoming::Stdin(Vec::new())));
        assert_eq!(control.next_incoming(), None);
        assert!(control.fd().is_some());
    }

    #[test]
    fn a_malformed_frame_closes_the_channel_and_what_came_before_it_still_counts() {
        let (mut control, mut host) = pair();
        let mut wire = Vec::new();
        encode_message(&ToGuest::ExitAck, &mut wire).unwrap();
        wire.extend_from_slice(&[0xff; 6]);
        host.write_all(&wire).unwrap();
        control.receive();
        assert!(control.fd().is_none());
        assert_eq!(control.next_incoming(), Some(Incoming::Message(ToGuest::ExitAck)));
        // Sending into a closed channel is no error and keeps nothing.
        control.queue(channel::STDOUT, &[0; 1000]);
        assert!(!control.pending());
        assert_eq!(control.room(), QUEUE_LIMIT);
    }

    #[test]
    fn a_malformed_start_never_repeats_its_secrets() {
        let _alone = crate::testing::alone();
        let (mut control, mut host) = pair();
        let mut wire = Vec::new();
        let json = br#"{"type":"start","argv":["x"],"env":[],"secrets":"hunter2-in-the-wrong-shape"}"#;
        firegopher_protocol::encode_frame(channel::CONTROL, json, &mut wire).unwrap();
        host.write_all(&wire).unwrap();
        control.receive();
        let mut said = String::new();
        host.read_to_string(&mut said).unwrap();
        assert!(said.contains("malformed"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_text_of_any_length_arrives_as_one_message() {
        use firegopher_protocol::{MAX_PAYLOAD, MAX_TEXT};
        for len in [MAX_TEXT, MAX_PAYLOAD - 40, MAX_PAYLOAD, 4 * MAX_PAYLOAD] {
            let (mut control, mut host) = pair();
            control.send(FromGuest::Warning { message: "\u{1}".repeat(len) });
            control.send(FromGuest::Started { pid: 2 });
            drop(control);
            let mut wire = Vec::new();
            host.read_to_end(&mut wire).unwrap();
            let mut decoder = Decoder::default();
            decoder.push(&wire);
            let mut message = || serde_json::from_slice(&decoder.frame().unwrap().unwrap().payload).unwrap();
            assert!(matches!(message(), FromGuest::Warning { message } if message.starts_with("\u{1}\u{1}")));
            assert_eq!(message(), FromGuest::Started { pid: 2 });
        }
    }

    #[test]
    fn what_the_host_does_not_read_stays_in_a_bounded_queue() {
        let _alone = crate::testing::alone();
        let (mut control, host) = pair();
        let mut queued = 0;
        while control.room() > 0 {
            let n = control.room().min(64 * 1024);
            control.queue(channel::STDOUT, &vec![7; n]);
            control.flush();
            queued += n;
            assert!(queued < 8 << 20, "the queue has no bound");
        }
        assert!(control.out.len() <= QUEUE_LIMIT * 2);
        drop(host);
        control.flush();
        assert!(control.fd().is_none());
    }

    #[test]
    fn a_peer_that_goes_away_closes_the_channel() {
        let _alone = crate::testing::alone();
        let (mut control, host) = pair();
        drop(host);
        control.receive();
        assert!(control.fd().is_none());
        assert_eq!(control.wait(Duration::from_secs(5)), None);
    }
}
