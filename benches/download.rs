//! Downloading from loopback: what verifying adds to the same transfer without it, at the rate of a fast network and
//! as fast as loopback goes.
//!
//! What is compared: the same client (reqwest), server and file, to a file that is synced at the end. *Unverified* only
//! writes; *firegopher* also hashes twice (SHA-256 for the publisher's digest, BLAKE3 for the store's), and publishes.
//! At the rate of a network verifying has to hide behind waiting, which the goal judges; on loopback it shows what it
//! costs in full, without a goal. `curl` with `sha256sum` is what a script would do, one after the other.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod common;
#[expect(dead_code, reason = "tests use the rest")]
#[path = "../tests/support/web.rs"]
mod web;

use common::{Series, heading, rounds, wanted};
use firegopher::asset::Silent;
use firegopher::asset::http::{Wanted, fetch};
use firegopher::home::Home;
use firegopher::store::Store;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use web::{Reply, Server};

/// 1 Gbit/s.
const GIGABIT: u64 = 125_000_000;

fn main() {
    if wanted("gigabit") {
        compare("256 MiB at 1 Gbit/s", Some(GIGABIT), Some(1.05));
    }
    if wanted("loopback") {
        compare("256 MiB as fast as loopback goes", None, None);
    }
}

fn compare(what: &str, rate: Option<u64>, goal: Option<f64>) {
    let mut body = vec![0; 256 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut body);
    let sha256 = hex(&<sha2::Sha256 as sha2::Digest>::digest(&body));
    let body: Arc<[u8]> = body.into();
    let server = Server::start(move |_| {
        let reply = Reply::ok(Arc::clone(&body));
        match rate {
            Some(rate) => reply.rate(rate),
            None => reply,
        }
    });
    let dir = common::scratch().join("bench/download");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("target/ can be written to");
    let url = server.url("/x");
    let [mut plain, mut verified, mut script] = [(); 3].map(|()| Series::default());
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    for round in 0..rounds(7) {
        // Whoever comes second finds a disk that is busier: take turns.
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                plain.millis(unverified(&url, &dir.join("plain")));
            } else {
                verified.millis(firegopher(&url, &sha256, &dir.join("home")));
            }
        }
        if curl {
            script.millis(by_script(&url, &sha256, &dir.join("script")));
        }
    }
    heading(what);
    plain.report("the same client, neither hashing nor publishing", "ms", None);
    verified.report("firegopher: SHA-256, BLAKE3, published", "ms", None);
    script.report("curl, then sha256sum and sync", "ms", None);
    verified.over(&plain).report("firegopher / unverified", "", goal);
    if curl {
        verified.over(&script).report("firegopher / curl and sha256sum", "", None);
    }
    let _ = fs::remove_dir_all(&dir);
}

/// The transfer alone, to a file that is on the disk at the end.
fn unverified(url: &str, to: &Path) -> Duration {
    let begin = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut response = client().get(url).send().await.expect("an answer");
        let mut file = fs::File::create(to).expect("a file");
        while let Some(piece) = response.chunk().await.expect("a body") {
            file.write_all(&piece).expect("room");
        }
        file.sync_all().expect("a disk");
    });
    let took = begin.elapsed();
    fs::remove_file(to).expect("it is ours");
    took
}

fn client() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().expect("a client")
}

/// From an open, empty store to a published object.
fn firegopher(url: &str, sha256: &str, home: &Path) -> Duration {
    let store = Store::open(Home::new(home)).expect("a store");
    let wanted =
        Wanted { urls: vec![url.to_owned()], sha256: Some(sha256.to_owned()), size: None, max: 1 << 30 };
    let begin = Instant::now();
    let fetched = fetch(&store, &[wanted], &Silent).expect("it comes");
    let took = begin.elapsed();
    assert_eq!(fetched[0].sha256, sha256);
    drop(store);
    fs::remove_dir_all(home).expect("it is ours");
    took
}

fn by_script(url: &str, sha256: &str, to: &Path) -> Duration {
    let sum: PathBuf = to.with_extension("sum");
    fs::write(&sum, format!("{sha256}  {}\n", to.display())).expect("a file");
    let script = "curl -sfo \"$1\" \"$2\" && sha256sum --status -c \"$3\" && sync \"$1\"";
    let begin = Instant::now();
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(to).arg(url).arg(&sum).status();
    let took = begin.elapsed();
    assert!(status.expect("a shell").success());
    fs::remove_file(to).expect("it is ours");
    took
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
