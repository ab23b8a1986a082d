//! Bounded, rotated logs: the workload's output with time and stream, and the console as it came.
//!
//! `workload.log` has one record a line in the format of Kubernetes' container runtimes:
//! `TIME STREAM F|P TEXT`, where P marks a piece whose line goes on in the stream's next record.

mod escape;
mod read;
mod write;

pub use escape::{Escaper, escaped};
pub use read::{LogReader, Record, console_tail};
pub use write::{BoundedFile, WorkloadLog};

use std::path::{Path, PathBuf};

/// The workload's output, in a VM's directory.
pub const WORKLOAD_LOG: &str = "workload.log";
/// What the guest wrote to its console, in a VM's directory.
pub const CONSOLE_LOG: &str = "console.log";
/// A log file is rotated at this many bytes; one older file is kept.
pub const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Where a log's older half is.
pub fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
