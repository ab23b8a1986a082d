//! Asks a registry: the distribution API by reqwest, with the authorization that it wants. Answers are bounded
//! whatever their headers say; plain http is spoken with this machine only.

use super::login::Login;
use super::reference::Place;
use super::settings::Settings;
use super::trouble::{Trouble, What, needs_login};
use crate::error::{Error, Result};
use crate::reference::is_loopback;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::{Arc, Mutex, PoisonError};

const MOST_REDIRECTS: usize = 10;
/// Tokens have a few kilobytes.
const MAX_TOKEN: u64 = 1 << 20;

/// What all requests about one image have in common, from whatever thread.
pub(super) struct Session {
    pub place: Place,
    pub settings: Settings,
    login: Option<Login>,
    /// What the registry last wanted to see.
    authorization: Mutex<Option<HeaderValue>>,
    /// Loaded once: takes milliseconds.
    roots: Arc<rustls::RootCertStore>,
}

/// One thread's connections.
pub(super) struct Registry<'a> {
    session: &'a Session,
    client: Client,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
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
}

impl<'a> Registry<'a> {
    pub fn new(session: &'a Session) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::bug("ring speaks none of the TLS versions").because(e))?
            .with_root_certificates(Arc::clone(&session.roots))
            .with_no_client_auth();
        let mut builder = Client::builder()
            .user_agent(concat!("firegopher/", env!("CARGO_PKG_VERSION")))
            // Follows none to plain http elsewhere. Authorization does not go to other hosts: reqwest drops it.
            .redirect(reqwest::redirect::Policy::custom(|attempt| {
                if attempt.previous().len() > MOST_REDIRECTS {
                    attempt.error("more than 10 redirects")
                } else if !is_safe(attempt.url()) {
                    attempt.error("a redirect to plain http")
                } else {
                    attempt.follow()
                }
            }))
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
        Ok(Registry { session, client })
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
            match self.session.authorization() {
                Some(value) => headers.insert(AUTHORIZATION, value),
                None => headers.remove(AUTHORIZATION),
            };
            let request = self.client.get(place.url(rest)).headers(headers.clone());
            let response = request.send().await.map_err(|e| Trouble::of_client(e, place))?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !authorized => self.authorize(&response).await?,
                _ => return Err(Trouble::of_answer(&response, what, place, self.session.login.is_some())),
            }
            authorized = true;
        }
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
                Err(trouble) => match trouble.wait(tried, &self.session.settings) {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => return Err(*trouble.error),
                },
            }
        }
    }

    async fn body(&self, mut response: Response, max: u64) -> Result<Vec<u8>, Trouble> {
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

    /// Does what a 401 asks for: a password, or a token from the registry's token server.
    async fn authorize(&self, refused: &Response) -> Result<(), Trouble> {
        let Session { place, login, .. } = self.session;
        let challenges = || {
            let values = refused.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
            values.filter_map(|value| http_auth::parse_challenges(value).ok()).flatten()
        };
        let param = |challenge: &http_auth::ChallengeRef<'_>, name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let value = if let Some(bearer) = challenges().find(|c| c.scheme.eq_ignore_ascii_case("bearer")) {
            let realm = param(&bearer, "realm").and_then(|realm| Url::parse(&realm).ok());
            let Some(realm) = realm else {
                let message = format!("the registry {} names no token server", place.registry());
                return Err(Trouble::lasting(Error::failed("oci.answer", message)));
            };
            if !is_safe(&realm) {
                let message = format!(
                    "the registry {} wants logins to be sent by plain http to {}",
                    place.registry(),
                    realm.host_str().unwrap_or_default()
                );
                return Err(Trouble::lasting(
                    Error::failed("oci.insecure-login", message)
                        .help("anybody on the way could read them; ask whoever runs the registry for https"),
                ));
            }
            let token = self.token(realm, param(&bearer, "service").as_deref()).await?;
            format!("Bearer {token}")
        } else if challenges().any(|c| c.scheme.eq_ignore_ascii_case("basic")) {
            match login {
                Some(Login::Password { user, password }) => {
                    let request = self.client.get(place.url("")).basic_auth(user, Some(password));
                    let built = request.build().map_err(|e| Trouble::of_client(e, place))?;
                    return self.remember(built.headers().get(AUTHORIZATION).cloned());
                }
                login => return Err(Trouble::lasting(needs_login(place, login.is_some()))),
            }
        } else {
            return Err(Trouble::lasting(needs_login(place, login.is_some())));
        };
        self.remember(HeaderValue::from_str(&value).ok())
    }

    fn remember(&self, value: Option<HeaderValue>) -> Result<(), Trouble> {
        let Some(mut value) = value else {
            let message = format!("the login for {} cannot be sent", self.session.place.registry());
            return Err(Trouble::lasting(Error::failed("oci.login-refused", message)));
        };
        value.set_sensitive(true);
        *self.session.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    /// A token that lets us read the repository (distribution's token and OAuth 2 specifications).
    async fn token(&self, mut realm: Url, service: Option<&str>) -> Result<String, Trouble> {
        let Session { place, login, .. } = self.session;
        let mut fields = vec![("scope", format!("repository:{}:pull", place.repository()))];
        fields.extend(service.map(|service| ("service", service.to_owned())));
        let request = match login {
            Some(Login::Identity(token)) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "firegopher".to_owned()));
                fields.push(("refresh_token", token.clone()));
                // A query's encoding is a form's.
                let mut form = realm.clone();
                form.query_pairs_mut().clear().extend_pairs(&fields);
                let body = form.query().unwrap_or_default().to_owned();
                let kind = "application/x-www-form-urlencoded";
                self.client.post(realm).header(reqwest::header::CONTENT_TYPE, kind).body(body)
            }
            other => {
                realm.query_pairs_mut().extend_pairs(&fields);
                let request = self.client.get(realm);
                match other {
                    Some(Login::Password { user, password }) => request.basic_auth(user, Some(password)),
                    _ => request,
                }
            }
        };
        let response = request.send().await.map_err(|e| Trouble::of_client(e, place))?;
        if response.status() != StatusCode::OK {
            return Err(Trouble::of_answer(&response, What::Token, place, login.is_some()));
        }
        let bytes = self.body(response, MAX_TOKEN).await?;
        let parsed = serde_json::from_slice::<Token>(&bytes).ok();
        let token = parsed.map(|t| if t.token.is_empty() { t.access_token } else { t.token });
        token.filter(|token| !token.is_empty()).ok_or_else(|| {
            let message = format!("the token server of {} answers with no token", place.registry());
            Trouble::lasting(Error::failed("oci.answer", message))
        })
    }
}

/// Https, or this machine.
fn is_safe(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => url.host_str().is_some_and(is_loopback),
        _ => false,
    }
}
