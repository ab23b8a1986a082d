//! Servers that break, lie or refuse.

use super::*;
use crate::error::Error;
use std::time::Instant;

/// The error of fetching from such a server, which must leave nothing behind, and how often it was asked.
fn refused(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Error, usize) {
    let s = scratch();
    let server = Server::start(answer);
    let error = get(&s, pinned(server.url("/x"), b"right")).unwrap_err();
    assert!(error.to_string().contains(&server.url("/x")), "it names the URL: {error}");
    assert_nothing(&s);
    (error, server.seen().len())
}

#[test]
fn wrong_bytes_are_not_published_and_not_asked_for_again() {
    let (error, asked) = refused(|_| Reply::ok(*b"wrong"));
    assert_eq!((error.code(), asked), ("http.digest", 1));
    assert!(error.to_string().contains(&sha256(b"wrong")), "{error}");
    assert!(error.help_text().unwrap().contains("firegopher update"));
}

#[test]
fn what_is_not_there_or_not_allowed_is_asked_for_once() {
    for status in [403, 404, 410, 401, 501] {
        let (error, asked) = refused(move |_| Reply::status(status));
        assert_eq!((error.code(), asked), ("http.status", 1));
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[test]
fn what_passes_is_tried_again_but_not_for_ever() {
    for status in [500, 502, 503, 504, 429, 408] {
        let (error, asked) = refused(move |_| Reply::status(status));
        assert_eq!((error.code(), asked), ("http.status", 3), "{status}");
    }
    let s = scratch();
    let server = Server::start(|r| if r.nth < 2 { Reply::status(500) } else { Reply::ok(*b"right") });
    get(&s, pinned(server.url("/x"), b"right")).unwrap();
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn a_server_that_asks_for_patience_gets_it_within_reason() {
    let s = scratch();
    // 1 s is asked for, and `hasty` grants 400 ms.
    let server = Server::start(|r| match r.nth {
        0 => Reply::status(429).header("retry-after", "1"),
        _ => Reply::ok(*b"right"),
    });
    let begin = Instant::now();
    get(&s, pinned(server.url("/x"), b"right")).unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(400) && took < Duration::from_millis(990), "{took:?}");
}

#[test]
fn a_broken_connection_is_gone_on_with() {
    let s = scratch();
    let body = bytes(2, 1 << 20);
    let sent = Arc::clone(&body);
    let server = Server::start(move |r| {
        let reply = Reply::ok(Arc::clone(&sent)).header("etag", "\"one\"").ranged(r);
        if r.nth < 5 { reply.cut(200_000) } else { reply }
    });
    // Without a digest too: the server vouches for the parts.
    let fetched = get(&s, blind(server.url("/x"))).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..]);
    let starts: Vec<_> = server.seen().iter().map(Request::from_byte).collect();
    assert_eq!(starts, [None, Some(200_000), Some(400_000), Some(600_000), Some(800_000), Some(1_000_000)]);
    assert!(server.seen()[1..].iter().all(|r| r.header("if-range") == Some("\"one\"")));
}
