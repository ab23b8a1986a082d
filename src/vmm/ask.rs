//! Asks a program of this host something. It gets no environment, and is bounded in time and in what it says.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than what the programs say that are asked.
const MAX_OUTPUT: u64 = 256 << 10;

/// What `program` says on its standard output, having read `input`; its status does not matter.
pub(super) fn ask(program: &Path, args: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let answer = answer(&mut child, input);
    if answer.is_err() {
        // Its children as well, which would keep the pipe open. It is not reaped yet, so the group is its own.
        let group = nix::unistd::Pid::from_raw(child.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = child.wait();
    }
    answer
}

fn answer(child: &mut Child, input: &str) -> io::Result<Vec<u8>> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {PATIENCE:?}"));
    let until = Instant::now() + PATIENCE;
    let mut stdout = child.stdout.take().expect("invariant: stdout is piped");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let read = stdout.by_ref().take(MAX_OUTPUT).read_to_end(&mut said);
        // Nobody waits any more if it was late.
        let _ = tell.send(read.map(|_| said));
    });
    // One that reads nothing is judged by what it says. A pipe holds more than any question.
    let _ = child.stdin.take().expect("invariant: stdin is piped").write_all(input.as_bytes());
    let said = told.recv_timeout(PATIENCE).map_err(|_| late())??;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            return Err(late());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(said)
}
