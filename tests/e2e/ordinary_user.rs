//! The same project for somebody who is not root, with a home of their own.

use crate::harness::{Project, free_port, guests, public_dir, seed_home, skip, try_get};
use std::path::{Path, PathBuf};

/// nobody's uid and gid on Debian.
const NOBODY: u32 = 65534;

/// A copy of the binary where every user can run it, and an empty home with the packages in it.
fn outfit(dir: &Path) -> (PathBuf, PathBuf) {
    let (exe, home) = (dir.join("firegopher"), dir.join("home"));
    std::fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    seed_home(&home, NOBODY);
    (exe, home)
}

#[test]
fn an_ordinary_user_builds_the_same_and_runs_it() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user; all other tests run as one now");
    }
    let Some(_turn) = guests(1) else { return };
    let roots = Project::example("python-web");
    let public = public_dir();
    let (exe, home) = outfit(public.path());
    let mut theirs = Project::example("python-web").with_exe(&exe).with_home(&home).as_user(NOBODY);
    theirs.ports = vec![free_port()];
    let text = roots.read("firegopher.kdl");
    theirs.manifest(&text.replace(&roots.ports[0].to_string(), &theirs.ports[0].to_string()));

    theirs.up(&["-d", "--offline"]).says("web runs: ").says("without root there is no jail");
    assert_eq!(theirs.wait_http("/"), "hello from web\n");
    theirs.ok(&["plan"]).prints("Nothing changes: all ");
    assert!(theirs.wait_log("web", "listening on port 8000\n").contains("GET / "));
    let row = theirs.ps("web").unwrap();
    let vmm = std::fs::read_to_string(format!("/proc/{}/status", row["vmm_pid"])).unwrap();
    assert!(vmm.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}\t")), "{vmm}");
    // Everything that root built before has the same bytes in the user's own store.
    let outputs = |project: &Project| {
        let steps = project.ok(&["build", "--json", "--offline"]).json()["steps"].clone();
        let of = |step: &serde_json::Value| {
            [&step["kind"], &step["key"], &step["output"]].map(ToString::to_string)
        };
        steps.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(outputs(&theirs), outputs(&roots));
    theirs.ok(&["down"]).says("web is down");
    assert!(try_get(theirs.ports[0], "/").is_err());
    // Root's home is not theirs to use.
    let refused = roots.run(&["ps"]);
    assert_eq!(refused.code, Some(0));
    let intruder = Project::example("python-web").with_exe(&exe).as_user(NOBODY);
    assert_ne!(intruder.run(&["build", "--offline"]).code, Some(0));
}
