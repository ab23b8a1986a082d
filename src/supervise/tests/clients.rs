//! What clients may do, and what it costs the VM.

use super::*;
use std::time::Instant;

/// Echoes standard input until it closes, then exits with code 0; SIGUSR1 is told, a stop exits with 143.
fn echo() -> Fake {
    Fake::new(|mut guest| {
        guest.start();
        loop {
            let Some(frame) = guest.frame() else { return };
            match frame.channel {
                channel::STDIN if frame.payload.is_empty() => return guest.exit(0),
                channel::STDIN => {
                    guest.out(channel::STDOUT, &frame.payload);
                    guest.say(&FromGuest::StdinTaken { bytes: frame.payload.len() });
                }
                _ => match serde_json::from_slice(&frame.payload).unwrap() {
                    ToGuest::Signal { signal } => {
                        guest.out(channel::STDERR, format!("signal {signal}\n").as_bytes())
                    }
                    ToGuest::Stop => return guest.exit(143),
                    ToGuest::CloseOutput { channel } => {
                        guest.out(channel::STDERR, format!("closed {channel}\n").as_bytes())
                    }
                    _ => {}
                },
            }
        }
    })
}

#[test]
fn standard_input_reaches_the_workload_and_its_end_too() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &echo()).unwrap();
    let text = vec![b'z'; 300_000];
    let mut writer = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.stdin(b"hello\n").unwrap();
        writer.stdin(&text).unwrap();
        writer.stdin(b"").unwrap();
    });
    let told = listen(&mut client);
    sender.join().unwrap();
    assert_eq!(told.stdout.len(), 300_006);
    assert_eq!(told.ended.unwrap().exit_code(), 0);
    thread.join().unwrap();
}

#[test]
fn a_stop_lets_the_workload_end_and_a_signal_reaches_it() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &echo()).unwrap();
    wait_for(&mut client, Phase::Running);
    client.signal(libc::SIGUSR1).unwrap();
    client.stop(false).unwrap();
    let told = listen(&mut client);
    assert_eq!(told.stderr, b"signal 10\n");
    let outcome = told.ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Stopped, 143));
    thread.join().unwrap();
}

#[test]
fn a_workload_that_ignores_its_stop_is_killed_after_the_grace() {
    let home = tempfile::tempdir().unwrap();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.hang();
    });
    let (mut client, thread) = start(spec(home.path()), &fake).unwrap();
    wait_for(&mut client, Phase::Running);
    let begun = Instant::now();
    client.stop(false).unwrap();
    let outcome = listen(&mut client).ended.unwrap();
    // 0.5 s of grace and 5 s of margin.
    assert!((5.0..8.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Killed, 137));
    thread.join().unwrap();
}

#[test]
fn a_kill_is_at_once_and_a_stop_before_the_workload_runs_too() {
    for kill in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let (mut client, thread) = start(spec(home.path()), &Fake::new(Guest::hang)).unwrap();
        wait_for(&mut client, Phase::Booting);
        let begun = Instant::now();
        client.stop(kill).unwrap();
        let outcome = listen(&mut client).ended.unwrap();
        assert_eq!(outcome.reason, if kill { Reason::Killed } else { Reason::Stopped });
        assert!(begun.elapsed() < Duration::from_secs(4));
        thread.join().unwrap();
    }
}

/// Writes `megabytes` of output and exits.
fn flood(megabytes: usize) -> Fake {
    Fake::new(move |mut guest| {
        guest.start();
        let line = [&[b'f'; 1023][..], b"\n"].concat().repeat(16);
        for _ in 0..megabytes * 64 {
            guest.out(channel::STDOUT, &line);
        }
        guest.exit(0);
    })
}

