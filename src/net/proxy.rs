//! Publishes a port: accepts on the host and pumps bytes to a backend in the project's namespace.
//! Each direction has one bounded buffer; a slow reader slows its writer and nobody else.

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Bytes in flight in each direction of a connection.
const BUFFER: usize = 16 * 1024;
/// How long a backend may leave a SYN unanswered. It is one hop away: a live one answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of descriptors or memory, so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may wait for a backend that has been started and has not answered anybody yet.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts to reach such a one: the first pause, each twice the one before, and the longest.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// How often the backend was started. A server takes a while until it listens, and its first clients wait for that.
#[derive(Clone, Default)]
pub struct Starts(Arc<AtomicU32>);

impl Starts {
    /// The backend is being started.
    pub fn again(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn so_far(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How the backend is reached.
struct Backend<C> {
    connect: C,
    starts: Starts,
    /// The start after which it answered last.
    answered: AtomicU32,
    patience: Duration,
}

/// The most connections of a VM at a time: idle ones cost little, busy ones two buffers each.
const MOST: u64 = 4096;
/// Descriptors of the process that connections leave alone: clients, their logs, the VMM, files that are being written.
const RESERVED: u64 = 256;
/// Connections that each port has for itself, whatever the others have.
const OWN: usize = 16;

/// How many connections a VM's ports have at a time, all together; more wait in the listeners' backlogs.
pub struct Budget {
    common: Arc<Semaphore>,
    own: usize,
    /// Tells that all are taken, once.
    full: Arc<dyn Fn() + Send + Sync>,
}

impl Budget {
    /// For so many ports of a process that may have `descriptors` open; each connection takes two. `full` is called
    /// each time a port first finds all taken.
    pub fn new(descriptors: u64, ports: usize, full: impl Fn() + Send + Sync + 'static) -> Budget {
        let connections =
            (descriptors.saturating_sub(RESERVED) / 2).max(descriptors / 16).clamp(1, MOST) as usize;
        let own = (connections / (2 * ports.max(1))).min(OWN);
        Budget { common: Arc::new(Semaphore::new(connections - own * ports)), own, full: Arc::new(full) }
    }

    /// The share of one port.
    pub fn share(&self) -> Share {
        Share {
            own: Arc::new(Semaphore::new(self.own)),
            common: Arc::clone(&self.common),
            full: Some(Arc::clone(&self.full)),
        }
    }
}

/// What one port may take of the budget.
pub struct Share {
    own: Arc<Semaphore>,
    common: Arc<Semaphore>,
    /// Until it was told.
    full: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Share {
    /// Waits for a place of its own or a common one.
    async fn slot(&mut self) -> io::Result<OwnedSemaphorePermit> {
        for places in [&self.own, &self.common] {
            if let Ok(slot) = Arc::clone(places).try_acquire_owned() {
                return Ok(slot);
            }
        }
        if let Some(full) = self.full.take() {
            full();
        }
        let slot = tokio::select! {
            slot = Arc::clone(&self.own).acquire_owned() => slot,
            slot = Arc::clone(&self.common).acquire_owned() => slot,
        };
        slot.map_err(io::Error::other)
    }
}

/// Serves until dropped; every connection ends with it. `connect` starts one non-blocking connection to the
/// backend (`Netns::connect`). A backend that refuses or stays silent gets the client a reset: at once if it has
/// answered anybody since its last start, else after `patience`.
pub async fn serve<C>(
    listener: TcpListener,
    connect: C,
    starts: Starts,
    patience: Duration,
    mut share: Share,
) -> io::Result<()>
where
    C: Fn() -> io::Result<std::net::TcpStream> + Send + Sync + 'static,
{
    let backend = Arc::new(Backend { connect, starts, answered: AtomicU32::new(0), patience });
    let mut connections = JoinSet::new();
    loop {
        let slot = share.slot().await?;
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(e) if is_fatal(&e) => return Err(e),
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let backend = Arc::clone(&backend);
        connections.spawn(async move {
            pump(client, &backend).await;
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Only a broken listener ends the proxy; accept(2) also reports errors of single connections.
fn is_fatal(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP))
}

async fn pump<C>(mut client: TcpStream, backend: &Backend<C>)
where
    C: Fn() -> io::Result<std::net::TcpStream> + Sync,
{
    let Ok(mut backend) = backend.reach().await else {
        reset(&client);
        return;
    };
    for socket in [&client, &backend] {
        let _ = socket.set_nodelay(true); // Only a matter of speed.
        // A peer that vanished without a word must not hold a slot forever.
        let _ = setsockopt(socket, sockopt::KeepAlive, &true);
    }
    // Passes an end of file on as a half-close and ends when both directions have ended.
    if tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await.is_err() {
        // One side was reset: so is the other, or it would take a cut-off stream for a whole one.
        reset(&client);
        reset(&backend);
    }
}

impl<C: Fn() -> io::Result<std::net::TcpStream> + Sync> Backend<C> {
    /// Connects, again and again while it may still be on its way.
    async fn reach(&self) -> io::Result<TcpStream> {
        let end = Instant::now() + self.patience;
        let (mut pause, longest) = RETRY_PAUSES;
        loop {
            let start = self.starts.so_far();
            match self.try_once().await {
                Ok(stream) => {
                    self.answered.store(start, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(e) if Instant::now() >= end => return Err(e),
                // The backend is not asked yet.
                Err(e) if is_shortage(&e) => tokio::time::sleep(ACCEPT_PAUSE).await,
                Err(e) if self.answered.load(Ordering::Relaxed) == start => return Err(e),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(longest);
        }
    }

    async fn try_once(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std((self.connect)()?)?;
        tokio::time::timeout(CONNECT_TIMEOUT, stream.writable()).await??;
        match stream.take_error()? {
            Some(e) => Err(e),
            None => Ok(stream),
        }
    }
}

/// Descriptors or memory have run out, here or on the whole host.
fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

/// Makes the coming close a reset.
fn reset(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(socket, sockopt::Linger, &linger); // Fails only on a socket that is gone already.
}

#[cfg(test)]
mod tests;
