//! The same project for somebody who is not root, with a home of their own.

use crate::harness::{PATIENCE, Project, free_port, guests, public_dir, seed_home, skip, try_get};
use crate::traces::{IMAGE, SLEEP, assert_clean, kill9, pid_of};
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
    assert!(theirs.state("web")["uid"].is_null(), "a jail's uid without a jail");
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

/// A project of an ordinary user's over a home of theirs with everything built; `None` where only one user can be.
fn theirs(public: &Path, manifest: &str) -> Option<Project> {
    if !nix::unistd::geteuid().is_root() {
        skip("only root can become another user; all other tests run as one now");
        return None;
    }
    let (exe, home) = outfit(public);
    let project = Project::new(manifest).with_exe(&exe).with_home(&home).as_user(NOBODY);
    project.ok(&["build", "--offline"]);
    Some(project)
}

#[test]
fn a_users_vms_fail_and_end_as_roots_do() {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    let vm = |more: &str| format!("vm \"a\" {{ {SLEEP}; {more} }}");
    let Some(project) = theirs(public.path(), &vm("")) else { return };

    // A VMM that is killed, and a supervisor.
    let up = project.command(&["up"]).spawn();
    project.wait_status("a", "running");
    kill9(pid_of(&project.state("a"), "vmm"));
    up.wait(PATIENCE).expect(1).says("a failed: the VM ended while the workload ran").says("SIGKILL");
    assert_clean(&project);
    project.up(&["-d"]);
    kill9(pid_of(&project.state("a"), "supervisor"));
    let row = project.wait_status("a", "failed");
    assert!(row["detail"].as_str().unwrap().contains("its supervisor died"), "{row}");
    project.ok(&["down"]);
    assert_clean(&project);

    // Ctrl-C while it boots and while it runs.
    for running in [false, true] {
        let up = project.command(&["up"]).spawn();
        match running {
            true => drop(project.wait_status("a", "running")),
            false => std::thread::sleep(std::time::Duration::from_millis(300)),
        }
        up.signal(nix::libc::SIGINT);
        let code = up.wait(PATIENCE).code;
        assert!(matches!(code, Some(0 | 130)), "{code:?}");
        assert_clean(&project);
    }

    // A port that is taken: nothing is started for it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    project.manifest(&vm(&format!("port {port} to=80")));
    project.run(&["up", "-d"]).expect(1).says(&format!("port 127.0.0.1:{port} of VM a is taken"));
    assert_clean(&project);
}

#[test]
fn a_users_workloads_end_with_their_codes_and_keep_their_volumes() {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    let script = "echo x >>/data/count; exec /bin/busybox wc -l </data/count";
    let manifest = format!(
        "vm \"a\" {{ {IMAGE}; volume \"data\" at=\"/data\" size=\"32MiB\"\n\
         run \"/bin/busybox\" \"sh\" \"-c\" \"{script}\" }}"
    );
    let Some(project) = theirs(public.path(), &manifest) else { return };
    for boot in ["1\n", "2\n"] {
        assert_eq!(project.up(&[]).stdout, boot);
        project.ok(&["down"]);
    }
    project.run(&["run", "--", "/bin/busybox", "sh", "-c", "exit 7"]).expect(7);
    project.run(&["run", "--", "/bin/busybox", "sh", "-c", "kill -TERM $$"]).expect(143);
    // Nothing but what is published leads out, and nothing is.
    let probe = "for to in 10.0.2.2/22 10.0.2.3/53 127.0.0.1/22 169.254.169.254/80; do \
         /bin/busybox timeout 4 /bin/busybox nc -w 3 ${to%/*} ${to#*/} </dev/null >/dev/null 2>&1 && echo $to & done; wait; echo tried";
    assert_eq!(project.ok(&["run", "--", "/bin/busybox", "sh", "-c", probe]).stdout, "tried\n");
    project.ok(&["down", "--volumes"]);
    assert_clean(&project);
}
