//! A virtio block device.

use super::RateLimiter;
use crate::vmm::spec;
use crate::vmm::tuning::Rate;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One of `drives`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Letters, digits and underscores.
    pub drive_id: String,
    /// Whether Firecracker appends `root=/dev/vda` to the command line and moves the drive to the front.
    pub is_root_device: bool,
    /// The image.
    pub path_on_host: PathBuf,
    /// Opened without write access.
    pub is_read_only: bool,
    /// What a guest's flush does; `Unsafe` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// How the file is accessed; `Sync` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Limits what the guest reads and writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing: the guest is told that there is no cache.
    Unsafe,
    /// fsync.
    Writeback,
}

/// How the file is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// preadv and pwritev.
    Sync,
    /// io_uring.
    Async,
}

impl Drive {
    /// The `n`th drive, whose image stands at `path` in the jail.
    pub(super) fn new(n: usize, drive: &spec::Drive, path: &Path, rate: Rate) -> Drive {
        // Only volumes hold what must outlive a power failure. A scratch disk is empty at every boot.
        let durable = drive.role.starts_with("volume") && !drive.read_only;
        Drive {
            drive_id: format!("drive{n}"),
            // The initramfs mounts the root itself.
            is_root_device: false,
            path_on_host: path.to_owned(),
            is_read_only: drive.read_only,
            cache_type: durable.then_some(CacheType::Writeback),
            io_engine: None,
            rate_limiter: RateLimiter::of(rate),
        }
    }
}
