//! `scripts=#true`: full systems through manifest, lock and build, as root and as a user with subordinate ids.

use crate::harness::{Command, Output, Project, guests, public_dir, seed_home, skip};
use std::path::Path;
use std::time::Duration;

/// nobody's uid and gid on Debian.
const NOBODY: u32 = 65534;

/// All that is essential is installed: minutes where other machines are busy.
const LIMIT: Duration = Duration::from_secs(900);

/// What only scripts have made: dpkg's list, users by `update-passwd`, a machine's name for itself.
const SAYS: &str = "vm \"full\" {
    image { debian \"base-files\" scripts=#true }
    run \"sh\" \"-c\" \"grep -c '^Status: install ok installed' /var/lib/dpkg/status; stat -c '%U:%G %a' /etc/shadow\"
}";

fn build(project: &Project, args: &[&str]) -> Output {
    project.command(&[&["build", "--json"], args].concat()).limit(LIMIT).output()
}

/// Of each step kind, key and output.
fn outputs(built: &Output) -> Vec<String> {
    let steps = built.json()["steps"].clone();
    let of = |step: &serde_json::Value| format!("{} {} {}", step["kind"], step["key"], step["output"]);
    steps.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_full_system_is_pinned_built_and_boots_and_a_user_with_subordinate_ids_builds_the_same() {
    let Some(_turn) = guests(1) else { return };
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user; scripts run for users in the library's tests");
    }
    let roots = Project::new(SAYS);
    roots.run(&["build", "--locked"]).expect(64).says("firegopher.lock lacks: ").says("tool mmdebstrap");
    roots.command(&["lock"]).limit(LIMIT).output().expect(0);
    let lock = roots.read("firegopher.lock");
    assert!(lock.contains("names = [\"mmdebstrap\"]") && lock.contains("scripts = true\n"), "{lock}");
    let built = build(&roots, &["--locked"]).expect(0);
    roots.ok(&["build", "--locked", "--offline"]).says("Nothing to build");
    let run = roots.ok(&["run", "--locked", "--offline"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    let count: usize = lines[0].parse().unwrap_or_else(|_| panic!("{run:?}"));
    // Every package of the entry, and no other.
    let entry = lock.split("\n[[asset]]\n").find(|entry| entry.contains("scripts = true\n")).unwrap();
    assert_eq!(count, entry.lines().filter(|line| line.starts_with("  { name = ")).count(), "{lock}");
    assert_eq!(lines[1], "root:shadow 640");

    let public = public_dir();
    let (exe, home) = (public.path().join("firegopher"), public.path().join("home"));
    std::fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    seed_home(&home, NOBODY);
    let theirs = Project::empty().with_exe(&exe).with_home(&home).as_user(NOBODY);
    theirs.manifest(SAYS);
    theirs.write("firegopher.lock", &lock);
    let plain = build(&theirs, &["--locked", "--offline"]);
    if plain.code == Some(69) {
        // What is lacking first is what is told.
        let lacking = match Path::new("/usr/bin/newuidmap").exists() {
            true => "subordinate ids",
            false => "no newuidmap",
        };
        plain.says("nobody").says(lacking).says("help:");
    }
    let Some(built_by_user) = with_subordinate_ids(&theirs, public.path()) else { return };
    assert_eq!(outputs(&built_by_user.expect(0)), outputs(&built));
}

/// Builds as nobody, who has subordinate ids in a mount namespace of the command's own; `None` where this host has no
/// way to use them.
fn with_subordinate_ids(project: &Project, dir: &Path) -> Option<Output> {
    let missing = ["/usr/bin/newuidmap", "/usr/bin/unshare", "/etc/subuid", "/etc/subgid"]
        .into_iter()
        .find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        skip(format!("no {path} to give a user subordinate ids"));
        return None;
    }
    let ids = dir.join("subids");
    std::fs::write(&ids, "nobody:200000:65536\n").unwrap();
    let script = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";
    let mut command = project.command(&["build", "--json", "--locked", "--offline"]);
    let inner = command.inner();
    let mut wrapped = std::process::Command::new("unshare");
    wrapped.args(["--mount", "--propagation", "private", "--", "sh", "-c", script]).arg(&ids);
    wrapped.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    let output = Command::new(wrapped).limit(LIMIT).output();
    if output.code == Some(69) {
        skip(format!("users cannot map ids here: {}", output.stderr));
        return None;
    }
    Some(output)
}