#[test]
fn a_client_that_does_not_read_blocks_nobody_and_logs_stay_bounded() {
    let home = tempfile::tempdir().unwrap();
    let spec = spec(home.path());
    let dir = spec.dir.clone();
    // `deaf` is attached from the start and never reads.
    let (deaf, thread) = start(spec, &flood(40)).unwrap();
    let mut idle = Client::connect(&dir).unwrap().unwrap();
    idle.attach(true).unwrap();
    let begun = Instant::now();
    let outcome = thread.join().unwrap();
    assert_eq!(outcome.exit_code(), 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for name in ["workload.log", "workload.log.1"] {
        assert!(std::fs::metadata(dir.join(name)).unwrap().len() <= logs::MAX_BYTES);
    }
    drop(deaf);
    // What it missed, it misses; how the VM ended, it still learns.
    let told = listen(&mut idle);
    assert_eq!(told.ended, Some(outcome));
}

#[test]
fn an_ephemeral_vm_waits_for_its_slow_client_and_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.ephemeral = true;
    let dir = spec.dir.clone();
    let (mut client, thread) = start(spec, &flood(24)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(!dir.join("workload.log.1").exists(), "the output ran ahead");
    let told = listen(&mut client);
    assert_eq!(told.stdout.len(), 24 << 20);
    assert_eq!(told.warnings, Vec::<String>::new());
    assert_eq!(told.ended.unwrap().exit_code(), 0);
    thread.join().unwrap();
    assert!(!dir.exists(), "an ephemeral VM leaves nothing");
}

#[test]
fn an_ephemeral_vm_ends_with_its_client() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.ephemeral = true;
    let dir = spec.dir.clone();
    let (mut client, thread) = start(spec, &echo()).unwrap();
    wait_for(&mut client, Phase::Running);
    drop(client);
    assert_eq!(thread.join().unwrap().reason, Reason::Stopped);
    assert!(!dir.exists());
}

#[test]
fn only_the_client_of_an_ephemeral_vm_closes_an_output_of_the_workload() {
    for (ephemeral, told) in [(true, "closed 2\n"), (false, "")] {
        let home = tempfile::tempdir().unwrap();
        let mut spec = spec(home.path());
        spec.ephemeral = ephemeral;
        let (mut client, thread) = start(spec, &echo()).unwrap();
        // Before the guest is told what to run, as after it.
        client.close_output(Stream::Stdout).unwrap();
        wait_for(&mut client, Phase::Running);
        client.stdin(b"").unwrap();
        let end = listen(&mut client);
        assert_eq!(
            (String::from_utf8_lossy(&end.stderr).as_ref(), end.ended.unwrap().exit_code()),
            (told, 0)
        );
        thread.join().unwrap();
    }
}

#[test]
fn a_signal_before_there_is_a_workload_is_nobodys() {
    let home = tempfile::tempdir().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    let fake = Fake::new(move |mut guest| {
        told.lock().unwrap().recv().unwrap();
        guest.say(&FromGuest::Hello { protocol: PROTOCOL, kernel: "6.1".into() });
        let first = guest.hear();
        guest.say(&FromGuest::Started { pid: 2 });
        guest.exit(i32::from(!matches!(first, Some(ToGuest::Start(_)))));
    });
    let (mut client, thread) = start(spec(home.path()), &fake).unwrap();
    client.signal(libc::SIGUSR1).unwrap();
    tell.send(()).unwrap();
    assert_eq!(listen(&mut client).ended.unwrap().exit_code(), 0, "its settings came first");
    thread.join().unwrap();
}

#[test]
fn a_late_client_gets_the_log_or_only_what_comes() {
    let home = tempfile::tempdir().unwrap();
    let (mut first, thread) = start(spec(home.path()), &echo()).unwrap();
    wait_for(&mut first, Phase::Running);
    first.stdin(b"early\n").unwrap();
    while !matches!(first.next_event().unwrap(), Some(Event::Output { .. })) {}
    let dir = home.path().join("state/test/web");
    let attach = |from_start| {
        let mut client = Client::connect(&dir).unwrap().unwrap();
        client.attach(from_start).unwrap();
        wait_for(&mut client, Phase::Running);
        client
    };
    let (mut all, mut new) = (attach(true), attach(false));
    assert_eq!(new.poll_event(Some(Duration::from_millis(50))).unwrap(), Next::Timeout);
    first.stdin(b"late\n").unwrap();
    first.stdin(b"").unwrap();
    assert_eq!(listen(&mut all).stdout, b"early\nlate\n");
    assert_eq!(listen(&mut new).stdout, b"late\n");
    thread.join().unwrap();
    // Nobody listens any more; the socket is gone.
    assert!(Client::connect(&dir).unwrap().is_none());
}

