//! Registries that use the freedoms of the distribution specification, and some that it does not give them.

use super::super::login::Logins;
use super::super::pull::{fetch_with, resolve_with};
use super::super::settings::Access;
use super::fake::{Fake, Reply, Request};
use super::hasty;
use super::local::Layout;
use crate::asset::oci::image::{digest_like, digest_of};
use crate::asset::{Progress, Silent};
use crate::error::Error;
use crate::store::testing::scratch;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn layer() -> Vec<u8> {
    (0..100_000_u32).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn image() -> (Layout, Value) {
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({ "Cmd": ["x"] }), &[&layer()]);
    (layout, image)
}

/// Pins and fetches; the layer's bytes.
fn pull(fake: &Fake, access: &Access, progress: &dyn Progress) -> Result<Vec<u8>, Error> {
    let s = scratch();
    let pin = resolve_with(&s.store, &fake.reference(), access, progress)?;
    let layers = fetch_with(&s.store, &fake.reference(), &pin, access, progress)?;
    s.store.read(&layers[0])
}

fn from(change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Result<Vec<u8>, Error> {
    let (layout, image) = image();
    pull(&Fake::registry(&layout, &image, change), &hasty(&Logins::default()), &Silent)
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn start(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _n: u64) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn a_registry_that_wants_to_be_left_alone_is_until_then_and_that_is_told() {
    let soon = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
    for asks in [|| "2".to_owned(), soon] {
        for status in [429, 503, 408] {
            let (layout, image) = image();
            let asked = AtomicUsize::new(0);
            let fake = Fake::registry(&layout, &image, move |_, reply| {
                match asked.fetch_add(1, Ordering::Relaxed) {
                    0 => Reply::new(status, "").header("Retry-After", asks()),
                    _ => reply,
                }
            });
            let (notes, begin) = (Notes::default(), Instant::now());
            assert_eq!(pull(&fake, &hasty(&Logins::default()), &notes).unwrap(), layer());
            assert!(begin.elapsed() >= Duration::from_millis(1900), "{:?}", begin.elapsed());
            let notes = notes.0.into_inner().unwrap();
            let told = notes
                .iter()
                .any(|note| note.contains(&format!("answers {status}")) && note.contains("trying again in"));
            assert!(told, "{notes:?}");
        }
    }
    let begin = Instant::now();
    let error = from(|_, _| Reply::new(429, "").header("Retry-After", "301")).unwrap_err();
    assert_eq!(error.code(), "oci.busy");
    assert!(error.help_text().unwrap().contains("asked again in 301 s"), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(60), "five minutes are the most");
}

#[test]
fn what_timed_out_there_is_asked_for_again() {
    for status in [408, 425] {
        let asked = AtomicUsize::new(0);
        let pulled = from(move |_, reply| match asked.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Reply::new(status, ""),
            _ => reply,
        });
        assert_eq!(pulled.unwrap(), layer(), "{status}");
    }
}

#[test]
fn a_layer_that_was_cut_short_in_the_registry_is_named_as_that() {
    let is_layer = |request: &Request| request.path.ends_with(&digest_of(&layer()));
    let half = || layer()[..50_000].to_vec();
    // It says itself how much it has.
    let error = from(move |request, reply| if is_layer(request) { Reply::new(200, half()) } else { reply });
    let error = error.unwrap_err();
    assert_eq!(error.code(), "oci.size", "{error}");
    assert!(error.to_string().contains("only 50000 of the 100000 bytes"), "{error}");
    assert!(error.to_string().ends_with("it was cut short there"), "{error}");
    // It tells when it is asked to go on.
    let error = from(move |request, reply| match (is_layer(request), request.headers.get("range")) {
        (true, None) => Reply { length: None, ..Reply::new(200, half()) },
        (true, Some(_)) => Reply::new(416, "").header("Content-Range", "bytes */50000"),
        _ => reply,
    });
    let error = error.unwrap_err();
    assert_eq!(error.code(), "oci.size", "{error}");
    assert!(error.to_string().contains("only 50000 of the 100000 bytes"), "{error}");
    // It cannot go on, and has everything.
    let asked = AtomicUsize::new(0);
    let pulled = from(move |request, mut reply| match (is_layer(request), request.headers.get("range")) {
        (true, Some(_)) => Reply::new(416, ""),
        (true, None) if asked.fetch_add(1, Ordering::Relaxed) == 0 => {
            reply.body.truncate(1000);
            reply
        }
        _ => reply,
    });
    assert_eq!(pulled.unwrap(), layer());
}

#[test]
fn a_part_that_is_shorter_than_was_asked_for_is_gone_on_from() {
    let is_layer = |request: &Request| request.path.ends_with(&digest_of(&layer()));
    // The first answer breaks off; from then on at most 30,000 bytes come at once.
    let parts = |total: &'static str| {
        let asked = AtomicUsize::new(0);
        from(move |request, mut reply| {
            if !is_layer(request) {
                return reply;
            }
            if reply.status == 200 {
                let again = asked.fetch_add(1, Ordering::Relaxed) > 0;
                assert!(!again, "what was fetched is not thrown away");
                reply.body.truncate(10_000);
                return reply;
            }
            reply.body.truncate(30_000);
            let first =
                request.headers["range"]["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap();
            Reply::new(206, &reply.body[..])
                .header("Content-Range", format!("bytes {first}-{}/{total}", first + reply.body.len() - 1))
        })
    };
    assert_eq!(parts("100000").unwrap(), layer());
    assert_eq!(parts("*").unwrap(), layer());
    for (total, words) in
        [("60000", "only 60000 of the 100000 bytes"), ("100001", "more than the 100000 bytes")]
    {
        let error = parts(total).unwrap_err();
        assert_eq!(error.code(), "oci.size", "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // Another part than was asked for is no part of the layer: the whole is asked for again.
    let asked = AtomicUsize::new(0);
    let pulled = from(move |request, mut reply| match (is_layer(request), request.headers.get("range")) {
        (true, Some(_)) => Reply::new(206, &layer()[5..]).header("Content-Range", "bytes 5-99999/100000"),
        (true, None) if asked.fetch_add(1, Ordering::Relaxed) == 0 => {
            reply.body.truncate(1000);
            reply
        }
        _ => reply,
    });
    assert_eq!(pulled.unwrap(), layer());
}

#[test]
fn challenges_and_tokens_are_read_however_they_are_written() {
    let cases: &[(&str, &str, &str)] = &[
        (
            r#"Bearer   realm = "REALM" ,  service = "reg" , error="x""#,
            r#"{"token":"t0ken"}"#,
            "repository%3Aapp%3Apull",
        ),
        (r#"Bearer realm="REALM",service="public",scope="aws""#, r#"{"token":"t0ken"}"#, "aws"),
        (
            r#"Bearer realm="REALM",scope="repository:app:pull repository:base:pull""#,
            r#"{"token":"t0ken"}"#,
            "repository%3Aapp%3Apull&scope=repository%3Abase%3Apull",
        ),
        (
            r#"Bearer realm="REALM",scope="""#,
            r#"{"token":null,"access_token":"t0ken"}"#,
            "repository%3Aapp%3Apull",
        ),
        (
            r#"Bearer realm="REALM""#,
            r#"{"token":"","access_token":"t0ken","expires_in":60}"#,
            "repository%3Aapp%3Apull",
        ),
    ];
    for (challenge, answer, scope) in cases.iter().copied() {
        let server = Fake::new(move |_| Reply::new(200, answer));
        let challenge = challenge.replace("REALM", &format!("http://{}/token", server.address));
        let pulled = from(move |request, reply| match request.headers.get("authorization") {
            Some(value) if value == "Bearer t0ken" => reply,
            _ => Reply::new(401, "").header("WWW-Authenticate", challenge.clone()),
        });
        assert_eq!(pulled.unwrap(), layer());
        let path = server.asked()[0].path.clone();
        assert!(path.starts_with(&format!("/token?scope={scope}")), "{path}");
        assert_eq!(path.matches("scope=").count(), scope.matches("scope=").count() + 1, "{path}");
    }
}

/// The same image with every digest by SHA-512.
fn image_by_sha512() -> (Layout, Value, String) {
    let name = |bytes: &[u8]| digest_like("sha512:", bytes);
    let mut layout = Layout::default();
    let mut blob = |media: &str, bytes: &[u8]| {
        let digest = name(bytes);
        layout.0.insert(format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec());
        json!({ "mediaType": format!("application/vnd.oci.image.{media}"), "digest": digest, "size": bytes.len() })
    };
    let config = json!({ "os": "linux", "architecture": "amd64", "config": { "Cmd": ["x"] },
        "rootfs": { "type": "layers", "diff_ids": [name(&layer())] } });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let layers = [blob("layer.v1.tar", &layer())];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    (layout, manifest, digest)
}

#[test]
fn images_by_sha512_are_pinned_fetched_and_compared() {
    let (layout, manifest, digest) = image_by_sha512();
    let access = hasty(&Logins::default());
    let fake = Fake::registry(&layout, &manifest, |_, reply| reply);
    assert_eq!(pull(&fake, &access, &Silent).unwrap(), layer());
    let s = scratch();
    let reference = format!("{}/app@{digest}", fake.address);
    let pin = resolve_with(&s.store, &reference, &access, &Silent).unwrap();
    assert_eq!(pin.manifest, digest);
    pin.check().unwrap();
    assert!(pin.layers[0].digest.starts_with("sha512:") && pin.config.digest.starts_with("sha512:"));
    fetch_with(&s.store, &reference, &pin, &access, &Silent).unwrap();
    // From a lock alone, in another store.
    let other = scratch();
    fetch_with(&other.store, &reference, &pin, &access, &Silent).unwrap();
    let lie = Fake::registry(&layout, &manifest, |request, mut reply| {
        if request.path.contains("blobs/") && reply.body.len() == layer().len() {
            reply.body[7] ^= 1;
        }
        reply
    });
    assert_eq!(pull(&lie, &access, &Silent).unwrap_err().code(), "oci.digest");
    let mut layout = layout;
    layout.index(&[manifest]);
    let dir = tempfile::tempdir().unwrap();
    let local = super::super::open_local(&s.store, &layout.dir(dir.path()), None).unwrap();
    assert_eq!(local.pin, pin);
}

#[test]
fn layers_that_docker_calls_foreign_and_empty_ones_are_taken() {
    let mut layout = Layout::default();
    let config = json!({ "config": { "Cmd": ["x"] } });
    let config = layout.blob("application/vnd.docker.container.image.v1+json", config.to_string().as_bytes());
    let layers = [
        layout.blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &layer()),
        layout.blob("application/vnd.docker.image.rootfs.diff.tar", b""),
    ];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest =
        layout.blob("application/vnd.docker.distribution.manifest.v2+json", manifest.to_string().as_bytes());
    let fake = Fake::registry(&layout, &manifest, |_, reply| reply);
    let s = scratch();
    let access = hasty(&Logins::default());
    let pin = resolve_with(&s.store, &fake.reference(), &access, &Silent).unwrap();
    let objects = fetch_with(&s.store, &fake.reference(), &pin, &access, &Silent).unwrap();
    assert_eq!(s.store.read(&objects[1]).unwrap(), b"");
    let layers = super::super::stored_layers(&s.store, "it", &pin, &objects).unwrap();
    assert!(layers.iter().all(|layer| layer.diff_id.is_none()), "the configuration names none");
}
