//! Ctrl-C, SIGTERM, SIGHUP and kill -9 at any moment, and terminals that are closed: nothing is left behind, nothing
//! is lost, and the next command works.

use crate::harness::terminal::{on_terminal, wait_end, wait_shown};
use crate::harness::{Project, guests, skip};
use crate::traces::{
    SLEEP, apt_config, assert_clean, assert_objects_verify, home_with_packages, kill9, processes_in, temps_of,
};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const INT: i32 = libc::SIGINT;
const TERM: i32 = libc::SIGTERM;
const HUP: i32 = libc::SIGHUP;
const SOON: Duration = Duration::from_secs(60);

/// Fractions of 1, spread evenly and the same at every run.
fn instants(count: u32) -> impl Iterator<Item = f64> {
    (0..count).map(|n| (f64::from(n) * 0.618_033_988_75).fract())
}

/// Removes what was built, keeps the packages.
fn forget_outputs(home: &Path) {
    for dir in ["v1/actions", "v1/objects", "v1/tmp", "v1/locks"] {
        let dir = home.join(dir);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    home_with_packages(home);
}

/// A program that says when it has set its handler, then waits. `trap` is a shell's action on SIGTERM.
fn trapping(trap: &str) -> String {
    format!(
        r#"image {{ debian "busybox-static" }}; memory "128MiB"; grace "20s"
        run "/bin/busybox" "sh" "-c" "trap '{trap}' TERM; echo ready; while true; do /bin/busybox sleep 1; done""#
    )
}

// --- Building ---------------------------------------------------------------------------------------------------

#[test]
fn a_build_interrupted_at_any_moment_leaves_nothing() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let home = own.path().join("home");
    home_with_packages(&home);
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&home);
    let whole = project.ok(&["build"]).took;
    let mut caught = 0;
    for (n, at) in instants(18).enumerate() {
        forget_outputs(&home);
        let signal = [INT, TERM, HUP][n % 3];
        let mut build = project.command(&["build"]).spawn();
        let pid = build.pid();
        std::thread::sleep(whole.mul_f64(at));
        if build.ended().is_none() {
            build.signal(signal);
        }
        let output = build.wait(SOON);
        // Too early for the handler is the default action; too late is a success.
        assert!(
            matches!(output.code, None | Some(0)) || output.code == Some(128 + signal),
            "{at}: {output:?}"
        );
        caught += u32::from(output.code == Some(128 + signal));
        assert!(!output.stderr.contains("error"), "{at}: {output:?}");
        assert_eq!(temps_of(&project, pid), [""; 0], "{at}");
        assert_eq!(processes_in(&home), [0; 0], "{at}");
    }
    assert!(caught >= 6, "only {caught} of 18 signals came while it built");
    project.ok(&["build"]);
    assert_objects_verify(&home);
    project.ok(&["build"]).says("Nothing to build");
}

#[test]
fn a_build_killed_at_any_moment_is_finished_by_the_next() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let home = own.path().join("home");
    home_with_packages(&home);
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&home);
    let whole = project.ok(&["build"]).took;
    forget_outputs(&home);
    for at in instants(12) {
        let build = project.command(&["build"]).spawn();
        std::thread::sleep(whole.mul_f64(at * 0.6));
        kill9(build.pid());
        build.wait(SOON);
        // Whatever was published is whole, and the next command sweeps.
        assert_objects_verify(&home);
        project.ok(&["plan"]);
        assert_eq!(std::fs::read_dir(home.join("v1/tmp")).unwrap().count(), 0, "{at}");
        if at > 0.5 {
            forget_outputs(&home);
        }
    }
    project.ok(&["build"]);
    assert!(assert_objects_verify(&home) > 10);
    assert_eq!(std::fs::read_dir(home.join("v1/locks")).unwrap().count(), 0);
    project.ok(&["build"]).says("Nothing to build");
}

#[test]
fn an_interrupted_fetch_leaves_no_apt_behind() {
    if !Path::new("/usr/bin/apt-get").exists() {
        return skip("this host has no apt");
    }
    // Accepts and never answers.
    let stalls = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = tempfile::tempdir().unwrap();
    let source = format!("http://{}/debian", stalls.local_addr().unwrap());
    let project = Project::empty()
        .with_home(&own.path().join("home"))
        .env("APT_CONFIG", &apt_config(own.path(), &source));
    project.manifest("vm \"a\" { run \"x\" }");
    for signal in [INT, TERM, HUP] {
        let up = project.command(&["up"]).spawn();
        let pid = up.pid();
        // apt has connected.
        let connection = stalls.accept().unwrap();
        up.signal(signal);
        let output = up.wait(SOON).expect(128 + signal);
        assert!(!output.stderr.contains("error"), "{output:?}");
        assert_eq!(temps_of(&project, pid), [""; 0]);
        assert!(!project.path().join("firegopher.lock").exists());
        drop(connection);
        let begun = Instant::now();
        while !processes_in(project.home()).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(5), "apt lives on");
            std::thread::sleep(Duration::from_millis(20));
        }
        // It may have connected twice: what waits is not the next one's.
        stalls.set_nonblocking(true).unwrap();
        while stalls.accept().is_ok() {}
        stalls.set_nonblocking(false).unwrap();
        assert_clean(&project);
    }
}

