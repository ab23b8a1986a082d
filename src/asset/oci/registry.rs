//! Asks a registry: the distribution API by reqwest, with the authorization that it wants. Answers are bounded
//! whatever their headers say; plain http is spoken with this machine only.

use super::authorize::{stranger, without_user};
use super::login::Login;
use super::reference::Place;
use super::settings::Settings;
use super::trouble::{Trouble, What};
use crate::asset::progress::Progress;
use crate::error::{Error, Result};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) const MOST_REDIRECTS: usize = 10;

/// What all requests about one image have in common, from whatever thread.
pub(super) struct Session {
    pub place: Place,
    pub settings: Settings,
    pub login: Option<Login>,
    /// What the registry last wanted to see.
    authorization: Mutex<Option<HeaderValue>>,
    /// Loaded once: takes milliseconds.
    roots: Arc<rustls::RootCertStore>,
}

/// One thread's connections.
pub(super) struct Registry<'a> {
    pub session: &'a Session,
    pub client: Client,
    progress: &'a dyn Progress,
}

impl Session {
    pub fn new(place: Place, login: Option<Login>, settings: &Settings) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        // Certificates that cannot be read make the handshake fail, which says so.
        match &settings.roots {
            Some(own) => drop(roots.add_parsable_certificates(own.iter().map(|der| der.clone().into()))),
            None if place.is_loopback() => {}
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let settings = settings.clone();
        Session { place, settings, login, authorization: Mutex::new(None), roots: Arc::new(roots) }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_authorization(&self, value: HeaderValue) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl<'a> Registry<'a> {
    pub fn new(session: &'a Session, progress: &'a dyn Progress) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::bug("ring speaks none of the TLS versions").because(e))?
            .with_root_certificates(Arc::clone(&session.roots))
            .with_no_client_auth();
        let mut builder = Client::builder()
            .user_agent(concat!("firegopher/", env!("CARGO_PKG_VERSION")))
            // Ours know who may be told what.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(session.settings.connect)
            .read_timeout(session.settings.stall)
            .tls_backend_preconfigured(tls);
        if session.place.is_loopback() {
            builder = builder.no_proxy();
        }
        for (name, address) in &session.settings.hosts {
            builder = builder.no_proxy().resolve(name, *address);
        }
        let client = builder.build().map_err(|e| {
            Error::failed("oci.client", "cannot prepare for asking registries").because(e.without_url())
        })?;
        Ok(Registry { session, client, progress })
    }

    /// Asks once for `rest` of the repository; from `offset` on if that is not 0. Authorizes itself as needed.
    pub async fn get(
        &self,
        rest: &str,
        what: What,
        accept: &'static str,
        offset: u64,
    ) -> Result<Response, Trouble> {
        let place = &self.session.place;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        // The bytes that the digest is of, not a rendering of them.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut authorized = false;
        loop {
            let (response, url, at_home) = self.follow(rest, &headers).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => return Ok(response),
                StatusCode::UNAUTHORIZED if at_home && !authorized => self.authorize(&response).await?,
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if !at_home => {
                    return Err(stranger(self.session, &url, status));
                }
                _ => return Err(Trouble::of_answer(&response, what, place, self.session.login.is_some())),
            }
            authorized = true;
        }
    }

    /// The answer after all redirects, who gave it, and whether the registry itself led to all of it. Once a redirect
    /// leads away, nobody on the way sees what authorizes us: not even the registry, should it lead back there.
    async fn follow(&self, rest: &str, headers: &HeaderMap) -> Result<(Response, Url, bool), Trouble> {
        let place = &self.session.place;
        let start = place.url(rest);
        let bad = |e| Trouble::lasting(Error::bug(format!("{start} is no URL")).because(e));
        let home = Url::parse(&start).map_err(bad)?;
        let (mut url, mut at_home) = (home.clone(), true);
        for _ in 0..=MOST_REDIRECTS {
            let mut headers = headers.clone();
            if at_home {
                headers.extend(self.session.authorization().map(|value| (AUTHORIZATION, value)));
            }
            let request = self.client.get(url.clone()).headers(headers);
            let response = request.send().await.map_err(|e| Trouble::of_client(e, place))?;
            let Some(next) = redirect(&url, &response, place)? else { return Ok((response, url, at_home)) };
            at_home &= next.origin() == home.origin();
            url = next;
        }
        Err(Trouble::redirect(place, "more than 10 redirects"))
    }

    /// A document of at most `max` bytes, tried several times.
    pub async fn document(&self, rest: &str, what: What, accept: &'static str, max: u64) -> Result<Vec<u8>> {
        let mut tried = 0;
        loop {
            tried += 1;
            let once = async {
                let response = self.get(rest, what, accept, 0).await?;
                self.body(response, max).await
            };
            match once.await {
                Ok(bytes) => return Ok(bytes),
                Err(trouble) => trouble.pause(tried, &self.session.settings, self.progress).await?,
            }
        }
    }

    pub(super) async fn body(&self, mut response: Response, max: u64) -> Result<Vec<u8>, Trouble> {
        let place = &self.session.place;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| Trouble::of_client(e, place))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > max {
                let (registry, shown) = (place.registry(), place.shown());
                let message = format!(
                    "the registry {registry} answers with more than {} MiB when asked about {shown}",
                    max >> 20
                );
                return Err(Trouble::lasting(Error::failed("oci.too-big", message)));
            }
        }
        Ok(bytes)
    }
}

/// Where an answer leads, if it is a redirect: by https, or on this machine if the registry is there, too.
pub(super) fn redirect(from: &Url, response: &Response, place: &Place) -> Result<Option<Url>, Trouble> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
    let Some(mut next) = location.and_then(|location| from.join(location).ok()) else {
        return Err(Trouble::redirect(place, "it redirects to nowhere"));
    };
    if !place.may_lead_to(&next) {
        let host = next.host_str().unwrap_or_default();
        return Err(Trouble::redirect(place, &format!("a redirect to {}: at {host}", next.scheme())));
    }
    next.set_fragment(None);
    without_user(&mut next);
    Ok(Some(next))
}
