//! Owns the project's network namespace: making it, finding it again and working inside it.
//! It is held by a file descriptor alone, never by a mount, so it is gone with its last user.

use crate::error::{Context, Error, Result};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkUnspec};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Index of `lo`, the first device of every namespace (net/core/dev.c assigns 1 to it).
const LOOPBACK: u32 = 1;

/// A network namespace.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// Makes a namespace that leads nowhere: only `lo`, no forwarding, no IPv6. Needs CAP_SYS_ADMIN.
    pub fn create() -> Result<Netns> {
        // unshare moves the calling thread for good, so a thread of its own does it and ends.
        let made = on_thread(|| -> io::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            close_off()?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })?;
        let fd = made.map_err(|e| {
            let error = Error::host("net.namespace", "cannot make the project's network namespace")
                .because(io::Error::new(e.kind(), e.to_string()));
            match e.kind() {
                ErrorKind::PermissionDenied => error.help("run as root, or use user networking"),
                _ => error,
            }
        })?;
        let ns = Netns(fd);
        ns.netlink(|handle| async move {
            let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
            handle.link().set(up).execute().await
        })?
        .or_failed("net.namespace", || "cannot bring up lo in the project's network namespace")?;
        Ok(ns)
    }

    /// Wraps a descriptor, as inherited from the process that made the namespace.
    pub fn from_fd(fd: OwnedFd) -> Netns {
        Netns(fd)
    }

    /// The namespace a live process is in. The caller knows that the pid is still the process it means.
    pub fn of_process(pid: i32) -> Result<Netns> {
        File::open(format!("/proc/{pid}/ns/net"))
            .map(|file| Netns(file.into()))
            .or_failed("net.namespace", || format!("cannot open the network namespace of process {pid}"))
    }

    /// A second descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Netns> {
        self.0.try_clone().map(Netns).or_failed("net.namespace", || "cannot duplicate a namespace descriptor")
    }

    /// What tells this namespace from every other live one: device and inode of the nsfs entry.
    pub fn id(&self) -> Result<(u64, u64)> {
        let meta = self.0.try_clone().and_then(|fd| File::from(fd).metadata());
        let meta = meta.or_failed("net.namespace", || "cannot stat the network namespace")?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Runs `f` inside the namespace on a thread of its own and hands back its value.
    pub fn run_in<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })?
        .map_err(|e: nix::Error| {
            Error::failed("net.namespace", "cannot enter the project's network namespace").because(e)
        })
    }

    /// Starts a non-blocking connection from inside the namespace. The socket belongs to the namespace
    /// wherever it is used later.
    pub fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.run_in(|| connect(to)).map_err(io::Error::other)?
    }

    /// Moves the calling thread into the namespace, for good: for threads that end with what they do there.
    pub(super) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .or_failed("net.namespace", || "cannot enter the project's network namespace")
    }

    /// Runs one netlink exchange inside the namespace.
    pub(crate) fn netlink<T, F>(&self, work: impl FnOnce(Handle) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = T>,
    {
        self.run_in(|| exchange(work))?
    }
}

/// Runs one netlink exchange in the namespace of the calling thread.
pub(super) fn exchange<T, F: Future<Output = T>>(work: impl FnOnce(Handle) -> F) -> Result<T> {
    let run = || -> io::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let driver = tokio::spawn(connection);
            let value = work(handle).await;
            driver.abort();
            Ok(value)
        })
    };
    run().or_failed("net.netlink", || "cannot talk netlink in the project's network namespace")
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(ns: Netns) -> OwnedFd {
        ns.0
    }
}

/// Settings of a fresh namespace, written by the thread that is in it.
fn close_off() -> io::Result<()> {
    // Guests must not reach each other through the namespace.
    fs_err::write("/proc/sys/net/ipv4/ip_forward", "0")?;
    // A guest may only speak with its own address.
    fs_err::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?;
    for scope in ["all", "default"] {
        match fs_err::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {} // A kernel without IPv6 has nothing to disable.
        }
    }
    Ok(())
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, f);
        let thread = thread.or_failed("net.thread", || "cannot start a thread for the network namespace")?;
        // Only a panic inside `f` gets here; it goes on in the caller.
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn connect(to: SocketAddrV4) -> io::Result<TcpStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let address = nix::sys::socket::SockaddrIn::from(to);
    match nix::sys::socket::connect(socket.as_raw_fd(), &address) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// Whether this process may make namespaces; says so if not.
    pub(crate) fn root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            crate::testing::skip("needs root");
        }
        root
    }

    #[test]
    fn a_namespace_leads_nowhere() {
        if !root() {
            return;
        }
        let ns = Netns::create().unwrap();
        let read = |path: &'static str| ns.run_in(|| fs_err::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read("/proc/sys/net/ipv4/ip_forward").trim(), "0");
        assert_eq!(read("/proc/thread-self/net/route").lines().count(), 1, "only the heading");
        let away = ns.connect(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 80));
        assert_eq!(away.unwrap_err().kind(), ErrorKind::NetworkUnreachable);
    }

    #[test]
    fn host_loopback_services_are_out_of_reach() {
        if !root() {
            return;
        }
        let service = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = service.local_addr().unwrap() else { unreachable!() };
        let ns = Netns::create().unwrap();
        let stream = ns.connect(address);
        let refused = match stream {
            Err(e) => e,
            Ok(stream) => {
                std::thread::sleep(std::time::Duration::from_millis(50));
                stream.take_error().unwrap().expect("nobody listens there")
            }
        };
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_namespace_is_found_again_by_identity() {
        if !root() {
            return;
        }
        let ns = Netns::create().unwrap();
        let own = Netns::of_process(std::process::id() as i32).unwrap();
        assert_eq!(ns.id().unwrap(), ns.try_clone().unwrap().id().unwrap());
        assert_ne!(ns.id().unwrap(), own.id().unwrap());
    }

    #[test]
    fn making_a_namespace_leaves_the_process_where_it_was() {
        if !root() {
            return;
        }
        let before = fs_err::read_link("/proc/thread-self/ns/net").unwrap();
        Netns::create().unwrap();
        assert_eq!(before, fs_err::read_link("/proc/thread-self/ns/net").unwrap());
    }
}
