//! Guests that their VMM has stopped, and disks that are full.

use super::*;
use crate::testing::on_small_disk;
use crate::vmm::spec::Drive;
use std::time::Instant;

const FULL: Pause = Pause::DiskFull { drive: Some(0) };

fn with_scratch(home: &Path, dir: &Path) -> SuperviseSpec {
    let mut spec = spec(home);
    spec.vm_spec.drives =
        vec![Drive { role: "scratch".into(), path: dir.join("scratch.ext4"), read_only: false }];
    spec
}

/// Takes all the space there is.
fn fill(disk: &Path) -> std::path::PathBuf {
    let filler = disk.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    filler
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn paused(dir: &Path) -> Option<String> {
    State::load(dir).unwrap().unwrap().paused
}

#[test]
fn a_guest_on_a_full_disk_stands_still_until_there_is_space() {
    on_small_disk(1 << 20, |disk| {
        let home = tempfile::tempdir().unwrap();
        let spec = with_scratch(home.path(), disk);
        let dir = spec.dir.clone();
        let fake = Fake::new(|mut guest| {
            guest.start();
            guest.pause(FULL);
            guest.await_resume();
            std::thread::sleep(Duration::from_secs(4));
            guest.exit(0);
        });
        let filler = fill(disk);
        let (mut client, thread) = start(spec, &fake).unwrap();
        wait_until("it is never paused", || paused(&dir).is_some());
        let words = paused(&dir).unwrap();
        assert!(words.starts_with("host disk full: no space is left in"), "{words}");
        assert!(words.contains("its scratch disk") && words.contains(&*disk.to_string_lossy()), "{words}");
        // Looks that find no space change nothing.
        std::thread::sleep(Duration::from_secs(2));
        assert!(paused(&dir).is_some());
        std::fs::remove_file(filler).unwrap();
        let told = listen(&mut client);
        assert_eq!(told.ended.unwrap().exit_code(), 0);
        assert_eq!(told.warnings.len(), 2, "{:?}", told.warnings);
        assert_eq!(told.warnings[0], format!("paused: {words}"));
        assert!(told.warnings[1].starts_with("goes on"), "{:?}", told.warnings);
        thread.join().unwrap();
        assert_eq!(paused(&dir), None);
    });
}

#[test]
fn a_stop_of_a_guest_on_a_full_disk_is_immediate_and_says_what_it_costs() {
    on_small_disk(1 << 20, |disk| {
        let home = tempfile::tempdir().unwrap();
        let mut spec = with_scratch(home.path(), disk);
        spec.run.grace_ms = 60_000;
        let dir = spec.dir.clone();
        let fake = Fake::new(|mut guest| {
            guest.start();
            guest.pause(FULL);
            guest.hang();
        });
        fill(disk);
        let (mut client, thread) = start(spec, &fake).unwrap();
        wait_until("it is never paused", || paused(&dir).is_some());
        let begun = Instant::now();
        client.stop(false).unwrap();
        let told = listen(&mut client);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(told.ended.unwrap().reason, Reason::Killed);
        assert!(told.warnings.iter().any(|w| w.contains("had not yet written to its disks is lost")));
        thread.join().unwrap();
        let state = State::load(&dir).unwrap().unwrap();
        assert_eq!((state.status, state.paused), (Status::Exited, None));
    });
}

#[test]
fn a_stop_finds_out_that_there_is_space_again_and_asks_the_guest() {
    let home = tempfile::tempdir().unwrap();
    let spec = with_scratch(home.path(), home.path());
    let dir = spec.dir.clone();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.pause(FULL);
        guest.await_resume();
        while guest.hear().is_some_and(|m| m != ToGuest::Stop) {}
        guest.exit(143);
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    wait_until("it is never paused", || paused(&dir).is_some());
    client.stop(false).unwrap();
    let outcome = listen(&mut client).ended.unwrap();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Stopped, 143));
    thread.join().unwrap();
}

