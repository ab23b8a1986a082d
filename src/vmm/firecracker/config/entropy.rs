//! The source of random numbers.

use super::RateLimiter;
use serde::{Deserialize, Serialize};

/// `entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {
    /// Limits what the guest takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
