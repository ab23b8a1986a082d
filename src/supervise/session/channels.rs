//! The streams of one VM as a session waits for them: those that are not there are waited for without end.

use crate::supervise::server::{PAUSE, is_shortage};
use crate::vmm::Serial;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

pub(super) fn stream(std: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    std.set_nonblocking(true)?;
    UnixStream::from_std(std)
}

pub(super) async fn read(from: &mut Option<OwnedReadHalf>, buffer: &mut [u8]) -> io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => Ok(0),
    }
}

/// Who comes waits in the backlog while descriptors or memory are short.
pub(super) async fn accept(door: &Option<UnixListener>) -> io::Result<UnixStream> {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        match door.accept().await {
            Err(e) if is_shortage(&e) => tokio::time::sleep(PAUSE).await,
            other => return Ok(other?.0),
        }
    }
}

pub(super) async fn write(to: &mut Option<OwnedWriteHalf>, bytes: &[u8]) -> io::Result<usize> {
    match to {
        Some(to) => to.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// Reads what the guest prints.
pub(super) type Printed = Box<dyn AsyncRead + Unpin>;

/// Nobody types, but a guest whose input ends might take that for a sign: the other end is to be kept.
pub(super) fn serial(console: Serial) -> io::Result<(Printed, Option<OwnedFd>)> {
    Ok(match console {
        Serial::Socket(socket) => (Box::new(stream(socket)?), None),
        Serial::Pipe { output, input } => (Box::new(Receiver::from_owned_fd(output)?), Some(input)),
    })
}

pub(super) async fn read_console(from: &mut Option<Printed>, buffer: &mut [u8]) -> io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => Ok(0),
    }
}

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
