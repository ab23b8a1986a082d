//! Bounded, rotated logs: the workload's output with time and stream, the console and the VMM's own words as they
//! came.
//!
//! `workload.log` has one record a line in the format of Kubernetes' container runtimes:
//! `TIME STREAM F|P TEXT`, where P marks a piece whose line goes on in the stream's next record.

mod escape;
mod read;
mod vmm;
mod write;

pub use escape::{Colours, Escaper, escaped};
pub use read::{LogReader, Record, console_tail};
pub use vmm::{VmmLog, last_metrics};
pub use write::{BoundedFile, WorkloadLog};

use std::path::{Path, PathBuf};

/// The workload's output, in a VM's directory.
pub const WORKLOAD_LOG: &str = "workload.log";
/// What the guest wrote to its console, in a VM's directory.
pub const CONSOLE_LOG: &str = "console.log";
/// What the VMM says of itself, in a VM's directory.
pub const VMM_LOG: &str = "vmm.log";
/// The VMM's metrics, in a VM's directory.
pub const METRICS_LOG: &str = "metrics.log";
/// A log file is rotated at this many bytes; one older file is kept.
pub const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Where a log's older half is.
pub fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
