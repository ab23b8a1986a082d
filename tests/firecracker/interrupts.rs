//! Ctrl-C while a VM is being stopped or booted, and replacements that could not start: what runs is not lost.

use super::cli::{Cli, cli, cli_since, stderr};
use super::stopping::Init;
use super::*;
use firegopher_protocol::{ExitRecord, FromGuest, ToGuest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

const VM: &str = "vmm \"firecracker\" { path \"DIR\" }; grace \"60s\"";
/// Much less than any grace here.
const SOON: Duration = Duration::from_secs(10);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn spoke(dir: &Path) -> bool {
    let console = std::fs::read_to_string(dir.join("console.log")).unwrap_or_default();
    console.contains("firegopher.end=reset")
        && State::load(dir).is_ok_and(|state| state.is_some_and(|s| s.vmm.is_some()))
}

/// `up -d` with a guest whose workload runs, by what it says.
fn up(cli: &Cli) -> (Init, State) {
    let up = cli.command(&["up", "-d"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the guest never spoke", || spoke(&cli.spec_dir()));
    let init = Init::start(&cli.spec_dir());
    let output = up.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (init, State::load(&cli.spec_dir()).unwrap().unwrap())
}

fn spawn(cli: &Cli, args: &[&str]) -> Child {
    let mut command = cli.command(args);
    // A shell's background jobs ignore it, and what they start inherits that and leaves it so.
    // SAFETY: signal(2) is async-signal-safe, and nothing else happens between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            nix::libc::signal(nix::libc::SIGINT, nix::libc::SIG_DFL);
            Ok(())
        });
    }
    command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn press_ctrl_c(child: &Child) -> Instant {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    Instant::now()
}

/// The workload ends at last.
fn end(init: &mut Init) {
    init.say(&FromGuest::Exit(ExitRecord { code: Some(0), ..ExitRecord::default() }));
}

fn down(cli: &Cli, state: &State) {
    let output = cli.run(&["down"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!state.supervisor.is_alive() && !cli.spec_dir().join("state.json").exists());
    assert_eq!(processes_of(&jail_name(state)), 0);
}

#[test]
fn ctrl_c_while_a_vm_is_stopped_for_its_successor_is_heard_at_once() {
    let Some(cli) = cli(Stub::Halt, VM) else { return };
    let (mut init, before) = up(&cli);
    cli.manifest(&format!("{VM}; memory \"160MiB\""));
    let replacing = spawn(&cli, &["up", "-d"]);
    assert!(matches!(init.hear(), ToGuest::Stop));
    let pressed = press_ctrl_c(&replacing);
    let output = replacing.wait_with_output().unwrap();
    println!("{} after {:?}: {}", output.status, pressed.elapsed(), stderr(&output));
    assert!(pressed.elapsed() < SOON);
    assert_eq!(output.status.code(), Some(130));
    assert!(stderr(&output).contains("stub is still being stopped"), "{}", stderr(&output));
    // Its grace is its own: nobody cut it short.
    assert!(before.supervisor.is_alive() && before.vmm.as_ref().unwrap().is_alive());
    end(&mut init);
    wait_for("it does not end", || !before.supervisor.is_alive());
    let ended = State::load(&cli.spec_dir()).unwrap().unwrap();
    assert_eq!((ended.status, ended.reason), (Status::Exited, Some(Reason::Stopped)));
    down(&cli, &before);
}

#[test]
fn ctrl_c_during_down_leaves_the_stop_to_the_vm() {
    let Some(cli) = cli(Stub::Halt, VM) else { return };
    let (mut init, before) = up(&cli);
    let stopping = spawn(&cli, &["down"]);
    assert!(matches!(init.hear(), ToGuest::Stop));
    let pressed = press_ctrl_c(&stopping);
    let output = stopping.wait_with_output().unwrap();
    println!("{} after {:?}: {}", output.status, pressed.elapsed(), stderr(&output));
    assert!(pressed.elapsed() < SOON);
    assert!(output.status.signal() == Some(libc::SIGINT) || output.status.code() == Some(130));
    assert!(before.supervisor.is_alive() && before.vmm.as_ref().unwrap().is_alive());
    end(&mut init);
    wait_for("it does not end", || !before.supervisor.is_alive());
    down(&cli, &before);
}

#[test]
fn ctrl_c_during_the_boot_of_a_throw_away_vm_leaves_nothing() {
    let Some(cli) = cli(Stub::Halt, VM) else { return };
    assert!(cli.run(&["build"]).status.success());
    let project = cli.home().join("state/fc-cli");
    let vm = || {
        let mut dirs = std::fs::read_dir(&project).into_iter().flatten().flatten();
        dirs.find(|e| e.file_name().to_string_lossy().starts_with("run-")).map(|e| e.path())
    };
    let run = spawn(&cli, &["run"]);
    wait_for("the guest never spoke", || vm().is_some_and(|dir| spoke(&dir)));
    let dir = vm().unwrap();
    let state = State::load(&dir).unwrap().unwrap();
    let pressed = press_ctrl_c(&run);
    let output = run.wait_with_output().unwrap();
    println!("{} after {:?}: {}", output.status, pressed.elapsed(), stderr(&output));
    assert!(pressed.elapsed() < SOON);
    assert_eq!(output.status.code(), Some(130), "no workload ran that could have had a code");
    // The supervisor answers before it has put everything away.
    wait_for("the supervisor stays", || !state.supervisor.is_alive() && !dir.exists());
    assert_eq!(processes_of(&jail_name(&state)), 0);
}

#[test]
fn an_impatient_stop_becomes_a_kill() {
    let Some(project) = project() else { return };
    let mut spec = project.spec("impatient", "halting");
    spec.run.grace_ms = 60_000;
    let _client = project.up(&spec);
    wait_for_console(&spec);
    let mut init = Init::start(&spec.dir);
    wait_for("it does not run", || state(&spec).status == Status::Running);
    let begin = Instant::now();
    let wish = || match begin.elapsed() > Duration::from_millis(300) {
        true => supervise::Wish::Kill,
        false => supervise::Wish::Wait,
    };
    let limit = Duration::from_secs(600);
    let outcome =
        supervise::stop_while(&project.home, &project.name, &spec.vm, limit, &wish).unwrap().unwrap();
    println!("{outcome:?} after {:?}", begin.elapsed());
    assert!(matches!(init.hear(), ToGuest::Stop), "it was asked first");
    assert_eq!(outcome.reason, Reason::Killed);
    assert!(begin.elapsed() < SOON);
    project.assert_clean(&spec);
}

#[test]
fn a_successor_that_cannot_start_does_not_cost_the_vm_it_would_replace() {
    let vm = |size: &str, more: &str| format!("{VM}; volume \"data\" at=\"/data\" size=\"{size}\"; {more}");
    let Some(cli) = cli_since((1, 7), Stub::Halt, &vm("32MiB", "")) else { return };
    let (mut init, before) = up(&cli);
    let more_volumes: String =
        (0..16).map(|n| format!("volume \"v{n}\" at=\"/v{n}\" size=\"32MiB\"; ")).collect();
    for (manifest, code, says) in [
        (vm("64MiB", ""), 64, "a volume keeps its size"),
        (vm("32MiB", "secret \"KEY\" env=\"FIREGOPHER_TEST_UNSET\""), 64, "FIREGOPHER_TEST_UNSET"),
        (vm("32MiB", "memory \"512GiB\"; huge-pages \"2MiB\""), 69, "sysctl vm.nr_hugepages="),
        (vm("32MiB", "memory \"1024GiB\""), 69, "more than this host has"),
        (vm("32MiB", &more_volumes), 64, "drives are more than Firecracker"),
    ] {
        cli.manifest(&manifest);
        let output = cli.run(&["up", "-d"]);
        println!("{}", stderr(&output));
        assert_eq!(output.status.code(), Some(code));
        assert!(stderr(&output).contains(says));
        let now = State::load(&cli.spec_dir()).unwrap().unwrap();
        assert_eq!((now.supervisor, now.status), (before.supervisor.clone(), Status::Running));
        assert!(before.supervisor.is_alive() && before.vmm.as_ref().unwrap().is_alive());
    }
    // Its own lock on the volume is no reason: it will have been given up.
    cli.manifest(&vm("32MiB", "memory \"160MiB\""));
    let replacing = spawn(&cli, &["up", "-d"]);
    assert!(matches!(init.hear(), ToGuest::Stop));
    end(&mut init);
    wait_for("no successor", || {
        spoke(&cli.spec_dir())
            && State::load(&cli.spec_dir())
                .is_ok_and(|s| s.is_some_and(|s| s.supervisor != before.supervisor))
    });
    let mut init = Init::start(&cli.spec_dir());
    let output = replacing.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let after = State::load(&cli.spec_dir()).unwrap().unwrap();
    assert!(after.supervisor.is_alive());
    end(&mut init);
    down(&cli, &after);
}
