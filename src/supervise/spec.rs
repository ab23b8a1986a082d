//! What a supervisor is told. Holds secrets, so it crosses to the supervisor over a socket and never a disk.

use crate::digest::StepKey;
use crate::manifest::model::{Port, Restart};
use crate::name::Name;
use crate::vmm::spec::VmSpec;
use firegopher_protocol::RunConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// One VM to boot and watch.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseSpec {
    /// The project.
    pub project: Name,
    /// The VM.
    pub vm: Name,
    /// `Home::vm`: state, logs, socket, scratch.
    pub dir: PathBuf,
    /// `Home::root`: where a uid is leased when `vm_spec.jail` names uid 0.
    pub home: PathBuf,
    /// Covers every setting.
    pub boot_key: StepKey,
    /// What the VMM is told. A jail with uid 0 gets a leased one.
    pub vm_spec: VmSpec,
    /// What the guest is told. The clock, and the network if `None`, are filled in at each boot.
    pub run: RunConfig,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Whether it is booted again after its end.
    pub restart: Restart,
    /// Time in which the guest must report.
    pub boot_timeout: Duration,
    /// `run`: ends when its last attached client goes, and leaves no directory. Its output waits for that client
    /// instead of running ahead of it.
    pub ephemeral: bool,
    /// Size in bytes of the drive whose role is `scratch`; made anew at each boot.
    pub scratch: Option<u64>,
    /// Disks that outlive the VM; made if absent.
    pub volumes: Vec<VolumeSpec>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// For messages.
    pub name: String,
    /// The image.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl std::fmt::Debug for SuperviseSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // `run` holds secrets.
        let mut out = f.debug_struct("SuperviseSpec");
        out.field("project", &self.project).field("vm", &self.vm).finish_non_exhaustive()
    }
}

impl Drop for SuperviseSpec {
    fn drop(&mut self) {
        wipe_secrets(&mut self.run);
    }
}

/// Overwrites the secrets' values and forgets them.
pub(super) fn wipe_secrets(run: &mut RunConfig) {
    for (_, value) in std::mem::take(&mut run.secrets) {
        wipe(&mut value.into_bytes());
    }
}

/// Overwrites bytes that held secrets.
pub(super) fn wipe(bytes: &mut [u8]) {
    for byte in bytes.iter_mut() {
        // SAFETY: `byte` is a valid, exclusive reference; volatile keeps the write although nobody reads it.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
}
