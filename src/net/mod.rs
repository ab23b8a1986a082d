//! The project's network namespace, its taps and addresses, and the proxy that publishes ports.

pub mod address;
pub(crate) mod book;
pub mod netns;
pub mod proxy;
pub mod tap;
