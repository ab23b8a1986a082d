//! Readers that are slow, that stop and that go away; output of any kind and length; signals that are passed on.

use crate::harness::{Project, guests};
use crate::traces::assert_clean;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// A command whose output is read by hand.
struct Piped {
    child: Child,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Piped {
    fn start(project: &Project, args: &[&str], stdin: Stdio) -> Piped {
        // As a shell starts its jobs: it can continue them.
        Piped::start_in(project, args, stdin, || nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)))
    }

    /// In a process group that nobody could continue.
    fn start_orphaned(project: &Project, args: &[&str], stdin: Stdio) -> Piped {
        Piped::start_in(project, args, stdin, || nix::unistd::setsid().map(drop))
    }

    fn start_in(project: &Project, args: &[&str], stdin: Stdio, group: fn() -> nix::Result<()>) -> Piped {
        let mut command = project.command(args);
        let command = command.inner();
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As at a terminal, whatever starts these tests ignores.
        // SAFETY: signal(2), setpgid(2) and setsid(2) are async-signal-safe, and nothing else happens between fork and
        // exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, move || {
                group()?;
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let stderr = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        Piped { child, stdout, stderr }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes plain numbers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Reads standard output until it ends with this.
    fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(text.as_bytes()) {
            let mut byte = [0];
            let count = self.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert_eq!(count, 1, "it ended after {:?}", String::from_utf8_lossy(&read));
            read.push(byte[0]);
        }
        String::from_utf8(read).unwrap()
    }

    /// Waits for the end; the exit code and standard error.
    fn end(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > SOON {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut stderr = String::new();
        self.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status, stderr)
    }
}

/// Resident memory of a process in bytes.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The process's state, one letter.
fn state_of(pid: i32) -> char {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap().chars().next().unwrap()
}

