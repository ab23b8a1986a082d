//! SIGINT, SIGTERM and SIGHUP. While building, a signal removes this process's temporary files and ends it.
//! Once VMs run, signals become messages for the command that follows them.

use crate::store::Store;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

type Listener = Arc<Mutex<Option<Box<dyn Fn(Signal) + Send>>>>;

/// Blocks the signals until dropped and handles them on a thread of its own.
pub(super) struct Signals {
    old: SigSet,
    stop: Arc<EventFd>,
    watcher: Option<JoinHandle<()>>,
    listener: Listener,
}

impl Signals {
    /// Takes over. Must be called before other threads are made: they inherit the blocked mask.
    pub(super) fn block(store: &Store) -> Option<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGHUP);
        let old = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).ok()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).ok()?;
        let stop = Arc::new(EventFd::new().ok()?);
        let listener = Listener::default();
        let watcher = {
            let (stop, listener, temps) = (stop.clone(), listener.clone(), store.temps());
            std::thread::spawn(move || {
                while let Some(signal) = next(&fd, &stop) {
                    match &*listener.lock().unwrap_or_else(PoisonError::into_inner) {
                        Some(listener) => listener(signal),
                        None => {
                            temps.remove_all();
                            // The terminal shows ^C; the shell wants to know which signal it was.
                            std::process::exit(128 + signal as i32);
                        }
                    }
                }
            })
        };
        Some(Signals { old, stop, watcher: Some(watcher), listener })
    }

    /// From now on signals become messages.
    pub(super) fn deliver<T: Send + 'static>(&self, to: Sender<T>, wrap: fn(Signal) -> T) {
        let listener = Box::new(move |signal| drop(to.send(wrap(signal))));
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }
}

fn next(fd: &SignalFd, stop: &EventFd) -> Option<Signal> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let mut fds =
            [PollFd::new(fd.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[1].any() == Some(true) => return None,
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return None,
        }
        if let Ok(Some(info)) = fd.read_signal()
            && let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
        {
            return Some(signal);
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // An eventfd write of 1 fails only on overflow, and then the watcher wakes up all the same.
        let _ = self.stop.write(1);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        let _ = self.old.thread_set_mask();
    }
}
