//! A lock that somebody edited is compared with what the registry's documents say.

use super::super::have;
use super::super::login::Logins;
use super::fake::{Fake, Request};
use super::local::Layout;
use super::{fetch_as, hasty};
use crate::asset::Silent;
use crate::asset::oci::pull::resolve_with;
use crate::error::Error;
use crate::lock::OciPin;
use crate::store::testing::{Scratch, scratch};
use serde_json::json;

const LOWER: &[u8] = b"lower layer";
const UPPER: &[u8] = b"upper layer, which is longer";

fn registry() -> Fake {
    let mut layout = Layout::default();
    let config = json!({ "Entrypoint": ["/bin/app"], "Env": ["A=1"], "User": "app", "ExposedPorts": { "80/tcp": {} } });
    let image = layout.image("amd64", config, &[LOWER, UPPER]);
    Fake::registry(&layout, &image, |_, reply| reply)
}

fn resolved(fake: &Fake) -> (Scratch, OciPin) {
    let s = scratch();
    let pin = resolve_with(&s.store, &fake.reference(), &hasty(&Logins::default()), &Silent).unwrap();
    (s, pin)
}

fn fetch(s: &Scratch, fake: &Fake, pin: &OciPin) -> Result<usize, Error> {
    fetch_as(&s.store, &fake.reference(), pin, &Logins::default(), &Silent).map(|layers| layers.len())
}

type Edit = fn(&mut OciPin);

const EDITS: &[(&str, Edit, &str)] = &[
    ("a dropped layer", |pin| drop(pin.layers.pop()), "other layers"),
    ("swapped layers", |pin| pin.layers.swap(0, 1), "other layers"),
    ("a doubled layer", |pin| pin.layers.push(pin.layers[0].clone()), "other layers"),
    ("another size", |pin| pin.layers[0].size += 1, "other layers"),
    ("another media type", |pin| pin.layers[0].media.push_str("+gzip"), "other layers"),
    ("an edited ENTRYPOINT", |pin| pin.config.entrypoint[0] = "/bin/sh".into(), "another command"),
    ("an added CMD", |pin| pin.config.cmd.push("-c".into()), "another command"),
    ("edited ENV", |pin| pin.config.env[0].1 = "2".into(), "another command"),
    ("no USER", |pin| pin.config.user.clear(), "another command"),
    ("a WORKDIR", |pin| pin.config.workdir = "/tmp".into(), "another command"),
    ("another port", |pin| pin.config.ports[0] = 81, "another command"),
    (
        "an edited configuration digest",
        |pin| pin.config.digest = format!("sha256:{}", "0".repeat(64)),
        "another configuration",
    ),
];

#[test]
fn an_entry_that_its_manifest_does_not_bear_out_is_refused() {
    let fake = registry();
    for fresh in [false, true] {
        let (s, pin) = resolved(&fake);
        // With the documents of resolving, and without: then they come from the registry.
        let s = if fresh { scratch() } else { s };
        for (what, edit, says) in EDITS {
            let mut pin = pin.clone();
            edit(&mut pin);
            pin.check().unwrap();
            assert!(!have(&s.store, &fake.reference(), &pin));
            let error = fetch(&s, &fake, &pin).unwrap_err();
            assert_eq!(error.code(), "lock.contradiction", "{what}: {error}");
            let text = error.to_string();
            assert!(text.contains("firegopher.lock") && text.contains(says), "{what}: {text}");
            assert!(error.help_text().unwrap().contains("firegopher update"), "{error:?}");
        }
        assert_eq!(fetch(&s, &fake, &pin).unwrap(), 2, "nothing was poisoned");
        assert!(have(&s.store, &fake.reference(), &pin));
        // With all layers there, too.
        for (what, edit, _) in EDITS {
            let mut pin = pin.clone();
            edit(&mut pin);
            assert_eq!(fetch(&s, &fake, &pin).unwrap_err().code(), "lock.contradiction", "{what}");
        }
    }
}

#[test]
fn every_edit_makes_another_key() {
    let (_s, pin) = resolved(&registry());
    let mut seen = vec![pin.fingerprint()];
    for (what, edit, _) in EDITS {
        let mut pin = pin.clone();
        edit(&mut pin);
        assert!(!seen.contains(&pin.fingerprint()), "{what}");
        seen.push(pin.fingerprint());
    }
}

#[test]
fn the_documents_of_resolving_are_not_asked_for_again() {
    let fake = registry();
    let (s, pin) = resolved(&fake);
    let documents = |asked: &[Request]| asked.iter().filter(|r| r.path.contains("manifests/")).count();
    assert_eq!(documents(&fake.asked()), 1);
    fetch(&s, &fake, &pin).unwrap();
    assert_eq!(documents(&fake.asked()), 1);
    assert_eq!(fake.asked().len(), 4, "manifest, configuration and two layers");
    // Another machine has the lock alone.
    let there = scratch();
    fetch(&there, &fake, &pin).unwrap();
    assert_eq!(fake.asked().len(), 8);
    fetch(&there, &fake, &pin).unwrap();
    assert_eq!(fake.asked().len(), 8);
}

#[test]
fn a_registry_that_serves_another_manifest_by_digest_is_found_out() {
    let fake = registry();
    let (_s, mut pin) = resolved(&fake);
    // The configuration is a blob, and the registry of these tests serves blobs as manifests, too.
    pin.manifest.clone_from(&pin.config.digest);
    let error = fetch(&scratch(), &fake, &pin).unwrap_err();
    assert_eq!(error.code(), "oci.invalid", "{error}");
    pin.manifest = format!("sha256:{}", "1".repeat(64));
    let error = fetch(&scratch(), &fake, &pin).unwrap_err();
    assert_eq!(error.code(), "oci.unknown-image", "{error}");
    assert!(error.help_text().unwrap().contains("firegopher update"), "{error:?}");
}

#[test]
fn a_reference_by_digest_is_no_other_image_whatever_the_lock_says() {
    let mut layout = Layout::default();
    let one = layout.image("amd64", json!({ "Cmd": ["one"] }), &[LOWER]);
    let two = layout.image("amd64", json!({ "Cmd": ["two"] }), &[UPPER]);
    let arm = layout.image("arm64", json!({}), &[LOWER]);
    let media = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media, "manifests": [arm, one] });
    let index = layout.blob(media, index.to_string().as_bytes());
    let fake = Fake::registry(&layout, &two, |_, reply| reply);
    let by_digest =
        |of: &serde_json::Value| format!("{}/app@{}", fake.address, of["digest"].as_str().unwrap());
    let access = hasty(&Logins::default());
    let resolve = |s: &Scratch, reference: &str| resolve_with(&s.store, reference, &access, &Silent).unwrap();
    let fetch = |s: &Scratch, reference: &str, pin: &OciPin| {
        fetch_as(&s.store, reference, pin, &Logins::default(), &Silent).map(|_| ())
    };
    for reference in [by_digest(&index), by_digest(&one)] {
        let (here, there) = (scratch(), scratch());
        let pin = resolve(&here, &reference);
        assert_eq!(pin.manifest, one["digest"].as_str().unwrap());
        for s in [&here, &there] {
            assert!(!have(&s.store, &reference, &pin));
            fetch(s, &reference, &pin).unwrap();
            assert!(have(&s.store, &reference, &pin), "offline from now on");
            // An entry without a contradiction in itself, of another image.
            let other = resolve(s, &fake.reference());
            let error = fetch(s, &reference, &other).unwrap_err();
            assert_eq!(error.code(), "lock.contradiction", "{error}");
            assert!(error.to_string().contains("than its reference names"), "{error}");
        }
    }
}