#[test]
fn a_stop_ends_a_guest_that_stands_still_after_its_workload_has_ended() {
    let home = tempfile::tempdir().unwrap();
    let spec = with_scratch(home.path(), home.path());
    let dir = spec.dir.clone();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.say(&FromGuest::Exit(ExitRecord { code: Some(0), ..Default::default() }));
        while guest.hear().is_some_and(|m| m != ToGuest::ExitAck) {}
        guest.pause(Pause::Other("io-error".into()));
        guest.hang();
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    wait_until("it is never paused", || State::load(&dir).unwrap().unwrap().paused.is_some());
    let begun = Instant::now();
    client.stop(false).unwrap();
    let told = listen(&mut client);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(told.ended.unwrap().reason, Reason::Stopped);
    assert!(told.warnings.iter().any(|w| w.contains("had not yet written to its disks is lost")));
    thread.join().unwrap();
}

#[test]
fn a_signal_that_asks_for_the_end_ends_a_guest_that_stands_still_and_others_do_not() {
    let home = tempfile::tempdir().unwrap();
    let spec = with_scratch(home.path(), home.path());
    let dir = spec.dir.clone();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.pause(Pause::Suspended);
        guest.hang();
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    wait_until("it is never paused", || paused(&dir).is_some());
    client.signal(libc::SIGUSR1).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(State::load(&dir).unwrap().unwrap().status, Status::Running);
    client.signal(libc::SIGTERM).unwrap();
    let told = listen(&mut client);
    assert_eq!(told.ended.unwrap().reason, Reason::Killed);
    assert!(told.warnings.iter().any(|w| w.contains("cannot be asked to end")), "{:?}", told.warnings);
    thread.join().unwrap();
}

#[test]
fn a_guest_that_does_not_switch_itself_off_has_its_grace_and_its_end_is_told() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = with_scratch(home.path(), home.path());
    // Five seconds more for the guest to say so.
    spec.run.grace_ms = 2_000;
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.say(&FromGuest::Exit(ExitRecord { code: Some(0), ..Default::default() }));
        guest.hang();
    });
    let begun = Instant::now();
    let (mut client, thread) = start(spec, &fake).unwrap();
    let told = listen(&mut client);
    assert!(begun.elapsed() >= Duration::from_millis(6_900), "{:?}", begun.elapsed());
    assert_eq!(told.ended.unwrap().exit_code(), 0);
    assert!(told.warnings.iter().any(|w| w.contains("did not switch itself off")), "{:?}", told.warnings);
    thread.join().unwrap();
}

