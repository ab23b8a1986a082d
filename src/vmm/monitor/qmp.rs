//! Follows a running QEMU through QMP and its pidfd.

use super::condition::Reporter;
use super::events::{CONTINUE, Events};
use super::words::{Said, Words};
use super::{Death, Ended, Exit};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A QMP line is a few hundred bytes; a VMM that sends more without a newline is not listened to any further.
const LINE_MAX: usize = 1 << 20;

/// The connection to one QEMU.
#[derive(Debug)]
pub struct QmpMonitor {
    qmp: Qmp,
    pidfd: Exit,
    child: Child,
    pub(super) words: Words,
    pub(super) reporter: Reporter,
    received: Vec<u8>,
    events: Events,
    done: Option<Ended>,
}

/// Made outside a runtime, registered with the one that first waits.
#[derive(Debug)]
enum Qmp {
    New(UnixStream),
    Open(tokio::net::UnixStream),
    Closed,
}

impl QmpMonitor {
    /// Takes over the QMP connection and negotiates: events come only after that. `target` is what a balloon leaves
    /// to the guest, in bytes.
    pub(crate) fn new(
        qmp: UnixStream,
        pidfd: OwnedFd,
        child: Child,
        stderr: OwnedFd,
        target: Option<u64>,
    ) -> io::Result<QmpMonitor> {
        // QEMU reads it after its greeting; nothing has to be awaited.
        let mut first = "{\"execute\":\"qmp_capabilities\"}\n".to_owned();
        if let Some(bytes) = target {
            // The device keeps it for the driver that comes later.
            first += &format!("{{\"execute\":\"balloon\",\"arguments\":{{\"value\":{bytes}}}}}\n");
        }
        io::Write::write_all(&mut &qmp, first.as_bytes())?;
        qmp.set_nonblocking(true)?;
        let (qmp, pidfd) = (Qmp::New(qmp), Exit::New(pidfd));
        let words = Words::new([(Said::Log, stderr)]);
        let (reporter, events) = (Reporter::new(), Events::default());
        Ok(QmpMonitor { qmp, pidfd, child, words, reporter, received: Vec::new(), events, done: None })
    }

    /// Waits for the VMM's end, reaps it and says how it came. Later calls repeat the answer.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        if let Some(done) = &self.done {
            return Ok(done.clone());
        }
        self.register()?;
        loop {
            let mut chunk = [0; 4096];
            tokio::select! {
                biased;
                got = read(&mut self.qmp, &mut chunk) => match got {
                    0 => self.close(),
                    n => {
                        self.received.extend_from_slice(&chunk[..n]);
                        self.digest();
                        if self.received.len() > LINE_MAX {
                            self.close();
                        }
                    }
                },
                Some(()) = self.reporter.resume.recv() => self.send(CONTINUE),
                ready = self.pidfd.wait() => {
                    ready?;
                    break;
                }
                () = self.words.hear() => {}
            }
        }
        self.words.drain();
        // The process is gone; what it said last may still be in the socket.
        if let Qmp::Open(stream) = &self.qmp {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stream.try_read(&mut chunk) {
                self.received.extend_from_slice(&chunk[..n]);
            }
            self.digest();
        }
        let status = self.child.wait()?; // Ready already: it does not block.
        let done = match self.events.reason.take() {
            Some(reason) => reason,
            None => Ended::Died(Death { status, stderr: self.words.tail() }),
        };
        Ok(self.done.insert(done).clone())
    }

    /// Asks the VMM to quit at once, without the guest's consent. One that is gone already is no error.
    pub async fn quit(&mut self) -> io::Result<()> {
        self.register()?;
        if let Qmp::Open(stream) = &mut self.qmp {
            match stream.write_all(b"{\"execute\":\"quit\"}\n").await {
                Err(e) if !matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes whole lines out of what was received.
    fn digest(&mut self) {
        while let Some(end) = self.received.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            if let Some(command) = self.events.line(&line, &self.reporter.condition) {
                self.send(command);
            }
        }
    }

    /// Sends a command, which is far smaller than the socket. One that finds no room there, as QEMU reads nothing, is
    /// dropped: whoever needs it asks again.
    fn send(&self, command: &[u8]) {
        if let Qmp::Open(stream) = &self.qmp {
            let _ = stream.try_write(command);
        }
    }

    /// Nothing more is heard of this QEMU but its end.
    fn close(&mut self) {
        self.qmp = Qmp::Closed;
        self.reporter.condition.send_modify(|c| c.silent = true);
    }

    fn register(&mut self) -> io::Result<()> {
        if let Qmp::New(_) = self.qmp
            && let Qmp::New(stream) = std::mem::replace(&mut self.qmp, Qmp::Closed)
        {
            self.qmp = Qmp::Open(tokio::net::UnixStream::from_std(stream)?);
        }
        self.words.register()?;
        self.pidfd.register()
    }
}

/// Reads what there is; never ends once the connection is closed. An error counts as its end.
async fn read(qmp: &mut Qmp, chunk: &mut [u8]) -> usize {
    match qmp {
        Qmp::Open(stream) => stream.read(chunk).await.unwrap_or(0),
        _ => std::future::pending().await,
    }
}
