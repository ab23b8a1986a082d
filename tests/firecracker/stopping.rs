//! The order in which a guest is stopped: its init is asked, then its kernel by Ctrl-Alt-Del, then it is killed. The
//! tests play the guest's init on the socket that Firecracker's vsock leads to; the kernel is a stub.

use super::*;
use firegopher_protocol::{Decoder, FromGuest, PROTOCOL, ToGuest, encode_message};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The directory that is the VMM's root, of the VM with this directory.
pub fn jail_of(dir: &Path) -> PathBuf {
    let program = dir.join("jail/firecracker");
    let inside = std::fs::read_dir(program).unwrap().next().unwrap().unwrap();
    inside.path().join("root")
}

/// Connects to a socket in a jail, however long its path is.
pub fn connect(jail: &Path, socket: &str) -> UnixStream {
    let dir = std::fs::File::open(jail).unwrap();
    UnixStream::connect(format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd())).unwrap()
}

/// A guest's init that says hello and that its workload runs.
pub struct Init {
    socket: UnixStream,
    decoder: Decoder,
}

impl Init {
    /// For the VM with this directory, whose VMM is up.
    pub fn start(dir: &Path) -> Init {
        let mut init = Init { socket: connect(&jail_of(dir), "v.sock_1024"), decoder: Decoder::default() };
        init.say(&FromGuest::Hello { protocol: PROTOCOL, kernel: "none".into() });
        assert!(matches!(init.hear(), ToGuest::Start(_)));
        init.say(&FromGuest::Started { pid: 2 });
        init
    }

    pub fn say(&mut self, message: &FromGuest) {
        let mut out = Vec::new();
        encode_message(message, &mut out).unwrap();
        self.socket.write_all(&out).unwrap();
    }

    pub fn hear(&mut self) -> ToGuest {
        loop {
            if let Some(frame) = self.decoder.frame().unwrap() {
                return serde_json::from_slice(&frame.payload).unwrap();
            }
            let mut bytes = [0; 65536];
            let n = self.socket.read(&mut bytes).unwrap();
            assert!(n > 0, "the supervisor closed the channel");
            self.decoder.push(&bytes[..n]);
        }
    }
}

fn running(project: &Project, vm: &str, kernel: &str) -> (SuperviseSpec, Client, Init) {
    let mut spec = project.spec(vm, kernel);
    spec.run.grace_ms = 100;
    let client = project.up(&spec);
    wait_for_console(&spec);
    let init = Init::start(&spec.dir);
    let begin = Instant::now();
    while state(&spec).status != Status::Running {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(2));
    }
    (spec, client, init)
}

fn console(spec: &SuperviseSpec) -> Vec<u8> {
    std::fs::read(spec.dir.join("console.log")).unwrap()
}

#[test]
fn a_guest_is_asked_then_its_kernel_by_the_keyboard() {
    let Some(project) = project() else { return };
    let (spec, _client, mut init) = running(&project, "polite", "typed-at");
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| project.stop(&spec));
        assert!(matches!(init.hear(), ToGuest::Stop), "its init comes first");
        assert!(!console(&spec).contains(&0x14), "no key was pressed yet");
        // It does not answer: the grace goes by.
        let outcome = stopped.join().unwrap();
        assert_eq!(outcome.reason, Reason::Stopped, "the guest ended by itself: {outcome:?}");
    });
    let printed = console(&spec);
    let text = String::from_utf8_lossy(&printed).into_owned();
    println!("{text:?}");
    assert!(text.ends_with('q') || text.trim_end().ends_with('q'), "Delete came last: {text:?}");
    project.assert_clean(&spec);
}

/// A refusal of Firecracker's API, which it logs.
fn refused(api: &mut UnixStream, n: usize) {
    write!(api, "GET /nothing-{n} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.windows(13).any(|bytes| bytes == b"fault_message") {
        let mut bytes = [0; 4096];
        let n = api.read(&mut bytes).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..n]);
    }
}

#[test]
fn all_that_firecracker_logs_is_kept_and_its_metrics_are_flushed_before_a_stop() {
    let Some(project) = project() else { return };
    let (spec, _client, mut init) = running(&project, "telling", "typed-at");
    let mut api = connect(&jail_of(&spec.dir), "run/api.sock");
    // Far more than a pipe holds.
    const MANY: usize = 3000;
    (0..MANY).for_each(|n| refused(&mut api, n));
    drop(api);
    let time = || {
        let metrics = supervise::logs::last_metrics(&spec.dir).unwrap()?;
        metrics["utc_timestamp_ms"].as_u64()
    };
    let before = time().expect("it writes them once when it starts");
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| project.stop(&spec));
        assert!(matches!(init.hear(), ToGuest::Stop));
        let begin = Instant::now();
        // The guest is still up: it takes its grace.
        while time() == Some(before) {
            assert!(begin.elapsed() < Duration::from_secs(4), "they do not come");
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("metrics {:?} after the order to stop", begin.elapsed());
        stopped.join().unwrap();
    });
    let log = std::fs::read_to_string(spec.dir.join("vmm.log")).unwrap();
    println!("{} bytes of log, such as {:?}", log.len(), log.lines().take(4).collect::<Vec<_>>());
    assert!(log.len() > 64 << 10);
    for n in [0, 1, MANY / 2, MANY - 1] {
        assert!(['"', '.'].iter().any(|end| log.contains(&format!("nothing-{n}{end}"))), "{n}");
    }
    project.assert_clean(&spec);
}

#[test]
fn a_guest_deaf_to_everything_is_killed_in_the_end() {
    let Some(project) = project() else { return };
    let (spec, _client, mut init) = running(&project, "deaf", "halting");
    let begin = Instant::now();
    let outcome = project.stop(&spec);
    println!("killed after {:?}", begin.elapsed());
    assert!(matches!(init.hear(), ToGuest::Stop));
    assert_eq!(outcome.reason, Reason::Killed);
    // Its grace and a margin, then what a kernel may take to restart.
    assert!(begin.elapsed() > Duration::from_secs(10) && begin.elapsed() < Duration::from_secs(25));
    project.assert_clean(&spec);
}
