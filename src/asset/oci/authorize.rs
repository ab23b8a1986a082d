//! Answers the challenges of a registry. Logins and what they buy are the registry's alone: no redirect takes them
//! along, and nobody to whom one leads is answered (the kind of CVE-2020-15157).

use super::challenge::{self, Challenge};
use super::login::Login;
use super::registry::{Registry, Session, redirect};
use super::trouble::{Trouble, What, needs_login};
use crate::error::Error;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

/// Tokens have a few kilobytes.
const MAX_TOKEN: u64 = 1 << 20;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry<'_> {
    /// Does what a 401 of the registry's own asks for: a password, or a token from the token server that it names.
    pub(super) async fn authorize(&self, refused: &Response) -> Result<(), Trouble> {
        let Session { place, login, .. } = self.session;
        let values = refused.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges = challenge::parse(values.filter_map(|v| std::str::from_utf8(v.as_bytes()).ok()));
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = if let Some(bearer) = find("bearer") {
            let token = self.token(self.realm(bearer)?, bearer).await?;
            HeaderValue::from_str(&format!("Bearer {token}")).ok()
        } else if find("basic").is_some() {
            match login {
                Some(Login::Password { user, password }) => {
                    let request = self.client.get(place.url("")).basic_auth(user, Some(password));
                    let built = request.build().map_err(|e| Trouble::of_client(e, place))?;
                    built.headers().get(AUTHORIZATION).cloned()
                }
                login => return Err(Trouble::lasting(needs_login(place, login.is_some()))),
            }
        } else {
            return Err(Trouble::lasting(needs_login(place, login.is_some())));
        };
        self.remember(value)
    }

    fn remember(&self, value: Option<HeaderValue>) -> Result<(), Trouble> {
        let Some(mut value) = value else {
            let message = format!("the login for {} cannot be sent", self.session.place.registry());
            return Err(Trouble::lasting(Error::failed("oci.login-refused", message)));
        };
        value.set_sensitive(true);
        self.session.set_authorization(value);
        Ok(())
    }

    /// The token server that a challenge names: by https, or on this machine if the registry is there, too.
    fn realm(&self, bearer: &Challenge) -> Result<Url, Trouble> {
        let place = &self.session.place;
        let Some(mut realm) = bearer.param("realm").and_then(|realm| Url::parse(realm).ok()) else {
            let message = format!("the registry {} names no token server", place.registry());
            return Err(Trouble::lasting(Error::failed("oci.answer", message)));
        };
        if !place.may_lead_to(&realm) {
            let message = format!(
                "the registry {} wants logins to be sent by plain http to {}",
                place.registry(),
                realm.host_str().unwrap_or_default()
            );
            let help = "anybody on the way could read them; ask whoever runs the registry for https";
            return Err(Trouble::lasting(Error::failed("oci.insecure-login", message).help(help)));
        }
        without_user(&mut realm);
        Ok(realm)
    }

    /// A token that lets us read the repository (distribution's token and OAuth 2 specifications).
    async fn token(&self, mut realm: Url, bearer: &Challenge) -> Result<String, Trouble> {
        let Session { place, login, .. } = self.session;
        let mut fields: Vec<(&str, String)> = Vec::new();
        let scope = match bearer.param("scope").map(str::trim) {
            Some(scope) if !scope.is_empty() => scope.to_owned(),
            _ => format!("repository:{}:pull", place.repository()),
        };
        fields.extend(scope.split_ascii_whitespace().map(|scope| ("scope", scope.to_owned())));
        fields.extend(bearer.param("service").map(|service| ("service", service.to_owned())));
        let mut form = None;
        match login {
            Some(Login::Identity(token)) => {
                // OAuth 2 has one field, with spaces in it.
                fields.retain(|(name, _)| *name != "scope");
                fields.push(("scope", scope));
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "firegopher".to_owned()));
                fields.push(("refresh_token", token.clone()));
                // A query's encoding is a form's.
                let mut encoded = realm.clone();
                encoded.query_pairs_mut().clear().extend_pairs(&fields);
                form = encoded.query().map(str::to_owned);
            }
            _ => _ = realm.query_pairs_mut().extend_pairs(&fields),
        }
        let response = self.ask_for_token(realm, form).await?;
        if !response.status().is_success() {
            return Err(Trouble::of_answer(&response, What::Token, place, login.is_some()));
        }
        let bytes = self.body(response, MAX_TOKEN).await?;
        let parsed = serde_json::from_slice::<Token>(&bytes).ok();
        let named = parsed.and_then(|Token { token, access_token }| {
            let given = |token: Option<String>| token.filter(|token| !token.is_empty());
            given(token).or_else(|| given(access_token))
        });
        named.ok_or_else(|| {
            let message = format!("the token server of {} answers with no token", place.registry());
            Trouble::lasting(Error::failed("oci.answer", message))
        })
    }

    /// Asks the token server, and follows it within its own origin. Elsewhere only those go who have no login.
    async fn ask_for_token(&self, realm: Url, form: Option<String>) -> Result<Response, Trouble> {
        let Session { place, login, .. } = self.session;
        let mut url = realm.clone();
        for _ in 0..=super::registry::MOST_REDIRECTS {
            let request = match (&form, login) {
                (Some(form), _) => {
                    let request = self.client.post(url.clone());
                    request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone())
                }
                (None, Some(Login::Password { user, password })) => {
                    self.client.get(url.clone()).basic_auth(user, Some(password))
                }
                (None, _) => self.client.get(url.clone()),
            };
            let response = request.send().await.map_err(|e| Trouble::of_client(e, place))?;
            let Some(next) = redirect(&url, &response, place)? else { return Ok(response) };
            if login.is_some() && next.origin() != realm.origin() {
                let why = format!(
                    "its token server redirects to {}, and the login is not meant for that",
                    next.host_str().unwrap_or_default()
                );
                return Err(Trouble::redirect(place, &why));
            }
            let keeps_body = matches!(response.status().as_u16(), 307 | 308);
            if form.is_some() && !keeps_body {
                let why = format!("its token server answers a login with {}", response.status());
                return Err(Trouble::redirect(place, &why));
            }
            url = next;
        }
        Err(Trouble::redirect(place, "its token server redirects more than 10 times"))
    }
}

/// Takes user and password out of a URL that somebody else made: they would be sent, in place of our own.
pub(super) fn without_user(url: &mut Url) {
    // These fail for URLs that can have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
}

/// The error for a challenge of somebody to whom the registry led us.
pub(super) fn stranger(session: &Session, asker: &Url, status: StatusCode) -> Trouble {
    let place = &session.place;
    let (registry, shown, host) = (place.registry(), place.shown(), asker.host_str().unwrap_or_default());
    let message =
        format!("cannot fetch {shown}: the registry {registry} redirects to {host}, which answers {status}");
    let help =
        "logins are sent to the registry itself and nobody else; ask whoever runs it what it redirects to";
    Trouble::lasting(Error::failed("oci.login-elsewhere", message).help(help))
}
