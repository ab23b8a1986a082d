//! Token buckets.

use serde::{Deserialize, Serialize};

/// Limits a device by bytes, by operations, or by both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// One token a byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// One token an operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// Gives out `size` tokens every `refill_time`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// What it holds when full; 0 turns the limit off.
    pub size: u64,
    /// Further tokens, given out once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full; 0 turns the limit off.
    pub refill_time: u64,
}
