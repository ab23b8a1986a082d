//! Registries that break off, lie, redirect and refuse.

use super::super::login::Logins;
use super::super::*;
use super::fake::{Fake, Reply, Request};
use super::local::Layout;
use super::{fetch_as, pin_as, resolve_as};
use crate::asset::Silent;
use crate::asset::oci::image::digest_of;
use crate::error::Error;
use crate::store::testing::{Scratch, scratch};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const SIZE: usize = 300_000;

fn layer() -> Vec<u8> {
    (0..SIZE).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn is_layer(request: &Request) -> bool {
    request.path.ends_with(&digest_of(&layer()))
}

fn image() -> (Layout, Value) {
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({ "Cmd": ["x"] }), &[&layer()]);
    (layout, image)
}

/// Resolves and fetches from a registry whose answers `change` has its way with.
fn pull(
    change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> (Scratch, Fake, Result<Vec<u8>, Error>) {
    let (layout, image) = image();
    let fake = Fake::registry(&layout, &image, change);
    let s = scratch();
    let pulled = (|| {
        let pin = pin_as(&scratch().store, &fake.reference(), &Logins::default(), &[&layer()])?;
        let layers = fetch_as(&s.store, &fake.reference(), &pin, &Logins::default(), &Silent)?;
        s.store.read(&layers[0])
    })();
    if pulled.is_err() {
        for object in s.store.objects().unwrap() {
            let bytes = s.store.read(&object).unwrap();
            assert!(serde_json::from_slice::<Value>(&bytes).is_ok(), "nothing but documents is published");
        }
    }
    let left = std::fs::read_dir(s.store.home().store().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "no temporary file stays");
    (s, fake, pulled)
}

fn failure(change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Error {
    pull(change).2.unwrap_err()
}

#[test]
fn a_download_that_breaks_off_is_continued() {
    let broken = AtomicUsize::new(0);
    let (_s, fake, pulled) = pull(move |request, mut reply| {
        if is_layer(request) && broken.fetch_add(1, Ordering::Relaxed) < 2 {
            reply.body.truncate(100_000);
        }
        reply
    });
    assert_eq!(pulled.unwrap(), layer());
    let ranges: Vec<_> =
        fake.asked().iter().filter(|r| is_layer(r)).map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=200000-".into())]);
}

#[test]
fn a_registry_without_ranges_is_asked_for_the_whole_again() {
    let broken = AtomicUsize::new(0);
    let (_s, _fake, pulled) = pull(move |request, mut reply| {
        if is_layer(request) {
            reply = Reply::new(200, layer());
            if broken.fetch_add(1, Ordering::Relaxed) == 0 {
                reply.body.truncate(100_000);
            }
        }
        reply
    });
    assert_eq!(pulled.unwrap(), layer());
}

#[test]
fn a_busy_registry_is_asked_again_and_one_that_stays_busy_is_named() {
    let asked = AtomicUsize::new(0);
    let (_s, _fake, pulled) = pull(move |_, reply| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::new(503, ""),
        2 => Reply::new(429, "").header("Retry-After", "0"),
        4 => Reply::new(500, ""),
        _ => reply,
    });
    assert_eq!(pulled.unwrap(), layer());
    let error = failure(|_, _| Reply::new(429, "").header("Retry-After", "3600"));
    assert_eq!(error.code(), "oci.busy", "an hour is not waited for");
    assert!(error.to_string().contains("429") && error.help_text().unwrap().contains("log in"), "{error:?}");
}

#[test]
fn lies_about_bytes_and_sizes_are_found_out() {
    let error = failure(|request, mut reply| {
        if is_layer(request) {
            reply.body[7] ^= 1;
        }
        reply
    });
    assert_eq!(error.code(), "oci.digest");
    assert!(error.to_string().contains("app:1") && error.help_text().is_some(), "{error:?}");

    let error =
        failure(|request, reply| if is_layer(request) { Reply::new(200, vec![0; SIZE + 1]) } else { reply });
    assert_eq!(error.code(), "oci.size", "by its header");
    let error = failure(|request, reply| match is_layer(request) {
        true => Reply { length: None, endless: true, ..Reply::new(200, vec![0; 4096]) },
        false => reply,
    });
    assert_eq!(error.code(), "oci.size", "by its bytes");

    // A complete answer that is too short, with no length that would say so.
    let error = failure(|request, mut reply| {
        if is_layer(request) {
            reply = Reply { length: None, ..Reply::new(200, &layer()[..1000]) };
        }
        reply
    });
    assert_eq!(error.code(), "oci.unreachable", "{error}");

    for what in ["manifests/", "blobs/"] {
        let error = failure(move |request, reply| match request.path.contains(what) && !is_layer(request) {
            true => Reply { length: None, endless: true, ..Reply::new(200, vec![b' '; 65536]) },
            false => reply,
        });
        assert_eq!(error.code(), "oci.too-big", "{error}");
    }
    // The configuration is another one than the manifest names.
    let error = failure(|request, reply| match request.path.contains("blobs/") && !is_layer(request) {
        true => Reply::new(200, "{}"),
        false => reply,
    });
    assert_eq!(error.code(), "oci.digest", "{error}");
}

#[test]
fn a_reference_by_digest_takes_no_other_manifest() {
    let (layout, image) = image();
    let fake = Fake::registry(&layout, &image, |request, mut reply| {
        if request.path.contains("manifests/") {
            reply.body.push(b'\n');
            reply.length = Some(reply.body.len());
        }
        reply
    });
    let reference = format!("{}/app@{}", fake.address, image["digest"].as_str().unwrap());
    let error = resolve_as(&reference, &Logins::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.digest", "{error}");
}

#[test]
fn documents_of_other_kinds_are_named() {
    for (manifest, code) in [
        (json!({ "schemaVersion": 1, "name": "app", "fsLayers": [] }), "oci.schema-1"),
        (
            json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json" }),
            "oci.invalid",
        ),
        (json!("<html>"), "oci.invalid"),
        (json!({ "schemaVersion": 2, "manifests": [] }), "oci.no-platform"),
    ] {
        let error = failure(move |request, reply| match request.path.contains("manifests/") {
            true => Reply::new(200, manifest.to_string()),
            false => reply,
        });
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("/app:1"), "{error}");
    }
}

#[test]
fn what_is_gone_names_update() {
    let error = failure(|request, reply| if is_layer(request) { Reply::new(404, "") } else { reply });
    assert_eq!(error.code(), "oci.gone");
    assert!(error.help_text().unwrap().contains("firegopher update"), "{error:?}");
}

#[test]
fn redirects_are_followed_and_not_to_plain_http_elsewhere() {
    let elsewhere = Fake::new(|_| Reply::new(200, layer()));
    let location = format!("http://{}/signed?key=abc", elsewhere.address);
    let (_s, _fake, pulled) = pull(move |request, reply| match is_layer(request) {
        true => Reply::new(307, "").header("Location", location.clone()),
        false => reply,
    });
    assert_eq!(pulled.unwrap(), layer());
    assert!(elsewhere.asked().iter().all(|request| !request.headers.contains_key("authorization")));

    let error = failure(|request, reply| match is_layer(request) {
        true => Reply::new(307, "").header("Location", "http://blobs.example.org/x?signature=s3cret"),
        false => reply,
    });
    assert_eq!(error.code(), "oci.redirect");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    let error = failure(|request, _| Reply::new(307, "").header("Location", request.path.clone()));
    assert_eq!(error.code(), "oci.redirect", "in a circle");
}

#[test]
fn a_registry_that_does_not_exist_is_named() {
    let error = resolve_as("registry.invalid/app", &Logins::default(), &Silent).unwrap_err();
    // A machine behind a proxy asks that for the name.
    assert!(
        ["oci.unknown-registry", "oci.unreachable", "oci.busy", "oci.answer"].contains(&error.code()),
        "{error:?}"
    );
    assert!(error.to_string().contains("registry.invalid"), "{error}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = resolve_as(&format!("127.0.0.1:{port}/app"), &Logins::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.unreachable");
    assert!(error.help_text().unwrap().contains("start it"), "{error:?}");
}

#[test]
fn two_fetches_at_once_download_once() {
    let (layout, image) = image();
    let fake = Fake::registry(&layout, &image, |request, reply| {
        if is_layer(request) {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        reply
    });
    let s = scratch();
    let pin = pin_as(&scratch().store, &fake.reference(), &Logins::default(), &[&layer()]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| fetch_as(&s.store, &fake.reference(), &pin, &Logins::default(), &Silent).unwrap());
        }
    });
    assert_eq!(fake.asked().iter().filter(|request| is_layer(request)).count(), 1);
    assert!(have(&s.store, &fake.reference(), &pin));
}

