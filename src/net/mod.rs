//! The project's network namespace, its taps and addresses, and the proxy that publishes ports.

pub mod address;
pub(crate) mod book;
pub mod listeners;
pub mod netns;
pub mod proxy;
pub mod tap;

use serde::{Deserialize, Serialize};

/// A published TCP port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// The host's address; 127.0.0.1 unless set.
    pub address: std::net::IpAddr,
    /// The host's port, 1 to 65535.
    pub host: u16,
    /// The guest's port; the host's unless set.
    pub guest: u16,
}

impl Port {
    /// Where it is published.
    pub fn on_host(&self) -> std::net::SocketAddr {
        std::net::SocketAddr::new(self.address, self.host)
    }
}
