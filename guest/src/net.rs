//! The guest's network: lo up, and eth0 as the host describes it.

use crate::failure::{Context, Failure, Result};
use crate::netlink::{Netlink, Request};
use firegopher_protocol::Network;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The name without udev, whatever bus the device is on.
const DEVICE: &str = "eth0";
/// Longest wait for the device after its driver was loaded.
const PATIENCE: Duration = Duration::from_secs(2);

// linux/if_link.h, if_addr.h, rtnetlink.h, neighbour.h: names that libc lacks or types as something wider.
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// Brings up lo, and eth0 if the host gave it settings.
pub fn configure(network: Option<&Network>) -> Result<()> {
    let mut netlink = Netlink::open().context(|| "opening a netlink socket".to_owned())?;
    let lo = if_nametoindex("lo").context(|| "finding the interface lo".to_owned())?;
    // The kernel adds 127.0.0.1 and ::1 by itself.
    netlink.ask(set_up(lo, None)).context(|| "bringing up lo".to_owned())?;
    match network {
        Some(network) => ethernet(&mut netlink, find_device()?, network),
        None => Ok(()),
    }
}

fn find_device() -> Result<u32> {
    let end = Instant::now() + PATIENCE;
    loop {
        match if_nametoindex(DEVICE) {
            Ok(index) => return Ok(index),
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => {
                return Err(Failure::new(format!(
                    "the VM was given network settings but has no {DEVICE}: its network device or the virtio_net \
                     driver is missing"
                )));
            }
        }
    }
}

fn ethernet(netlink: &mut Netlink, index: u32, network: &Network) -> Result<()> {
    netlink.ask(set_up(index, network.mtu)).context(|| match network.mtu {
        Some(mtu) => format!("bringing up {DEVICE} with an MTU of {mtu}"),
        None => format!("bringing up {DEVICE}"),
    })?;
    for (ip, prefix) in &network.addresses {
        unless_there(netlink.ask(address(index, *ip, *prefix)))
            .context(|| format!("giving {DEVICE} the address {ip}/{prefix}"))?;
    }
    for (ip, mac) in &network.neighbours {
        netlink
            .ask(neighbour(index, *ip, *mac))
            .context(|| format!("naming the neighbour {ip} on {DEVICE}"))?;
    }
    for gateway in &network.gateways {
        let on_link = !network.addresses.iter().any(|(ip, prefix)| same_subnet(*ip, *gateway, *prefix));
        unless_there(netlink.ask(default_route(index, *gateway, on_link)))
            .context(|| format!("routing through {gateway} on {DEVICE}"))?;
    }
    Ok(())
}

fn unless_there(verdict: nix::Result<()>) -> nix::Result<()> {
    match verdict {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn set_up(index: u32, mtu: Option<u32>) -> Request {
    // ifinfomsg: family, pad, type u16, index, flags, change mask.
    let up = libc::IFF_UP as u32;
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&up.to_ne_bytes());
    fixed[12..16].copy_from_slice(&up.to_ne_bytes());
    let request = Request::new(libc::RTM_NEWLINK, 0, &fixed);
    match mtu {
        Some(mtu) => request.attribute(IFLA_MTU, &mtu.to_ne_bytes()),
        None => request,
    }
}

fn address(index: u32, ip: IpAddr, prefix: u8) -> Request {
    // ifaddrmsg: family, prefix length, flags, scope, index.
    let mut fixed = [family(ip), prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(ip);
    Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &fixed)
        .attribute(IFA_LOCAL, &bytes)
        .attribute(IFA_ADDRESS, &bytes)
        // Nobody else is on the link; detecting duplicates would keep the address unusable for a second.
        .attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes())
}

fn default_route(index: u32, gateway: IpAddr, on_link: bool) -> Request {
    // rtmsg: family, destination and source lengths, tos, table, protocol, scope, type, flags.
    let mut fixed = [0; 12];
    fixed[0] = family(gateway);
    fixed[4] = libc::RT_TABLE_MAIN;
    fixed[5] = libc::RTPROT_BOOT;
    fixed[6] = libc::RT_SCOPE_UNIVERSE;
    fixed[7] = libc::RTN_UNICAST;
    let flags = if on_link { RTNH_F_ONLINK } else { 0 };
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &fixed)
        .attribute(RTA_GATEWAY, &octets(gateway))
        .attribute(RTA_OIF, &index.to_ne_bytes())
}

