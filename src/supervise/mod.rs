//! One small detached process a VM: it boots, watches, logs, restarts and cleans up.
//!
//! A command starts it with [`spawn()`] and talks to it through a [`Client`]; [`observe()`], [`reclaim()`] and [`stop()`]
//! work from what it wrote to the VM's directory, whether it still lives or not.

mod child;
mod client;
mod clock;
mod console;
mod describe;
mod drift;
mod effects;
pub mod guard;
mod host;
mod hub;
mod journal;
pub mod logs;
mod machine;
mod orders;
mod outcome;
mod pause;
mod process;
mod reclaim;
mod record;
mod restart;
mod server;
mod session;
mod spawn;
mod spec;
mod state;
mod supervisor;
mod wire;

#[cfg(test)]
mod tests;

pub use child::child_main;
pub use client::{Client, Next};
pub use clock::{Stamp, rfc3339};
pub use drift::{Drift, drift};
pub use effects::{check_volumes, has_volume_open, port_error};
pub use outcome::{Event, FAILED_CODE, Outcome, Phase, Reason, Stream};
pub use process::{Process, Whereabouts};
pub use reclaim::{HIDDEN, LEFT, Observed, Wish, is_lost, observe, project_netns, reclaim, stop, stop_while};
pub use spawn::{ARGUMENT, SUPERVISOR_LOG, Waiting, spawn, spawn_with};
pub use spec::{SuperviseSpec, VolumeSpec};
pub use state::{STATE_FILE, STATE_VERSION, State, Status};
pub use wire::SOCKET_FILE;

/// Bytes a supervisor writes to its own log at most.
const LOG_BUDGET: usize = 64 * 1024;

/// Writes a line to the supervisor's log, which is its standard error: bounded, for problems nobody is there to hear.
fn log_line(text: &str) {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static SPENT: AtomicUsize = AtomicUsize::new(0);
    let line = format!("{} {text}", clock::rfc3339(clock::wall_ms()));
    if SPENT.fetch_add(line.len(), Ordering::Relaxed) < LOG_BUDGET {
        // Its disk may be full, and that must not be the end of the supervisor.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
