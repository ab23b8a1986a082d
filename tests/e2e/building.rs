//! `lock` and `build`: pins, and the same bytes wherever they are built.

use crate::harness::terminal::{on_terminal, read_all, wait_end};
use crate::harness::{Project, guests};
use crate::traces::{SLEEP, home_with_packages};
use std::os::unix::fs::PermissionsExt;

const ONE_VM: &str = "vm \"box\" { workload \"./app\" to=\"/app\"; run \"true\" }";

fn unpinned() -> Project {
    let project = Project::empty();
    project.manifest(ONE_VM);
    project.write("app/run.sh", "echo run");
    project
}

fn pinned() -> Project {
    let project = Project::new(ONE_VM);
    project.write("app/run.sh", "echo run");
    project
}

#[test]
fn a_missing_pin_is_an_error_where_the_lock_may_not_change() {
    let project = unpinned();
    for args in [&["lock", "--locked"][..], &["build", "--locked"], &["up", "-d", "--locked"]] {
        project.run(args).expect(64).says("firegopher.lock lacks: ").says("linux-image-cloud-amd64");
    }
    project.run(&["run", "--locked"]).expect(125).says("firegopher.lock lacks: ");
    project.run(&["build", "--offline"]).expect(1).says("--offline forbids");
    assert!(!project.path().join("firegopher.lock").exists());
}

#[test]
fn a_complete_lock_stays_as_it_is() {
    let Some(_turn) = guests(1) else { return };
    let project = pinned();
    let before = project.read("firegopher.lock");
    project.ok(&["lock"]).says("firegopher.lock has every pin already.");
    project.ok(&["lock", "--locked"]);
    project.ok(&["build", "--locked", "--offline"]);
    assert_eq!(project.read("firegopher.lock"), before);
}

#[test]
fn a_warm_store_needs_no_network() {
    let Some(_turn) = guests(1) else { return };
    let project = pinned();
    project.write("app/new.txt", format!("{:?}", project.path()));
    project.ok(&["build", "--offline"]).says("Built ");
    project.ok(&["build", "--offline"]).says("Nothing to build");
    project.ok(&["run", "--offline"]);
}

#[test]
fn a_copied_tree_builds_the_same_outputs() {
    let Some(_turn) = guests(1) else { return };
    let (first, second) = (pinned(), pinned());
    for project in [&first, &second] {
        project.write("app/deep/er/file", "x");
        std::os::unix::fs::symlink("run.sh", project.path().join("app/link")).unwrap();
    }
    // What git does not keep reaches no key: other owners, modes and times than the first.
    let path = second.path().join("app/run.sh");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let steps = |project: &Project| project.ok(&["build", "--json"]).json()["steps"].clone();
    assert_eq!(steps(&first), steps(&second));
    // An executable bit is content.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    assert_ne!(steps(&first), steps(&second));
}

#[test]
fn steps_and_transfers_have_bars_on_a_terminal_and_plain_lines_elsewhere() {
    let Some(_turn) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    home_with_packages(project.home());
    let (terminal, mut build) = on_terminal(&project, &["build"]);
    let shown = read_all(&terminal);
    assert_eq!(wait_end(&mut build), Some(0), "{shown}");
    let steps = ["fetch kernel linux-image-cloud-amd64", "fetch vmm qemu", "image ", "initramfs ", "init a"];
    for step in steps {
        // Drawn while it runs, with its spinner and the time, and said once it is done.
        assert!(shown.contains(&format!(" {step}")), "no bar of {step}: {shown:?}");
        let done = shown.lines().any(|line| line.contains(step) && line.trim_end().ends_with(" s)"));
        assert!(done, "{step} is never done: {shown:?}");
    }
    assert!(shown.contains("\x1b[2K") || shown.contains("\x1b[K"), "no bar was taken away: {shown:?}");

    // The same steps, run anew, into a pipe.
    for made in ["v1/actions", "v1/objects"] {
        std::fs::remove_dir_all(project.home().join(made)).unwrap();
    }
    home_with_packages(project.home());
    let piped = project.ok(&["build"]);
    assert!(!piped.stderr.contains('\x1b'), "{:?}", piped.stderr);
    for step in steps {
        let lines = piped.stderr.lines().filter(|line| line.starts_with(step) && line.ends_with(" s)"));
        assert_eq!(lines.count(), 1, "{step}: {}", piped.stderr);
    }
}
