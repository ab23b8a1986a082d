//! TLS, proxies, several processes, and hosts that lack something.

use super::*;
use crate::digest::ObjectDigest;
use crate::home::Home;
use crate::store::Store;
use std::process::{Child, Command, Stdio};

/// A server with a certificate of its own making, and that certificate.
fn secure(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Server, rcgen::Certificate) {
    crate::testing::tls::server("127.0.0.1", answer)
}

fn trusting(cert: &rcgen::Certificate) -> Settings {
    Settings { roots: Some(vec![cert.der().to_vec()]), ..hasty() }
}

#[test]
fn https_is_taken_from_trusted_servers_only() {
    let s = scratch();
    let body = bytes(20, 1 << 20);
    let sent = Arc::clone(&body);
    let (server, cert) = secure(move |_| Reply::ok(Arc::clone(&sent)));
    let wanted = [blind(server.url("/x"))];
    // With a host's own roots, or those of somebody else.
    let (_other, stranger) = secure(|_| Reply::status(404));
    let error = fetch_with(&s.store, &wanted, &Silent, &trusting(&stranger)).unwrap_err();
    assert_eq!(error.code(), "http.tls");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(error.help_text().unwrap().contains("ca-certificates"));
    assert_eq!(server.seen().len(), 0);
    let fetched = fetch_with(&s.store, &wanted, &Silent, &trusting(&cert)).unwrap().remove(0);
    assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..]);
}

#[test]
fn a_host_without_root_certificates_lacks_something() {
    let s = scratch();
    let none = Settings { roots: Some(vec![]), ..hasty() };
    let error = fetch_with(&s.store, &[blind("https://127.0.0.1:9/x")], &Silent, &none).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("http.no-roots", crate::error::Kind::Host));
    // Plain http needs none.
    let server = Server::start(|_| Reply::ok(*b"right"));
    fetch_with(&s.store, &[blind(server.url("/x"))], &Silent, &none).unwrap();
}

#[test]
fn https_is_never_left_for_plain_http() {
    let s = scratch();
    let plain = Server::start(|_| Reply::ok(*b"right"));
    let target = plain.url("/x");
    let (server, cert) = secure(move |_| Reply::redirect(target.clone()));
    let wanted = [pinned(server.url("/x"), b"right")];
    let error = fetch_with(&s.store, &wanted, &Silent, &trusting(&cert)).unwrap_err();
    assert_eq!(error.code(), "http.downgrade");
    assert_eq!(plain.seen().len(), 0);
    // The other way is welcome.
    let (server, cert) = secure(|_| Reply::ok(*b"right"));
    let target = server.url("/x");
    let plain = Server::start(move |_| Reply::redirect(target.clone()));
    fetch_with(&s.store, &[blind(plain.url("/x"))], &Silent, &trusting(&cert)).unwrap();
}

#[test]
fn a_name_that_cannot_be_resolved_is_told() {
    let s = scratch();
    let error = get(&s, pinned("http://no-such-host.invalid/x", b"right")).unwrap_err();
    assert_eq!(error.code(), "http.connect");
    assert!(error.to_string().contains("http://no-such-host.invalid/x"), "{error}");
    assert!(error.help_text().is_some());
    assert_nothing(&s);
}

const CHILD: &str = "FIREGOPHER_TEST_FETCH";

/// Another process that fetches `HOME URL SHA256`.
fn child(home: &Home, wanted: &Wanted) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "asset::http::tests::hosts::fetches_as_a_child", "--nocapture"]);
    let sha256 = wanted.sha256.as_deref().unwrap_or("-");
    command.env(CHILD, format!("{} {} {sha256}", home.root().display(), wanted.urls[0]));
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"]
    {
        command.env_remove(name);
    }
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

#[test]
#[ignore = "other tests run it in a process of its own"]
fn fetches_as_a_child() {
    let spec = std::env::var(CHILD).expect("other tests say what to fetch");
    let mut words = spec.split(' ');
    let store = Store::open(Home::new(words.next().unwrap())).unwrap();
    let url = words.next().unwrap();
    let sha256 = words.next().filter(|word| *word != "-").map(str::to_owned);
    super::super::fetch(&store, &[Wanted { sha256, ..blind(url) }], &Silent).unwrap();
}

