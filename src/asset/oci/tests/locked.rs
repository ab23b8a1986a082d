//! A lock that somebody edited is compared with what the registry's documents say.

use super::super::have;
use super::super::login::Logins;
use super::fake::{Fake, Request};
use super::local::Layout;
use super::{fetch_as, hasty, pin_as};
use crate::asset::Silent;
use crate::asset::oci::pull::resolve_with;
use crate::digest::ObjectDigest;
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
    let pin = pin_as(&s.store, &fake.reference(), &Logins::default(), &[LOWER, UPPER]).unwrap();
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

fn other(blake3: &mut ObjectDigest) {
    *blake3 = ObjectDigest::new([7; 32]);
}

/// Other names of the same parts.
const RENAMED: &[(&str, Edit, &str)] = &[
    ("another BLAKE3 of a layer", |pin| other(&mut pin.layers[1].blake3), "different bytes"),
    ("another BLAKE3 of the manifest", |pin| other(&mut pin.blake3), "different"),
    ("another BLAKE3 of the configuration", |pin| other(&mut pin.config.blake3), "different"),
];

#[test]
fn names_of_different_bytes_are_refused_before_and_after_a_download() {
    let fake = registry();
    for (what, edit, says) in RENAMED {
        let (there, pin) = resolved(&fake);
        fetch(&there, &fake, &pin).unwrap();
        let mut edited = pin.clone();
        edit(&mut edited);
        edited.check().unwrap();
        for (s, is_there) in [(&there, true), (&scratch(), false)] {
            let asked = fake.asked().len();
            assert_eq!(have(&s.store, &fake.reference(), &edited), is_there, "{what}");
            let error = fetch(s, &fake, &edited).unwrap_err();
            assert_eq!(error.code(), "lock.contradiction", "{what}: {error}");
            assert!(error.to_string().contains(says), "{what}: {error}");
            // Of what is there no network is needed to say so.
            assert_eq!(fake.asked().len() == asked, is_there, "{what}");
            assert_eq!(fetch(s, &fake, &pin).unwrap(), 2, "nothing was poisoned");
        }
    }
}

#[test]
fn resolving_takes_the_layers_and_says_how_the_store_names_everything() {
    let fake = registry();
    let s = scratch();
    let pin = resolve_with(&s.store, &fake.reference(), &hasty(&Logins::default()), &Silent).unwrap();
    assert_eq!(fake.asked().len(), 4, "manifest, configuration and two layers");
    let named = |bytes: &[u8]| ObjectDigest::from(blake3::hash(bytes));
    assert_eq!(pin.layers.iter().map(|l| l.blake3).collect::<Vec<_>>(), [named(LOWER), named(UPPER)]);
    for blake3 in [pin.blake3, pin.config.blake3, pin.layers[0].blake3, pin.layers[1].blake3] {
        assert!(s.store.has(&blake3));
    }
    assert!(have(&s.store, &fake.reference(), &pin));
    assert_eq!(fetch(&s, &fake, &pin).unwrap(), 2);
    assert_eq!(fake.asked().len(), 4);
}

#[test]
fn a_part_whose_record_is_gone_is_read_and_not_downloaded() {
    let fake = registry();
    let (s, pin) = resolved(&fake);
    fetch(&s, &fake, &pin).unwrap();
    let asked = fake.asked().len();
    fs_err::remove_dir_all(s.store.home().store().join("actions")).unwrap();
    assert!(have(&s.store, &fake.reference(), &pin));
    assert_eq!(fetch(&s, &fake, &pin).unwrap(), 2);
    assert_eq!(fake.asked().len(), asked);
    assert!(super::super::stored(&s.store, &pin.image().layers[0]).is_some(), "there is a record again");
}

#[test]
fn every_edit_makes_another_key() {
    let (_s, pin) = resolved(&registry());
    let mut seen = vec![pin.fingerprint()];
    for (what, edit, _) in EDITS.iter().chain(RENAMED) {
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
    let resolve = |s: &Scratch, reference: &str, layer: &[u8]| {
        pin_as(&s.store, reference, &Logins::default(), &[layer]).unwrap()
    };
    let fetch = |s: &Scratch, reference: &str, pin: &OciPin| {
        fetch_as(&s.store, reference, pin, &Logins::default(), &Silent).map(|_| ())
    };
    for reference in [by_digest(&index), by_digest(&one)] {
        let (here, there) = (scratch(), scratch());
        let pin = resolve(&here, &reference, LOWER);
        assert_eq!(pin.manifest, one["digest"].as_str().unwrap());
        for s in [&here, &there] {
            assert!(!have(&s.store, &reference, &pin));
            fetch(s, &reference, &pin).unwrap();
            assert!(have(&s.store, &reference, &pin), "offline from now on");
            // An entry without a contradiction in itself, of another image.
            let other = resolve(s, &fake.reference(), UPPER);
            let error = fetch(s, &reference, &other).unwrap_err();
            assert_eq!(error.code(), "lock.contradiction", "{error}");
            assert!(error.to_string().contains("than its reference names"), "{error}");
        }
    }
}
