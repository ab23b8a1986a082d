//! Why a transfer did not come to its end, and what is worth doing about it.

use super::url::{shown, too_long};
use crate::asset::behind::{self, Lookup, causes, root_cause};
use crate::error::{Error, Kind};
use reqwest::{StatusCode, Url};
use std::error::Error as StdError;
use std::time::Duration;

/// A failed transfer.
#[derive(Debug)]
pub(super) struct Failure {
    /// Boxed: most transfers fail not at all, and a result should be small.
    pub error: Box<Error>,
    pub next: Next,
}

/// What is worth trying after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The same again, later; the server may have asked for a time.
    Again(Option<Duration>),
    /// This URL will not do; another may.
    OtherUrl,
    /// Nothing: it is not about the server.
    Nothing,
}

impl Failure {
    /// "cannot download URL: why".
    pub fn new(next: Next, code: &'static str, url: &Url, why: impl std::fmt::Display) -> Failure {
        let error = Error::failed(code, format!("cannot download {}: {why}", shown(url.as_str())));
        Failure { error: Box::new(error), next }
    }

    /// Something that passes.
    pub fn passing(code: &'static str, url: &Url, why: impl std::fmt::Display) -> Failure {
        Failure::new(Next::Again(None), code, url, why)
    }

    /// Something that stays.
    pub fn lasting(code: &'static str, url: &Url, why: impl std::fmt::Display) -> Failure {
        Failure::new(Next::OtherUrl, code, url, why)
    }

    /// Adds how to mend it.
    pub fn help(mut self, help: impl Into<String>) -> Failure {
        self.error = Box::new(self.error.help(help));
        self
    }

    /// More than is taken.
    pub fn too_long(url: &Url, size: u64, max: u64) -> Failure {
        Failure { error: Box::new(too_long(url, size, max)), next: Next::OtherUrl }
    }

    /// About this host: no server can mend it.
    pub fn ours(error: Error) -> Failure {
        Failure { error: Box::new(error), next: Next::Nothing }
    }

    /// An answer that is neither the file nor a redirect.
    pub fn status(status: StatusCode, retry_after: Option<Duration>, url: &Url) -> Failure {
        let why = format!("the server answers {status}");
        let code = "http.status";
        match status.as_u16() {
            408 | 425 | 429 | 500 | 502..=504 | 506..=599 => {
                let help = match retry_after {
                    Some(wait) => format!(
                        "it wants to be asked again in {} s; or give another mirror as `url`",
                        wait.as_secs()
                    ),
                    None => "try again later, or give another mirror as `url`".to_owned(),
                };
                Failure::new(Next::Again(retry_after), code, url, why).help(help)
            }
            401 | 403 => Failure::lasting(code, url, why).help(
                "the server lets not everybody have it: check the URL, or download it and give it as `path`",
            ),
            404 | 410 => Failure::lasting(code, url, why)
                .help("check the URL; if the file has moved, name its new place and keep its sha256"),
            _ => Failure::lasting(code, url, why),
        }
    }

    /// What the HTTP client says. Its own words name the URL with all that is in it, so only its causes are kept.
    pub fn client(error: reqwest::Error, url: &Url) -> Failure {
        let error = error.without_url();
        let why = root_cause(&error);
        if let Some(tls) = tls_error(&error) {
            return Failure::lasting("http.tls", url, tls).help(
                "check this host's clock and its root certificates (ca-certificates, or SSL_CERT_FILE)",
            );
        }
        if error.is_builder() {
            return Failure::lasting("http.url", url, why);
        }
        match behind::lookup(&error) {
            Some(Lookup::NoSuchHost) => {
                return Failure::lasting("http.connect", url, "no such host")
                    .help("check the URL's host name, and this host's name servers");
            }
            Some(Lookup::NoAnswer) => {
                return Failure::passing("http.connect", url, format!("its name cannot be looked up: {why}"))
                    .help("check this host's network and name servers; what is in the store needs none");
            }
            None => {}
        }
        if error.is_connect() {
            let why = if error.is_timeout() { "no connection in time".to_owned() } else { why };
            return Failure::passing("http.connect", url, why)
                .help("check this host's network and its proxy variables; what is in the store needs none");
        }
        Failure::passing("http.broken", url, format!("the connection broke: {why}"))
            .help("run it again: it goes on where it stopped, if the server allows")
    }

    /// One error for all URLs.
    pub fn combine(mut all: Vec<Failure>) -> Error {
        let Some(last) = all.pop() else {
            return Error::bug("a download failed without having been tried");
        };
        if all.is_empty() {
            return *last.error;
        }
        all.push(last);
        let texts: Vec<String> = all.iter().map(|f| f.error.to_string()).collect();
        // The most telling one gives the code: bytes that are wrong, before servers that are away.
        let wrong = all.iter().find(|f| matches!(f.error.code(), "http.digest" | "http.size"));
        let told = wrong.unwrap_or(&all[0]);
        let text = format!("none of the {} URLs will do: {}", all.len(), texts.join("; "));
        let code = told.error.code();
        let error = match told.error.kind() {
            Kind::Host => Error::host(code, text),
            _ => Error::failed(code, text),
        };
        match told.error.help_text() {
            Some(help) => error.help(help),
            None => error,
        }
    }
}

/// A certificate or protocol that TLS does not accept; asking again changes nothing.
fn tls_error(error: &(dyn StdError + 'static)) -> Option<String> {
    causes(error).find_map(|e| e.downcast_ref::<rustls::Error>()).map(ToString::to_string)
}