fn ended_well(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_a_killed_process_began_the_next_one_goes_on_with() {
    for known in [true, false] {
        let s = scratch();
        let body = bytes(21, 3 << 20);
        let sent = Arc::clone(&body);
        let server = Server::start(move |r| {
            let reply = Reply::ok(Arc::clone(&sent)).header("etag", "\"x\"").ranged(r);
            if r.nth == 0 { reply.stall(2 << 20) } else { reply }
        });
        let wanted = if known { pinned(server.url("/x"), &body) } else { blind(server.url("/x")) };
        let had = crate::testing::killed_after(&mut child(s.store.home(), &wanted), &s.store, 1 << 20);
        assert!(s.store.objects().unwrap().is_empty());

        ended_well(child(s.store.home(), &wanted).spawn().unwrap());
        assert_eq!(server.seen()[1].first_byte(), Some(had as usize));
        let digest = ObjectDigest::from(blake3::hash(&body));
        assert_eq!(s.store.read(&digest).unwrap(), &body[..]);
        assert!(s.store.partials().unwrap().is_empty());
    }
}

#[test]
fn what_was_complete_but_not_published_needs_no_network() {
    let s = scratch();
    let body = bytes(22, 1 << 20);
    let sent = Arc::clone(&body);
    let server = Server::start(move |r| match r.nth {
        // Everything comes, but the end does not.
        0 => Reply::ok(Arc::clone(&sent)).lengthless().stall(1 << 20),
        _ => Reply::status(404),
    });
    let wanted = Wanted { size: Some(1 << 20), ..pinned(server.url("/x"), &body) };
    get(&s, wanted.clone()).unwrap_err();
    get(&s, wanted).unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn two_processes_download_once() {
    let s = scratch();
    let body = bytes(23, 1 << 20);
    let sent = Arc::clone(&body);
    let server =
        Server::start(move |_| Reply::ok(Arc::clone(&sent)).drip(100_000, Duration::from_millis(50)));
    let wanted = pinned(server.url("/x"), &body);
    let children: Vec<_> = (0..3).map(|_| child(s.store.home(), &wanted).spawn().unwrap()).collect();
    children.into_iter().for_each(ended_well);
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn proxies_are_those_of_the_environment() {
    let s = scratch();
    let proxy = Server::start(|r| {
        assert_eq!(r.target, "http://far.invalid/x");
        Reply::ok(*b"right")
    });
    let wanted = pinned("http://far.invalid/x", b"right");
    ended_well(child(s.store.home(), &wanted).env("HTTP_PROXY", proxy.url("")).spawn().unwrap());
    assert_eq!(proxy.seen().len(), 1);
    // Not for those that are excepted.
    let near = Server::start(|r| {
        assert_eq!(r.target, "/y");
        Reply::ok(*b"near")
    });
    let mut excepted = child(s.store.home(), &pinned(near.url("/y"), b"near"));
    ended_well(excepted.env("http_proxy", proxy.url("")).env("NO_PROXY", "127.0.0.1").spawn().unwrap());
    assert_eq!((proxy.seen().len(), near.seen().len()), (1, 1));
}

#[test]
fn https_goes_through_a_proxy_and_is_checked_by_the_certificates_that_are_named() {
    let s = scratch();
    let (server, cert) = secure(|_| Reply::ok(*b"right"));
    let proxy = Server::start(|r| panic!("{} is not for the proxy to see", r.target));
    let pem = s.dir.path().join("roots.pem");
    fs_err::write(&pem, cert.pem()).unwrap();
    let mut command = child(s.store.home(), &blind(server.url("/x")));
    ended_well(command.env("HTTPS_PROXY", proxy.url("")).env("SSL_CERT_FILE", &pem).spawn().unwrap());
    let seen = proxy.seen();
    assert_eq!((seen.len(), seen[0].method.as_str()), (1, "CONNECT"));
    assert_eq!(seen[0].target, server.address().to_string());
    assert_eq!(s.store.objects().unwrap(), [blake3::hash(b"right").into()]);
}

#[test]
fn a_full_disk_publishes_nothing_and_stays_usable() {
    crate::testing::on_small_disk(2 << 20, |disk| {
        let store = Store::open(Home::new(disk)).unwrap();
        let server = Server::start(|r| match r.target.as_str() {
            "/announced" => Reply::ok(bytes(24, 4 << 20)),
            "/surprising" => Reply::ok(bytes(24, 4 << 20)).chunked(),
            _ => Reply::ok(*b"small"),
        });
        for path in ["/announced", "/surprising"] {
            // On this thread: only it sees the disk.
            let wanted = [blind(server.url(path))];
            let shared = super::super::client::Shared::new(&hasty());
            let urls = super::super::url::check(&wanted[0]).unwrap();
            let job = super::super::download::Job {
                store: &store,
                wanted: &wanted[0],
                urls: &urls,
                progress: &Silent,
                shared: &shared,
            };
            let (_stop, stopped) = tokio::sync::watch::channel(false);
            let error = job.run(stopped).unwrap_err();
            assert_eq!(error.code(), "store.disk-full", "{path}: {error}");
            assert!(store.objects().unwrap().is_empty() && store.partials().unwrap().is_empty());
        }
        let fetched = fetch_with(&store, &[blind(server.url("/small"))], &Silent, &hasty()).unwrap();
        assert_eq!(store.read(&fetched[0].object).unwrap(), b"small");
        assert!(store.partials().unwrap().is_empty());
    });
}
