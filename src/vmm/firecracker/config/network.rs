//! A virtio network device.

use super::RateLimiter;
use crate::vmm::tuning::Tuning;
use serde::{Deserialize, Serialize};

/// One of `network-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Letters, digits and underscores.
    pub iface_id: String,
    /// The tap's name in Firecracker's network namespace.
    pub host_dev_name: String,
    /// Six hexadecimal bytes with colons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Told to the guest, in bytes, 68 at least; from 1.16 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    /// eth0 on this tap.
    pub(super) fn new(tap: &str, mac: [u8; 6], tuning: &Tuning) -> NetworkInterface {
        NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: tap.to_owned(),
            guest_mac: Some(mac.map(|byte| format!("{byte:02x}")).join(":")),
            // The guest's init sets it, which works with every version.
            mtu: None,
            rx_rate_limiter: RateLimiter::of(tuning.receive),
            tx_rate_limiter: RateLimiter::of(tuning.send),
        }
    }
}
