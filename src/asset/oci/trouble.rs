//! What goes wrong between us and a registry: in words, and whether trying again may help.

use super::reference::Place;
use super::settings::Settings;
use crate::asset::behind::{self, Lookup};
use crate::asset::http::retry_after;
use crate::asset::progress::Progress;
use crate::error::{Error, Result};
use reqwest::{Response, StatusCode};
use std::time::Duration;

/// From here on a wait is told.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

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

    /// Waits before try number `tried + 1`, and says so where it takes long; the error if there is to be none.
    pub async fn pause(self, tried: usize, settings: &Settings, progress: &dyn Progress) -> Result<()> {
        let wait = settings.waits.get(tried.saturating_sub(1)).copied().filter(|_| self.passing);
        let Some(wait) = wait.filter(|_| self.wait.is_none_or(|said| said <= settings.longest_wait)) else {
            return Err(*self.error);
        };
        let wait = wait.max(self.wait.unwrap_or_default());
        if wait >= WORTH_A_LINE {
            progress.note(&format!("{}; trying again in {} s", self.error, wait.as_secs_f32().ceil()));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// A redirect that is not followed.
    pub fn redirect(place: &Place, why: &str) -> Self {
        let (shown, registry) = (place.shown(), place.registry());
        let message = format!(
            "cannot fetch {shown}: the registry {registry} redirects to where nobody should follow: {why}"
        );
        Trouble::lasting(Error::failed("oci.redirect", message))
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
            status if passes(status) => {
                let message = format!("the registry {registry} answers {status} when asked for {shown}");
                let wait = retry_after(response);
                let mut help = match wait {
                    Some(wait) => format!("it wants to be asked again in {} s", wait.as_secs()),
                    None => "try again later".to_owned(),
                };
                if status == StatusCode::TOO_MANY_REQUESTS && !has_login {
                    help.push_str(
                        "; it limits anonymous downloads: log in (`docker login`, `podman login`), or try again later",
                    );
                }
                Trouble { wait, ..Trouble::passing(Error::failed("oci.busy", message).help(help)) }
            }
            status => {
                let message = format!("the registry {registry} answers {status} when asked for {shown}");
                Trouble::lasting(Error::failed("oci.answer", message))
            }
        }
    }
}

/// Whether the same request may be answered later.
fn passes(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
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
