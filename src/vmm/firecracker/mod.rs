//! The Firecracker back end's parts: its configuration file, its API, what each of its versions can do, and
//! guest kernels of a few bytes that prove it works. Starting it inside its jail is the jail's matter.

pub mod api;
pub mod config;
pub mod kernel_args;
pub mod stub;
pub mod version;

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod testing;
