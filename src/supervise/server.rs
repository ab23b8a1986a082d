//! Serves a VM's clients: checks who they are, streams log and notices to them, passes on what they ask for.

use super::hub::Hub;
use super::logs::LogReader;
use super::outcome::Stream;
use super::wire::{FromSupervisor, ToSupervisor, WIRE};
use crate::error::Error;
use firegopher_protocol::{Decoder, channel, encode_stream};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Clients that follow a VM at once: each costs a task, buffers and descriptors of logs.
const MAX_FOLLOWERS: usize = 32;
/// Other connections at once: commands, which are there for a moment. One that comes then takes the oldest one's place,
/// so that those who hang there keep nobody out.
const MAX_VISITORS: usize = 32;
/// How long such a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Pause after a failure for want of descriptors or memory, so as not to spin.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// Standard input read ahead of the guest, per client.
const MAX_STDIN: usize = 256 * 1024;

/// What a client asks of the session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Stop { kill: bool },
    Signal(i32),
    CloseOutput(Stream),
}

/// What a client's task needs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Door {
    pub hub: Rc<Hub>,
    pub commands: mpsc::Sender<Command>,
    pub stdin: mpsc::Sender<Vec<u8>>,
    pub ephemeral: bool,
    pub visitors: Rc<Visitors>,
}

/// Connections that follow nothing, oldest first.
#[derive(Default)]
pub(super) struct Visitors(RefCell<VecDeque<Visit>>);

/// One of them, as long as it may still ask to follow.
type Visit = Rc<RefCell<Option<Ask>>>;

impl Visitors {
    fn enter(&self, ask: Ask) -> Visit {
        let visit = Rc::new(RefCell::new(Some(ask)));
        let mut all = self.0.borrow_mut();
        if all.len() >= MAX_VISITORS
            && let Some(oldest) = all.pop_front()
        {
            answer(&oldest, Err(Refusal::Visitors));
        }
        all.push_back(Rc::clone(&visit));
        visit
    }

    fn leave(&self, visit: &Visit) {
        self.0.borrow_mut().retain(|other| !Rc::ptr_eq(other, visit));
    }
}

/// Answers a visit that has had no answer yet.
fn answer(visit: &Visit, answer: Result<Follow, Refusal>) {
    if let Some(ask) = visit.borrow_mut().take() {
        // Its task may have ended meanwhile.
        let _ = ask.send(answer);
    }
}

/// What `tell` waits for.
type Ask = oneshot::Sender<Result<Follow, Refusal>>;

/// A client that follows: how far it has read, and whether it began at the log's start.
struct Follow {
    position: Rc<Cell<u64>>,
    from_start: bool,
}

/// Why a client is sent away.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Followers,
    Visitors,
}

impl Refusal {
    fn error(self) -> Error {
        match self {
            Refusal::Followers => {
                let text = format!("{MAX_FOLLOWERS} clients follow this VM already, which is the most");
                Error::failed("supervise.clients", text).help(
                    "end one of the commands that follow it; `logs` reads its output without following it",
                )
            }
            Refusal::Visitors => {
                let text = format!("more than {MAX_VISITORS} connections ask nothing; this was the oldest");
                Error::failed("supervise.clients", text).help("try again")
            }
        }
    }
}

/// Binds the socket, replacing one that a dead supervisor left. The caller holds the VM's lock.
pub(super) fn bind(dir: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let path = dir.join(super::wire::SOCKET_FILE);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // sun_path has 108 bytes; the directory's own path may be longer.
    let handle = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), super::wire::SOCKET_FILE);
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts clients for ever.
pub(super) async fn accept(listener: std::os::unix::net::UnixListener, door: Door) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        // The VM goes on; SIGTERM still stops it.
        Err(e) => return door.hub.warn_once(&format!("no client can connect: {e}")),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if is_friend(&stream) {
                    tokio::task::spawn_local(serve(stream, door.clone(), None));
                    // It is heard before the next one comes, who may take its place.
                    tokio::task::yield_now().await;
                }
            }
            // Descriptors ran out, or the peer has gone already: neither is helped by trying at once.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Only the same user and root may talk to a supervisor.
fn is_friend(stream: &UnixStream) -> bool {
    let me = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == me)
}

/// Serves one client until it goes or the VM has ended. `attached`: from the start, without being asked.
pub(super) async fn serve(stream: UnixStream, door: Door, attached: Option<Rc<Cell<u64>>>) {
    let (read, write) = stream.into_split();
    let (ask, asked) = oneshot::channel();
    let visit = match attached {
        Some(position) => {
            // The receiver is alive: it is `asked`.
            let _ = ask.send(Ok(Follow { position, from_start: true }));
            Rc::default()
        }
        None => door.visitors.enter(ask),
    };
    tokio::select! {
        _ = hear(read, &door, &visit) => {}
        _ = tell(write, &door.hub, asked) => {}
    }
    door.visitors.leave(&visit);
    // `tell`'s reader position is dropped by now: this client no longer counts.
    door.hub.progress.notify_one();
    if door.ephemeral && door.hub.attached() == 0 {
        let _ = door.commands.try_send(Command::Stop { kill: false });
    }
}

