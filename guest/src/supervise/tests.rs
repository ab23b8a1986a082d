//! The whole loop with real processes, as PID 1 of a PID namespace: only there may it signal everybody.

use super::*;
use crate::boot;
use crate::testing::{alone, root};
use crate::user::Account;
use crate::workload::Launch;
use firegopher_protocol::{Decoder, RunConfig, encode_frame};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// What the host saw.
#[derive(Default)]
struct Seen {
    out: Vec<u8>,
    err: Vec<u8>,
    messages: Vec<FromGuest>,
    record: ExitRecord,
}

/// Runs `script` by sh under the supervisor; `host` plays the host's part with the stream. `None` where there is no
/// right to do so.
fn supervise(script: &str, stdin: bool, host: impl FnOnce(&mut UnixStream)) -> Option<Seen> {
    supervise_with(script, stdin, Some(STALLED), host)
}

/// The same with this much time for a host that takes no output.
fn supervise_with(
    script: &str,
    stdin: bool,
    stalled: Option<Duration>,
    host: impl FnOnce(&mut UnixStream),
) -> Option<Seen> {
    if !root("a PID namespace") {
        return None;
    }
    let _alone = alone();
    let (guest, mut stream) = UnixStream::pair().unwrap();
    // The kernel doubles it.
    setsockopt(&guest, sockopt::SndBuf, &(100 * 1024)).unwrap();
    let mut config = boot::tests::config();
    config.argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    config.stdin = stdin;
    config.grace_ms = 700;
    // The namespace holds for children of this thread only; one child makes the namespace, its child is PID 1 in it.
    // SAFETY: the child calls nothing that another thread of the test may hold a lock of but the allocator, which
    // glibc keeps usable across fork.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            close_all_but(guest.as_raw_fd());
            let code = std::panic::catch_unwind(|| in_namespace(guest, &config, stalled)).unwrap_or(99);
            // SAFETY: _exit runs nothing of the test harness.
            unsafe { libc::_exit(code) }
        }
    };
    drop(guest);
    host(&mut stream);
    let mut wire = Vec::new();
    stream.read_to_end(&mut wire).unwrap();
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    let mut decoder = Decoder::default();
    decoder.push(&wire);
    let mut seen = Seen::default();
    while let Some(frame) = decoder.frame().unwrap() {
        match frame.channel {
            channel::STDOUT => seen.out.extend(frame.payload),
            channel::STDERR => seen.err.extend(frame.payload),
            _ => match serde_json::from_slice(&frame.payload).unwrap() {
                FromGuest::Exit(record) => seen.record = record,
                other => seen.messages.push(other),
            },
        }
    }
    Some(seen)
}

/// The host's end above all: with a copy of it in here, its closing would go unseen.
fn close_all_but(keep: i32) {
    for fd in (3..1024).filter(|fd| *fd != keep) {
        // SAFETY: this process is a copy that uses no descriptor but `keep` and standard error from here on.
        unsafe { libc::close(fd) };
    }
}

fn in_namespace(guest: UnixStream, config: &RunConfig, stalled: Option<Duration>) -> i32 {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(guest);
            i32::from(waitpid(child, None).unwrap() != WaitStatus::Exited(child, 0))
        }
        ForkResult::Child => {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
            let account =
                Account { name: None, uid: 0, gid: 0, groups: vec![0], home: "/".into(), created: false };
            let mut control = Control::over(guest.into());
            let signals = boot::child_signals().unwrap();
            let workload = Launch::new(config, &account).unwrap().start().unwrap();
            let grace = Duration::from_millis(config.grace_ms);
            let record = run(&mut control, &signals, workload, grace, stalled);
            assert_eq!(processes::reap(), Reaped::Childless);
            control.send(FromGuest::Exit(record));
            let end = Instant::now() + Duration::from_secs(10);
            while control.pending() && Instant::now() < end {
                control.wait(Duration::from_millis(20));
            }
            assert!(!control.pending());
            // SAFETY: _exit runs nothing of the test harness.
            unsafe { libc::_exit(0) }
        }
    }
}

fn send(stream: &mut UnixStream, channel: u16, payload: &[u8]) {
    let mut wire = Vec::new();
    encode_frame(channel, payload, &mut wire).unwrap();
    stream.write_all(&wire).unwrap();
}

