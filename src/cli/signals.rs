//! The signals of a command. While building, one removes this process's temporary files and ends it. While VMs are
//! started it waits, so that what was started can be stopped again. Once VMs run, signals become messages for the
//! command that follows them. `run` takes all that a workload may be sent, other commands SIGINT, SIGTERM and SIGHUP.

use crate::store::Store;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpgid, getpgrp, getppid, getsid};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What ends a command.
const ENDING_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// What `run` passes on besides.
const PASSED_SIGNALS: [Signal; 7] = [
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

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

/// Stops this process as a terminal's Ctrl-Z does, until it is continued. The kernel does not stop a process that nobody
/// could continue: one in an orphaned process group, as `ssh -t host firegopher run` makes it.
pub(super) fn suspend() {
    // Only where the caller does not ignore it is it blocked, and nothing here handles it: its action is the default.
    let set: SigSet = [Signal::SIGTSTP].into_iter().collect();
    // It is this thread's own, and comes as soon as it is no longer blocked.
    if nix::sys::signal::raise(Signal::SIGTSTP).is_ok()
        && let Ok(old) = set.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)
    {
        let _ = old.thread_set_mask();
    }
}

/// Whether somebody could continue this process: a shell of its session that put it, or what started it, into a process
/// group of its own.
pub(super) fn is_a_job() -> bool {
    let Ok(session) = getsid(None) else { return false };
    let group = getpgrp();
    let mut parent = getppid();
    // Zero is beyond this PID namespace.
    while parent.as_raw() > 0 {
        if getsid(Some(parent)) != Ok(session) {
            return false;
        }
        if getpgid(Some(parent)) != Ok(group) {
            return true;
        }
        let Some(next) = parent_of(parent) else { return false };
        parent = next;
    }
    false
}

fn parent_of(process: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok().map(Pid::from_raw)
}

/// Blocks the signals until dropped and handles them on a thread of its own.
pub(super) struct Signals {
    old: SigSet,
    stop: Arc<EventFd>,
    watcher: Option<JoinHandle<()>>,
    mode: Arc<Mutex<Mode>>,
}

impl Signals {
    /// Takes over what ends a command. Must be called before other threads are made: they inherit the blocked mask.
    pub(super) fn block(store: &Store) -> Option<Signals> {
        Signals::block_these(store, ENDING_SIGNALS.into_iter())
    }

    /// As `block`, with all that a workload may be sent.
    pub(super) fn block_all(store: &Store) -> Option<Signals> {
        Signals::block_these(store, ENDING_SIGNALS.into_iter().chain(PASSED_SIGNALS))
    }

    fn block_these(store: &Store, signals: impl Iterator<Item = Signal>) -> Option<Signals> {
        // `nohup`, and a shell for its background jobs, have some ignored; they stay so.
        let set: SigSet = signals.filter(|signal| !is_ignored(*signal)).collect();
        let old = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).ok()?;
        let stop = Arc::new(EventFd::new().ok()?);
        let mode = Arc::new(Mutex::new(Mode::default()));
        let watcher = {
            let (stop, mode, temps) = (stop.clone(), mode.clone(), store.temps());
            std::thread::spawn(move || {
                while let Some(signal) = next(&fd, &stop) {
                    let mut mode = mode.lock().unwrap_or_else(PoisonError::into_inner);
                    match (&mut *mode, signal) {
                        (Mode::Deliver(listener), signal) => listener(signal),
                        (_, Signal::SIGTSTP) => {
                            drop(mode);
                            suspend();
                        }
                        // By default they do nothing.
                        (_, Signal::SIGWINCH | Signal::SIGCONT) => {}
                        (Mode::Hold(held), signal) if asked(held) < 2 || signal == Signal::SIGHUP => {
                            held.push(signal);
                        }
                        (Mode::Hold(_) | Mode::End, signal) => {
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

    /// From now on a signal ends the process.
    pub(super) fn end(&self) {
        *self.mode() = Mode::End;
    }

    /// The signal that asks for the end and came since `hold`. A closed terminal is no reason to stop.
    pub(super) fn interrupted(&self) -> Option<Signal> {
        match &*self.mode() {
            Mode::Hold(held) => held.iter().copied().find(|signal| asks(*signal)),
            _ => None,
        }
    }

    /// Whether two signals asked for the end since `hold`: stop, and be quick.
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

fn asks(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT)
}

/// How many of the signals ask for the end. A closed terminal does not.
fn asked(held: &[Signal]) -> usize {
    held.iter().filter(|signal| asks(**signal)).count()
}

fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is set, and the kernel fills `action`, of which all zeros is a value.
    unsafe {
        libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ignored_from_the_start_is_known() {
        // Rust's runtime ignores SIGPIPE; nothing here touches SIGUSR2.
        assert!(is_ignored(Signal::SIGPIPE) && !is_ignored(Signal::SIGUSR2));
    }

    #[test]
    fn the_parent_of_a_process_is_known() {
        assert_eq!(parent_of(Pid::this()), Some(getppid()));
    }

    #[test]
    fn a_closed_terminal_does_not_count_as_asking_for_the_end() {
        assert_eq!(asked(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGQUIT]), 2);
    }
}
