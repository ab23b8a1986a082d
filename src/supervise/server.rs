//! Serves a VM's clients: checks who they are, streams log and notices to them, passes on what they ask for.

use super::hub::Hub;
use super::logs::LogReader;
use super::outcome::Stream;
use super::wire::{FromSupervisor, ToSupervisor, WIRE, message};
use firegopher_protocol::{Decoder, channel, encode};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// More connections than this at once are refused: each costs a task and buffers.
const MAX_CLIENTS: usize = 32;
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
    pub connected: Rc<Cell<usize>>,
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
                if is_friend(&stream) && door.connected.get() < MAX_CLIENTS {
                    tokio::task::spawn_local(serve(stream, door.clone(), None));
                }
            }
            // Descriptors ran out, or the peer has gone already: neither is helped by trying at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
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
    door.connected.set(door.connected.get() + 1);
    let (read, write) = stream.into_split();
    let (ask, asked) = oneshot::channel();
    let mut ask = Some(ask);
    if let Some(position) = attached
        && let Some(ask) = ask.take()
    {
        // The receiver is alive: it is `asked`.
        let _ = ask.send((position, true));
    }
    tokio::select! {
        _ = hear(read, &door, ask) => {}
        _ = tell(write, &door.hub, asked) => {}
    }
    door.connected.set(door.connected.get() - 1);
    // `tell`'s reader position is dropped by now: this client no longer counts.
    door.hub.progress.notify_one();
    if door.ephemeral && door.hub.attached() == 0 {
        let _ = door.commands.try_send(Command::Stop { kill: false });
    }
}

type Ask = oneshot::Sender<(Rc<Cell<u64>>, bool)>;

/// Reads what a client asks for; ends when it goes or talks nonsense.
async fn hear(mut read: OwnedReadHalf, door: &Door, mut ask: Option<Ask>) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut pending = std::collections::VecDeque::<Vec<u8>>::new();
    loop {
        let waiting: usize = pending.iter().map(|p| p.len() + 1).sum();
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
        }
        while let Some(frame) = decoder.frame().map_err(io::Error::other)? {
            match frame.channel {
                channel::STDIN => pending.push_back(frame.payload),
                channel::CONTROL => match serde_json::from_slice(&frame.payload)? {
                    ToSupervisor::Attach { from_start, .. } => {
                        if let Some(ask) = ask.take() {
                            let _ = ask.send((door.hub.attach(from_start), from_start));
                        }
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
    asked: oneshot::Receiver<(Rc<Cell<u64>>, bool)>,
) -> io::Result<()> {
    let Ok((position, from_start)) = asked.await else {
        // Not attached: `hear` alone decides how long this client stays.
        return std::future::pending().await;
    };
    let mut changed = hub.subscribe();
    let path = hub.log_path();
    let mut log = if from_start { LogReader::from_start(&path)? } else { LogReader::at_end(&path)? };
    let (now, phase) = hub.now();
    let mut next = if from_start { 0 } else { now };
    let mut out = message(&FromSupervisor::Ready { wire: WIRE });
    if !from_start {
        out.extend(message(&FromSupervisor::Phase { phase }));
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
                other => out.extend(message(&other)),
            }
        }
        loop {
            let record = log.next_record()?;
            if log.take_skipped() {
                let text = "output was skipped: this client was too slow for the log's size";
                out.extend(message(&FromSupervisor::Warning { message: text.into() }));
            }
            let Some(record) = record else { break };
            let on = match record.stream {
                Stream::Stdout => channel::STDOUT,
                Stream::Stderr => channel::STDERR,
            };
            position.set(position.get() + record.raw);
            encode(on, &record.into_output(), &mut out);
            if out.len() >= 32 * 1024 {
                write.write_all(&out).await?;
                out.clear();
                hub.progress.notify_one();
            }
        }
        // `Ended` was posted after the last output was logged, and the log has been read to its end since.
        if let Some(ended) = &ended {
            out.extend(message(ended));
        }
        write.write_all(&out).await?;
        out.clear();
        hub.progress.notify_one();
        if ended.is_some() {
            write.shutdown().await?;
            return Ok(());
        }
        if changed.changed().await.is_err() {
            return Ok(());
        }
    }
}
