//! A virtio network device.

use super::RateLimiter;
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
    pub(super) fn new(tap: &str, mac: [u8; 6]) -> NetworkInterface {
        NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: tap.to_owned(),
            guest_mac: Some(mac.map(|byte| format!("{byte:02x}")).join(":")),
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}
