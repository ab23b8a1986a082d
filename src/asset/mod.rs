//! Finds, fetches and verifies what boots: kernels, VMMs, base packages. Packages come through the host's own
//! `apt-get` with private directories ([`apt`], [`debian`]); [`kernel`] and [`qemu`] turn them into trees.

pub mod apt;
mod apt_error;
pub mod debian;
mod elf;
mod firecracker;
pub mod http;
pub mod kernel;
mod members;
mod modules;
pub mod oci;
mod parallel;
mod parse;
pub mod progress;
pub mod qemu;
mod vmm_closure;

#[cfg(test)]
mod fake_tests;
#[cfg(test)]
mod real_tests;

pub use apt::Apt;
pub use debian::{fetch_debs, resolve, resolve_all};
pub use firecracker::firecracker_tree;
pub use kernel::{kernel_from_path, kernel_tree};
pub use progress::{Progress, Silent};
pub use qemu::qemu_tree;
