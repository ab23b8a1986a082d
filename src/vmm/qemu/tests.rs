use super::*;
use crate::manifest::model::Port;
use crate::name::{Name, VmId};
use crate::vmm::Ended;
use crate::vmm::spec::{Drive, JailSpec};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

struct Boot {
    dir: tempfile::TempDir,
    spec: VmSpec,
}

fn boot(tag: &str, jailed: bool) -> Option<Boot> {
    let Some(files) = std::env::var_os("FIREGOPHER_TEST_BOOT").map(PathBuf::from) else {
        println!("skipped: FIREGOPHER_TEST_BOOT names no directory to boot from");
        return None;
    };
    if jailed && !root() {
        println!("skipped: needs root");
        return None;
    }
    let dir = tempfile::tempdir_in(
        &std::env::var_os("FIREGOPHER_TEST_TMP").map_or(std::env::temp_dir(), PathBuf::from),
    )
    .unwrap();
    let name = |s: &str| Name::new(s).unwrap();
    let drives = (0..4)
        .map(|n| {
            let path = dir.path().join(format!("d{n}"));
            let mut data = format!("DRIVE{n}").into_bytes();
            data.resize(1 << 20, 0);
            fs_err::write(&path, data).unwrap();
            Drive { role: format!("d{n}"), path, read_only: n < 2 }
        })
        .collect();
    let uid = 1_900_050_000 + std::process::id() % 1000;
    let spec = VmSpec {
        id: VmId::derive(&name("test"), &name(tag)),
        vmm: VmmBinary::QemuTree(files.join("tree")),
        kvm: false,
        kernel: files.join("vmlinux"),
        initramfs: files.join("initramfs"),
        cpus: 1,
        memory: 256 << 20,
        drives,
        net: NetSpec::None,
        jail: jailed.then(|| JailSpec { root: dir.path().join("jail"), uid, gid: uid }),
    };
    Some(Boot { dir, spec })
}

fn console_of(l: &Launched) -> std::thread::JoinHandle<String> {
    let mut c = l.console.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut v = Vec::new();
        let mut b = [0; 4096];
        let t = Instant::now();
        let mut first = true;
        while let Ok(n @ 1..) = c.read(&mut b) {
            if first {
                first = false;
                println!("first console byte after {:?}", t.elapsed());
            }
            v.extend_from_slice(&b[..n]);
        }
        String::from_utf8_lossy(&v).into_owned()
    })
}
fn say(l: &Launched, text: &str) {
    (&l.control).write_all(format!("{text}\n").as_bytes()).unwrap();
}
fn hear(l: &Launched, lines: &mut BufReader<UnixStream>) -> String {
    let _ = l;
    let mut s = String::new();
    lines.read_line(&mut s).unwrap();
    s.trim().to_owned()
}
fn ended(l: &mut Launched) -> Ended {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), l.monitor.ended()).await.unwrap().unwrap()
    })
}
fn start(b: &Boot, ns: Option<&Netns>) -> (Launched, BufReader<UnixStream>, std::thread::JoinHandle<String>) {
    let t = Instant::now();
    let l = Qemu.launch(&b.spec, ns).unwrap();
    println!("launch {:?} {:?} warnings {:?}", t.elapsed(), l.timings, l.warnings);
    let c = console_of(&l);
    l.control.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut lines = BufReader::new(l.control.try_clone().unwrap());
    let mut hello = String::new();
    if let Err(e) = lines.read_line(&mut hello) {
        panic!("{e} {}", l.monitor.stderr_so_far());
    }
    assert_eq!(hello, "hello\n", "{}", l.monitor.stderr_so_far());
    println!("hello after {:?}", t.elapsed());
    (l, lines, c)
}

