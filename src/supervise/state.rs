//! Owns `state.json`: what a VM is, as last written by its supervisor. Replaced whole, never edited.

use super::clock::Stamp;
use super::outcome::{Outcome, Reason};
use super::process::{Process, Whereabouts};
use super::supervisor;
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::manifest::model::Port;
use crate::name::{Name, VmId};
use crate::replace;
use firegopher_protocol::ExitRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The format this build writes. Readers accept older ones; of a newer one they use what they understand.
pub const STATE_VERSION: u32 = 1;
/// The file in a VM's directory.
pub const STATE_FILE: &str = "state.json";

/// Where a VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Booting; the workload does not run yet.
    Starting,
    /// The workload runs.
    Running,
    /// The workload was asked to end, or its VMM was killed; neither has ended yet.
    Stopping,
    /// Waiting to boot again.
    Restarting,
    /// The workload ended, or was stopped.
    Exited,
    /// firegopher, the VMM or the guest failed.
    Failed,
    /// Written by a newer version.
    #[serde(other)]
    Unknown,
}

impl Status {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Exited | Status::Failed)
    }
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `STATE_VERSION` of the writer.
    pub version: u32,
    /// The project.
    pub project: Name,
    /// The VM's name in the manifest.
    pub vm: Name,
    /// Its id on this host.
    pub id: VmId,
    /// Where it stands.
    pub status: Status,
    /// The process that holds it.
    pub supervisor: Process,
    /// The VMM of the current boot.
    #[serde(default)]
    pub vmm: Option<Process>,
    /// Covers every setting of the VM: another key means another VM.
    pub boot_key: StepKey,
    /// What each of its boots reads of the store: gc leaves it there while the supervisor lives.
    #[serde(default)]
    pub objects: Vec<ObjectDigest>,
    /// Why the guest stands still, for the user, while it does.
    #[serde(default)]
    pub paused: Option<String>,
    /// How the last workload ended.
    #[serde(default)]
    pub exit: Option<ExitRecord>,
    /// Why the VM ended, once it has.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// What failed, for the user.
    #[serde(default)]
    pub error: Option<String>,
    /// Published ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// The VMM's uid in its jail.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Boots after the first.
    #[serde(default)]
    pub restarts: u32,
    /// Ends with its last client and leaves nothing.
    #[serde(default)]
    pub ephemeral: bool,
    /// The guest's kernel release, once it said hello.
    #[serde(default)]
    pub kernel: Option<String>,
    /// The supervisor's descriptor of the project's network namespace: /proc/PID/fd/N opens it.
    #[serde(default)]
    pub netns_fd: Option<i32>,
    /// When the supervisor started, in milliseconds since the epoch.
    pub started_ms: u64,
    /// When the VM ended for good, likewise.
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// What the current boot's launch cost, in microseconds: jail, tap, spawn.
    #[serde(default)]
    pub launch_us: BTreeMap<String, u64>,
    /// When each step of the current boot happened: supervisor-start, boot, vmm-exec, hello, started, exit, ended.
    #[serde(default)]
    pub events: BTreeMap<String, Stamp>,
}

impl State {
    /// The state in a VM's directory, `None` if there is none.
    pub fn load(dir: &Path) -> Result<Option<State>> {
        let path = dir.join(STATE_FILE);
        let text = replace::read(&path).or_failed("supervise.state-read", || "cannot read a VM's state")?;
        let Some(text) = text else { return Ok(None) };
        serde_json::from_slice(&text)
            .map(Some)
            .or_failed("supervise.state-broken", || format!("{} is not the state of a VM", path.display()))
            .map_err(|e| {
                e.help("remove that file if the VM does not run: the next `firegopher up` cleans up what it left")
            })
    }

    /// Replaces the state on disk.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.save_by(dir, replace::replace)
    }

    /// `save`, also on a disk that has become full since the last time; [`State::settle`] is to follow in the end.
    pub(super) fn save_in_place(&self, dir: &Path) -> Result<()> {
        self.save_by(dir, replace::replace_in_place)
    }

    /// Gives back the space that was kept for more states.
    pub(super) fn settle(dir: &Path) -> std::io::Result<()> {
        replace::sweep(&dir.join(STATE_FILE))
    }

    fn save_by(&self, dir: &Path, write: fn(&Path, &[u8]) -> std::io::Result<()>) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::bug("a VM's state does not serialise").because(e))?;
        write(&dir.join(STATE_FILE), &text)
            .or_failed("supervise.state-write", || format!("cannot write the state of VM {}", self.vm))
    }

    /// How the VM ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        let reason = self.reason?;
        Some(Outcome { reason, exit: self.exit.clone(), message: self.error.clone() })
    }

    /// Whether its supervisor still runs: it holds the lock in the VM's directory, here `dir`, for its life. From
    /// another pid namespace, container or host nothing but the lock can be seen.
    pub fn is_alive(&self, dir: &Path) -> bool {
        // Whoever cleans up after a dead one holds the lock for a while, too.
        supervisor::is_locked(dir) && self.supervisor.find() != Whereabouts::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_status_is_unknown_and_no_error() {
        assert_eq!(serde_json::from_str::<Status>("\"running\"").unwrap(), Status::Running);
        assert_eq!(serde_json::from_str::<Status>("\"hibernating\"").unwrap(), Status::Unknown);
    }
}