/// A supervisor is started early, before it is known whether one is needed.
#[test]
fn a_command_that_starts_nothing_leaves_no_supervisor_waiting() {
    let own = tempfile::tempdir().unwrap();
    let mark = own.path().join("mark");
    std::fs::create_dir(&mark).unwrap();
    // Supervisors keep this of their caller's environment.
    let marked = format!("TMPDIR={}", mark.display());
    let waiting = || {
        let has = |e: &std::fs::DirEntry, file: &str, wanted: &str| {
            let words = std::fs::read(e.path().join(file)).unwrap_or_default();
            words.split(|b| *b == 0).any(|word| word == wanted.as_bytes())
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter(|e| has(e, "cmdline", "__supervise") && has(e, "environ", &marked)).count()
    };
    let gone = |after: &str| {
        let begun = Instant::now();
        while waiting() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "a supervisor waits on after {after}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let project = Project::empty()
        .with_home(&own.path().join("home"))
        .env("TMPDIR", mark.to_str().unwrap())
        .env("APT_CONFIG", &apt_config(own.path(), "http://127.0.0.1:9/debian"));
    project.manifest("vm \"a\" { run \"x\" }");
    project.run(&["up", "--locked"]).expect(64).says("firegopher.lock lacks: ");
    gone("an error");
    project.run(&["run", "--locked"]).expect(125).says("firegopher.lock lacks: ");
    gone("an error of run");
    // Accepts and never answers, so that it waits until it is killed.
    let stalls = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}/debian", stalls.local_addr().unwrap());
    let project = project.env("APT_CONFIG", &apt_config(own.path(), &source));
    let up = project.command(&["up"]).spawn();
    let begun = Instant::now();
    while waiting() == 0 {
        assert!(begun.elapsed() < SOON, "there is none");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill9(up.pid());
    up.wait(SOON);
    gone("a kill");
}

// --- Booting ----------------------------------------------------------------------------------------------------

#[test]
fn up_interrupted_at_any_moment_of_the_boot_leaves_nothing() {
    let Some(_guests) = guests(2) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP} }}"));
    project.ok(&["build"]);
    let mut caught = 0;
    for (n, at) in instants(14).enumerate() {
        let signal = [INT, TERM][n % 2];
        let mut up = project.command(if n % 4 < 2 { &["up"] } else { &["up", "-d"] }).spawn();
        // Two thirds of the instants fall before the guests run.
        std::thread::sleep(Duration::from_secs(3).mul_f64(at * at));
        if up.ended().is_none() {
            up.signal(signal);
        }
        let output = up.wait(SOON);
        let ran = output.code == Some(0);
        caught += u32::from(output.code == Some(128 + signal));
        assert!(ran || output.code.is_none() || output.code == Some(128 + signal), "{at}: {output:?}");
        assert!(!output.stderr.contains("error"), "{at}: {output:?}");
        let rows = ["a", "b"].map(|vm| project.ps(vm).map(|row| row["status"].clone()));
        if n % 4 >= 2 && ran {
            // It was done before the signal came: `up -d` promised running VMs.
            assert!(rows.iter().all(|status| *status == Some("running".into())), "{rows:?} {output:?}");
        } else {
            let gone = |s: &Option<serde_json::Value>| s.is_none() || *s == Some("exited".into());
            assert!(rows.iter().all(gone), "{at}: {rows:?} {output:?}");
            assert_clean(&project);
        }
        project.ok(&["down", "--kill"]);
        assert_clean(&project);
    }
    assert!(caught >= 3, "only {caught} of 14 signals came before the guests ran");
}

#[test]
fn two_signals_while_vms_are_started_leave_nothing_either() {
    let Some(_guests) = guests(2) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}\nvm \"b\" {{ {SLEEP} }}"));
    project.ok(&["build"]);
    let mut caught = 0;
    for at in instants(10) {
        let mut up = project.command(&["up"]).spawn();
        std::thread::sleep(Duration::from_millis(400).mul_f64(at));
        for _ in 0..2 {
            if up.ended().is_none() {
                up.signal(INT);
            }
        }
        let output = up.wait(SOON);
        // Too early for the handler; while they are started; once they are followed, where it means their end.
        assert!(matches!(output.code, None | Some(0 | 130)), "{at}: {output:?}");
        caught += u32::from(output.code == Some(130) || output.stderr.contains("was killed"));
        assert!(!output.stderr.contains("error"), "{at}: {output:?}");
        assert_clean(&project);
        project.ok(&["down", "--kill"]);
    }
    assert!(caught >= 5, "only {caught} of 10 pairs of signals met a command that handled them");
}

