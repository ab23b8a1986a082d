//! Token buckets.

use crate::vmm::tuning::Rate;
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

impl RateLimiter {
    /// What limits a device to so much a second; `None` if nothing does.
    pub(super) fn of(rate: Rate) -> Option<RateLimiter> {
        let bucket = |size: u64| TokenBucket { size, one_time_burst: None, refill_time: 1000 };
        rate.is_limit().then(|| RateLimiter {
            bandwidth: rate.bandwidth.map(bucket),
            ops: rate.ops.map(|ops| bucket(ops.into())),
        })
    }
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
