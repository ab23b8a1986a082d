//! `lock` and `build`: pins, and the same bytes wherever they are built.

use crate::harness::{Project, guests};
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