#[test]
fn a_jailed_guest_with_a_tap_is_reached_and_reaches_nothing() {
    let Some(mut b) = boot("jailed", true) else { return };
    let t = Instant::now();
    let ns = Netns::create().unwrap();
    println!("netns {:?}", t.elapsed());
    b.spec.net = NetSpec::Tap {
        name: b.spec.id.tap_name(),
        host: Ipv4Addr::new(172, 19, 0, 1),
        guest: Ipv4Addr::new(172, 19, 0, 2),
        mac: [2, 0, 172, 19, 0, 2],
    };
    let (mut l, mut lines, c) = start(&b, Some(&ns));
    let status = fs_err::read_to_string(format!("/proc/{}/status", l.pid)).unwrap();
    let uid = b.spec.jail.as_ref().unwrap().uid;
    println!(
        "{}",
        status
            .lines()
            .filter(|l| ["Name", "Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp", "VmRSS"]
                .iter()
                .any(|k| l.starts_with(k)))
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")));
    println!("{}", fs_err::read_to_string(format!("/proc/{}/cgroup", l.pid)).unwrap());
    println!("root {:?}", fs_err::read_link(format!("/proc/{}/root", l.pid)));
    for e in fs_err::read_dir(format!("/proc/{}/fd", l.pid)).unwrap() {
        let e = e.unwrap();
        println!("{:?} {:?}", e.file_name(), fs_err::read_link(e.path()));
    }
    say(&l, "net 172.19.0.2");
    println!("{}", hear(&l, &mut lines));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let t = Instant::now();
    let s = ns.connect(SocketAddrV4::new(Ipv4Addr::new(172, 19, 0, 2), 80)).unwrap();
    s.set_nonblocking(false).unwrap();
    let mut s: TcpStream = s;
    s.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut r = String::new();
    s.read_to_string(&mut r).unwrap();
    println!("http {:?} {r:?}", t.elapsed());
    for (ip, p) in [
        ("172.19.0.1", port),
        ("127.0.0.1", port),
        ("192.168.0.1", 80),
        ("169.254.169.254", 80),
        ("10.0.0.1", 53),
    ] {
        say(&l, &format!("try {ip} {p}"));
        let h = hear(&l, &mut lines);
        println!("{ip} {h}");
        assert_ne!(h, "try connected");
    }
    say(&l, "poweroff");
    assert_eq!(ended(&mut l), Ended::GuestShutdown);
    let out = c.join().unwrap();
    println!("{out}");
    for (n, w) in [(0, 'a'), (1, 'b'), (2, 'c'), (3, 'd')] {
        assert!(out.contains(&format!("drive vd{w} DRIVE{n}")));
    }
    jail::clean(b.spec.jail.as_ref().unwrap()).unwrap();
    assert!(ns.run_in(|| nix::net::if_::if_nametoindex(b.spec.id.tap_name().as_str()).is_err()).unwrap());
    assert_eq!(fs_err::read_dir(b.dir.path()).unwrap().count(), 4, "only the drives are left");
}

#[test]
fn ends_are_told_apart() {
    for (what, want) in
        [("reboot", Ended::GuestReset), ("panic", Ended::GuestPanic), ("poweroff", Ended::GuestShutdown)]
    {
        let Some(b) = boot(what, root()) else { return };
        let (mut l, _lines, c) = start(&b, None);
        say(&l, what);
        assert_eq!(ended(&mut l), want);
        drop(c.join());
        if let Some(j) = &b.spec.jail {
            jail::clean(j).unwrap();
        }
    }
    for how in ["quit", "kill", "term"] {
        let Some(b) = boot(how, root()) else { return };
        let (mut l, _lines, c) = start(&b, None);
        match how {
            "quit" => {
                let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let e = rt.block_on(async {
                    l.monitor.quit().await.unwrap();
                    l.monitor.ended().await.unwrap()
                });
                assert_eq!(e, Ended::HostQuit);
            }
            "kill" => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(l.pid), nix::sys::signal::SIGKILL).unwrap();
                let e = ended(&mut l);
                println!("{e}");
                assert!(matches!(e, Ended::Died(_)));
            }
            _ => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(l.pid), nix::sys::signal::SIGTERM).unwrap();
                assert_eq!(ended(&mut l), Ended::HostSignal);
            }
        }
        drop(c.join());
        if let Some(j) = &b.spec.jail {
            jail::clean(j).unwrap();
        }
    }
}

#[test]
fn user_networking_publishes_and_restricts() {
    let Some(mut b) = boot("user", false) else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    b.spec.net = NetSpec::User {
        forwards: vec![Port { address: Ipv4Addr::LOCALHOST.into(), host: port, guest: 80 }],
        mac: [2, 0, 0, 0, 0, 1],
    };
    let (mut l, mut lines, c) = start(&b, None);
    say(&l, "net 10.0.2.15");
    println!("{}", hear(&l, &mut lines));
    let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
    s.write_all(b"x\n").unwrap();
    let mut r = String::new();
    s.read_to_string(&mut r).unwrap();
    assert!(r.contains("hi"), "{r:?}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    say(&l, &format!("try 10.0.2.2 {}", listener.local_addr().unwrap().port()));
    let h = hear(&l, &mut lines);
    println!("{h}");
    assert_ne!(h, "try connected");
    say(&l, "poweroff");
    assert_eq!(ended(&mut l), Ended::GuestShutdown);
    drop(c.join());
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let mut l = Qemu.launch(&b.spec, None).unwrap();
    println!("{}", ended(&mut l));
    drop(taken);
}
