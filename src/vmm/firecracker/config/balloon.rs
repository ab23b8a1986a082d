//! A device that takes memory back from the guest.

use crate::vmm::tuning;
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

impl Balloon {
    /// The fields that are newer are not written unless they are used.
    pub(super) fn new(balloon: tuning::Balloon) -> Balloon {
        Balloon {
            // At most a VM's memory, which fits.
            amount_mib: u32::try_from(balloon.amount >> 20).unwrap_or(u32::MAX),
            deflate_on_oom: balloon.deflate_on_oom,
            stats_polling_interval_s: None,
            free_page_hinting: None,
            free_page_reporting: balloon.free_page_reporting.then_some(true),
        }
    }
}
