//! Runs commands with a time limit and keeps what they said.

use super::PATIENCE;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A command that is about to run.
pub struct Command {
    inner: std::process::Command,
    limit: Duration,
    stdin: Vec<u8>,
}

/// What a command that ended said.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A command that runs; killed when dropped.
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    begun: Instant,
}

impl Command {
    pub fn new(inner: std::process::Command) -> Command {
        Command { inner, limit: PATIENCE * 2, stdin: Vec::new() }
    }

    pub fn env(mut self, name: &str, value: &str) -> Command {
        self.inner.env(name, value);
        self
    }

    /// What the command reads; nothing unless set.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Command {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take.
    pub fn limit(mut self, limit: Duration) -> Command {
        self.limit = limit;
        self
    }

    /// The command itself, to be changed further.
    pub fn inner(&mut self) -> &mut std::process::Command {
        &mut self.inner
    }

    /// Starts it.
    pub fn spawn(mut self) -> Running {
        self.inner.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A shell's background jobs ignore SIGINT and SIGQUIT, and `nohup` SIGHUP; what they start inherits that, and
        // leaves it so. Commands at a terminal do not.
        // SAFETY: signal(2) is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            self.inner.pre_exec(|| {
                for signal in [nix::libc::SIGINT, nix::libc::SIGQUIT, nix::libc::SIGHUP] {
                    nix::libc::signal(signal, nix::libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let begun = Instant::now();
        let mut child = self.inner.spawn().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", self.inner));
        let mut stdin = child.stdin.take().unwrap();
        // A command that does not read ends the pipe; that is not this test's business.
        std::thread::spawn(move || drop(stdin.write_all(&self.stdin)));
        let stdout = Some(collect(child.stdout.take().unwrap()));
        let stderr = Some(collect(child.stderr.take().unwrap()));
        Running { child, stdout, stderr, begun }
    }

    /// Runs it to its end.
    pub fn output(self) -> Output {
        let limit = self.limit;
        self.spawn().wait(limit)
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is all there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: i32) {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid()),
            nix::sys::signal::Signal::try_from(signal).unwrap(),
        )
        .unwrap();
    }

    /// Whether it has ended, without waiting.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end, which must come within `limit`.
    pub fn wait(mut self, limit: Duration) -> Output {
        let status = loop {
            if let Some(status) = self.ended() {
                break Some(status);
            }
            if self.begun.elapsed() > limit {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = self.begun.elapsed();
        let text = |pipe: Option<JoinHandle<Vec<u8>>>| {
            String::from_utf8_lossy(&pipe.unwrap().join().unwrap()).into_owned()
        };
        let stdout = text(self.stdout.take());
        let stderr = text(self.stderr.take());
        let output = Output { code: status.and_then(|s| s.code()), stdout, stderr, took };
        assert!(status.is_some(), "not done after {limit:?}: {output:?}");
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stdout.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Output {
    /// Requires an exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Output {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Requires a text on stderr.
    #[track_caller]
    pub fn says(self, text: &str) -> Output {
        assert!(self.stderr.contains(text), "{text:?} is not in stderr:\n{}", self.stderr);
        self
    }

    /// Requires a text on stdout.
    #[track_caller]
    pub fn prints(self, text: &str) -> Output {
        assert!(self.stdout.contains(text), "{text:?} is not in stdout:\n{}", self.stdout);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}
