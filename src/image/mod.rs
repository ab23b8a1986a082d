//! Writes root file systems and the initramfs: deterministic, without root, without mounting.
//!
//! Everything that becomes an image passes through one in-memory `tree`, filled by `place` (which knows the
//! base's directories and links) from archives, packages or listings, and written by `writer`.

pub(crate) mod archive;
mod base;
mod content;
mod copy;
pub mod deb;
mod debian;
mod empty;
mod holes;
mod index;
mod initramfs;
mod maintainer;
mod member;
mod oci;
mod place;
pub mod program;
pub(crate) mod room;
mod sink;
pub mod stacked;
mod superblock;
mod tree;
pub mod vmlinux;
mod workload;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use archive::files as archive_files;
pub use base::{BaseSource, build_base, save_warnings, warnings_of};
pub use debian::left_undone;
pub use empty::create_empty;
pub use initramfs::write_initramfs;
pub use member::extract_member;
pub use oci::Layer;
pub use workload::{WorkloadItem, WorkloadSource, build_workload};

/// Names everything that decides an image's bytes besides its inputs: belongs in step keys.
pub const WRITER_VERSION: &str = "mkext4 0.0.3, layout 2";

/// The file name of a base image in its output directory.
pub const BASE_IMAGE: &str = "base.ext4";
/// The file name of a base's index in its output directory.
pub const BASE_INDEX: &str = "index.json";
/// The file name of a workload layer in its output directory.
pub const WORKLOAD_IMAGE: &str = "workload.ext4";

/// What an image is for: decides its UUID, hash seed and label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The sealed root file system.
    Base,
    /// The sealed layer above the base.
    Workload,
    /// The writable layer of one boot.
    Scratch,
    /// A disk that outlives its VM.
    Volume,
}