#[test]
fn the_time_to_boot_stands_still_with_the_guest() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = with_scratch(home.path(), home.path());
    spec.boot_timeout = Duration::from_secs(2);
    let fake = Fake::new(|mut guest| {
        guest.pause(Pause::Suspended);
        std::thread::sleep(Duration::from_secs(4));
        guest.condition.send_modify(|c| c.paused = None);
        guest.start();
        guest.exit(0);
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    let told = listen(&mut client);
    assert_eq!(told.ended.unwrap().exit_code(), 0);
    assert!(told.warnings[0].starts_with("paused: the guest suspended itself"), "{:?}", told.warnings);
    thread.join().unwrap();
}

#[test]
fn a_vmm_that_cannot_go_on_with_its_guest_is_a_failure() {
    let home = tempfile::tempdir().unwrap();
    let fake = Fake::new(|mut guest| {
        guest.start();
        guest.pause(Pause::Broken("internal-error".into()));
        guest.hang();
    });
    let (mut client, thread) = start(with_scratch(home.path(), home.path()), &fake).unwrap();
    let outcome = listen(&mut client).ended.unwrap();
    assert_eq!(outcome.reason, Reason::Failed);
    assert!(outcome.message.unwrap().contains("cannot go on with its guest (internal-error)"));
    thread.join().unwrap();
}

#[test]
fn what_the_host_failed_to_do_is_told_once_a_drive() {
    let home = tempfile::tempdir().unwrap();
    let fake = Fake::new(|mut guest| {
        guest.start();
        for count in 1..=3 {
            let failed = crate::vmm::FailedRequests {
                count,
                operation: "write".into(),
                reason: "No space left on device".into(),
            };
            guest.condition.send_modify(|c| {
                c.failed.insert(None, failed);
                c.memory_errors = count;
            });
            std::thread::sleep(Duration::from_millis(200));
        }
        guest.exit(0);
    });
    let (mut client, thread) = start(with_scratch(home.path(), home.path()), &fake).unwrap();
    let told = listen(&mut client);
    assert_eq!(told.warnings.len(), 2, "{:?}", told.warnings);
    assert!(told.warnings[0].contains("a write of one of its drives (No space left on device)"));
    assert!(told.warnings[1].contains("memory"));
    thread.join().unwrap();
}

#[test]
fn a_monitor_that_closes_is_told_only_where_its_vmm_lives_on() {
    let warnings_after = |rest: Duration| {
        let home = tempfile::tempdir().unwrap();
        let fake = Fake::new(move |mut guest| {
            guest.start();
            guest.condition.send_modify(|c| c.silent = true);
            std::thread::sleep(rest);
            guest.exit(0);
        });
        let (mut client, thread) = start(with_scratch(home.path(), home.path()), &fake).unwrap();
        let told = listen(&mut client);
        thread.join().unwrap();
        told.warnings
    };
    assert_eq!(warnings_after(Duration::ZERO), [""; 0]);
    let told = warnings_after(Duration::from_secs(8));
    assert!(told.len() == 1 && told[0].contains("monitor has closed"), "{told:?}");
}

#[test]
fn a_full_disk_takes_the_states_of_a_vm_that_runs() {
    on_small_disk(1 << 20, |disk| {
        let spec = spec(disk);
        let dir = spec.dir.clone();
        let at = disk.to_owned();
        let fake = Fake::new(move |mut guest| {
            guest.start();
            fill(&at);
            guest.pause(Pause::Suspended);
            guest.hang();
        });
        let (mut client, thread) = start(spec, &fake).unwrap();
        wait_until("the state is never written", || paused(&dir).is_some());
        client.stop(true).unwrap();
        listen(&mut client);
        thread.join().unwrap();
        let state = State::load(&dir).unwrap().unwrap();
        assert_eq!((state.status, state.reason), (Status::Exited, Some(Reason::Killed)));
        assert_eq!(state.error, None, "and what is to be undone is known to be");
        assert!(Journal::open(&dir).unwrap().is_empty());
        assert!(!files(&dir).iter().any(|name| name.ends_with(".tmp")), "{:?}", files(&dir));
    });
}

#[test]
fn a_state_that_cannot_be_written_is_written_once_it_can_be() {
    let home = tempfile::tempdir().unwrap();
    let spec = spec(home.path());
    let dir = spec.dir.clone();
    let blocked = dir.join("state.json.tmp");
    let block = blocked.clone();
    let fake = Fake::new(move |mut guest| {
        // Nothing can be opened for writing there.
        wait_until("no state was kept", || std::fs::remove_file(&block).is_ok());
        std::fs::create_dir(&block).unwrap();
        guest.start();
        guest.hang();
    });
    let (mut client, thread) = start(spec, &fake).unwrap();
    wait_for(&mut client, Phase::Running);
    assert_eq!(State::load(&dir).unwrap().unwrap().status, Status::Starting, "it was written");
    std::fs::remove_dir(blocked).unwrap();
    wait_until("the state is never written", || {
        State::load(&dir).unwrap().unwrap().status == Status::Running
    });
    client.stop(true).unwrap();
    let told = listen(&mut client);
    let once = told.warnings.iter().filter(|w| w.contains("cannot write the state")).count();
    assert!(once <= 1, "{:?}", told.warnings);
    thread.join().unwrap();
}