fn neighbour(index: u32, ip: IpAddr, mac: [u8; 6]) -> Request {
    // ndmsg: family, pad (3 bytes), index, state u16, flags, type.
    let mut fixed = [0; 12];
    fixed[0] = family(ip);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed)
        .attribute(NDA_DST, &octets(ip))
        .attribute(NDA_LLADDR, &mac)
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn same_subnet(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let (a, b) = (octets(a), octets(b));
    let bits = usize::from(prefix);
    a.len() == b.len()
        && (0..bits.min(a.len() * 8)).all(|bit| {
            let mask = 0x80 >> (bit % 8);
            a[bit / 8] & mask == b[bit / 8] & mask
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;
    use nix::sched::{CloneFlags, unshare};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network() -> Network {
        Network {
            addresses: vec![(ip("172.19.0.2"), 30), (ip("fd00::2"), 64)],
            gateways: vec![ip("172.19.0.1"), ip("fe80::1")],
            mtu: Some(1400),
            neighbours: vec![(ip("172.19.0.1"), [2, 0, 0, 0, 0, 1])],
        }
    }

    /// Runs in a network namespace of a thread's own.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        if !root("a network namespace") {
            return;
        }
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        })
        .join()
        .unwrap();
    }

    /// A file of this thread's namespace; no program of the host's is needed to read it.
    fn net_file(name: &str) -> String {
        std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap()
    }

    fn addresses() -> Vec<String> {
        nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter_map(|i| Some(format!("{} {}", i.interface_name, i.address?)))
            .collect()
    }

    /// A tap called eth0, for as long as its descriptor lives; `None` where the kernel makes none.
    fn tap() -> Option<File> {
        let tap = File::options().read(true).write(true).open("/dev/net/tun").ok()?;
        let mut request = ifreq(DEVICE);
        // IFF_TAP | IFF_NO_PI (linux/if_tun.h)
        request.ifr_ifru.ifru_flags = 0x1002;
        // SAFETY: the descriptor is open and TUNSETIFF reads and writes one ifreq.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        (made == 0).then_some(tap)
    }

    fn ifreq(name: &str) -> libc::ifreq {
        // SAFETY: all of it is plain numbers and arrays of them.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn mtu() -> i32 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut request = ifreq(DEVICE);
        // SAFETY: the descriptor is open and SIOCGIFMTU reads and writes one ifreq.
        let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: SIOCGIFMTU has written it.
        unsafe { request.ifr_ifru.ifru_mtu }
    }

    #[test]
    fn subnets_compare_by_their_prefix() {
        assert!(same_subnet(ip("172.19.0.2"), ip("172.19.0.1"), 30));
        assert!(!same_subnet(ip("172.19.0.2"), ip("172.19.0.5"), 30));
        assert!(!same_subnet(ip("172.19.0.2"), ip("fd00::1"), 0));
        assert!(same_subnet(ip("fd00::2"), ip("fd00::ffff"), 64));
        assert!(same_subnet(ip("10.0.0.1"), ip("10.0.0.1"), 255));
    }

    #[test]
    fn eth0_gets_addresses_mtu_routes_and_neighbours_and_a_second_time_changes_nothing() {
        in_namespace(|| {
            let Some(_tap) = tap() else { return crate::testing::skip("no tap can be made here") };
            configure(Some(&network())).unwrap();
            configure(Some(&network())).unwrap();
            assert_eq!(mtu(), 1400);
            let addresses = addresses();
            for expected in ["lo 127.0.0.1:0", "eth0 172.19.0.2:0", "eth0 [fd00::2]:0"] {
                assert!(addresses.iter().any(|a| a == expected), "{expected}: {addresses:?}");
            }
            // Of its columns: address, index, prefix length, scope, flags, device (net/ipv6/addrconf.c).
            let inet6 = net_file("if_inet6");
            let own = inet6.lines().find(|line| line.starts_with("fd00")).unwrap();
            let columns: Vec<&str> = own.split_whitespace().collect();
            assert_eq!(columns[2], "40", "64 bits: {own}");
            // IFA_F_TENTATIVE (linux/if_addr.h)
            assert_eq!(u32::from_str_radix(columns[4], 16).unwrap() & 0x40, 0, "tentative: {own}");
            // Device, destination, gateway: addresses as the machine keeps them.
            let routes = net_file("route");
            assert!(routes.lines().any(|line| line.starts_with("eth0\t00000000\t010013AC\t")), "{routes}");
            assert!(
                routes
                    .lines()
                    .any(|line| line.starts_with("eth0\t000013AC\t00000000\t")
                        && line.contains("\tFCFFFFFF\t")),
                "{routes}"
            );
            let routes = net_file("ipv6_route");
            let gateway = "fe800000000000000000000000000001";
            assert!(
                routes.lines().any(|line| line.starts_with(&"0".repeat(32)) && line.contains(gateway)),
                "{routes}"
            );
            let neighbours = net_file("arp");
            // ATF_COM | ATF_PERM (linux/if_arp.h)
            let permanent = |line: &str| {
                line.starts_with("172.19.0.1 ")
                    && line.contains(" 0x6 ")
                    && line.contains("02:00:00:00:00:01")
            };
            assert!(neighbours.lines().any(permanent), "{neighbours}");
        });
    }

    #[test]
    fn settings_without_a_device_are_a_clear_failure_and_lo_alone_is_none() {
        in_namespace(|| {
            configure(None).unwrap();
            assert!(addresses().contains(&"lo 127.0.0.1:0".to_owned()));
            let error = configure(Some(&network())).unwrap_err().to_string();
            assert!(error.contains("no eth0"), "{error}");
        });
    }
}
