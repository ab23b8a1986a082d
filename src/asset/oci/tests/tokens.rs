//! Registries that want a token of a token server, anonymously or by a login.

use super::super::login::Logins;
use super::fake::{Fake, Reply, Request};
use super::local::Layout;
use super::{fetch_as, pin_as};
use crate::asset::Silent;
use crate::error::Error;
use crate::store::testing::scratch;
use fs_err as fs;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A registry that wants the token of a server with the address `realm`.
fn registry(realm: String, token: impl Fn() -> String + Send + Sync + 'static) -> Fake {
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({}), &[b"a layer"]);
    Fake::registry(&layout, &image, move |request, reply| {
        if request.headers.get("authorization") == Some(&format!("Bearer {}", token())) {
            return reply;
        }
        let challenge =
            format!(r#"Bearer realm="{realm}",service="the, registry",scope="repository:app:pull""#);
        Reply::new(401, "{}").header("WWW-Authenticate", challenge)
    })
}

/// A token server that knows `allowed` and hands out `t0ken`.
fn token_server(allowed: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Fake {
    Fake::new(move |request| match allowed(request) {
        true => Reply::new(200, r#"{"token":"t0ken","expires_in":60}"#),
        false => Reply::new(401, r#"{"details":"s3cret-p4ss is wrong"}"#),
    })
}

fn pull(fake: &Fake, login: Option<serde_json::Value>) -> Result<Vec<u8>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut logins = Logins::default();
    if let Some(login) = login {
        let file = dir.path().join("config.json");
        fs::write(&file, json!({ "auths": { &fake.address: login } }).to_string()).unwrap();
        logins = Logins::of_files(vec![file]);
    }
    let s = scratch();
    let pin = pin_as(&scratch().store, &fake.reference(), &logins, &[b"a layer"])?;
    let layers = fetch_as(&s.store, &fake.reference(), &pin, &logins, &Silent)?;
    s.store.read(&layers[0])
}

#[test]
fn an_anonymous_token_is_fetched_by_itself() {
    let server = token_server(|request| !request.headers.contains_key("authorization"));
    let fake = registry(format!("http://{}/token?x=1", server.address), || "t0ken".into());
    assert_eq!(pull(&fake, None).unwrap(), b"a layer");
    let asked = server.asked();
    assert_eq!(asked[0].path, "/token?x=1&scope=repository%3Aapp%3Apull&service=the%2C+registry");
    // One for the manifest and one for the layers, each of which is a session of its own.
    assert_eq!(asked.len(), 2, "the token is kept: {asked:?}");
}

#[test]
fn a_login_buys_a_token_and_goes_to_nobody_else() {
    // alice:s3cret-p4ss
    let basic = "YWxpY2U6czNjcmV0LXA0c3M=";
    let server = token_server(move |request| {
        request.headers.get("authorization").is_some_and(|value| value == &format!("Basic {basic}"))
    });
    let fake = registry(format!("http://{}/token", server.address), || "t0ken".into());
    assert_eq!(pull(&fake, Some(json!({ "auth": basic }))).unwrap(), b"a layer");
    assert!(
        fake.asked().iter().all(|r| r.headers.get("authorization").is_none_or(|v| v.starts_with("Bearer")))
    );

    let error = pull(&fake, None).unwrap_err();
    assert_eq!(error.code(), "oci.login-needed");
    // alice:wrong
    let error = pull(&fake, Some(json!({ "auth": "YWxpY2U6d3Jvbmc=" }))).unwrap_err();
    assert_eq!(error.code(), "oci.login-refused");
    let text = format!("{error:?}");
    assert!(!text.contains("wrong\"") && !text.contains("s3cret") && !text.contains("YWxp"), "{text}");
}

#[test]
fn an_identity_token_is_exchanged() {
    let server = token_server(|request| {
        request.method == "POST"
            && request.body.contains("grant_type=refresh_token")
            && request.body.contains("refresh_token=1d%2Bent")
            && request.body.contains("scope=repository%3Aapp%3Apull")
    });
    let fake = registry(format!("http://{}/token", server.address), || "t0ken".into());
    assert_eq!(pull(&fake, Some(json!({ "identitytoken": "1d+ent" }))).unwrap(), b"a layer");
    assert!(
        server.asked().iter().all(|request| !request.path.contains("1d")),
        "in no URL, which servers log"
    );
}

#[test]
fn a_token_that_expired_is_renewed() {
    // Every token is good for one answer.
    let used = Arc::new(AtomicUsize::new(0));
    let issued = Arc::new(AtomicUsize::new(0));
    let issue = Arc::clone(&issued);
    let server = Fake::new(move |_| {
        let token = format!("t{}", issue.fetch_add(1, Ordering::SeqCst) + 1);
        Reply::new(200, json!({ "access_token": token }).to_string())
    });
    let realm = format!("http://{}/token", server.address);
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({}), &[b"a layer"]);
    let fake = Fake::registry(&layout, &image, move |request, reply| {
        let now = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        let fresh = used.load(Ordering::SeqCst) < issued.load(Ordering::SeqCst);
        if request.headers.get("authorization") == Some(&now) && fresh {
            used.fetch_add(1, Ordering::SeqCst);
            return reply;
        }
        Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    });
    assert_eq!(pull(&fake, None).unwrap(), b"a layer");
}

#[test]
fn nobody_sends_a_login_by_plain_http() {
    let fake = registry("http://tokens.example.org/token".into(), || "t0ken".into());
    let error = pull(&fake, Some(json!({ "auth": "YWxpY2U6czNjcmV0LXA0c3M=" }))).unwrap_err();
    assert_eq!(error.code(), "oci.insecure-login");
    assert!(error.to_string().contains("tokens.example.org"), "{error}");
}

#[test]
fn nonsense_of_a_token_server_is_an_error() {
    for answer in ["", "{}", "<html>", r#"{"token":""}"#, "{\"token\":\"a\\nb\"}"] {
        let server = Fake::new(move |_| Reply::new(200, answer));
        let fake = registry(format!("http://{}/token", server.address), || "t0ken".into());
        let error = pull(&fake, None).unwrap_err();
        assert!(["oci.answer", "oci.login-refused"].contains(&error.code()), "{answer}: {error}");
    }
    let fake = registry("not a url".into(), || "t0ken".into());
    assert_eq!(pull(&fake, None).unwrap_err().code(), "oci.answer");
}
