//! Facts about images of registries and of this machine.

mod fake;
mod faults;
mod freedoms;
mod hosts;
mod local;
mod locked;
mod random;
mod real;
mod redirects;
mod tokens;
mod tools;

use super::login::Logins;
use super::pull::{ask_with, fetch_with, resolve_with};
use super::settings::{Access, Settings};
use crate::asset::{Progress, Silent};
use crate::digest::ObjectDigest;
use crate::error::Result;
use crate::lock::OciPin;
use crate::store::Store;
use crate::store::testing::scratch;
use std::time::Duration;

/// Less patience than users have.
fn hasty(logins: &Logins) -> Access {
    let waits = [20, 50, 100, 200].map(Duration::from_millis).to_vec();
    let settings = Settings { waits, stall: Duration::from_millis(400), ..Settings::default() };
    Access { logins: logins.clone(), settings }
}

/// Resolves into a store of its own.
fn resolve_as(reference: &str, logins: &Logins, progress: &dyn Progress) -> Result<OciPin> {
    resolve_with(&scratch().store, reference, &hasty(logins), progress)
}

/// What a registry says of an image, pinned with these layers, lowest first, of which nothing is fetched.
fn pin_as(store: &Store, reference: &str, logins: &Logins, layers: &[&[u8]]) -> Result<OciPin> {
    let (image, _) = ask_with(store, reference, &hasty(logins), &Silent)?;
    let objects: Vec<ObjectDigest> = layers.iter().map(|layer| blake3::hash(layer).into()).collect();
    Ok(image.pinned(&objects))
}

fn fetch_as(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    logins: &Logins,
    progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    fetch_with(store, reference, pin, &hasty(logins), progress)
}
