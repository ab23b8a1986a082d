//! Downloads from real servers on loopback, good and bad.

mod faults;
mod hosts;

use super::settings::Settings;
use super::{Fetched, Wanted, fetch_with};
use crate::asset::Silent;
use crate::digest::ObjectDigest;
use crate::error::Result;
use crate::lock::FilePin;
use crate::store::testing::{Scratch, scratch};
use crate::testing::web::{Reply, Request, Server};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Some bytes that are nowhere the same, different for each seed.
fn bytes(seed: u64, length: usize) -> Arc<[u8]> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out.into()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blind(url: impl Into<String>) -> Wanted {
    Wanted { urls: vec![url.into()], sha256: None, size: None, max: 1 << 30 }
}

fn pinned(url: impl Into<String>, body: &[u8]) -> Wanted {
    Wanted { sha256: Some(sha256(body)), ..blind(url) }
}

/// In a hurry.
fn hasty() -> Settings {
    Settings {
        connect: Duration::from_secs(2),
        stall: Duration::from_millis(300),
        rounds: 3,
        pause: Duration::from_millis(10),
        longest_retry_after: Duration::from_secs(3),
        ..Settings::default()
    }
}

fn get(s: &Scratch, wanted: Wanted) -> Result<Fetched> {
    fetch_with(&s.store, &[wanted], &Silent, &hasty()).map(|mut all| all.remove(0))
}

/// Nothing was published and nothing is under way.
fn assert_nothing(s: &Scratch) {
    assert!(s.store.objects().unwrap().is_empty());
    assert!(s.store.partials().unwrap().is_empty());
    assert_eq!(fs_err::read_dir(s.store.home().store().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs_err::read_dir(s.store.home().store().join("locks")).unwrap().count(), 0);
}

#[test]
fn a_file_arrives_verified_and_is_not_asked_for_again() {
    let s = scratch();
    let body = bytes(1, 3 << 20);
    let sent = Arc::clone(&body);
    let server = Server::start(move |_| Reply::ok(Arc::clone(&sent)));
    let wanted = pinned(server.url("/x"), &body);
    let fetched = get(&s, wanted.clone()).unwrap();
    assert_eq!(fetched.object, blake3::hash(&body).into());
    assert_eq!((fetched.sha256.clone(), fetched.size), (sha256(&body), body.len() as u64));
    assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..]);
    assert!(s.store.partials().unwrap().is_empty());
    let pin = FilePin { size: fetched.size, sha256: fetched.sha256.clone(), blake3: fetched.object };
    assert!(super::is_stored(&s.store, "it", &pin).unwrap());
    let other = FilePin { blake3: ObjectDigest::new([7; 32]), ..pin };
    assert_eq!(super::is_stored(&s.store, "it", &other).unwrap_err().code(), "lock.contradiction");
    let upper = Wanted { sha256: wanted.sha256.map(|hex| hex.to_uppercase()), ..blind(server.url("/x")) };
    assert_eq!(get(&s, upper).unwrap(), fetched);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(server.seen()[0].header("accept-encoding"), Some("identity"));
}

#[test]
fn without_a_digest_what_comes_is_taken_and_named() {
    let s = scratch();
    let server = Server::start(|_| Reply::ok(*b"trust me").chunked());
    let fetched = get(&s, blind(server.url("/x"))).unwrap();
    assert_eq!(fetched.sha256, sha256(b"trust me"));
    assert_eq!(s.store.read(&fetched.object).unwrap(), b"trust me");
}

#[test]
fn many_files_arrive_in_their_order() {
    let s = scratch();
    let server = Server::start(|r: &Request| Reply::ok(r.target.as_bytes().to_vec()));
    let wanted: Vec<_> = (0..20).map(|n| blind(server.url(&format!("/{n}")))).collect();
    let fetched = fetch_with(&s.store, &wanted, &Silent, &hasty()).unwrap();
    for (n, fetched) in fetched.iter().enumerate() {
        assert_eq!(s.store.read(&fetched.object).unwrap(), format!("/{n}").as_bytes());
    }
}

#[test]
fn files_of_this_host_are_copied_and_verified() {
    let s = scratch();
    let path = s.dir.path().join("a file");
    fs_err::write(&path, "local").unwrap();
    let url = reqwest::Url::from_file_path(&path).unwrap().to_string();
    let fetched = get(&s, pinned(&url, b"local")).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), b"local");
    assert_eq!(fs_err::read(&path).unwrap(), b"local", "it is still there");
    let error = get(&s, pinned(&url, b"other")).unwrap_err();
    assert_eq!(error.code(), "http.digest");
    let error = get(&s, blind(format!("{url}s"))).unwrap_err();
    assert_eq!(error.code(), "http.file");
    let error = get(&s, blind(format!("file://{}", s.dir.path().display()))).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}
