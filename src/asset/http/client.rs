//! Asks servers and follows their redirects. TLS is rustls on ring with this host's root certificates; proxies are
//! those that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).

use super::failure::{Failure, Next};
use super::settings::Settings;
use super::url::shown;
use crate::error::{Error, Result};
use reqwest::header::{ACCEPT_ENCODING, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

const USER_AGENT: &str = concat!("firegopher/", env!("CARGO_PKG_VERSION"));

/// As many as curl and browsers follow at least.
const REDIRECTS: usize = 10;
/// What helps against redirects that nobody can follow.
const REDIRECTED: &str = "open the URL in a browser: a server that wants a login redirects so; give a direct URL or another mirror as `url`";

/// What all downloads of one call have in common.
pub(super) struct Shared {
    pub settings: Settings,
    /// Reading the host's certificates takes milliseconds, and plain http needs none.
    roots: OnceLock<Arc<rustls::RootCertStore>>,
}

impl Shared {
    pub fn new(settings: &Settings) -> Shared {
        Shared { settings: settings.clone(), roots: OnceLock::new() }
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let load = || {
            let mut store = rustls::RootCertStore::empty();
            match &self.settings.roots {
                Some(own) => drop(store.add_parsable_certificates(own.iter().map(|der| der.clone().into()))),
                None => drop(store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
            }
            Arc::new(store)
        };
        Arc::clone(self.roots.get_or_init(load))
    }

    fn build(&self, roots: Arc<rustls::RootCertStore>) -> Result<Client> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::bug("ring speaks none of the TLS versions").because(e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            // Ours know what was tried; reqwest's would hide it.
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.settings.connect)
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|e| {
                Error::failed("http.client", "cannot prepare for downloads").because(e.without_url())
            })
    }
}

/// One thread's connections.
pub(super) struct Asker<'a> {
    shared: &'a Shared,
    plain: OnceLock<Client>,
    secure: OnceLock<Client>,
}

impl<'a> Asker<'a> {
    pub fn new(shared: &'a Shared) -> Asker<'a> {
        Asker { shared, plain: OnceLock::new(), secure: OnceLock::new() }
    }

    /// The answer to a GET after all redirects, and who gave it. Waits for the headers only.
    pub async fn get(&self, from: &Url, headers: &HeaderMap) -> Result<Response, Failure> {
        let mut headers = headers.clone();
        // The bytes that were hashed when the file was published, not a rendering of them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let (mut url, mut seen) = (from.clone(), vec![from.clone()]);
        loop {
            let request = self.client(&url)?.get(url.clone()).headers(headers.clone());
            let answer = tokio::time::timeout(self.shared.settings.stall, request.send());
            let response = match answer.await {
                Ok(answer) => answer.map_err(|e| Failure::client(e, &url))?,
                Err(_) => return Err(silent(&url, self.shared.settings.stall)),
            };
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            url = follow(&url, &response)?;
            if seen.contains(&url) {
                let why = "its redirects lead in a circle";
                return Err(Failure::lasting("http.redirect-loop", from, why).help(REDIRECTED));
            }
            seen.push(url.clone());
            if seen.len() > REDIRECTS + 1 {
                let why = format!("it redirects more than {REDIRECTS} times");
                return Err(Failure::lasting("http.redirect-loop", from, why).help(REDIRECTED));
            }
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, Failure> {
        let secure = url.scheme() == "https" || proxy_speaks_tls();
        let slot = if secure { &self.secure } else { &self.plain };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let roots = if secure { self.shared.roots() } else { Arc::new(rustls::RootCertStore::empty()) };
        if secure && roots.is_empty() {
            let error = Error::host(
                "http.no-roots",
                format!(
                    "cannot download {}: this host has no root certificates to check servers by",
                    shown(url.as_str())
                ),
            )
            .help("install the package ca-certificates, or name a file of certificates in SSL_CERT_FILE");
            return Err(Failure { error: Box::new(error), next: Next::OtherUrl });
        }
        let client = self.shared.build(roots).map_err(Failure::ours)?;
        Ok(slot.get_or_init(|| client))
    }
}

/// Whether plain http, too, goes through TLS: to the proxy.
fn proxy_speaks_tls() -> bool {
    let names = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
    names.iter().any(|name| std::env::var(name).is_ok_and(|proxy| proxy.starts_with("https:")))
}

/// Nothing came for too long.
pub(super) fn silent(url: &Url, waited: Duration) -> Failure {
    Failure::passing("http.stalled", url, format!("nothing came for {} s", waited.as_secs_f32()))
        .help("run it again: it goes on where it stopped, if the server allows")
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn follow(url: &Url, response: &Response) -> Result<Url, Failure> {
    let location = response.headers().get(LOCATION).and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
    let Some(mut next) = location.and_then(|location| url.join(location).ok()) else {
        return Err(Failure::lasting("http.redirect", url, "it redirects to nowhere").help(REDIRECTED));
    };
    next.set_fragment(None);
    match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => {
            let why = format!("it redirects from https to plain http ({})", shown(next.as_str()));
            return Err(Failure::lasting("http.downgrade", url, why).help(
                "anybody on the way could exchange it; give that URL itself, with a sha256, if it is meant",
            ));
        }
        (_, other) => {
            let why = format!("it redirects to {other}:");
            return Err(Failure::lasting("http.redirect", url, why).help(REDIRECTED));
        }
    }
    // Whom the password was meant for, and nobody else.
    if next.origin() == url.origin() && next.username().is_empty() && next.password().is_none() {
        let _ = next.set_username(url.username());
        let _ = next.set_password(url.password());
    }
    Ok(next)
}

/// How long the server asks us to wait: in seconds, or until a time, as its own clock has it.
pub(in crate::asset) fn retry_after(response: &Response) -> Option<Duration> {
    wait_of(response.headers(), SystemTime::now())
}

fn wait_of(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    // What is past is now.
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_seconds_or_a_time_by_the_servers_clock() {
        let now = httpdate::parse_http_date("Tue, 01 Jul 2025 10:00:00 GMT").unwrap();
        let asked = |retry_after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(retry_after).unwrap());
            headers.extend(date.map(|date| (DATE, HeaderValue::from_str(date).unwrap())));
            wait_of(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(asked(" 45 ", None), Some(45));
        let later = "Tue, 01 Jul 2025 10:02:00 GMT";
        assert_eq!(asked(later, None), Some(120));
        assert_eq!(
            asked(later, Some("Tue, 01 Jul 2025 10:01:50 GMT")),
            Some(10),
            "its clock is ahead of ours"
        );
        assert_eq!(asked("Tue, 01 Jul 2025 09:00:00 GMT", None), Some(0));
        assert_eq!(asked("soon", None), None);
        assert_eq!(asked("-1", None), None);
    }
}
