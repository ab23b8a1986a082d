//! What goes wrong between us and a registry: in words, and whether trying again may help.

use super::reference::Place;
use super::settings::Settings;
use crate::asset::behind::{self, Lookup};
use crate::error::Error;
use reqwest::{Response, StatusCode};
use std::time::Duration;

/// A failed request.
#[derive(Debug)]
pub(super) struct Trouble {
    /// Boxed: it is as large as all answers together.
    pub error: Box<Error>,
    /// May pass by itself; the registry may have said when.
    passing: bool,
    wait: Option<Duration>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Manifest,
    Blob,
    Token,
}

impl Trouble {
    pub fn lasting(error: Error) -> Self {
        Trouble { error: Box::new(error), passing: false, wait: None }
    }

    pub fn passing(error: Error) -> Self {
        Trouble { error: Box::new(error), passing: true, wait: None }
    }

    /// How long to wait before try number `tried + 1`, if there is to be one.
    pub fn wait(&self, tried: usize, settings: &Settings) -> Option<Duration> {
        let wait = settings.waits.get(tried.saturating_sub(1)).copied().filter(|_| self.passing)?;
        match self.wait {
            Some(said) if said > settings.longest_wait => None,
            said => Some(wait.max(said.unwrap_or_default())),
        }
    }

    /// No answer came, or it broke off.
    pub fn of_client(error: reqwest::Error, place: &Place) -> Self {
        let registry = place.registry();
        let subject = format!("cannot fetch {}", place.shown());
        // URLs of downloads may carry signatures.
        let error = error.without_url();
        let lookup = behind::lookup(&error);
        if lookup == Some(Lookup::NoAnswer) {
            let message =
                format!("{subject}: the name of the registry {registry} cannot be looked up just now");
            return Trouble::passing(Error::failed("oci.unreachable", message).because(error).help(
                "check this host's network and name servers; what the store has already boots with `--offline`",
            ));
        }
        if lookup == Some(Lookup::NoSuchHost) {
            let message = format!("{subject}: the name of the registry {registry} cannot be resolved");
            return Trouble::lasting(Error::failed("oci.unknown-registry", message).because(error).help(
                "check the reference and the network; what the store has already boots with `--offline`",
            ));
        }
        if error.is_redirect() {
            let message =
                format!("{subject}: the registry {registry} redirects to where nobody should follow");
            return Trouble::lasting(Error::failed("oci.redirect", message).because(error));
        }
        if error.is_connect() && !error.is_timeout() {
            let message = format!("{subject}: the registry {registry} cannot be reached");
            let help = if place.is_loopback() {
                "start it, or check the port; registries on this machine are asked by plain http"
            } else {
                "check the network and proxy (HTTPS_PROXY); a registry must speak https with a certificate that \
                 this host trusts"
            };
            return Trouble::lasting(Error::failed("oci.unreachable", message).because(error).help(help));
        }
        let how = if error.is_timeout() { "did not answer in time" } else { "broke off its answer" };
        let message = format!("{subject}: the registry {registry} {how}");
        Trouble::passing(Error::failed("oci.unreachable", message).because(error).help("try again later"))
    }

    /// An answer that is not what was asked for; `has_login` says whether we could introduce ourselves.
    pub fn of_answer(response: &Response, what: What, place: &Place, has_login: bool) -> Self {
        let (registry, shown) = (place.registry(), place.shown());
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Trouble::lasting(needs_login(place, has_login))
            }
            StatusCode::BAD_REQUEST if what == What::Token && has_login => {
                Trouble::lasting(needs_login(place, true))
            }
            StatusCode::NOT_FOUND if what == What::Manifest => Trouble::lasting(
                Error::failed("oci.unknown-image", format!("the registry {registry} has no image {shown}"))
                    .help(
                        "check name and tag; if a lock pins it, `firegopher update` pins what is there now",
                    ),
            ),
            StatusCode::NOT_FOUND if what == What::Blob => Trouble::lasting(
                Error::failed(
                    "oci.gone",
                    format!("the registry {registry} no longer serves a part of {shown}"),
                )
                .help("run `firegopher update` to pin what it serves now"),
            ),
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let message = format!("the registry {registry} answers {status} when asked for {shown}");
                let help = if status == StatusCode::TOO_MANY_REQUESTS && !has_login {
                    "it limits anonymous downloads: log in (`docker login`, `podman login`), or try again later"
                } else {
                    "try again later"
                };
                let said = response.headers().get(reqwest::header::RETRY_AFTER);
                let wait =
                    said.and_then(|said| said.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
                Trouble { wait, ..Trouble::passing(Error::failed("oci.busy", message).help(help)) }
            }
            status => {
                let message = format!("the registry {registry} answers {status} when asked for {shown}");
                Trouble::lasting(Error::failed("oci.answer", message))
            }
        }
    }
}

/// The registry does not let us.
pub(super) fn needs_login(place: &Place, has_login: bool) -> Error {
    let (registry, shown) = (place.registry(), place.shown());
    if has_login {
        return Error::failed(
            "oci.login-refused",
            format!("the registry {registry} refuses {shown} to the login that this host has for it"),
        )
        .help(format!("log in again with an account that may read it: `docker login {registry}` or `podman login {registry}`"));
    }
    Error::failed(
        "oci.login-needed",
        format!("the registry {registry} gives {shown} to nobody without a login, or has no such image"),
    )
    .help(format!(
        "check the name, or run `docker login {registry}` or `podman login {registry}`; their login files are read"
    ))
}
