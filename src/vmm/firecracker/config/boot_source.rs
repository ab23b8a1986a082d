//! What is booted.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// An ELF vmlinux; a bzImage only from 1.17 on.
    pub kernel_image_path: PathBuf,
    /// The initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line. Firecracker's own default contains `nomodule`, so it is always set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}
