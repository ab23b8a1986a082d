//! QEMU without firegopher: its recorded command line, started and answered by the least that can do it.

use super::http;
use firegopher::net::netns::Netns;
use firegopher::net::tap::{self, TapConfig};
use firegopher_protocol::{Decoder, FromGuest, Network, RunConfig, ToGuest, channel, encode_message};
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where both servers listen.
const GUEST_PORT: u16 = 8000;

/// A recorded VMM.
pub struct ByHand {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    run: RunConfig,
    /// A copy of the jail, hard links but for the scratch disk; and the uid in it.
    jail: Option<(PathBuf, u32)>,
    scratch: Option<(PathBuf, u64)>,
    tap: Option<(Netns, TapConfig)>,
}

/// From the start of the VMM.
pub struct Timed {
    pub started: Duration,
    pub answer: Duration,
}

impl ByHand {
    /// Records the running VMM of a project with one VM.
    pub fn record(project: &Path, vm_dir: &Path, state: &serde_json::Value) -> ByHand {
        let pid = state["vmm"]["pid"].as_i64().expect("a running VMM");
        let words = |file: &str| -> Vec<OsString> {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("a live VMM");
            bytes
                .split(|b| *b == 0)
                .filter(|w| !w.is_empty())
                .map(|w| OsString::from_vec(w.to_vec()))
                .collect()
        };
        let env = words("environ").into_iter().filter_map(|word| {
            let at = word.as_bytes().iter().position(|b| *b == b'=')?;
            let (name, value) = word.as_bytes().split_at(at);
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value[1..].to_vec())))
        });
        let manifest = firegopher::manifest::load(project).expect("the manifest is valid");
        let mut run = firegopher::step::run_config::template(&manifest.vms[0]);
        let jail = vm_dir.join("jail");
        let scratch_size = fs::metadata(vm_dir.join("scratch.ext4")).map(|m| m.len()).ok();
        let tap = jail.exists().then(|| {
            let guest = guest_address(vm_dir);
            let TapNames { name, mac } = tap_names(&words("cmdline"));
            let host = Ipv4Addr::from(u32::from(guest) - 1);
            let uid = state["uid"].as_u64().map(|uid| uid as u32);
            run.network = Some(network(guest, 30));
            let ns = Netns::create().expect("a namespace");
            (ns, TapConfig { name, host, guest, mac, owner: uid, persist: false, mtu: None })
        });
        if tap.is_none() {
            run.network = Some(network(Ipv4Addr::new(10, 0, 2, 15), 24));
        }
        let copy = jail.exists().then(|| {
            let copy = super::common::scratch().join("bench/by-hand");
            copy_jail(&jail, &copy);
            (copy, state["uid"].as_u64().expect("a jail has a uid") as u32)
        });
        let scratch = scratch_size.map(|size| match &copy {
            Some((copy, _)) => (find(&copy.join("drives"), "scratch"), size),
            None => (vm_dir.join("scratch.ext4"), size),
        });
        ByHand { argv: words("cmdline"), env: env.collect(), run, jail: copy, scratch, tap }
    }

    /// Boots it once, to the first answer, and kills it.
    pub fn boot(&mut self, host_address: &str) -> Timed {
        if let Some((path, size)) = &self.scratch {
            // Without a jail it is in the VM's directory, which `down` may have removed.
            let dir = path.parent().expect("a file is in a directory");
            fs::create_dir_all(dir).expect("a directory");
            let _ = fs::remove_file(path);
            firegopher::image::create_empty(path, *size, firegopher::image::Role::Scratch).expect("a disk");
            if let Some((_, uid)) = &self.jail {
                std::os::unix::fs::chown(path, Some(*uid), Some(*uid)).expect("root may");
            }
        }
        let tap = self.tap.as_ref().map(|(ns, config)| tap::create(ns, config).expect("a tap"));
        let [console, control, qmp] = [(); 3].map(|()| UnixStream::pair().expect("a pair"));
        let mut wiring: Vec<(RawFd, OwnedFd)> = vec![
            (self.fd_of("socket,id=console,fd="), console.1.into()),
            (self.fd_of("socket,id=control,fd="), control.1.into()),
            (self.fd_of("socket,id=qmp,fd="), qmp.1.into()),
        ];
        if let Some(tap) = tap {
            wiring.push((self.fd_of("{\"fd\":\""), tap));
        }
        // Out of the way of the numbers that the command line names.
        let wiring: Vec<(RawFd, OwnedFd)> = wiring
            .into_iter()
            .map(|(to, fd)| {
                (to, nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::F_DUPFD_CLOEXEC(200)).expect("a number"))
            })
            // SAFETY: the kernel just made each for us.
            .map(|(to, raw)| (to, unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) }))
            .collect();
        // Nobody reads the console: a thread must, or the guest would wait.
        let drain = console.0;
        std::thread::spawn(move || std::io::copy(&mut { drain }, &mut std::io::sink()));

        let mut command = self.command(&wiring);
        let begin = Instant::now();
        let mut child = command.spawn().expect("QEMU starts");
        drop((command, wiring));
        let started = self.converse(&control.0).duration_since(begin);
        match &self.tap {
            Some((ns, config)) => {
                let to = SocketAddrV4::new(config.guest, GUEST_PORT);
                http::wait_for_200(|| {
                    let stream = ns.connect(to)?;
                    http::connected(stream)
                });
            }
            None => http::wait_for_200(|| http::connect(host_address)),
        }
        let answer = begin.elapsed();
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        drop(qmp.0);
        Timed { started, answer }
    }

    fn fd_of(&self, prefix: &str) -> RawFd {
        let word = self.argv.iter().find_map(|w| w.to_str()?.strip_prefix(prefix));
        let digits = word.expect("the recorded command line names it");
        digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|d| d.parse().ok()).expect("a number")
    }

    fn command(&self, wiring: &[(RawFd, OwnedFd)]) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let moves: Vec<(RawFd, RawFd)> = wiring.iter().map(|(to, fd)| (fd.as_raw_fd(), *to)).collect();
        let jail = self
            .jail
            .as_ref()
            .map(|(dir, uid)| (CString::new(dir.as_os_str().as_bytes()).expect("a path has no NUL"), *uid));
        let enter = move || {
            // SAFETY: system calls with numbers, or with a string that the closure owns.
            unsafe {
                for (from, to) in &moves {
                    check(libc::dup2(*from, *to))?;
                }
                if let Some((root, uid)) = &jail {
                    check(libc::chroot(root.as_ptr()))?;
                    check(libc::chdir(c"/".as_ptr()))?;
                    check(libc::setresgid(*uid, *uid, *uid))?;
                    check(libc::setresuid(*uid, *uid, *uid))?;
                }
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            }
        };
        // SAFETY: `enter` makes system calls only.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Answers the guest until its workload was started; goes on reading on a thread.
    fn converse(&self, control: &UnixStream) -> Instant {
        let mut decoder = Decoder::default();
        let mut control = control.try_clone().expect("a descriptor");
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = control.read(&mut buffer).expect("the guest speaks");
            assert!(n > 0, "the VMM ended before its workload ran");
            decoder.push(&buffer[..n]);
            while let Some(frame) = decoder.frame().expect("a frame") {
                if frame.channel != channel::CONTROL {
                    continue;
                }
                match serde_json::from_slice(&frame.payload).expect("a message") {
                    FromGuest::Hello { .. } => {
                        let mut run = self.run.clone();
                        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                        run.clock_ms = now.expect("it is later than 1970").as_millis() as u64;
                        let mut out = Vec::new();
                        encode_message(&ToGuest::Start(Box::new(run)), &mut out).expect("a message");
                        control.write_all(&out).expect("the guest listens");
                    }
                    FromGuest::Started { .. } => {
                        let started = Instant::now();
                        std::thread::spawn(move || std::io::copy(&mut control, &mut std::io::sink()));
                        return started;
                    }
                    _ => {}
                }
            }
        }
    }
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn network(guest: Ipv4Addr, prefix: u8) -> Network {
    Network { addresses: vec![(IpAddr::V4(guest), prefix)], gateways: vec![], mtu: None, neighbours: vec![] }
}