fn wait_state(pid: i32, wanted: impl Fn(char) -> bool) {
    let begun = Instant::now();
    while !wanted(state_of(pid)) {
        assert!(begun.elapsed() < SOON, "it is {:?}", state_of(pid));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The state of the one throw-away VM.
fn throw_away(project: &Project) -> serde_json::Value {
    let dirs = std::fs::read_dir(project.state_dir()).unwrap().flatten();
    let run =
        dirs.map(|d| d.file_name().into_string().unwrap()).find(|name| name.starts_with("run-")).unwrap();
    project.state(&run)
}

fn boxed() -> Project {
    Project::new(r#"vm "box" { memory "128MiB"; run "sh" "-c" "echo from the manifest" }"#)
}

/// How long the long form goes on: FIREGOPHER_TEST_SOAK, in seconds.
fn soak(short: u64) -> Duration {
    let wanted = std::env::var("FIREGOPHER_TEST_SOAK").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(wanted.unwrap_or(short))
}

#[test]
fn a_closed_pipe_ends_a_throw_away_vm() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    let mut run = Piped::start(&project, &["run", "--", "yes"], Stdio::null());
    run.read_until("y\n");
    run.stdout = None;
    let (status, stderr) = run.end();
    assert_eq!((status.code(), stderr.lines().any(|l| l.contains("error"))), (Some(141), false), "{stderr}");
    assert_clean(&project);
    // What still writes to the other output is not ended by it, and a program may deal with it by itself.
    let script = "trap '' PIPE; echo go; read line; echo lost || echo noticed >&2; exit 6";
    let (theirs, ours) = nix::unistd::pipe().unwrap();
    let mut run = Piped::start(&project, &["run", "--", "sh", "-c", script], theirs.into());
    run.read_until("go\n");
    run.stdout = None;
    // Seen without a byte being written.
    std::thread::sleep(Duration::from_secs(1));
    File::from(ours).write_all(b"on\n").unwrap();
    let (status, stderr) = run.end();
    assert!(stderr.contains("noticed\n"), "{stderr}");
    assert_eq!(status.code(), Some(6));
}

#[test]
fn a_reader_that_stops_makes_the_workload_wait_and_signals_still_end_it() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    let mut run = Piped::start(&project, &["run", "--", "yes"], Stdio::null());
    run.read_until("y\n");
    std::thread::sleep(Duration::from_secs(2));
    let supervisor = throw_away(&project)["supervisor"]["pid"].as_i64().unwrap() as i32;
    let before = (resident(run.pid()), resident(supervisor));
    // Nobody reads. It grew by 150 MB/s.
    std::thread::sleep(soak(4));
    let after = (resident(run.pid()), resident(supervisor));
    println!("the command and its supervisor: {before:?} bytes, then {after:?}");
    assert!(after.0 < before.0 + (16 << 20) && after.1 < before.1 + (16 << 20), "{before:?} {after:?}");
    assert!(after.0 < 128 << 20 && after.1 < 128 << 20, "{after:?}");
    let begun = Instant::now();
    run.signal(libc::SIGTERM);
    let (status, stderr) = run.end();
    assert_eq!(status.code(), Some(143), "{stderr}");
    assert!(stderr.contains("the workload was ended by SIGTERM"), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_clean(&project);
}

#[test]
fn what_a_program_writes_arrives_byte_for_byte() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    // Every byte, and every kind of line; 100 MB in the long form.
    let megabytes = if std::env::var_os("FIREGOPHER_TEST_SOAK").is_some() { 100 } else { 8 };
    let mut seed = 1_u64;
    let data: Vec<u8> = (0..megabytes << 20)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect();
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(&data).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let mut run = Piped::start(&project, &["run", "--", "sh", "-c", "cat; echo told >&2"], input.into());
    let mut output = Vec::new();
    run.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(output == data, "{} of {} bytes came back", output.len(), data.len());
    let (status, stderr) = run.end();
    assert!(status.code() == Some(0) && stderr.ends_with("told\n"), "{status:?} {stderr}");
}

#[test]
fn signals_reach_the_workload_as_they_are() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    let script = "for s in HUP QUIT USR1 USR2 WINCH TSTP CONT INT; do trap \"echo got $s\" $s; done; \
                  trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run = Piped::start(&project, &["run", "--", "sh", "-c", script], Stdio::null());
    run.read_until("ready\n");
    let all = [
        (libc::SIGHUP, "HUP"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
        (libc::SIGWINCH, "WINCH"),
    ];
    for (signal, name) in all {
        run.signal(signal);
        assert_eq!(run.read_until("\n"), format!("got {name}\n"));
    }
    // Ctrl-Z suspends the command as well, until it goes on.
    run.signal(libc::SIGTSTP);
    wait_state(run.pid(), |state| state == 'T');
    run.signal(libc::SIGCONT);
    wait_state(run.pid(), |state| state != 'T');
    let mut both = [run.read_until("\n"), run.read_until("\n")];
    both.sort();
    assert_eq!(both, ["got CONT\n", "got TSTP\n"]);
    run.signal(libc::SIGINT);
    assert_eq!(run.read_until("\n"), "got INT\n");
    run.signal(libc::SIGQUIT);
    assert_eq!(run.read_until("\n"), "got QUIT\n");
    // The second that asks for the end kills its VM; before, SIGTERM is its workload's to deal with.
    run.signal(libc::SIGTERM);
    let (status, _) = run.end();
    assert_eq!(status.code(), Some(137), "killed");
    assert_clean(&project);
    for (signal, code, name) in [(libc::SIGINT, 130, "SIGINT"), (libc::SIGHUP, 129, "SIGHUP")] {
        let script = "echo ready; exec sleep 1000";
        let mut run = Piped::start_orphaned(&project, &["run", "--", "sh", "-c", script], Stdio::null());
        run.read_until("ready\n");
        // Ctrl-Z stops neither the command nor its workload where nobody could continue them.
        run.signal(libc::SIGTSTP);
        std::thread::sleep(Duration::from_secs(1));
        assert_ne!(state_of(run.pid()), 'T');
        run.signal(signal);
        let (status, stderr) = run.end();
        assert_eq!(status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(&format!("the workload was ended by {name}")), "{stderr}");
    }
    assert_clean(&project);
}

#[test]
fn ctrl_c_while_up_boots_exits_with_130() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(r#"vm "a" { memory "128MiB"; run "sleep" "1000" }"#);
    project.ok(&["build"]);
    let up = Piped::start(&project, &["up"], Stdio::null());
    let begun = Instant::now();
    while project.ps("a").is_none_or(|row| row["status"] != "starting" && row["status"] != "running") {
        assert!(begun.elapsed() < SOON);
    }
    let booting = project.ps("a").is_some_and(|row| row["status"] == "starting");
    up.signal(libc::SIGINT);
    let (status, stderr) = up.end();
    // It may have come up in between.
    let ran = !booting || stderr.contains("a runs");
    assert_eq!(status.code(), Some(if ran { 0 } else { 130 }), "{stderr}");
    assert_clean(&project);
}

/// Output of every kind, then a prompt without an end.
const TALK: &str = r#"vm "talk" { memory "128MiB"
    run "sh" "-c" "printf '10%%\\r20%%\\r'; sleep 1; printf '\\033[31mred\\033[0m \\007\\r\\n'; head -c 40000 /dev/zero | tr '\\000' x; printf '\\nname? '; sleep 1000"
}"#;

