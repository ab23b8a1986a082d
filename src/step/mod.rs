//! Carries out plans: runs pure steps in parallel and caches them, and turns a VM's settings into a boot.

pub mod boot;
mod execute;
mod kernel_lint;
mod memory_lint;
pub mod program;
pub mod proof;
mod record;
pub mod run_config;
mod sources;
mod tasks;

pub use boot::{check_qemu, cpu_changes, firecracker_needs, scanned_version};
pub use execute::{Outputs, execute};
pub use kernel_lint::check_kernel;
pub use memory_lint::check_memory;
pub use record::record_last;
pub use sources::resolve;

use crate::home::Home;
use crate::lock::Lock;
use crate::manifest::Location;
use crate::name::Name;
use crate::plan::{Scan, Tools};
use crate::store::Store;
use crate::ui::Ui;
use std::path::Path;

/// The guest's PID 1, built by build.rs.
pub static GUEST_INIT: &[u8] = include_bytes!(env!("FIREGOPHER_INIT"));

/// The digests of what this build brings along.
pub fn tools() -> Tools {
    Tools {
        init: env!("FIREGOPHER_INIT_BLAKE3").parse().expect("invariant: build.rs writes 64 hex digits"),
        writer: crate::image::WRITER_VERSION.to_owned(),
    }
}

/// What steps work with.
pub struct Work<'a> {
    /// The project.
    pub project: &'a Name,
    /// The project's directory.
    pub dir: &'a Path,
    /// Where its manifest is, for reports.
    pub manifest: Location,
    /// Paths.
    pub home: &'a Home,
    /// Objects and records.
    pub store: &'a Store,
    /// The pins; every asset of the graph has an entry.
    pub lock: &'a Lock,
    /// What the manifest names on this host.
    pub scan: &'a Scan,
    /// What this build brings along.
    pub tools: &'a Tools,
    /// Whether downloads are forbidden.
    pub offline: bool,
    /// Progress and warnings.
    pub ui: &'a Ui,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ObjectDigest;

    #[test]
    fn the_digest_that_was_built_in_is_that_of_the_init() {
        assert_eq!(tools().init, ObjectDigest::from(blake3::hash(GUEST_INIT)));
    }
}
