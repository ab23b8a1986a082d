//! What guests may do, and what comes of it.

use super::*;

fn ended(fake: &Fake, change: impl FnOnce(&mut SuperviseSpec)) -> (Told, State, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    change(&mut spec);
    let dir = spec.dir.clone();
    let (mut client, thread) = start(spec, fake).unwrap();
    let told = listen(&mut client);
    let outcome = thread.join().unwrap();
    assert_eq!(told.ended.as_ref(), Some(&outcome));
    let state = State::load(&dir).unwrap().unwrap();
    assert_eq!(state.outcome().as_ref(), Some(&outcome));
    assert!(Journal::open(&dir).unwrap().effects().is_empty());
    (told, state, home)
}

#[test]
fn a_workload_runs_and_its_output_and_code_arrive() {
    let fake = Fake::new(|mut guest| {
        let run = guest.start();
        assert_eq!(run.secrets, [("API_KEY".to_owned(), SECRET.to_owned())]);
        assert!(run.clock_ms > 1_700_000_000_000);
        guest.out(channel::STDOUT, b"out\npart");
        guest.out(channel::STDERR, b"err\n");
        guest.out(channel::STDOUT, b"ial");
        guest.say(&FromGuest::Warning { message: "odd\x1b[1m".into() });
        guest.console.write_all(b"console line\r\n").unwrap();
        guest.exit(7);
    });
    let (told, state, home) = ended(&fake, |_| {});
    assert_eq!((told.stdout.as_slice(), told.stderr.as_slice()), (&b"out\npartial"[..], &b"err\n"[..]));
    assert_eq!(told.phases, [Phase::Booting, Phase::Guest, Phase::Running]);
    assert_eq!(told.warnings, ["guest: odd\\x1b[1m"]);
    let outcome = told.ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Exited, 7));
    assert_eq!((state.status, state.kernel.as_deref()), (Status::Exited, Some("6.1.0-test")));
    for event in ["supervisor-start", "vmm-exec", "hello", "started", "ended"] {
        assert!(state.events.contains_key(event), "{event}");
    }
    let dir = home.path().join("state/test/web");
    assert_eq!(files(&dir), ["console.log", "journal.json", "lock", "state.json", "workload.log"]);
    assert_eq!(std::fs::read(dir.join("console.log")).unwrap(), b"console line\r\n");
    for name in files(&dir) {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()), "{name} holds a secret");
    }
    // Undone newest first: the process goes before what it uses.
    let undone = fake.undone.lock().unwrap();
    let kinds: Vec<bool> = undone.iter().map(|e| matches!(e, Effect::Vmm { .. })).collect();
    assert_eq!(kinds, [true, false, false]);
}

#[test]
fn a_guest_that_never_reports_is_killed_and_its_console_shown() {
    let fake = Fake::new(|mut guest| {
        guest.console.write_all(b"booting\r\n\x1b[31mKernel panic - not syncing\r\n").unwrap();
        guest.hang();
    });
    let (told, state, _home) = ended(&fake, |s| s.boot_timeout = Duration::from_millis(300));
    let outcome = told.ended.unwrap();
    let message = outcome.message.clone().unwrap();
    assert!(message.contains("did not report within 0.3 s"), "{message}");
    assert!(message.contains("\\x1b[31mKernel panic"), "{message}");
    assert_eq!((outcome.reason, outcome.exit_code(), state.status), (Reason::Failed, 125, Status::Failed));
}

#[test]
fn a_killed_vmm_is_reported_with_its_signal() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.out(channel::STDOUT, b"last words");
        guest.power_off();
    });
    let (told, state, _home) = ended(&fake, |_| {});
    assert_eq!(told.stdout, b"last words");
    let message = told.ended.unwrap().message.unwrap();
    assert!(message.contains("while the workload ran") && message.contains("signal: 9"), "{message}");
    assert!(message.contains("help: `firegopher logs --vmm web` shows all"), "{message}");
    assert_eq!(state.status, Status::Failed);
}

#[test]
fn the_console_line_stands_in_for_a_lost_record() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.console.write_all(b"firegopher-exit: {\"code\":4,\"oom\":false}\r\n").unwrap();
        guest.power_off();
    });
    let (told, ..) = ended(&fake, |_| {});
    assert_eq!(told.ended.unwrap().exit_code(), 4);
}

