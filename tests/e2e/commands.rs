//! `init`, `logs`, `down`, `doctor`: the commands around a running VM.

use crate::harness::{PATIENCE, Project, guests};
use std::time::Duration;

#[test]
fn init_writes_a_manifest_that_boots_and_never_overwrites() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("");
    std::fs::remove_file(project.path().join("firegopher.kdl")).unwrap();
    project.ok(&["init"]).says("firegopher.kdl. Edit it, then: firegopher up");
    project.up(&[]).prints("hello from Linux ");
    project.manifest("// mine");
    project.run(&["init"]).expect(64).says("exists already");
    assert_eq!(project.read("firegopher.kdl"), "// mine");
}

#[test]
fn logs_show_output_with_times_the_console_and_the_end() {
    let Some(_turn) = guests(1) else { return };
    let project =
        Project::new(r#"vm "talker" { run "sh" "-c" "echo out; echo err >&2; echo console > /dev/console; echo last; exec sleep 600" }"#);
    project.up(&["-d"]);
    let logs = project.wait_log("talker", "last\n");
    assert!(logs.contains("out\n") && logs.contains("err\n"), "{logs}");
    let timed = project.ok(&["logs", "-t"]).stdout;
    for line in timed.lines() {
        let (time, text) = line.split_once(' ').unwrap();
        assert!(time.len() >= 20 && time.contains('T') && time.ends_with('Z'), "{line}");
        assert!(["out", "err", "last"].contains(&text), "{line}");
    }
    project.ok(&["logs", "--console"]).prints("console");
    project.run(&["logs", "nobody"]).expect(64).says("there is no VM named \"nobody\"");
    let following = project.command(&["logs", "-f"]).spawn();
    std::thread::sleep(Duration::from_millis(500));
    project.ok(&["down"]).says("talker is down");
    following.wait(PATIENCE).expect(0).prints("last\n");
    // Logs stay until the next boot.
    assert!(project.logs("talker").contains("out\n"));
}

#[test]
fn down_and_ps_work_without_the_manifest() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"orphan\" { run \"sleep\" \"600\" }");
    project.up(&["-d"]);
    std::fs::remove_file(project.path().join("firegopher.kdl")).unwrap();
    project.ok(&["ps"]).prints("orphan  running");
    project.ok(&["down"]).says("orphan is down");
    assert_eq!(project.ps("orphan"), None);
    project.ok(&["down"]).says("Nothing to do");
}

#[test]
fn a_project_name_belongs_to_one_directory() {
    let Some(_turn) = guests(1) else { return };
    let manifest = format!("project \"claim-{}\"\nvm \"x\" {{ run \"true\" }}", std::process::id());
    let (first, second) = (Project::new(&manifest), Project::new(&manifest));
    first.ok(&["build"]);
    let refused = second.run(&["build"]).expect(64).says("belongs to ").says("project \"name\"");
    refused.says(&first.path().canonicalize().unwrap().display().to_string());
    // A project that moved takes its name along.
    std::fs::remove_file(first.path().join("firegopher.kdl")).unwrap();
    second.ok(&["build"]);
}

#[test]
fn doctor_prints_every_check_and_exits_by_the_worst() {
    let project = Project::empty();
    let doctor = project.run(&["doctor"]);
    for check in ["architecture", "user", "kvm", "tsc", "apt", "disk", "memory", "ports"] {
        let line = doctor.stdout.lines().find(|line| line.split_whitespace().nth(1) == Some(check));
        assert!(line.is_some(), "{check}: {}", doctor.stdout);
    }
    let missing = doctor.stdout.lines().any(|line| line.starts_with("missing"));
    assert_eq!(doctor.code, Some(if missing { 69 } else { 0 }), "{doctor:?}");
    let json = project.run(&["doctor", "--json"]);
    assert_eq!((json.code, &json.json()["format_version"]), (doctor.code, &1.into()));
}
