//! What goes over the API.

use crate::vmm::firecracker::config::RateLimiter;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Bytes of a refusal that are shown.
const MAX_FAULT: usize = 500;

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// Given by `--id`.
    pub id: String,
    /// Whether the guest runs.
    pub state: RunState,
    /// Such as `1.16.1`.
    pub vmm_version: String,
    /// `Firecracker`.
    pub app_name: String,
}

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum RunState {
    /// Not yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It does.
    Running,
    /// Its CPUs are stopped.
    Paused,
}

/// What can be done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Writes the metrics out.
    FlushMetrics,
    /// Starts the guest that was configured over the API.
    InstanceStart,
    /// Presses these keys; on x86 alone.
    SendCtrlAltDel,
}

#[derive(Serialize)]
pub(super) struct ActionInfo {
    pub action_type: Action,
}

#[derive(Serialize)]
pub(super) struct Vm {
    pub state: &'static str,
}

/// A change to a drive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DriveUpdate {
    /// Which one.
    pub drive_id: String,
    /// Another image, as seen in the jail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A change to a network device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkUpdate {
    /// Which one.
    pub iface_id: String,
    /// Other limits on what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits on what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// A change to the balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BalloonUpdate {
    /// How much memory it takes, in MiB.
    pub amount_mib: u32,
}

/// A change to the machine before it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MachineUpdate {
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u32>,
    /// Memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
}

/// Why Firecracker refused, fit for a terminal.
pub(super) fn fault(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Fault {
        fault_message: String,
    }
    let text = match serde_json::from_slice::<Fault>(body) {
        Ok(fault) => fault.fault_message,
        Err(_) if body.is_empty() => return "it does not say why".to_owned(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().take(MAX_FAULT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
