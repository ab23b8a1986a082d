//! Registries by https, killed processes, silence, and a disk that fills.

use super::super::login::Logins;
use super::super::pull::{ask_with, fetch_with, resolve_with};
use super::super::settings::{Access, Settings};
use super::local::Layout;
use super::{hasty, pin_as};
use crate::asset::Silent;
use crate::asset::oci::image::digest_of;
use crate::home::Home;
use crate::lock::OciPin;
use crate::store::Store;
use crate::store::testing::scratch;
use crate::testing::tls;
use crate::testing::web::{Reply, Request, Server};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn image(layer: &[u8]) -> (Layout, Value) {
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({ "Cmd": ["x"] }), &[layer]);
    (layout, image)
}

/// Answers as a registry that has the image as `app:1`; `change` has its way with what layers are answered.
fn answers(
    layer: &[u8],
    change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let (layout, image) = image(layer);
    let (blobs, layer) = (layout.0, digest_of(layer));
    let manifest = image["digest"].as_str().unwrap().to_owned();
    move |request| {
        let version = request.target.rsplit('/').next().unwrap_or_default();
        let digest = if version == "1" { &manifest } else { version };
        match blobs.get(&format!("blobs/{}", digest.replace(':', "/"))) {
            Some(blob) if *digest == layer => change(request, Reply::ok(blob.as_slice()).ranged(request)),
            Some(blob) => Reply::ok(blob.as_slice()),
            None => Reply::status(404),
        }
    }
}

fn reference(server: &Server) -> String {
    format!("{}/app:1", server.address())
}

fn pin_of(server: &Server, layer: &[u8]) -> OciPin {
    pin_as(&scratch().store, &reference(server), &Logins::default(), &[layer]).unwrap()
}

/// What each request for the layer began with.
fn asked_from(server: &Server, layer: &[u8]) -> Vec<Option<usize>> {
    let name = digest_of(layer);
    server.seen().iter().filter(|r| r.target.ends_with(&name)).map(Request::first_byte).collect()
}

const CHILD: &str = "FIREGOPHER_TEST_PULL";

/// Another process that fetches `HOME REFERENCE`.
fn child(home: &Home, server: &Server) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "asset::oci::tests::hosts::pulls_as_a_child", "--nocapture"]);
    command.env(CHILD, format!("{} {}", home.root().display(), reference(server)));
    command.stdout(Stdio::null());
    command
}

#[test]
#[ignore = "other tests run it in a process of its own"]
fn pulls_as_a_child() {
    let spec = std::env::var(CHILD).expect("other tests say what to pull");
    let (home, reference) = spec.split_once(' ').unwrap();
    let store = Store::open(Home::new(home)).unwrap();
    let access = Access { logins: Logins::default(), settings: Settings::default() };
    let pin = resolve_with(&store, reference, &access, &Silent).unwrap();
    fetch_with(&store, reference, &pin, &access, &Silent).unwrap();
}

#[test]
fn what_a_killed_process_began_the_next_one_goes_on_with() {
    let s = scratch();
    let layer = bytes(3 << 20);
    let server = Server::start(answers(&layer, |r, reply| match r.nth {
        0 => reply.stall(2 << 20),
        _ => reply,
    }));
    let had = crate::testing::killed_after(&mut child(s.store.home(), &server), &s.store, 1 << 20);
    assert!(child(s.store.home(), &server).status().unwrap().success());
    assert_eq!(asked_from(&server, &layer), [None, Some(had as usize)]);
    assert_eq!(s.store.read(&blake3::hash(&layer).into()).unwrap(), layer);
    assert!(s.store.partials().unwrap().is_empty());
}

#[test]
fn damage_in_what_was_left_costs_a_new_start_and_nothing_else() {
    let s = scratch();
    let layer = bytes(1 << 20);
    let server = Server::start(answers(&layer, |r, reply| match r.nth {
        0 => reply.stall(512 << 10),
        _ => reply,
    }));
    let pin = pin_of(&server, &layer);
    let mut access = hasty(&Logins::default());
    access.settings.waits.clear();
    let fetch = || fetch_with(&s.store, &reference(&server), &pin, &access, &Silent);
    assert_eq!(fetch().unwrap_err().code(), "oci.unreachable");
    let partial = s.store.partials().unwrap().remove(0);
    assert_eq!(partial.size, 512 << 10);
    let path = s.store.home().store().join("partial").join(partial.key.to_hex()).join("bytes");
    let mut damaged = fs_err::read(&path).unwrap();
    damaged[7] ^= 1;
    fs_err::write(&path, damaged).unwrap();
    assert_eq!(s.store.read(&fetch().unwrap()[0]).unwrap(), layer);
    assert_eq!(asked_from(&server, &layer), [None, Some(512 << 10), None]);

    // More than there is to have.
    let s = scratch();
    let partial = s.store.partial(&partial.key, &|_| ()).unwrap();
    fs_err::write(partial.bytes(), vec![0; 2 << 20]).unwrap();
    drop(partial);
    let layers = fetch_with(&s.store, &reference(&server), &pin, &access, &Silent).unwrap();
    assert_eq!(s.store.read(&layers[0]).unwrap(), layer);
}

