//! SIGINT, SIGTERM and SIGHUP. While building, a signal removes this process's temporary files and ends it.
//! While VMs are started it waits, so that what was started can be stopped again. Once VMs run, signals become
//! messages for the command that follows them.

use crate::store::Store;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What a signal does.
#[derive(Default)]
enum Mode {
    /// Ends the process.
    #[default]
    End,
    /// Is kept for whoever asks; the third one ends the process.
    Hold(Vec<Signal>),
    /// Goes to a listener.
    Deliver(Box<dyn Fn(Signal) + Send>),
}

/// The process is about to end because of a signal.
static ENDING: AtomicBool = AtomicBool::new(false);

/// The exit code of a command that a signal ended, as shells have it.
pub(super) fn exit_code(signal: Signal) -> ExitCode {
    ExitCode::from(128 + signal as u8)
}

/// Waits for the end if a signal is ending this process: an error that comes of its temporary files vanishing is
/// none of the user's business.
pub(super) fn yield_to_the_end() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Blocks the signals until dropped and handles them on a thread of its own.
pub(super) struct Signals {
    old: SigSet,
    stop: Arc<EventFd>,
    watcher: Option<JoinHandle<()>>,
    mode: Arc<Mutex<Mode>>,
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
        let mode = Arc::new(Mutex::new(Mode::default()));
        let watcher = {
            let (stop, mode, temps) = (stop.clone(), mode.clone(), store.temps());
            std::thread::spawn(move || {
                while let Some(signal) = next(&fd, &stop) {
                    match &mut *mode.lock().unwrap_or_else(PoisonError::into_inner) {
                        Mode::Deliver(listener) => listener(signal),
                        Mode::Hold(held) if asked(held) < 2 || signal == Signal::SIGHUP => held.push(signal),
                        Mode::Hold(_) | Mode::End => {
                            ENDING.store(true, Ordering::SeqCst);
                            temps.remove_all();
                            // The terminal shows ^C; the shell wants to know which signal it was.
                            std::process::exit(128 + signal as i32);
                        }
                    }
                }
            })
        };
        Some(Signals { old, stop, watcher: Some(watcher), mode })
    }

    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the first two signals are kept, until `interrupted` or `deliver` asks for it.
    pub(super) fn hold(&self) {
        *self.mode() = Mode::Hold(Vec::new());
    }

    /// The SIGINT or SIGTERM that came since `hold`. A closed terminal is no reason to stop.
    pub(super) fn interrupted(&self) -> Option<Signal> {
        match &*self.mode() {
            Mode::Hold(held) => held.iter().copied().find(|s| *s != Signal::SIGHUP),
            _ => None,
        }
    }

    /// Whether SIGINT or SIGTERM came twice since `hold`: stop, and be quick.
    pub(super) fn pressed_twice(&self) -> bool {
        matches!(&*self.mode(), Mode::Hold(held) if asked(held) > 1)
    }

    /// From now on signals become messages; first come those that were held.
    pub(super) fn deliver<T: Send + 'static>(&self, to: Sender<T>, wrap: fn(Signal) -> T) {
        let mut mode = self.mode();
        if let Mode::Hold(held) = &*mode {
            held.iter().for_each(|signal| drop(to.send(wrap(*signal))));
        }
        *mode = Mode::Deliver(Box::new(move |signal| drop(to.send(wrap(signal)))));
    }
}

/// How many of the signals ask for the end. A closed terminal does not.
fn asked(held: &[Signal]) -> usize {
    held.iter().filter(|signal| **signal != Signal::SIGHUP).count()
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
