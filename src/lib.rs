//! firegopher: from a checked-in manifest to a running microVM, by way of a content-addressed graph of steps.

pub mod asset;
pub mod cli;
pub mod color;
mod descriptors;
pub mod digest;
pub mod error;
pub mod home;
pub mod image;
pub mod listing;
pub mod lock;
pub mod manifest;
pub mod name;
pub mod net;
pub mod packages;
pub mod plan;
pub mod project;
pub mod reference;
mod replace;
pub mod session_keyring;
pub mod step;
pub mod store;
pub mod supervise;
mod syscall;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod ui;
pub mod units;
pub mod upkeep;
pub mod vmm;