#[test]
fn silence_is_not_waited_for_and_slowness_is() {
    let layer = bytes(200_000);
    // Falls silent each time, but never before something came.
    let server = Server::start(answers(&layer, |_, reply| reply.stall(70_000)));
    let (s, pin) = (scratch(), pin_of(&server, &layer));
    let begin = Instant::now();
    let fetch = |access: &Access| fetch_with(&s.store, &reference(&server), &pin, access, &Silent);
    let layers = fetch(&hasty(&Logins::default())).unwrap();
    assert_eq!(s.store.read(&layers[0]).unwrap(), layer);
    assert_eq!(asked_from(&server, &layer), [None, Some(70_000), Some(140_000)]);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());

    let silent = Server::start(answers(&layer, |_, reply| reply.stall(0)));
    let (s, pin) = (scratch(), pin_of(&silent, &layer));
    let error =
        fetch_with(&s.store, &reference(&silent), &pin, &hasty(&Logins::default()), &Silent).unwrap_err();
    assert_eq!(error.code(), "oci.unreachable", "{error}");
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    assert_eq!(asked_from(&silent, &layer).len(), 5);
    assert!(s.store.partials().unwrap().is_empty(), "nothing came, so nothing is kept");

    // Longer than any silence may be, a little at a time.
    let slow = Server::start(answers(&layer, |_, reply| reply.drip(20_000, Duration::from_millis(80))));
    let (s, pin) = (scratch(), pin_of(&slow, &layer));
    let begin = Instant::now();
    fetch_with(&s.store, &reference(&slow), &pin, &hasty(&Logins::default()), &Silent).unwrap();
    assert!(begin.elapsed() > Duration::from_millis(700));
    assert_eq!(asked_from(&slow, &layer), [None]);
}

#[test]
fn a_full_disk_publishes_no_layer_and_stays_usable() {
    crate::testing::on_small_disk(2 << 20, |disk| {
        let store = Store::open(Home::new(disk)).unwrap();
        let fetch = |server: &Server, pin: &OciPin| {
            fetch_with(&store, &reference(server), pin, &hasty(&Logins::default()), &Silent)
        };
        let no_layer = |pin: &OciPin| {
            assert!(super::super::stored(&store, &pin.image().layers[0]).is_none());
            assert!(store.partials().unwrap().is_empty(), "what is there would be in everybody's way");
        };

        let large = bytes(4 << 20);
        let server = Server::start(answers(&large, |_, reply| reply));
        let pin = pin_of(&server, &large);
        let error = fetch(&server, &pin).unwrap_err();
        assert_eq!(error.code(), "store.disk-full", "{error}");
        assert!(asked_from(&server, &large).is_empty(), "told before the first byte");
        no_layer(&pin);

        // It would fit, but somebody else fills the disk meanwhile.
        let layer = bytes(1 << 20);
        let filler = disk.join("filler");
        let fill = filler.clone();
        let server = Server::start(answers(&layer, move |_, reply| {
            fs_err::write(&fill, vec![1; 1300 << 10]).unwrap();
            reply
        }));
        let pin = pin_of(&server, &layer);
        let error = fetch(&server, &pin).unwrap_err();
        assert_eq!(error.code(), "store.disk-full", "{error}");
        assert!(error.to_string().contains("writing"), "{error}");
        no_layer(&pin);

        fs_err::remove_file(&filler).unwrap();
        let server = Server::start(answers(&layer, |_, reply| reply));
        let layers = fetch(&server, &pin);
        // Another port is another place, not another image.
        assert_eq!(store.read(&layers.unwrap()[0]).unwrap(), layer);
    });
}

#[test]
fn https_is_spoken_with_registries_whose_certificates_are_trusted() {
    const NAME: &str = "registry.example.org";
    let layer = bytes(300_000);
    let (elsewhere, other_cert) = tls::server("blobs.example.org", {
        let layer = layer.clone();
        move |r| Reply::ok(layer.as_slice()).ranged(r)
    });
    let location = format!("https://blobs.example.org:{}/signed", elsewhere.address().port());
    // Where layers are, by turns: nowhere safe, elsewhere by https.
    let turn = AtomicUsize::new(0);
    let (server, cert) = tls::server(
        NAME,
        answers(&layer, move |_, _| match turn.fetch_add(1, Ordering::Relaxed) {
            0 => Reply::redirect("http://blobs.example.org/x"),
            _ => Reply::redirect(location.clone()),
        }),
    );
    let access = |roots: &[&rcgen::Certificate]| {
        let mut access = hasty(&Logins::default());
        access.settings.roots = Some(roots.iter().map(|cert| cert.der().to_vec()).collect());
        access.settings.hosts =
            vec![(NAME.to_owned(), server.address()), ("blobs.example.org".to_owned(), elsewhere.address())];
        access
    };
    let reference = format!("{NAME}:{}/app:1", server.address().port());
    let s = scratch();
    for roots in [&[][..], &[&other_cert]] {
        let error = resolve_with(&s.store, &reference, &access(roots), &Silent).unwrap_err();
        assert_eq!(error.code(), "oci.unreachable", "{error}");
        assert!(error.help_text().unwrap().contains("certificate"), "{error:?}");
    }
    assert_eq!(server.seen().len(), 0, "nothing is asked of a stranger");
    let (image, _) = ask_with(&s.store, &reference, &access(&[&cert]), &Silent).unwrap();
    let pin = image.pinned(&[blake3::hash(&layer).into()]);
    let fetch =
        |roots: &[&rcgen::Certificate]| fetch_with(&s.store, &reference, &pin, &access(roots), &Silent);
    assert_eq!(fetch(&[&cert, &other_cert]).unwrap_err().code(), "oci.redirect", "not to plain http");
    assert_eq!(fetch(&[&cert]).unwrap_err().code(), "oci.unreachable", "not to a stranger");
    assert_eq!(elsewhere.seen().len(), 0);
    let layers = fetch(&[&cert, &other_cert]).unwrap();
    assert_eq!(s.store.read(&layers[0]).unwrap(), layer);
    assert_eq!(elsewhere.seen().len(), 1);
}