/// Reads until the workload has printed something.
fn await_output(stream: &mut UnixStream) {
    stream.read_exact(&mut [0; 7]).unwrap();
}

/// Those tests read the first bytes themselves: one frame of one byte, "." of `printf .`.
const READY: &str = "printf . ;";

#[test]
fn code_and_all_output_are_reported() {
    let Some(seen) = supervise("echo out; echo err >&2; head -c 3000000 /dev/zero; exit 7", false, |_| {})
    else {
        return;
    };
    assert_eq!((seen.record.code, seen.record.signal), (Some(7), None));
    assert_eq!((seen.out.len(), seen.err.as_slice()), (3_000_004, b"err\n".as_slice()));
}

#[test]
fn output_waits_without_end_only_where_the_host_may_look_at_it_first() {
    // More than the queue and the socket hold and less than the pipe holds besides: it ends with output unsent.
    let script = "head -c 500000 /dev/zero; exit 7";
    let looks = |_: &mut UnixStream| std::thread::sleep(Duration::from_secs(3));
    let Some(seen) = supervise_with(script, false, None, looks) else { return };
    assert_eq!((seen.record.code, seen.out.len()), (Some(7), 500_000));
    let seen = supervise_with(script, false, Some(Duration::from_millis(300)), looks).unwrap();
    assert_eq!(seen.record.code, Some(7));
    assert!(seen.out.len() < 500_000, "nothing was given up: {}", seen.out.len());
}

#[test]
fn a_signal_is_reported_even_a_real_time_one() {
    for (script, signal) in [("kill -SEGV $$", 11), ("kill -34 $$", 34)] {
        let Some(seen) = supervise(script, false, |_| {}) else { return };
        assert_eq!((seen.record.code, seen.record.signal), (None, Some(signal)));
    }
}

#[test]
fn orphans_are_reaped_and_never_taken_for_the_workload() {
    let script = "for i in 1 2 3 4 5 6 7 8; do (sh -c 'exit 3' &) ; done; sleep 0.2; \
                  grep -hs '^State:.*Z' /proc/[0-9]*/status && exit 9; (setsid sleep 1000 &); exit 5";
    let Some(seen) = supervise(script, false, |_| {}) else { return };
    assert_eq!(seen.record.code, Some(5), "{}", String::from_utf8_lossy(&seen.out));
}