#[test]
fn up_shows_what_has_no_end_of_line_and_leaves_its_vms_when_its_reader_goes() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(TALK);
    let mut up = Piped::start(&project, &["up"], Stdio::null());
    let text = up.read_until("name? ");
    let long = format!("{0}\n{0}\n{1}\n", "x".repeat(16 * 1024), "x".repeat(40_000 - 32 * 1024));
    let wanted = format!("10%\n20%\nred \\x07\n{long}name? ");
    assert!(text == wanted, "{:.60} … {} bytes instead of {}", text, text.len(), wanted.len());
    up.stdout = None;
    let (status, stderr) = up.end();
    assert_eq!(status.code(), Some(141), "{stderr}");
    assert!(stderr.contains("The VMs run on. `firegopher down` stops them."), "{stderr}");
    assert_eq!(project.ps("talk").unwrap()["status"], "running");
    // The same words from the log, whole; with their colours where those are asked for.
    assert!(project.logs("talk") == format!("{wanted}\n"), "{:.60}", project.logs("talk"));
    project.ok(&["logs", "--color", "always"]).prints("\n\x1b[31mred\x1b[0m \\x07\n");
    // A reader that goes away ends what writes, without a word.
    for args in
        [&["logs", "-f"][..], &["logs"], &["logs", "--console"], &["ps"], &["plan", "--json"], &["store"]]
    {
        let mut command = Piped::start(&project, args, Stdio::null());
        command.stdout = None;
        let (status, stderr) = command.end();
        assert_eq!((status.code(), stderr.as_str()), (Some(141), ""), "{args:?}");
    }
    if !firegopher::vmm::probe::kvm().is_usable() {
        let metrics = project.run(&["logs", "--metrics"]).expect(1);
        metrics.says("there are no metrics of VM talk").says("it runs under QEMU, and only Firecracker");
    }
    // Attached to a VM that ran before, with a reader that reads nothing.
    let up = Piped::start(&project, &["up"], Stdio::null());
    std::thread::sleep(Duration::from_secs(1));
    up.signal(libc::SIGTERM);
    let (status, stderr) = up.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    project.ok(&["down"]);
    assert_clean(&project);
}

#[test]
fn up_stays_small_and_stops_while_nobody_reads() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(r#"vm "a" { memory "128MiB"; run "sh" "-c" "yes | tr -d '\\n'" }"#);
    let mut up = Piped::start(&project, &["up"], Stdio::null());
    up.read_until("yyyy");
    std::thread::sleep(Duration::from_secs(2));
    let before = resident(up.pid());
    std::thread::sleep(soak(4));
    let after = resident(up.pid());
    println!("the command: {before} bytes, then {after}");
    assert!(after < before + (16 << 20) && after < 128 << 20, "{before} {after}");
    up.signal(libc::SIGINT);
    let (status, stderr) = up.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("a stopped") || stderr.contains("a was killed"), "{stderr}");
    assert_clean(&project);
}

#[test]
fn logs_of_what_was_never_started_say_so() {
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
    project.manifest("vm \"web\" { run \"x\" }\nvm \"db\" { run \"x\" }");
    let all =
        project.run(&["logs"]).expect(1).says("web, db have not been started yet").says("firegopher up");
    assert_eq!(all.stdout, "");
    project.run(&["logs", "-f", "web"]).expect(1).says("web has not been started yet");
    project.run(&["logs", "wbe"]).expect(64).says("there is no VM named \"wbe\"");
}

#[test]
fn commands_whose_reader_is_gone_end_without_a_word() {
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
    project.manifest("vm \"web\" { run \"x\" }");
    for args in [
        &["plan"][..],
        &["ps"],
        &["doctor"],
        &["store", "--json"],
        &["completions", "bash"],
        &["verify", "--json"],
    ] {
        let mut command = project.command(args);
        let command = command.inner();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let output = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(141), "{args:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panic"), "{args:?}: {stderr}");
    }
    // Nor does a closed standard error make anything of it.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let mut command = project.command(&["plan", "nonsense"]);
    let status = command.inner().stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(64));
    let fresh = Project::empty().with_home(&own.path().join("home"));
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let mut command = fresh.command(&["init"]);
    let status = command.inner().stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
