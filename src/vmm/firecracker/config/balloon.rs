//! A device that takes memory back from the guest.

use serde::{Deserialize, Serialize};

/// `balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How much is taken, in MiB.
    pub amount_mib: u32,
    /// Gives memory back rather than have the guest kill processes.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0 or none turns them off for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_polling_interval_s: Option<u16>,
    /// The guest names free pages when asked; from 1.14 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_hinting: Option<bool>,
    /// The guest names free pages by itself; from 1.14 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
}