// --- Attached ---------------------------------------------------------------------------------------------------

#[test]
fn the_first_signal_stops_gracefully_and_the_second_kills() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {} }}", trapping("echo bye; exit 0")));
    for signal in [INT, TERM] {
        let up = project.command(&["up"]).spawn();
        // The log of the boot before stays until there is a new one.
        project.wait_status("a", "running");
        project.wait_log("a", "ready");
        up.signal(signal);
        up.wait(SOON).expect(0).prints("bye").says("press Ctrl-C again").says("stopped (exited 0)");
        assert_eq!(project.ps("a").unwrap()["status"], "exited");
        assert_clean(&project);
    }
    project.manifest(&format!("vm \"a\" {{ {} }}", trapping("")));
    let up = project.command(&["up"]).spawn();
    project.wait_status("a", "running");
    project.wait_log("a", "ready");
    up.signal(INT);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    up.signal(INT);
    up.wait(SOON).expect(0).says("a was killed");
    assert!(begun.elapsed() < Duration::from_secs(5), "the grace is 20 s");
    assert_clean(&project);
}

#[test]
fn a_throw_away_vm_goes_with_its_command() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {} }}", trapping("echo bye; exit 3")));
    project.ok(&["build"]);
    let ready = |project: &Project| {
        let begun = Instant::now();
        loop {
            let dirs = std::fs::read_dir(project.state_dir()).unwrap().flatten();
            let logs = dirs.filter_map(|d| std::fs::read(d.path().join("workload.log")).ok());
            if logs.into_iter().any(|log| String::from_utf8_lossy(&log).contains("ready")) {
                return;
            }
            assert!(begun.elapsed() < SOON);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let run = project.command(&["run"]).spawn();
    ready(&project);
    run.signal(TERM);
    run.wait(SOON).expect(3).prints("bye");
    assert_clean(&project);
    let run = project.command(&["run"]).spawn();
    ready(&project);
    kill9(run.pid());
    run.wait(SOON);
    let begun = Instant::now();
    let vms = || {
        let dirs = std::fs::read_dir(project.state_dir()).unwrap().flatten();
        dirs.filter(|d| d.file_name().to_string_lossy().starts_with("run-")).count()
    };
    while vms() > 0 {
        assert!(begun.elapsed() < SOON, "the VM outlived the command that it belonged to");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_clean(&project);
    let addresses = std::fs::read_to_string(project.state_dir().join("addresses.json")).unwrap_or_default();
    assert!(!addresses.contains("run-"), "{addresses}");
}

#[test]
fn attached_to_vms_that_ran_before_a_signal_only_detaches() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.up(&["-d"]);
    let before = project.state("a");
    for signal in [INT, TERM, HUP] {
        let up = project.command(&["up"]).spawn();
        std::thread::sleep(Duration::from_millis(700));
        up.signal(signal);
        let output = up.wait(SOON).expect(0);
        if signal != HUP {
            output.says("Detached; the VMs run on").says("firegopher down");
        }
        assert_eq!(project.state("a")["vmm"], before["vmm"]);
        assert_eq!(project.ps("a").unwrap()["status"], "running");
    }
    project.ok(&["down"]);
    assert_clean(&project);
}

// --- Terminals --------------------------------------------------------------------------------------------------

#[test]
fn a_closed_terminal_leaves_vms_running() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.ok(&["build"]);
    // Once it runs, and while it boots.
    for text in ["a runs", "no hardware-backed KVM"] {
        let (terminal, mut up) = on_terminal(&project, &["up"]);
        if text != "a runs" && firegopher::vmm::probe::kvm().is_usable() {
            std::thread::sleep(Duration::from_millis(300));
        } else {
            wait_shown(&terminal, text);
        }
        drop(terminal);
        wait_end(&mut up);
        project.wait_status("a", "running");
        project.ok(&["plan"]).prints("");
        project.ok(&["down"]);
        assert_clean(&project);
    }
}

#[test]
fn ctrl_c_on_a_terminal_stops_the_vm() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {} }}", trapping("exit 0")));
    let (terminal, mut up) = on_terminal(&project, &["up"]);
    wait_shown(&terminal, "ready");
    // The terminal makes a SIGINT of it, for the whole foreground group.
    nix::unistd::write(&terminal, &[3]).unwrap();
    wait_shown(&terminal, "stopped (exited 0)");
    assert_eq!(wait_end(&mut up), Some(0));
    assert_clean(&project);
}
