//! What a guest cannot reach, tried from the inside by a root user who sets routes of its own.

use crate::harness::{PATIENCE, Project, free_port, guests};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Every address of this host that another machine could use.
fn host_addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().unwrap() {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6().filter(|v6| !v6.ip().is_unicast_link_local()) {
            found.push(IpAddr::V6(v6.ip()));
        }
    }
    found
}

/// Counts connections to a port of all the host's addresses.
fn listen_everywhere() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, count)
}

const NEIGHBOUR: &str = r#"
vm "neighbour" {
    image { debian "busybox-static" }
    run "/bin/busybox" "httpd" "-f" "-p" "8000" "-h" "/etc"
    port PORT to=8000
}
"#;

/// Tries every HOST/PORT given, all at once; says which answered.
const PROBE: &str = r##"
vm "probe" {
    image { debian "busybox-static" }
    workload "./probe.sh" to="/probe.sh"
    run "/bin/busybox" "sh" "/probe.sh"
}
"##;

const SCRIPT: &str = r#"
b=/bin/busybox
$b httpd -p 127.0.0.1:9000 -h /etc
# What a hostile guest would do first.
for gateway in 172.19.0.1 10.0.2.2; do $b ip route add default via $gateway 2>/dev/null; done
try() {
    $b timeout 6 $b nc -w 5 "${1%/*}" "${1#*/}" </dev/null >/dev/null 2>&1 && echo "reached $1"
}
for target in "$@"; do try "$target" & done
wait
echo "tried $#"
"#;

#[test]
fn a_guest_reaches_neither_the_host_nor_metadata_nor_another_project() {
    let Some(_turns) = guests(2) else { return };
    let published = free_port();
    let mut neighbour = Project::new(&NEIGHBOUR.replace("PORT", &published.to_string()));
    neighbour.ports.push(published);
    neighbour.up(&["-d"]);
    assert_eq!(neighbour.wait_http("/hostname").trim(), "neighbour");
    let (listening, count) = listen_everywhere();

    let mut targets = vec!["127.0.0.1/9000".to_owned()];
    let hosts = [Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(127, 0, 0, 1)].map(IpAddr::V4);
    for host in host_addresses().into_iter().chain(hosts) {
        targets.extend([published, listening, 22].map(|port| format!("{host}/{port}")));
    }
    targets.push("169.254.169.254/80".to_owned());
    targets.push("10.0.2.3/53".to_owned());
    // Projects number their guests alike; the other one's is at the first address or close to it.
    for last in 1..=14 {
        for port in [8000, published, listening] {
            targets.push(format!("172.19.0.{last}/{port}"));
        }
    }
    let probe = Project::new(PROBE);
    probe.write("probe.sh", SCRIPT);
    let mut args = vec!["run", "--", "/bin/busybox", "sh", "/probe.sh"];
    args.extend(targets.iter().map(String::as_str));
    let begun = Instant::now();
    let told = probe.command(&args).limit(PATIENCE).output().expect(0);
    println!("{} targets in {:?}", targets.len(), begun.elapsed());
    // Its own server answers: the probe works.
    assert_eq!(told.stdout, format!("reached 127.0.0.1/9000\ntried {}\n", targets.len()));
    assert_eq!(count.load(Ordering::Relaxed), 0, "a connection came from somewhere");
    assert_eq!(neighbour.wait_http("/hostname").trim(), "neighbour");
}
