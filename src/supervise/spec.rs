//! What a supervisor is told. Holds secrets, so it crosses to the supervisor over a socket and never a disk.

use crate::digest::{ObjectDigest, StepKey};
use crate::home::Home;
use crate::manifest::model::{Port, Restart};
use crate::name::Name;
use crate::vmm::spec::{VmSpec, VmmBinary};
use firegopher_protocol::RunConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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

impl SuperviseSpec {
    /// Where all is that the VMM said, as help for the user; an ephemeral VM leaves no logs.
    pub(super) fn vmm_log_help(&self) -> Option<String> {
        (!self.ephemeral).then(|| format!("`firegopher logs --vmm {}` shows all that the VMM said", self.vm))
    }

    /// The objects of the store that a boot of this VM reads, each once.
    pub fn objects(&self) -> Vec<ObjectDigest> {
        let spec = &self.vm_spec;
        let programs: Vec<&Path> = match &spec.vmm {
            VmmBinary::QemuTree(path) | VmmBinary::QemuPath { program: path, .. } => vec![path],
            VmmBinary::Firecracker { firecracker, jailer } => vec![firecracker, jailer],
        };
        let files = [spec.kernel.as_path(), &spec.initramfs].into_iter().chain(programs);
        let drives = spec.drives.iter().map(|drive| drive.path.as_path());
        let objects = Home::new(&self.home).store().join("objects");
        // objects/ab/abcdef…, or something in a tree of that name.
        let object = |path: &Path| {
            let name = path.strip_prefix(&objects).ok()?.components().nth(1)?;
            name.as_os_str().to_str()?.parse().ok()
        };
        let found: BTreeSet<ObjectDigest> = files.chain(drives).filter_map(object).collect();
        found.into_iter().collect()
    }
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
