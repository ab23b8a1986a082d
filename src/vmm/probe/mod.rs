//! Finds out what this host can do, by doing it.

mod checks;
mod guide;
mod kvm;

pub use checks::{Check, Status, Vmms, checks};
pub use kvm::{Kvm, kvm, kvm_without_hardware};

/// The rate of the host's time-stamp counter in kHz. Takes 20 ms.
pub fn tsc_khz() -> u64 {
    super::tsc::start().khz()
}
