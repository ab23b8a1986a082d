//! Supervisors that are killed or asked to end while they start, and what each start of a VM begins with.

use super::*;

#[test]
fn a_supervisor_killed_at_any_moment_of_its_start_leaves_nothing_after_reclaim() {
    let Some(project) = project() else { return };
    for pause in [0, 10, 20, 30, 40, 50, 60, 70, 80, 100, 120] {
        let spec = project.spec(&format!("early{pause}"), "halting");
        let _client = project.up(&spec);
        std::thread::sleep(Duration::from_millis(pause));
        let before = state(&spec);
        before.supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap();
        println!("after {pause} ms: vmm {:?}", before.vmm.map(|v| v.pid));
        project.assert_clean_after_reclaim(&spec);
    }
}

#[test]
fn a_supervisor_killed_before_it_is_ready_leaves_nothing_after_reclaim() {
    let Some(project) = project() else { return };
    let mut early = 0;
    // On a busy host the one who kills is not always in time.
    for (n, micros) in [0, 0, 100, 300].into_iter().cycle().take(60).enumerate() {
        if early == 4 {
            break;
        }
        let spec = project.spec(&format!("unready{n}"), "halting");
        let answer = std::thread::scope(|scope| {
            let up = scope.spawn(|| project.try_up(&spec));
            // Its state is the first that it writes, before it takes anything.
            let begin = Instant::now();
            let supervisor = loop {
                if let Ok(Some(state)) = State::load(&spec.dir) {
                    break state.supervisor;
                }
                assert!(begin.elapsed() < Duration::from_secs(20), "no supervisor started");
            };
            std::thread::sleep(Duration::from_micros(micros));
            assert!(supervisor.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap());
            up.join().unwrap()
        });
        if let Err(error) = &answer {
            assert_eq!(error.code(), "supervise.spawn", "{error}");
            assert!(error.to_string().contains("did not report"), "{error}");
            early += 1;
        }
        drop(answer);
        project.assert_clean_after_reclaim(&spec);
    }
    assert!(early > 0, "all 60 were ready before they could be killed");
}

/// In the milliseconds between its word that it is ready and its first look at signals, too.
#[test]
fn a_supervisor_asked_to_end_at_any_moment_of_its_start_ends_in_order() {
    let Some(project) = project() else { return };
    for pause in [0, 1, 2, 4, 8, 15, 30, 60] {
        let spec = project.spec(&format!("asked{pause}"), "halting");
        let mut client = project.up(&spec);
        std::thread::sleep(Duration::from_millis(pause));
        assert!(state(&spec).supervisor.signal(libc::SIGTERM).unwrap());
        let outcome = end_of(&mut client);
        assert_eq!(outcome.reason, Reason::Stopped, "after {pause} ms: {outcome:?}");
        assert_eq!(state(&spec).status, Status::Exited);
        project.assert_clean(&spec);
    }
}

#[test]
fn every_restart_has_a_fresh_jail() {
    let Some(project) = project() else { return };
    let mut spec = project.spec("again", "halting");
    spec.restart = Restart::Always { max: None };
    let _client = project.up(&spec);
    let mut vmm: Option<supervise::Process> = None;
    for round in 0..3 {
        let begin = Instant::now();
        let now = loop {
            if let Some(now) = state(&spec).vmm.filter(|now| Some(now) != vmm.as_ref()) {
                break now;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "it was not booted again");
            std::thread::sleep(Duration::from_millis(2));
        };
        let mark = stopping::jail_of(&spec.dir).join("mark");
        assert!(!mark.exists(), "the jail of boot {round} was used before");
        std::fs::write(mark, "").unwrap();
        assert!(now.signal(libc::SIGKILL).unwrap());
        vmm = Some(now);
    }
    assert!(state(&spec).restarts >= 2);
    project.stop(&spec);
    project.assert_clean(&spec);
}
