//! `scripts=#true`: full systems through manifest, lock and build, as root and as a user with subordinate ids.

use crate::harness::{Command, Output, Project, guests, public_dir, seed_home, skip};
use crate::traces::{processes_in, temps_of};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// nobody's uid and gid on Debian.
const NOBODY: u32 = 65534;

/// The first of its subordinate ids.
const FIRST_ID: u32 = 200_000;

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
    roots.run(&["build", "--locked"]).expect(64).says("firegopher.lock lacks: ");
    roots.command(&["lock"]).limit(LIMIT).output().expect(0);
    let lock = roots.read("firegopher.lock");
    assert!(lock.contains("scripts = true\n"), "{lock}");
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
    let args = ["build", "--json", "--locked", "--offline"];
    let Some(command) = with_subordinate_ids(&theirs, public.path(), &args) else { return };
    let built_by_user = command.output();
    if built_by_user.code == Some(69) {
        return skip(format!("users cannot map ids here: {}", built_by_user.stderr));
    }
    assert_eq!(outputs(&built_by_user.expect(0)), outputs(&built));
}

#[test]
fn a_users_scripts_end_with_a_signal_and_what_a_kill_leaves_goes_with_the_next_command() {
    let Some(_turn) = guests(1) else { return };
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user; scripts run for users in the library's tests");
    }
    let roots = Project::new(SAYS);
    roots.command(&["lock"]).limit(LIMIT).output().expect(0);
    // All packages are in the warm home from here on.
    build(&roots, &["--locked"]).expect(0);
    let public = public_dir();
    let (exe, home, tmp) =
        (public.path().join("firegopher"), public.path().join("home"), public.path().join("tmp"));
    std::fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    seed_home(&home, NOBODY);
    std::fs::create_dir(&tmp).unwrap();
    std::fs::set_permissions(&tmp, PermissionsExt::from_mode(0o1777)).unwrap();
    let theirs =
        Project::empty().with_exe(&exe).with_home(&home).as_user(NOBODY).env("TMPDIR", tmp.to_str().unwrap());
    theirs.manifest(SAYS);
    theirs.write("firegopher.lock", roots.read("firegopher.lock"));
    let args = ["build", "--locked", "--offline"];
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let Some(command) = with_subordinate_ids(&theirs, public.path(), &args) else { return };
        let mut running = command.spawn();
        let begun = Instant::now();
        // Until files of ids that are not the user's lie there.
        while foreign(&tmp).len() < 100 {
            if running.ended().is_some() {
                let output = running.wait(LIMIT);
                assert_eq!(output.code, Some(69), "{output:?}");
                return skip(format!("users cannot map ids here: {}", output.stderr));
            }
            assert!(begun.elapsed() < LIMIT, "no script ever began");
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = running.pid();
        running.signal(signal);
        let output = running.wait(LIMIT);
        if signal == libc::SIGKILL {
            assert!(foreign(&tmp).len() >= 100);
            // Other steps may have been under way, too.
            assert!(!temps_of(&theirs, pid).is_empty());
            with_subordinate_ids(&theirs, public.path(), &["gc"]).unwrap().output().expect(0);
        } else {
            let output = output.expect(128 + signal);
            assert!(!output.stderr.contains("error"), "{output:?}");
        }
        assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "signal {signal}");
        assert_eq!(temps_of(&theirs, pid), [""; 0], "signal {signal}");
        assert_eq!(processes_in(&tmp), [0; 0], "signal {signal}");
    }
}

/// What is below `dir` and belongs to subordinate ids.
fn foreign(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.uid() >= FIRST_ID && meta.uid() < FIRST_ID + 65536 {
            all.push(entry.path());
        }
        if meta.is_dir() {
            all.extend(foreign(&entry.path()));
        }
    }
    all
}

/// A command of nobody's, who has subordinate ids in a mount namespace of the command's own; `None` where this host
/// has no way to use them.
fn with_subordinate_ids(project: &Project, dir: &Path, args: &[&str]) -> Option<Command> {
    let missing = ["/usr/bin/newuidmap", "/usr/bin/unshare", "/etc/subuid", "/etc/subgid"]
        .into_iter()
        .find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        skip(format!("no {path} to give a user subordinate ids"));
        return None;
    }
    let ids = dir.join("subids");
    std::fs::write(&ids, format!("nobody:{FIRST_ID}:65536\n")).unwrap();
    let script = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec \"$@\"";
    let mut command = project.command(args);
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
    Some(Command::new(wrapped).limit(LIMIT))
}
