//! Container images: of registries and of this machine. Pins them, takes their layers into the store as they are,
//! and reads the defaults that they bring. What a layer means for a file system is `image`'s.

mod authorize;
mod blob;
mod challenge;
mod config;
mod docker_archive;
mod documents;
mod download;
mod image;
mod layer;
mod local;
mod login;
mod pull;
mod reference;
mod registry;
mod settings;
mod source;
mod trouble;

#[cfg(test)]
mod tests;

pub use blob::stored;
pub use documents::have;
pub use layer::{StoredLayer, stored_layers};
pub use local::{LocalImage, inspect, open_local};
pub use pull::{fetch, resolve, resolve_each};
pub use reference::full_reference;
