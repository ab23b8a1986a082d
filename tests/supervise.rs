//! Supervisors with real guests: the built binary, QEMU under TCG, a Debian kernel and this build's PID 1.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "supervise/bench.rs"]
mod bench;

use bench::{Bench, Told, bench, listen, wait_for};
use firegopher::manifest::model::{Port, Restart};
use firegopher::supervise::{self, Client, Phase, Process, Reason, State, Status, VolumeSpec};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const SECRET: &str = "hunter2-do-not-store";

fn sh(script: &str) -> Vec<String> {
    ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec()
}

#[test]
fn a_workload_prints_and_exits_with_its_code_and_leaves_nothing() {
    let Some(mut bench) = bench("hello") else { return };
    bench.spec.run.argv = sh("echo out; echo err >&2; echo key=${#API_KEY}; cat; exit 7");
    bench.spec.run.secrets = vec![("API_KEY".into(), SECRET.into())];
    bench.spec.run.stdin = true;
    let mut client = bench.spawn().unwrap();
    wait_for(&mut client, Phase::Running);
    let state = bench.state();
    assert_eq!(state.status, Status::Running);
    println!("supervisor: {} KiB resident; launch {:?} us", rss(&state.supervisor), state.launch_us);
    assert!(!bench.holds(SECRET), "a secret reached the VM's directory");
    for pid in [state.supervisor.pid, state.vmm.unwrap().pid] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{file} of {pid} holds a secret");
        }
    }
    client.stdin(b"typed\n").unwrap();
    client.stdin(b"").unwrap();
    let told = listen(&mut client);
    assert_eq!(String::from_utf8_lossy(&told.stdout), format!("out\nkey={}\ntyped\n", SECRET.len()));
    assert_eq!(told.stderr, b"err\n");
    let outcome = told.ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Exited, 7));
    bench.assert_clean();
    let state = bench.state();
    let since = |event: &str| state.events[event].mono_ns - state.events["supervisor-start"].mono_ns;
    for event in ["boot", "vmm-exec", "hello", "started", "exit", "ended"] {
        println!("{event}: {} ms", since(event) / 1_000_000);
    }
}

#[test]
fn a_published_port_answers_and_a_stop_gives_the_workload_its_grace() {
    let Some(mut bench) = bench("port") else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    bench.publish(Port { address: "127.0.0.1".parse().unwrap(), host: port, guest: 8000 });
    bench.spec.run.argv =
        sh("busybox httpd -p 8000 -h /etc; trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 1; done");
    let mut client = bench.spawn().unwrap();
    wait_for(&mut client, Phase::Running);
    let begun = Instant::now();
    let answer = loop {
        let mut answer = String::new();
        let got = TcpStream::connect(("127.0.0.1", port)).and_then(|mut s| {
            s.set_read_timeout(Some(Duration::from_secs(20)))?;
            s.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
            s.read_to_string(&mut answer)
        });
        match got {
            Ok(1..) => break answer,
            other => assert!(begun.elapsed() < Duration::from_secs(60), "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("web\n"), "{answer}");
    // The project's namespace is found again through its supervisor.
    let netns = supervise::project_netns(&bench.home, &bench.spec.project).unwrap();
    assert_eq!(netns.map(|ns| ns.id().unwrap()), bench.netns_id());
    // A second VM cannot have the port.
    let mut second = bench.sibling("second");
    second.ports = bench.spec.ports.clone();
    let error = bench.spawn_spec(&second).unwrap_err();
    assert_eq!(error.code(), "supervise.port", "{error}");
    client.stop(false).unwrap();
    let told = listen(&mut client);
    assert!(told.stdout.ends_with(b"bye\n"));
    let outcome = told.ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Stopped, 5));
    bench.assert_clean();
}

#[test]
fn a_killed_vmm_is_reported_and_cleaned_up() {
    let Some(mut bench) = bench("vmm") else { return };
    bench.spec.run.argv = sh("echo up; sleep 600");
    let mut client = bench.spawn().unwrap();
    wait_for(&mut client, Phase::Running);
    let vmm = bench.state().vmm.unwrap();
    assert!(vmm.signal(libc::SIGKILL).unwrap());
    let outcome = listen(&mut client).ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Failed, 125));
    let message = outcome.message.unwrap();
    assert!(message.contains("killed from outside (SIGKILL)"), "{message}");
    bench.assert_clean();
}

