//! Finds, fetches and verifies what boots: kernels, VMMs, base packages. Packages come through the host's own
//! `apt-get` with private directories ([`apt`], [`debian`], `debs`); [`kernel`] and [`qemu`] turn them into trees.

pub mod apt;
mod apt_error;
mod apt_run;
mod apt_sources;
mod behind;
pub mod debian;
mod debs;
mod elf;
mod firecracker;
pub mod http;
mod ikconfig;
pub mod kernel;
mod members;
mod modules;
mod named;
pub mod oci;
mod parallel;
mod parse;
pub mod progress;
pub mod qemu;
mod release;
mod room;
mod scripts;
mod vmm_closure;

#[cfg(test)]
mod archive_tests;
#[cfg(test)]
mod fake_tests;
#[cfg(test)]
mod real_tests;
#[cfg(test)]
pub(crate) mod scripts_tests;

pub use apt::Apt;
pub use debian::{resolve_all, resolve_each};
pub use debs::{fetch_debs, have_debs, lacking_debs};
pub use firecracker::firecracker_tree;
pub use kernel::{kernel_from_path, kernel_tree};
pub use progress::{Progress, Silent};
pub use qemu::qemu_tree;
pub use scripts::run_scripts;