#[test]
fn a_guest_that_stays_on_after_its_exit_is_switched_off() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.say(&FromGuest::Exit(ExitRecord { code: Some(0), ..Default::default() }));
        guest.hang();
    });
    let begun = std::time::Instant::now();
    let (told, state, _home) = ended(&fake, |_| {});
    assert_eq!((told.ended.unwrap().exit_code(), state.status), (0, Status::Exited));
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[test]
fn another_protocol_is_refused() {
    let fake = Fake::new(|mut guest| {
        guest.say(&FromGuest::Hello { protocol: PROTOCOL + 1, kernel: String::new() });
        guest.hang();
    });
    let (told, ..) = ended(&fake, |_| {});
    assert!(told.ended.unwrap().message.unwrap().contains("control protocol 2"));
}

#[test]
fn a_malformed_frame_closes_the_channel_and_not_the_guest() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.out(channel::STDOUT, b"before");
        guest.control.write_all(&[0xff; 64]).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        guest.console.write_all(b"firegopher-exit: {\"code\":0,\"oom\":false}\n").unwrap();
        guest.power_off();
    });
    let (told, ..) = ended(&fake, |_| {});
    assert_eq!(told.stdout, b"before");
    assert!(told.warnings[0].contains("control channel was closed"), "{:?}", told.warnings);
    assert_eq!(told.ended.unwrap().exit_code(), 0);
}

#[test]
fn garbage_before_hello_fails_the_boot() {
    for garbage in [&b"\xff\xff\xff\xff\xff\xff"[..], b"\x02\0\0\0\0\0{}", b"\0\0\0\0\x63\0"] {
        let fake = Fake::new(move |mut guest| {
            guest.control.write_all(garbage).unwrap();
            guest.hang();
        });
        let (told, ..) = ended(&fake, |_| {});
        let outcome = told.ended.unwrap();
        assert!(outcome.message.unwrap().contains("control channel was closed"));
    }
}

#[test]
fn a_workload_that_could_not_start_says_why() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        let failed = Some("no /bin/nothing in the image".into());
        guest.say(&FromGuest::Exit(ExitRecord { failed, ..Default::default() }));
        while guest.hear().is_some_and(|m| m != ToGuest::ExitAck) {}
        guest.power_off();
    });
    let (told, ..) = ended(&fake, |_| {});
    let outcome = told.ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Failed, 125));
    assert!(outcome.message.unwrap().contains("no /bin/nothing"));
}

#[test]
fn too_large_an_environment_is_an_error() {
    let fake = Fake::new(|mut guest| {
        guest.say(&FromGuest::Hello { protocol: PROTOCOL, kernel: String::new() });
        guest.hang();
    });
    let (told, ..) = ended(&fake, |s| s.run.env.push(("X".into(), "x".repeat(300_000))));
    assert!(told.ended.unwrap().message.unwrap().contains("the guest accepts"));
}

#[test]
fn texts_of_any_length_reach_a_client_as_one_message() {
    let fake = Fake::new(move |mut guest| {
        guest.start();
        // A guest that is not ours cuts nothing.
        guest.say(&FromGuest::Warning { message: "\u{1}".repeat(40_000) });
        let failed = Some("\u{1}".repeat(40_000));
        guest.say(&FromGuest::Exit(ExitRecord { failed, ..Default::default() }));
        while guest.hear().is_some_and(|m| m != ToGuest::ExitAck) {}
        guest.power_off();
    });
    let (told, ..) = ended(&fake, |_| {});
    assert!(told.warnings[0].starts_with("guest: \\x01"), "{:.40}", told.warnings[0]);
    let outcome = told.ended.unwrap();
    assert_eq!(outcome.reason, Reason::Failed);
    assert!(outcome.message.unwrap().contains("\\x01"));
}

#[test]
fn a_guest_that_floods_its_supervisor_costs_it_little() {
    let fake = Fake::new(|mut guest| {
        guest.start();
        for _ in 0..20_000 {
            guest.say(&FromGuest::Warning { message: "w".repeat(100) });
            guest.say(&FromGuest::Started { pid: 2 });
            guest.say(&FromGuest::StdinTaken { bytes: usize::MAX });
        }
        // Never reads the answers.
        for _ in 0..20_000 {
            guest.say(&FromGuest::Exit(ExitRecord { code: Some(3), ..Default::default() }));
        }
        guest.power_off();
    });
    let (told, ..) = ended(&fake, |_| {});
    assert_eq!(told.ended.unwrap().exit_code(), 3);
    let guests = told.warnings.iter().filter(|w| w.starts_with("guest: ")).count();
    assert_eq!(guests, 64, "{:?}", told.warnings.last());
    assert_eq!(told.phases.iter().filter(|p| **p == Phase::Running).count(), 1);
    assert!(told.warnings.len() < 100);
}
