//! Makes and removes taps inside a project's namespace.

use super::netns::{Netns, exchange};
use crate::error::{Context, Error, Result};
use rtnetlink::LinkUnspec;
use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

/// The code of the error about a device that is not ours.
pub const TAKEN: &str = "net.tap-taken";
/// IFNAMSIZ is 16 with the NUL (linux/if.h).
const NAME_MAX: usize = 15;
/// Length of every VM's subnet: two addresses, one for each end.
const PREFIX: u8 = 30;

/// A tap and the addresses of its two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// At most 15 bytes.
    pub name: String,
    /// The namespace's end (prefix length 30).
    pub host: Ipv4Addr,
    /// The guest's end.
    pub guest: Ipv4Addr,
    /// The guest's MAC.
    pub mac: [u8; 6],
    /// Who may open the tap besides root.
    pub owner: Option<u32>,
    /// Whether the tap outlives its descriptor.
    pub persist: bool,
    /// Of the device, in bytes; the kernel's 1500 unless set.
    pub mtu: Option<u16>,
}

/// Makes a tap, gives it its address and a permanent neighbour entry for the guest, and brings it up.
/// Unless `persist` is set it lives as long as the descriptor and its duplicates.
pub fn create(ns: &Netns, config: &TapConfig) -> Result<OwnedFd> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || create_here(ns, config));
        let thread = thread.or_failed("net.thread", || "cannot start a thread for the network namespace")?;
        // Only a panic of that thread gets here; it goes on in this one.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `create` by the calling thread, which it leaves in the namespace: for threads that end with this.
pub(crate) fn create_here(ns: &Netns, config: &TapConfig) -> Result<OwnedFd> {
    if config.name.is_empty() || config.name.len() > NAME_MAX || config.name.contains(['/', '%', '\0']) {
        return Err(Error::bug(format!("{:?} is no name for a network device", config.name)));
    }
    let name = &config.name;
    ns.enter()?;
    let attached = attach(config).and_then(|fd| Ok((fd, nix::net::if_::if_nametoindex(name.as_str())?)));
    let (tap, index) = attached.map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Error::failed(TAKEN, format!("a network device named {name} exists already in the project's network namespace"))
            .help("firegopher did not make it; stop the project's VMs (`firegopher down`): the namespace goes with the last one")
            .because(e),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            Error::host("net.no-tun", "this kernel has no /dev/net/tun").help("load the module: modprobe tun").because(e)
        }
        _ => Error::host("net.tap", format!("cannot make the tap {name}")).because(e),
    })?;
    exchange(|handle| async move {
        // The neighbour entry first costs nothing later: without one each boot waits a second for ARP.
        let guest = IpAddr::V4(config.guest);
        let mut link = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = config.mtu {
            link = link.mtu(mtu.into());
        }
        handle.link().set(link.build()).execute().await?;
        handle.address().add(index, IpAddr::V4(config.host), PREFIX).execute().await?;
        handle.neighbours().add(index, guest).link_layer_address(&config.mac).execute().await
    })?
    .or_failed("net.tap", || format!("cannot set up the tap {name} with {}/{PREFIX}", config.host))?;
    Ok(tap)
}

/// Whether there is a device of this name in the namespace.
pub fn exists(ns: &Netns, name: &str) -> Result<bool> {
    ns.run_in(|| nix::net::if_::if_nametoindex(name).is_ok())
}

/// Removes a device by name; one that is gone already is no error.
pub fn remove(ns: &Netns, name: &str) -> Result<()> {
    let index = match ns.run_in(|| nix::net::if_::if_nametoindex(name))? {
        Ok(index) => index,
        Err(nix::Error::ENODEV) => return Ok(()),
        Err(e) => return Err(Error::failed("net.tap", format!("cannot find the tap {name}")).because(e)),
    };
    ns.netlink(|handle| async move { handle.link().del(index).execute().await })?
        .or_failed("net.tap", || format!("cannot remove the tap {name}"))
}

/// The kernel's `struct ifreq` as TUNSETIFF reads it: a name and flags, padded to 40 bytes (linux/if.h).
#[repr(C)]
struct Request {
    name: [u8; NAME_MAX + 1],
    flags: libc::c_short,
    padding: [u8; 22],
}

fn attach(config: &TapConfig) -> io::Result<OwnedFd> {
    // The device appears in the namespace of the thread that opens this.
    let tun: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; NAME_MAX + 1],
        // TUN_EXCL: never attach to a device that somebody else left (EBUSY instead).
        flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as libc::c_short,
        padding: [0; 22],
    };
    request.name[..config.name.len()].copy_from_slice(config.name.as_bytes());
    // SAFETY: `request` is a whole ifreq (40 bytes on x86_64) that outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    if let Some(owner) = config.owner {
        // SAFETY: TUNSETOWNER and TUNSETGROUP take the number itself, no pointer.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(owner)) })?;
        // SAFETY: as above.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETGROUP, libc::c_ulong::from(owner)) })?;
    }
    if config.persist {
        // SAFETY: TUNSETPERSIST takes a number, no pointer.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })?;
    }
    Ok(tun.into())
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::netns::tests::root;
    use super::*;

    fn config(name: &str, persist: bool) -> TapConfig {
        TapConfig {
            name: name.to_owned(),
            host: Ipv4Addr::new(172, 19, 0, 1),
            guest: Ipv4Addr::new(172, 19, 0, 2),
            mac: [2, 0, 172, 19, 0, 2],
            owner: Some(1_900_000_000),
            persist,
            mtu: Some(1400),
        }
    }

    fn exists(ns: &Netns, name: &str) -> bool {
        super::exists(ns, name).unwrap()
    }

    #[test]
    fn a_tap_has_its_address_one_route_and_its_neighbour() {
        if !root() {
            return;
        }
        let ns = Netns::create().unwrap();
        let tap = create(&ns, &config("fg-test", false)).unwrap();
        let read = |path: &'static str| ns.run_in(|| fs_err::read_to_string(path).unwrap()).unwrap();
        let routes = read("/proc/thread-self/net/route");
        assert_eq!(routes.lines().count(), 2, "{routes}");
        assert!(routes.contains("000013AC"), "{routes}");
        let arp = read("/proc/thread-self/net/arp");
        assert!(arp.contains("172.19.0.2") && arp.contains("02:00:ac:13:00:02"), "{arp}");
        // Absent in a kernel without IPv6.
        if let Ok(mtu) = ns.run_in(|| fs_err::read_to_string("/proc/sys/net/ipv6/conf/fg-test/mtu")).unwrap()
        {
            assert_eq!(mtu.trim(), "1400");
        }
        drop(tap);
        assert!(!exists(&ns, "fg-test"), "gone with its descriptor");
    }

    #[test]
    fn a_taken_name_is_an_error_even_if_the_device_is_idle() {
        if !root() {
            return;
        }
        let ns = Netns::create().unwrap();
        drop(create(&ns, &config("fg-taken", true)).unwrap());
        let error = create(&ns, &config("fg-taken", false)).unwrap_err();
        assert_eq!(error.code(), "net.tap-taken");
        remove(&ns, "fg-taken").unwrap();
        assert!(!exists(&ns, "fg-taken"));
        remove(&ns, "fg-taken").expect("removing twice is no error");
    }

    #[test]
    fn the_same_name_in_two_projects_is_no_conflict() {
        if !root() {
            return;
        }
        let (a, b) = (Netns::create().unwrap(), Netns::create().unwrap());
        let _a = create(&a, &config("fg-same", false)).unwrap();
        let _b = create(&b, &config("fg-same", false)).unwrap();
    }
}
