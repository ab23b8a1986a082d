//! What a VMM says besides its guest's console: read as it comes, so that nothing is lost in a full pipe, and handed
//! on. The end of it is kept for the message about a VMM that died.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use tokio::net::unix::pipe::Receiver;

/// Of each pipe, for messages.
const TAIL: usize = 16 << 10;
/// At most this much is left in a pipe whose writer is gone: what a pipe holds.
const LEFT: usize = 1 << 20;

/// What bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Its standard error or its log.
    Log,
    /// Its metrics: lines of JSON.
    Metrics,
}

/// Takes what a VMM says. It may be anything, and of any length.
pub type Listener = Box<dyn FnMut(Said, &[u8]) + Send>;

/// The pipes of one VMM.
#[derive(Default)]
pub(super) struct Words {
    pipes: Vec<Pipe>,
    listener: Option<Listener>,
}

struct Pipe {
    said: Said,
    end: End,
    tail: Vec<u8>,
}

/// Made outside a runtime, registered with the one that first waits.
enum End {
    New(File),
    Open(Receiver),
    Closed,
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").field("pipes", &self.pipes.len()).finish_non_exhaustive()
    }
}

impl Words {
    /// Ends of pipes that do not block.
    pub fn new(pipes: impl IntoIterator<Item = (Said, OwnedFd)>) -> Words {
        let pipe = |(said, fd): (Said, OwnedFd)| Pipe { said, end: End::New(fd.into()), tail: Vec::new() };
        Words { pipes: pipes.into_iter().map(pipe).collect(), listener: None }
    }

    pub fn listen(&mut self, listener: Listener) {
        self.listener = Some(listener);
    }

    /// Registers the pipes with the runtime that calls it.
    pub fn register(&mut self) -> io::Result<()> {
        for pipe in &mut self.pipes {
            if let End::New(_) = pipe.end
                && let End::New(file) = std::mem::replace(&mut pipe.end, End::Closed)
            {
                pipe.end = End::Open(Receiver::from_owned_fd(file.into())?);
            }
        }
        Ok(())
    }

    /// Waits for more and takes it; never ends once all pipes are closed. May be cancelled.
    pub async fn hear(&mut self) {
        let ready = async |pipe: &Pipe| match &pipe.end {
            End::Open(receiver) => receiver.readable().await.is_ok(),
            _ => std::future::pending().await,
        };
        let which = {
            let waits: Vec<_> = self.pipes.iter().map(|pipe| Box::pin(ready(pipe))).collect();
            match waits.is_empty() {
                true => std::future::pending().await,
                false => first(waits).await,
            }
        };
        self.take(which, 16 << 10);
    }

    /// Takes what is in the pipes now.
    pub fn drain(&mut self) {
        for n in 0..self.pipes.len() {
            let mut left = LEFT;
            while left > 0 {
                match self.take(n, 16 << 10) {
                    0 => break,
                    taken => left = left.saturating_sub(taken),
                }
            }
        }
    }

    /// The end of what was said, standard error first.
    pub fn tail(&self) -> String {
        let logs = self.pipes.iter().filter(|pipe| pipe.said == Said::Log);
        logs.map(|pipe| String::from_utf8_lossy(&pipe.tail)).collect()
    }

    /// Reads once; 0 if nothing is there.
    fn take(&mut self, n: usize, most: usize) -> usize {
        let pipe = &mut self.pipes[n];
        let mut bytes = vec![0; most];
        let got = match &mut pipe.end {
            End::New(file) => file.read(&mut bytes),
            End::Open(receiver) => receiver.try_read(&mut bytes),
            End::Closed => return 0,
        };
        match got {
            Ok(got @ 1..) => {
                pipe.tail.extend_from_slice(&bytes[..got]);
                let excess = pipe.tail.len().saturating_sub(TAIL);
                pipe.tail.drain(..excess);
                if let Some(listener) = &mut self.listener {
                    listener(pipe.said, &bytes[..got]);
                }
                got
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            // Its writers are gone.
            _ => {
                pipe.end = End::Closed;
                0
            }
        }
    }
}

/// Which of them is done first.
async fn first<F: Future<Output = bool> + Unpin>(mut all: Vec<F>) -> usize {
    std::future::poll_fn(|context| {
        for (n, one) in all.iter_mut().enumerate() {
            if std::pin::Pin::new(one).poll(context).is_ready() {
                return std::task::Poll::Ready(n);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn pipe() -> (OwnedFd, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&reader, flags).unwrap();
        (reader.into(), writer)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn all_that_is_said_is_heard_and_only_the_end_of_it_kept() {
        let ((log, mut write), (metrics, mut write_metrics)) = (pipe(), pipe());
        let mut words = Words::new([(Said::Log, log), (Said::Metrics, metrics)]);
        let heard = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let ears = heard.clone();
        words.listen(Box::new(move |said, bytes| {
            let mut heard = ears.lock().unwrap();
            if said == Said::Log { &mut heard.0 } else { &mut heard.1 }.extend_from_slice(bytes);
        }));
        // Far more than a pipe holds.
        let all: Vec<u8> = (0..40_000).flat_map(|n: u32| format!("{n}\n").into_bytes()).collect();
        let count = all.len();
        let text = all.clone();
        let writer = std::thread::spawn(move || write.write_all(&text).unwrap());
        write_metrics.write_all(b"{}\n").unwrap();
        drop(write_metrics);
        block_on(async {
            words.register().unwrap();
            while heard.lock().unwrap().0.len() < count {
                tokio::time::timeout(Duration::from_secs(10), words.hear()).await.expect("all of it comes");
            }
            writer.join().unwrap();
            // The writers are gone: that is no reason to spin.
            for _ in 0..8 {
                let _ = tokio::time::timeout(Duration::from_millis(20), words.hear()).await;
            }
            let end = tokio::time::timeout(Duration::from_millis(50), words.hear()).await;
            assert!(end.is_err(), "nothing is left to wait for");
        });
        let heard = heard.lock().unwrap();
        assert!(heard.0 == all && heard.1 == b"{}\n");
        assert_eq!(words.tail().as_bytes(), &all[count - TAIL..], "metrics are no part of it");
    }

    #[test]
    fn what_is_left_is_taken_without_a_runtime() {
        let (log, mut write) = pipe();
        let mut words = Words::new([(Said::Log, log)]);
        write.write_all(b"last words").unwrap();
        words.drain();
        words.drain();
        assert_eq!(words.tail(), "last words");
    }
}
