//! Whole lives of supervisors: restarts, collisions, crashes.

use super::*;
use crate::manifest::model::Restart;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

#[test]
fn failures_are_restarted_up_to_the_maximum_with_secrets_and_an_empty_scratch() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.restart = Restart::OnFailure { max: Some(2) };
    let scratch = spec.dir.join("scratch.ext4");
    spec.scratch = Some(32 << 20);
    let drive = crate::vmm::spec::Drive { role: "scratch".into(), path: scratch.clone(), read_only: false };
    spec.vm_spec.drives.push(drive);
    let boots = Arc::new(AtomicUsize::new(0));
    let count = boots.clone();
    let seen = scratch.clone();
    let fake = Fake::new(move |mut guest| {
        assert_eq!(guest.start().secrets.len(), 1);
        let text = std::fs::read(&seen).unwrap();
        assert!(!text.starts_with(b"dirty"));
        std::fs::write(&seen, b"dirty").unwrap();
        count.fetch_add(1, Ordering::SeqCst);
        guest.exit(3);
    });
    let begun = Instant::now();
    let (mut client, thread) = start(spec, &fake).unwrap();
    let told = listen(&mut client);
    assert_eq!(boots.load(Ordering::SeqCst), 3);
    assert_eq!(told.ended.unwrap().exit_code(), 3);
    assert_eq!(told.phases.iter().filter(|p| **p == Phase::Restarting).count(), 2);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    thread.join().unwrap();
    let state = State::load(&home.path().join("state/test/web")).unwrap().unwrap();
    assert_eq!((state.restarts, state.status), (2, Status::Exited));
    assert!(!scratch.exists());
}

#[test]
fn a_stop_during_the_pause_ends_the_restarts() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.restart = Restart::Always { max: None };
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.exit(0);
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    for _ in 0..4 {
        wait_for(&mut client, Phase::Restarting);
    }
    client.stop(false).unwrap();
    assert_eq!(listen(&mut client).ended.unwrap().reason, Reason::Stopped);
    thread.join().unwrap();
}

#[test]
fn one_vm_has_one_supervisor() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &Fake::new(Guest::hang)).unwrap();
    let error = start(spec(home.path()), &Fake::new(Guest::hang)).unwrap_err();
    assert_eq!(error.code(), "supervise.running");
    let reclaimed =
        reclaim::reclaim_with(&Fake::new(Guest::hang), &spec(home.path()).dir, &Name::new("web").unwrap());
    assert_eq!(reclaimed.unwrap_err().code(), "supervise.running");
    client.stop(true).unwrap();
    listen(&mut client);
    thread.join().unwrap();
}

#[test]
fn a_taken_port_is_named_before_anything_boots() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spec = spec(home.path());
    let host = taken.local_addr().unwrap().port();
    spec.ports.push(Port { address: "127.0.0.1".parse().unwrap(), host, guest: 80 });
    let dir = spec.dir.clone();
    let error = start(spec, &Fake::new(Guest::hang)).unwrap_err();
    assert_eq!(error.code(), "supervise.port");
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{host}")) && text.contains("web"), "{text}");
    assert_eq!(State::load(&dir).unwrap().unwrap().status, Status::Failed);
}

#[test]
fn two_vms_cannot_share_a_volume_and_its_size_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let volume =
        VolumeSpec { name: "data".into(), path: home.path().join("volumes/test/data.ext4"), size: 32 << 20 };
    let with = |vm: &str, size: u64| {
        let mut spec = spec(home.path());
        spec.vm = Name::new(vm).unwrap();
        spec.dir = home.path().join("state/test").join(vm);
        spec.volumes = vec![VolumeSpec { size, ..volume.clone() }];
        spec
    };
    let (mut client, thread) = start(with("web", 32 << 20), &Fake::new(Guest::hang)).unwrap();
    let error = start(with("db", 32 << 20), &Fake::new(Guest::hang)).unwrap_err();
    assert_eq!(error.code(), "supervise.volume-busy");
    client.stop(true).unwrap();
    listen(&mut client);
    thread.join().unwrap();
    let error = start(with("db", 64 << 20), &Fake::new(Guest::hang)).unwrap_err();
    assert_eq!(error.code(), "supervise.volume-size");
    assert!(error.help_text().unwrap().contains("down --volumes"));
    assert_eq!(files(volume.path.parent().unwrap()), ["data.ext4"]);
}

#[test]
fn what_a_dead_supervisor_left_is_reclaimed_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let spec = spec(home.path());
    let dir = spec.dir.clone();
    let fake = Fake::new(Guest::hang);
    // A supervisor that vanished: its state and journal name a VMM that runs, one whose pid was reused, a file.
    drop(supervisor::prepare(spec, &fake, None).unwrap());
    let sleep = || std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let (mut vmm, mut stranger) = (sleep(), sleep());
    let process = Process::of(vmm.id() as i32).unwrap();
    let reused = Process { start_time: 1, ..Process::of(stranger.id() as i32).unwrap() };
    let scratch = dir.join("scratch.ext4");
    std::fs::write(&scratch, b"").unwrap();
    let mut journal = Journal::open(&dir).unwrap();
    for effect in [
        Effect::File { path: scratch.clone() },
        Effect::Tap { name: "fg-x".into() },
        Effect::Vmm { process },
        Effect::Vmm { process: reused },
    ] {
        journal.will(effect).unwrap();
    }
    reclaim::reclaim_with(&fake, &dir, &Name::new("web").unwrap()).unwrap();
    assert!(!vmm.wait().unwrap().success());
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(!scratch.exists());
    let state = State::load(&dir).unwrap().unwrap();
    assert_eq!((state.status, state.error.as_deref()), (Status::Failed, Some("its supervisor died")));
    assert!(Journal::open(&dir).unwrap().effects().is_empty());
    // Once more changes nothing.
    reclaim::reclaim_with(&fake, &dir, &Name::new("web").unwrap()).unwrap();
    assert_eq!(State::load(&dir).unwrap().unwrap(), state);
}

#[test]
fn a_directory_longer_than_a_socket_name_works() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path());
    spec.dir = home.path().join("d".repeat(100)).join("e".repeat(100)).join("web");
    let dir = spec.dir.clone();
    let (mut first, thread) = start(spec, &Fake::new(Guest::hang)).unwrap();
    wait_for(&mut first, Phase::Booting);
    Client::connect(&dir).unwrap().expect("a socket").stop(true).unwrap();
    assert_eq!(listen(&mut first).ended.unwrap().reason, Reason::Killed);
    thread.join().unwrap();
}

#[test]
fn projects_are_observed_by_name() {
    let home = tempfile::tempdir().unwrap();
    let (mut client, thread) = start(spec(home.path()), &Fake::new(Guest::hang)).unwrap();
    wait_for(&mut client, Phase::Booting);
    let at = crate::home::Home::new(home.path());
    let found = observe(&at, &Name::new("test").unwrap()).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].alive && found[0].state.vm.as_str() == "web");
    assert!(observe(&at, &Name::new("other").unwrap()).unwrap().is_empty());
    client.stop(true).unwrap();
    listen(&mut client);
    thread.join().unwrap();
}
