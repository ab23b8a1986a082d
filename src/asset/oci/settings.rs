//! How patient asking registries is, whom it trusts, and by which logins.

use super::login::Logins;
use std::net::SocketAddr;
use std::time::Duration;

/// Fixed, but for tests, which have less time and registries of their own.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// For a connection to stand.
    pub connect: Duration,
    /// The longest silence within an answer.
    pub stall: Duration,
    /// Before the second and later tries of one request.
    pub waits: Vec<Duration>,
    /// The longest that a registry may make us wait before a try.
    pub longest_wait: Duration,
    /// Root certificates (DER) instead of the host's.
    pub roots: Option<Vec<Vec<u8>>>,
    /// Host names that are found here instead of by a name server; then no proxy is asked either.
    pub hosts: Vec<(String, SocketAddr)>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(60),
            waits: [200, 800, 2500, 6000].map(Duration::from_millis).to_vec(),
            longest_wait: Duration::from_secs(300),
            roots: None,
            hosts: Vec::new(),
        }
    }
}

/// By what means registries are asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub logins: Logins,
    pub settings: Settings,
}

impl Access {
    /// Those of this host's user.
    pub fn of_user() -> Access {
        Access { logins: Logins::of_user(), settings: Settings::default() }
    }
}
