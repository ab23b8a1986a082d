//! Who listens on a port of this host, as far as /proc tells.

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

/// A TCP socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// Of the socket.
    inode: u64,
}

/// A process of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its number.
    pub pid: i32,
    /// The name of its program.
    pub name: String,
}

/// Whether a listener could take an address now. Listens at no time, so that nobody can connect to it.
///
/// # Errors
/// The kernel's, as of a listener.
pub fn try_bind(address: SocketAddr) -> io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // As the standard library does for its listeners: connections that linger take no port.
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    match address {
        SocketAddr::V4(address) => socket::bind(fd.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => socket::bind(fd.as_raw_fd(), &SockaddrIn6::from(address)),
    }
    .map_err(io::Error::from)
}

/// Whether two listeners would be in each other's way.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // Of IPv6, the address that is none in particular takes connections by IPv4, too.
    let covers = |any: IpAddr, one: IpAddr| {
        any.is_unspecified() && (any.is_ipv6() || one.is_ipv4() || one.is_unspecified())
    };
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

/// The listeners that are in the way of `address`.
pub fn in_the_way(address: SocketAddr) -> Vec<Listener> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    let texts = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let all = texts.iter().flat_map(|text| text.lines().skip(1).filter_map(listener));
    all.filter(|listener| overlap(listener.address, address)).collect()
}

/// A line of /proc/net/tcp (proc(5)): number, local and remote address, state, seven more fields up to the inode.
fn listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let (ip, port) = local.split_once(':')?;
    Some(Listener { address: SocketAddr::new(ip_of(ip)?, u16::from_str_radix(port, 16).ok()?), inode })
}

/// An address as the kernel prints it: words of 32 bits in the host's order.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n * 8)?);
            }
            let ip = Ipv6Addr::from(bytes);
            Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
        }
        _ => None,
    }
}

impl Listener {
    /// The process that has it open; `None` where we may not look.
    pub fn program(&self) -> Option<Program> {
        let wanted = format!("socket:[{}]", self.inode);
        for process in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
            let mut links = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
            if links.any(|link| link.as_os_str() == wanted.as_str()) {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(Program { pid, name: name.trim().to_owned() });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_is_found_with_its_program_and_by_every_address_that_it_is_in_the_way_of() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        for wanted in [address, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())] {
            assert_eq!(try_bind(wanted).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            let found = in_the_way(wanted);
            assert_eq!(found.iter().map(|l| l.address).collect::<Vec<_>>(), [address]);
            assert_eq!(found[0].program().unwrap().pid, std::process::id() as i32);
        }
        drop(held);
        try_bind(address).unwrap();
    }

    #[test]
    fn any_address_of_ipv4_is_in_the_way_of_ipv4_alone() {
        let overlap = |one: &str, other: &str| {
            let both = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(super::overlap(both.0, both.1), super::overlap(both.1, both.0), "{one} {other}");
            super::overlap(both.0, both.1)
        };
        for (one, other) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "[::]:80"),
            ("0.0.0.0:80", "[::ffff:127.0.0.1]:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("127.0.0.1:80", "127.0.0.1:80"),
        ] {
            assert!(overlap(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("0.0.0.0:80", "[::1]:80"),
            ("127.0.0.1:80", "[::1]:80"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("[::]:80", "[::]:81"),
        ] {
            assert!(!overlap(one, other), "{one} {other}");
        }
    }

    #[test]
    fn lines_of_the_kernels_tables_are_read() {
        let four = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0";
        let six = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1";
        let busy = four.replace(" 0A ", " 01 ");
        let read = |line: &str| listener(line).map(|l| (l.address.to_string(), l.inode));
        assert_eq!(read(four), Some(("127.0.0.1:8080".to_owned(), 4242)));
        assert_eq!(read(six), Some(("[::1]:80".to_owned(), 7)));
        assert_eq!(read(&busy), None, "a connection is no listener");
        assert_eq!(read("what is this"), None);
    }
}
