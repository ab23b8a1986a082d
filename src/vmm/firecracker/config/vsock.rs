//! The guest's way to the host.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Every guest's address. Firecracker's vsock ends in its own unix socket, so VMs do not share a space of
/// addresses; 0 to 2 are reserved (vsock(7)).
pub const GUEST_CID: u32 = 3;

/// `vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's address, 3 at least.
    pub guest_cid: u32,
    /// Firecracker listens here, and connects to `PATH_PORT` when the guest connects to the host's port.
    pub uds_path: PathBuf,
}
