//! Firecracker's metrics.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// File or pipe, one JSON object a line; must exist before 1.14.
    pub metrics_path: PathBuf,
}