/// The project's only lease.
fn guest_address(vm_dir: &Path) -> Ipv4Addr {
    let project = vm_dir.parent().expect("a VM belongs to a project");
    let vm =
        firegopher::name::Name::new(vm_dir.file_name().expect("a name").to_string_lossy()).expect("a name");
    firegopher::net::address::lease(project, &vm).expect("a lease").guest()
}

struct TapNames {
    name: String,
    mac: [u8; 6],
}

fn tap_names(argv: &[OsString]) -> TapNames {
    let all: Vec<_> = argv.iter().filter_map(|w| w.to_str()).collect();
    let after =
        |mark: &str| all.iter().find_map(|w| Some(w.split_once(mark)?.1)).expect("the command line has it");
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(after(",mac=").split(':')) {
        *byte = u8::from_str_radix(hex, 16).expect("a MAC");
    }
    TapNames { name: after("process=").to_owned(), mac }
}

fn find(dir: &Path, part: &str) -> PathBuf {
    let entries = fs::read_dir(dir).expect("a directory").flatten().map(|e| e.path());
    let mut found =
        entries.filter(|p| p.file_name().is_some_and(|name| name.to_string_lossy().contains(part)));
    found.next().expect("the jail has it")
}

/// Everything is linked: what is written is made anew at each boot.
fn copy_jail(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-al").arg(from).arg(to).status().expect("cp is there");
    assert!(status.success(), "cp -al failed");
}