#[test]
fn a_killed_supervisor_takes_its_vm_along_and_reclaim_removes_the_rest() {
    let Some(mut bench) = bench("super") else { return };
    bench.spec.run.argv = sh("echo up; sleep 600");
    let mut client = bench.spawn().unwrap();
    wait_for(&mut client, Phase::Running);
    let state = bench.state();
    assert!(state.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap());
    let vmm = state.vmm.unwrap();
    let begun = Instant::now();
    while vmm.is_alive() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the VMM outlives its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    let Told { ended, .. } = listen(&mut client);
    // Whoever cleans up may have written its end down by now.
    let told = ended.map(|outcome| (outcome.reason, outcome.message));
    assert!(matches!(&told, None | Some((Reason::Failed, Some(_)))), "{told:?}");
    if let Some((_, Some(message))) = told {
        assert_eq!(message, "its supervisor died");
    }
    // Nobody asks for it: a process waits for this.
    while bench.state().status != Status::Failed {
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody cleans up");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Doing it again is no error.
    supervise::reclaim(&bench.home, &bench.spec.project, &bench.spec.vm).unwrap();
    assert_eq!(bench.state().status, Status::Failed);
    bench.assert_clean();
}

#[test]
fn sigterm_stops_gracefully_and_volumes_survive_a_new_boot() {
    let Some(mut bench) = bench("volume") else { return };
    bench.volume(VolumeSpec {
        name: "data".into(),
        path: bench.home.root().join("data.ext4"),
        size: 32 << 20,
    });
    bench.spec.run.argv = sh("cat /data/count; echo x >> /data/count; echo ready; exec sleep 600");
    for want in ["ready\n", "x\nready\n"] {
        let mut client = bench.spawn().unwrap();
        wait_for(&mut client, Phase::Running);
        let mut seen = Vec::new();
        while !seen.ends_with(b"ready\n") {
            if let Some(supervise::Event::Output { stream: supervise::Stream::Stdout, bytes }) =
                client.next_event().unwrap()
            {
                seen.extend(bytes);
            }
        }
        assert_eq!(String::from_utf8(seen).unwrap(), want);
        drop(client);
        let limit = Duration::from_secs(60);
        let outcome =
            supervise::stop(&bench.home, &bench.spec.project, &bench.spec.vm, false, limit).unwrap().unwrap();
        assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Stopped, 143));
        bench.assert_clean();
    }
}

#[test]
fn a_failing_workload_is_restarted_with_an_empty_root() {
    let Some(mut bench) = bench("restart") else { return };
    bench.spec.restart = Restart::OnFailure { max: Some(1) };
    bench.spec.run.argv = sh("test -e /mark && echo dirty || echo clean; touch /mark; sync; exit 3");
    let mut client = bench.spawn().unwrap();
    let told = listen(&mut client);
    assert_eq!(told.stdout, b"clean\nclean\n");
    assert_eq!(told.ended.unwrap().exit_code(), 3);
    assert_eq!(bench.state().restarts, 1);
    bench.assert_clean();
}

#[test]
fn the_terminals_end_does_not_end_the_vm() {
    let Some(mut bench) = bench("detached") else { return };
    bench.spec.run.argv = sh("sleep 600");
    let mut client = bench.spawn().unwrap();
    wait_for(&mut client, Phase::Running);
    let supervisor = bench.state().supervisor;
    // Neither our child nor in our session, and nothing of ours is open in it.
    let session = |pid| nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_ne!(session(supervisor.pid), session(std::process::id() as i32));
    supervisor.signal(libc::SIGHUP).unwrap();
    supervisor.signal(libc::SIGINT).unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(500));
    let mut again = Client::connect(&bench.spec.dir).unwrap().expect("it still runs");
    again.attach(true).unwrap();
    again.stop(true).unwrap();
    assert_eq!(listen(&mut again).ended.unwrap().reason, Reason::Killed);
    bench.assert_clean();
}

fn rss(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

impl Bench {
    fn state(&self) -> State {
        State::load(&self.spec.dir).unwrap().unwrap()
    }
}
