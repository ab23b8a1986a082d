//! Follows a running QEMU through QMP and its pidfd.

use super::words::{Said, Words};
use super::{Death, Ended, Exit};
use serde_json::Value;
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
    received: Vec<u8>,
    reason: Option<Ended>,
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
        Ok(QmpMonitor { qmp, pidfd, child, words, received: Vec::new(), reason: None, done: None })
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
                    0 => self.qmp = Qmp::Closed,
                    n => {
                        self.received.extend_from_slice(&chunk[..n]);
                        digest(&mut self.received, &mut self.reason);
                        if self.received.len() > LINE_MAX {
                            self.qmp = Qmp::Closed;
                        }
                    }
                },
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
            digest(&mut self.received, &mut self.reason);
        }
        let status = self.child.wait()?; // Ready already: it does not block.
        let done = match self.reason.take() {
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

/// Takes whole lines out of `received` and keeps what they tell about the end.
fn digest(received: &mut Vec<u8>, reason: &mut Option<Ended>) {
    while let Some(end) = received.iter().position(|&b| b == b'\n') {
        let line: Vec<u8> = received.drain(..=end).collect();
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { continue };
        let told = match message["event"].as_str() {
            Some("GUEST_PANICKED") => Some(Ended::GuestPanic),
            Some("SHUTDOWN") => match message["data"]["reason"].as_str() {
                Some("guest-shutdown") => Some(Ended::GuestShutdown),
                Some("guest-reset") => Some(Ended::GuestReset),
                Some("guest-panic") => Some(Ended::GuestPanic),
                Some("host-signal") => Some(Ended::HostSignal),
                Some("host-qmp-quit") => Some(Ended::HostQuit),
                _ => None,
            },
            _ => None,
        };
        // A panic comes before the shutdown it causes and says more.
        if *reason != Some(Ended::GuestPanic) && told.is_some() {
            *reason = told;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &str) -> Option<Ended> {
        let (mut bytes, mut reason) = (lines.as_bytes().to_vec(), None);
        digest(&mut bytes, &mut reason);
        reason
    }

    #[test]
    fn the_shutdown_reason_is_understood() {
        let line =
            |r| format!("{{\"event\":\"SHUTDOWN\",\"data\":{{\"guest\":true,\"reason\":\"{r}\"}}}}\r\n");
        assert_eq!(told(&line("guest-shutdown")), Some(Ended::GuestShutdown));
        assert_eq!(told(&line("guest-reset")), Some(Ended::GuestReset));
        assert_eq!(told(&line("host-signal")), Some(Ended::HostSignal));
        assert_eq!(told(&line("new-in-qemu-99")), None);
    }

    #[test]
    fn a_panic_outweighs_the_shutdown_it_causes() {
        let lines = "{\"event\":\"GUEST_PANICKED\",\"data\":{}}\n\
                     {\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n";
        assert_eq!(told(lines), Some(Ended::GuestPanic));
    }

    #[test]
    fn half_a_line_and_nonsense_tell_nothing() {
        assert_eq!(told("{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}"), None);
        assert_eq!(told("not json\n[]\n{\"event\":7}\n"), None);
    }
}