#[test]
fn a_client_that_talks_nonsense_is_dropped_and_the_vm_stays() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &echo()).unwrap();
    wait_for(&mut client, Phase::Running);
    let path = home.path().join("state/test/web/sup.sock");
    for nonsense in [&[0xff; 32][..], b"\x02\0\0\0\0\0{}"] {
        let mut bad = UnixStream::connect(&path).unwrap();
        bad.write_all(nonsense).unwrap();
        assert_eq!(bad.read(&mut [0; 8]).unwrap(), 0);
    }
    client.stdin(b"").unwrap();
    assert_eq!(listen(&mut client).ended.unwrap().exit_code(), 0);
    thread.join().unwrap();
}

#[test]
fn input_that_nobody_reads_does_not_hide_that_its_client_has_gone() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.ephemeral = true;
    let fake = Fake::new(|mut guest| {
        guest.start();
        // Reads nothing: only a kill ends it.
        std::thread::sleep(Duration::from_secs(30));
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    wait_for(&mut client, Phase::Running);
    let mut writer = client.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.stdin(&vec![0; 4 << 20]));
    std::thread::sleep(Duration::from_millis(500));
    client.stop(true).unwrap();
    assert_eq!(thread.join().unwrap().reason, Reason::Killed);
    drop(client);
    let _ = sender.join().unwrap();
}

#[test]
fn clients_that_hang_there_keep_no_command_out() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &echo()).unwrap();
    wait_for(&mut client, Phase::Running);
    let dir = home.path().join("state/test/web");
    let connect = || Client::connect(&dir).unwrap().unwrap();
    // As many as may follow, of which none reads; the first is there already.
    let followers: Vec<Client> = (1..32).map(|_| connect()).collect();
    for mut follower in followers.iter().map(|f| f.try_clone().unwrap()) {
        follower.attach(true).unwrap();
    }
    // And many that say nothing, or half a word.
    let path = dir.join("sup.sock");
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    silent.iter().for_each(|mut s| drop(s.write_all(&[9, 0])));
    // One too many is told so.
    let mut late = connect();
    late.attach(false).unwrap();
    let error = late.next_event().unwrap_err();
    assert_eq!(error.code(), "supervise.clients");
    assert!(error.to_string().contains("32 clients follow this VM") && error.help_text().is_some());
    // Commands are heard.
    let begun = Instant::now();
    client.signal(libc::SIGUSR1).unwrap();
    client.stop(false).unwrap();
    let told = listen(&mut client);
    assert_eq!(told.stderr, b"signal 10\n");
    assert_eq!(told.ended.unwrap().exit_code(), 143);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((followers, silent));
    thread.join().unwrap();
}

#[test]
fn a_vm_that_is_asked_to_end_says_that_it_is_ending() {
    let home = tempfile::tempdir().unwrap();
    let fake = Fake::new(|mut guest| {
        guest.start();
        while guest.hear().is_some_and(|m| m != ToGuest::Stop) {}
        std::thread::sleep(Duration::from_secs(1));
        guest.exit(0);
    });
    let (mut client, thread) = start(spec(home.path()), &fake).unwrap();
    wait_for(&mut client, Phase::Running);
    client.stop(false).unwrap();
    wait_for(&mut client, Phase::Stopping);
    let dir = home.path().join("state/test/web");
    let state = State::load(&dir).unwrap().unwrap();
    assert_eq!(state.status, Status::Stopping);
    assert!(!state.status.is_final() && state.is_alive(&dir));
    listen(&mut client);
    thread.join().unwrap();
}

#[test]
fn a_vm_of_another_boot_lives_while_its_lock_is_held_and_no_longer() {
    let home = tempfile::tempdir().unwrap();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.hang();
    });
    let (mut client, thread) = start(spec(home.path()), &fake).unwrap();
    wait_for(&mut client, Phase::Running);
    let dir = home.path().join("state/test/web");
    // As a container with a boot_id of its own would have written it.
    let mut state = State::load(&dir).unwrap().unwrap();
    state.supervisor.boot_id = "other".into();
    assert!(state.is_alive(&dir));
    client.stop(true).unwrap();
    listen(&mut client);
    thread.join().unwrap();
    assert!(!state.is_alive(&dir));
}