#[test]
fn images_are_resolved_side_by_side_and_one_that_fails_stops_no_other() {
    // Each registry answers once both are asked.
    let asked = Arc::new(AtomicUsize::new(0));
    let meeting = || {
        let (layout, image) = image();
        let asked = Arc::clone(&asked);
        Fake::registry(&layout, &image, move |_, reply| {
            asked.fetch_add(1, Ordering::SeqCst);
            let begun = std::time::Instant::now();
            while asked.load(Ordering::SeqCst) < 2 {
                if begun.elapsed() > std::time::Duration::from_secs(20) {
                    return Reply::new(404, "");
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            reply
        })
    };
    let (one, two) = (meeting(), meeting());
    let gone = Fake::new(|_| Reply::new(404, ""));
    let references = [one.reference(), gone.reference(), two.reference()];
    let references: Vec<&str> = references.iter().map(String::as_str).collect();
    let found = Mutex::new(std::collections::BTreeMap::new());
    resolve_each(&scratch().store, &references, &Silent, &|index, pin| {
        found.lock().unwrap().insert(index, pin.map_err(|e| e.code()));
    });
    let found = found.into_inner().unwrap();
    assert_eq!(found.len(), 3);
    assert!(found[&0].is_ok() && found[&0] == found[&2], "{found:?}");
    assert_eq!(found[&1], Err("oci.unknown-image"));
}