/// Reads what a client asks for; ends when it goes, talks nonsense or follows nothing and says nothing.
async fn hear(mut read: OwnedReadHalf, door: &Door, visit: &Visit) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut pending = VecDeque::<Vec<u8>>::new();
    loop {
        let waiting: usize = pending.iter().map(|p| p.len() + 1).sum();
        let follows = visit.borrow().is_none();
        tokio::select! {
            n = read.read(&mut buffer), if waiting < MAX_STDIN => match n? {
                0 => return Ok(()),
                n => decoder.push(&buffer[..n]),
            },
            permit = door.stdin.reserve(), if !pending.is_empty() => {
                if let (Ok(permit), Some(bytes)) = (permit, pending.pop_front()) {
                    permit.send(bytes);
                }
            }
            // Input is stuck, so nothing is read: look whether anybody is there at all.
            _ = tokio::time::sleep(Duration::from_millis(500)), if waiting >= MAX_STDIN => {
                if hung_up(&read) {
                    return Ok(());
                }
            }
            _ = tokio::time::sleep(SILENCE), if !follows && pending.is_empty() => return Ok(()),
        }
        while let Some(frame) = decoder.frame().map_err(io::Error::other)? {
            match frame.channel {
                channel::STDIN => pending.push_back(frame.payload),
                channel::CONTROL => match serde_json::from_slice(&frame.payload)? {
                    ToSupervisor::Attach { from_start, .. } => {
                        let full = door.hub.attached() >= MAX_FOLLOWERS;
                        door.visitors.leave(visit);
                        answer(
                            visit,
                            match full {
                                true => Err(Refusal::Followers),
                                false => Ok(Follow { position: door.hub.attach(from_start), from_start }),
                            },
                        );
                    }
                    ToSupervisor::Stop { kill } => send(door, Command::Stop { kill }).await,
                    ToSupervisor::Signal { signal } => send(door, Command::Signal(signal)).await,
                    // Others may read what one client does not.
                    ToSupervisor::CloseOutput { .. } if !door.ephemeral => {}
                    ToSupervisor::CloseOutput { stream } => send(door, Command::CloseOutput(stream)).await,
                },
                _ => {}
            }
        }
    }
}

async fn send(door: &Door, command: Command) {
    // A closed channel means that the VM has ended.
    let _ = door.commands.send(command).await;
}

/// Descriptors or memory have run out, here or on the whole host.
pub(super) fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

fn hung_up(read: &OwnedReadHalf) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stream: &UnixStream = read.as_ref();
    // POLLHUP is always reported.
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// Streams log and notices to a client that attached; `Ended` comes after all output.
async fn tell(
    mut write: OwnedWriteHalf,
    hub: &Hub,
    asked: oneshot::Receiver<Result<Follow, Refusal>>,
) -> io::Result<()> {
    let Follow { position, from_start } = match asked.await {
        Ok(Ok(follow)) => follow,
        Ok(Err(refusal)) => {
            // Nothing was written before, so there is room for it.
            write.write_all(&FromSupervisor::refused(&refusal.error()).frame()).await?;
            return write.shutdown().await;
        }
        // Not attached: `hear` alone decides how long this client stays.
        Err(_) => return std::future::pending().await,
    };
    let mut changed = hub.subscribe();
    let path = hub.log_path();
    let mut log = loop {
        match if from_start { LogReader::from_start(&path) } else { LogReader::at_end(&path) } {
            Err(e) if is_shortage(&e) => tokio::time::sleep(PAUSE).await,
            other => break other?,
        }
    };
    let (now, phase) = hub.now();
    let mut next = if from_start { 0 } else { now };
    let mut out = FromSupervisor::Ready { wire: WIRE }.frame();
    if !from_start {
        out.extend(FromSupervisor::Phase { phase }.frame());
        // It may have ended between the last boot and now.
        if let Some(ended) = hub.notices_from(now.saturating_sub(1)).0.pop()
            && matches!(ended, FromSupervisor::Ended { .. })
        {
            next = now - 1;
        }
    }
    loop {
        changed.borrow_and_update();
        let mut ended = None;
        let (notices, end) = hub.notices_from(next);
        next = end;
        for notice in notices {
            match notice {
                FromSupervisor::Ended { .. } => ended = Some(notice),
                other => out.extend(other.frame()),
            }
        }
        loop {
            let record = match log.next_record() {
                // Nothing was lost: the next call goes on where this one stopped.
                Err(e) if is_shortage(&e) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                other => other?,
            };
            if log.take_skipped() {
                let text = "output was skipped: this client was too slow for the log's size";
                out.extend(FromSupervisor::Warning { message: text.into() }.frame());
            }
            let Some(record) = record else { break };
            let on = match record.stream {
                Stream::Stdout => channel::STDOUT,
                Stream::Stderr => channel::STDERR,
            };
            position.set(position.get() + record.raw);
            encode_stream(on, &record.into_output(), &mut out);
            if out.len() >= 32 * 1024 {
                write.write_all(&out).await?;
                out.clear();
                hub.progress.notify_one();
            }
        }
        // `Ended` was posted after the last output was logged, and the log has been read to its end since.
        let last = ended.is_some();
        out.extend(ended.map(FromSupervisor::frame).unwrap_or_default());
        write.write_all(&out).await?;
        out.clear();
        hub.progress.notify_one();
        if last {
            write.shutdown().await?;
            return Ok(());
        }
        if changed.changed().await.is_err() {
            return Ok(());
        }
    }
}