#[test]
fn stop_gives_its_grace_and_then_kills() {
    let stop = |stream: &mut UnixStream| {
        await_output(stream);
        send(stream, channel::CONTROL, br#"{"type":"stop"}"#);
    };
    let polite = format!("trap 'echo bye; exit 3' TERM; {READY} while :; do sleep 0.05; done");
    let Some(seen) = supervise(&polite, false, stop) else { return };
    assert_eq!((seen.record.code, seen.out.as_slice()), (Some(3), b"bye\n".as_slice()));
    let begun = Instant::now();
    let deaf = format!("trap '' TERM; {READY} while :; do sleep 0.05; done");
    let seen = supervise(&deaf, false, stop).unwrap();
    assert_eq!(seen.record.signal, Some(9));
    assert!(begun.elapsed() >= Duration::from_millis(700));
}

#[test]
fn a_child_of_a_stopped_shell_may_use_the_grace() {
    let script = format!(
        "sh -c \"trap 'sleep 0.3; echo saved; exit' TERM; {READY} while :; do sleep 0.05; done\" & wait"
    );
    let Some(seen) = supervise(&script, false, |stream| {
        await_output(stream);
        send(stream, channel::CONTROL, br#"{"type":"stop"}"#);
    }) else {
        return;
    };
    assert_eq!((seen.record.signal, seen.out.as_slice()), (Some(15), b"saved\n".as_slice()));
}

#[test]
fn input_arrives_whole_is_credited_and_ends() {
    let Some(seen) = supervise("wc -c; sleep 0.1", true, |stream| {
        for _ in 0..8 {
            send(stream, channel::STDIN, &[b'x'; 30_000]);
        }
        send(stream, channel::STDIN, b"");
    }) else {
        return;
    };
    assert_eq!(String::from_utf8_lossy(&seen.out).trim(), "240000");
    let taken: usize =
        seen.messages.iter().map(|m| if let FromGuest::StdinTaken { bytes } = m { *bytes } else { 0 }).sum();
    assert_eq!(taken, 240_000);
}

#[test]
fn unread_input_does_not_hold_up_a_signal() {
    let Some(seen) =
        supervise(&format!("trap 'exit 4' USR1; {READY} while :; do sleep 0.05; done"), true, |stream| {
            await_output(stream);
            for _ in 0..STDIN_WINDOW / 1024 / 32 {
                send(stream, channel::STDIN, &[0; 32 * 1024]);
            }
            send(stream, channel::CONTROL, br#"{"type":"signal","signal":10}"#);
        })
    else {
        return;
    };
    assert_eq!(seen.record.code, Some(4));
}

#[test]
fn a_malformed_frame_closes_the_channel_and_the_workload_goes_on() {
    let marker = std::env::temp_dir().join(format!("firegopher-init-marker-{}", std::process::id()));
    let script = format!("{READY} sleep 0.2; yes | head -c 1000000; touch {}", marker.display());
    let Some(seen) = supervise(&script, false, |stream| {
        await_output(stream);
        stream.write_all(&[0xff; 64]).unwrap();
    }) else {
        return;
    };
    assert!(matches!(seen.messages.as_slice(), [FromGuest::Warning { .. }]), "{:?}", seen.messages);
    assert!(marker.exists());
    std::fs::remove_file(marker).unwrap();
}

fn signal(stream: &mut UnixStream, signal: i32) {
    let message = format!(r#"{{"type":"signal","signal":{signal}}}"#);
    send(stream, channel::CONTROL, message.as_bytes());
}

#[test]
fn what_writes_to_a_closed_output_is_ended_by_sigpipe() {
    for (on, script) in [(channel::STDOUT, "exec yes"), (channel::STDERR, "exec yes >&2")] {
        let script = format!("{READY} {script}");
        let Some(seen) = supervise(&script, false, |stream| {
            await_output(stream);
            send(stream, channel::CONTROL, format!(r#"{{"type":"close-output","channel":{on}}}"#).as_bytes());
        }) else {
            return;
        };
        assert_eq!((seen.record.code, seen.record.signal), (None, Some(libc::SIGPIPE)));
    }
    // The other output stays, and so does a program that writes no more.
    let script = format!("{READY} read line; echo left >&2; exit 6");
    let seen = supervise(&script, true, |stream| {
        await_output(stream);
        send(stream, channel::CONTROL, br#"{"type":"close-output","channel":2}"#);
        send(stream, channel::STDIN, b"go\n");
    });
    let seen = seen.unwrap();
    assert_eq!((seen.record.code, seen.err.as_slice()), (Some(6), b"left\n".as_slice()));
}

#[test]
fn every_signal_reaches_the_workload_as_itself() {
    for number in [1, 2, 3, 10, 12, 14, 15, 18, 20, 28] {
        let script =
            format!("trap 'echo got {number}; exit 9' {number}; {READY} while :; do sleep 0.05; done");
        let Some(seen) = supervise(&script, false, |stream| {
            await_output(stream);
            signal(stream, number);
        }) else {
            return;
        };
        assert_eq!(seen.record.code, Some(9), "signal {number}");
        assert_eq!(String::from_utf8_lossy(&seen.out), format!("got {number}\n"));
    }
}

#[test]
fn a_terminals_stop_signal_stops_and_a_stop_ends_what_is_stopped() {
    // Outside of the workload's group once it is ready, so that it is not stopped as well.
    let script = format!(
        "trap 'exit 5' TERM; setsid sh -c \"{READY} until grep -q '^State:.T' /proc/$$/status; do sleep 0.05; \
         done; echo stopped\" & while :; do sleep 0.05; done"
    );
    let Some(seen) = supervise(&script, false, |stream| {
        await_output(stream);
        signal(stream, libc::SIGTSTP);
        let mut shown = Vec::new();
        while !shown.ends_with(b"stopped\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        send(stream, channel::CONTROL, br#"{"type":"stop"}"#);
    }) else {
        return;
    };
    assert_eq!(seen.record.code, Some(5));
}
