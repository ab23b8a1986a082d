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
    // The digest is the manifest's: no pin says a size.
    assert!(error.help_text().unwrap().contains("into the manifest"));
    let s = scratch();
    let server = Server::start(|_| Reply::ok(*b"wrong"));
    let locked = Wanted { size: Some(5), ..pinned(server.url("/x"), b"right") };
    let error = get(&s, locked).unwrap_err();
    assert!(error.help_text().unwrap().contains("`firegopher update`"));
}

#[test]
fn nothing_at_all_is_no_file() {
    for digest in [Some(sha256(b"right")), None] {
        let s = scratch();
        let server = Server::start(|_| Reply::ok(*b""));
        let error = get(&s, Wanted { sha256: digest, ..blind(server.url("/x")) }).unwrap_err();
        assert_eq!(error.code(), "http.empty");
        assert!(error.to_string().contains("no bytes at all") && error.help_text().is_some(), "{error}");
        assert_nothing(&s);
    }
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
    let soon = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(2));
    for asks in [|| "1".to_owned(), soon] {
        let s = scratch();
        let server = Server::start(move |r| match r.nth {
            0 => Reply::status(429).header("retry-after", asks()),
            _ => Reply::ok(*b"right"),
        });
        let begin = Instant::now();
        get(&s, pinned(server.url("/x"), b"right")).unwrap();
        // A date has no parts of a second.
        assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    }
    let begin = Instant::now();
    let (error, asked) = refused(|_| Reply::status(429).header("retry-after", "3600"));
    assert_eq!((error.code(), asked), ("http.status", 1), "an hour is not waited for");
    assert!(error.help_text().unwrap().contains("in 3600 s"), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(60));
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
    let starts: Vec<_> = server.seen().iter().map(Request::first_byte).collect();
    assert_eq!(starts, [None, Some(200_000), Some(400_000), Some(600_000), Some(800_000), Some(1_000_000)]);
    assert!(server.seen()[1..].iter().all(|r| r.header("if-range") == Some("\"one\"")));
}

#[test]
fn a_server_that_breaks_off_for_ever_fails_and_what_came_is_kept() {
    let s = scratch();
    let body = bytes(3, 300_000);
    let sent = Arc::clone(&body);
    let server = Server::start(move |_| Reply::ok(Arc::clone(&sent)).cut(100_000));
    let error = get(&s, pinned(server.url("/x"), &body)).unwrap_err();
    assert_eq!(error.code(), "http.broken");
    assert!(s.store.objects().unwrap().is_empty());
    let kept: Vec<_> = s.store.partials().unwrap().iter().map(|p| p.size).collect();
    assert_eq!(kept, [100_000]);
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole_again() {
    let s = scratch();
    let body = bytes(4, 500_000);
    let sent = Arc::clone(&body);
    let server = Server::start(move |r| {
        let reply = Reply::ok(Arc::clone(&sent));
        if r.nth == 0 { reply.cut(400_000) } else { reply }
    });
    let fetched = get(&s, pinned(server.url("/x"), &body)).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..]);
    assert_eq!(server.seen()[1].first_byte(), Some(400_000), "it was asked to go on");
}

/// The first answer breaks off; the file is another one when it is asked for again.
fn changing(request: &Request, tags: bool) -> Reply {
    let reply = |seed, length, tag: &str| {
        let reply = Reply::ok(bytes(seed, length));
        if tags { reply.header("etag", tag).ranged(request) } else { reply.ranged(request) }
    };
    match request.nth {
        0 => reply(5, 400_000, "\"old\"").cut(200_000),
        _ => reply(6, 500_000, "\"new\""),
    }
}

#[test]
fn a_file_that_changes_between_its_parts_is_never_a_mixture() {
    let new = bytes(6, 500_000);
    // The server can tell the two apart, or the digest can, or the length can.
    for (tags, known) in [(true, true), (true, false), (false, true)] {
        let s = scratch();
        let server = Server::start(move |r| changing(r, tags));
        let wanted = if known { pinned(server.url("/x"), &new) } else { blind(server.url("/x")) };
        let fetched = get(&s, wanted).unwrap();
        assert_eq!(s.store.read(&fetched.object).unwrap(), &new[..], "{tags} {known}");
    }
    // Neither: then nothing is gone on with in the first place.
    let s = scratch();
    let server = Server::start(|r| changing(r, false));
    let fetched = get(&s, blind(server.url("/x"))).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), &new[..]);
    assert!(server.seen().iter().all(|r| r.first_byte().is_none()));
}

#[test]
fn parts_of_the_same_length_that_do_not_belong_together_are_found_out() {
    let s = scratch();
    let new = bytes(8, 400_000);
    let server = Server::start(|r| match r.nth {
        0 => Reply::ok(bytes(7, 400_000)).cut(200_000),
        _ => Reply::ok(bytes(8, 400_000)).ranged(r),
    });
    let fetched = get(&s, pinned(server.url("/x"), &new)).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), &new[..]);
    let starts: Vec<_> = server.seen().iter().map(Request::first_byte).collect();
    assert_eq!(starts, [None, Some(200_000), None], "the parts, and then the whole");
}

#[test]
fn nonsense_ranges_are_not_appended() {
    for (start, total) in [("0", "400000"), ("199999", "400000"), ("200000", "9"), ("x", "y")] {
        let s = scratch();
        let body = bytes(9, 400_000);
        let sent = Arc::clone(&body);
        let server = Server::start(move |r| match r.first_byte() {
            Some(_) => {
                let reply = Reply::ok(sent[200_000..].to_vec()).partial();
                reply.header("content-range", format!("bytes {start}-399999/{total}"))
            }
            None if r.nth == 0 => Reply::ok(Arc::clone(&sent)).cut(200_000),
            None => Reply::ok(Arc::clone(&sent)),
        });
        let fetched = get(&s, pinned(server.url("/x"), &body)).unwrap();
        assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..], "{start}/{total}");
    }
}

#[test]
fn a_length_that_lies_is_a_broken_transfer_or_wrong_bytes() {
    // More is declared than comes.
    let s = scratch();
    let server = Server::start(|_| Reply::ok(*b"right").lie(100));
    let error = get(&s, pinned(server.url("/x"), b"right")).unwrap_err();
    assert_eq!(error.code(), "http.broken");
    assert!(s.store.objects().unwrap().is_empty());
    // Less is declared than comes.
    let (error, asked) = refused(|_| Reply::ok(*b"right").lie(3));
    assert_eq!((error.code(), asked), ("http.digest", 1));
}

#[test]
fn too_much_is_refused_before_it_comes_or_when_it_comes() {
    let s = scratch();
    let whole = |r: &Request| Reply::ok(bytes(10, 1 << 20)).ranged(r);
    let server = Server::start(move |r| if r.target == "/open" { whole(r).chunked() } else { whole(r) });
    for (path, announced) in [("/declared", true), ("/open", false)] {
        for wanted in [
            Wanted { max: 1000, ..blind(server.url(path)) },
            Wanted { size: Some(999), ..blind(server.url(path)) },
        ] {
            let capped = wanted.max == 1000;
            let error = get(&s, wanted).unwrap_err();
            assert_eq!(error.code(), if capped { "http.too-long" } else { "http.size" }, "{path}");
            assert_eq!(error.to_string().contains("1048576"), announced, "{error}");
            assert!(!capped || error.help_text().is_some_and(|help| help.contains("`max`")), "{error:?}");
            assert!(s.store.objects().unwrap().is_empty());
        }
    }
    assert_eq!(server.seen().len(), 4, "none was tried again");
}

#[test]
fn a_shorter_file_than_was_asked_for_is_refused() {
    let s = scratch();
    let server = Server::start(|_| Reply::ok(*b"right").chunked());
    let wanted = Wanted { size: Some(6), ..blind(server.url("/x")) };
    assert_eq!(get(&s, wanted).unwrap_err().code(), "http.size");
    assert_nothing(&s);
}

#[test]
fn nothing_is_taken_on_trust_whose_end_cannot_be_told() {
    let s = scratch();
    let server = Server::start(|_| Reply::ok(*b"right").lengthless());
    assert_eq!(get(&s, blind(server.url("/x"))).unwrap_err().code(), "http.no-length");
    get(&s, pinned(server.url("/x"), b"right")).unwrap();
}

#[test]
fn redirects_are_followed_but_not_in_circles_or_for_ever() {
    let s = scratch();
    let server = Server::start(|r| match r.target.as_str() {
        "/a" => Reply::redirect("b?x#y"),
        "/b?x" => Reply::redirect("/c"),
        "/c" => Reply::ok(*b"right"),
        "/loop" => Reply::redirect("/pool"),
        "/pool" => Reply::redirect("/loop"),
        "/file" => Reply::redirect("file:///etc/hostname"),
        "/nowhere" => Reply::redirect("http://["),
        deeper => Reply::redirect(format!("{deeper}x")),
    });
    get(&s, blind(server.url("/a"))).unwrap();
    for (path, code) in [
        ("/loop", "http.redirect-loop"),
        ("/deep", "http.redirect-loop"),
        ("/file", "http.redirect"),
        ("/nowhere", "http.redirect"),
    ] {
        let error = get(&s, blind(server.url(path))).unwrap_err();
        assert_eq!(error.code(), code, "{path}");
        assert!(error.help_text().is_some_and(|help| help.contains("direct URL")), "{error:?}");
    }
    assert!(server.seen().len() < 3 + 2 + 11 + 2 + 1, "none was tried again");
}

#[test]
fn silence_ends_a_transfer_and_slowness_does_not() {
    let s = scratch();
    let body = bytes(11, 4_000);
    let sent = Arc::clone(&body);
    let server = Server::start(move |r| {
        let reply = Reply::ok(Arc::clone(&sent));
        match r.target.as_str() {
            // Longer than the patience for silence, all in all.
            "/slow" => reply.drip(500, Duration::from_millis(100)),
            _ => reply.stall(1_000),
        }
    });
    let begin = Instant::now();
    get(&s, pinned(server.url("/slow"), &body)).unwrap();
    assert!(begin.elapsed() > hasty().stall * 2);
    let error = get(&s, blind(server.url("/silent"))).unwrap_err();
    assert_eq!(error.code(), "http.stalled");
    assert!(error.to_string().contains("nothing came for 0.3 s"), "{error}");
    // One that never even answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("http://{}/x", listener.local_addr().unwrap());
    assert_eq!(get(&s, blind(mute)).unwrap_err().code(), "http.stalled");
}

#[test]
fn mirrors_are_tried_in_order_until_one_will_do() {
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/x", listener.local_addr().unwrap())
    };
    let server = Server::start(|r| match r.target.as_str() {
        "/gone" => Reply::status(404),
        "/wrong" => Reply::ok(*b"wrong"),
        "/good" => Reply::ok(*b"right"),
        _ => panic!("{} was asked for", r.target),
    });
    let url = |path| server.url(path);
    let wanted = Wanted {
        urls: vec![dead.clone(), url("/gone"), url("/wrong"), url("/good"), url("/spare")],
        ..pinned("", b"right")
    };
    let s = scratch();
    let fetched = get(&s, wanted.clone()).unwrap();
    assert_eq!(fetched.url, url("/good"));
    assert_eq!(server.seen().len(), 3);

    let s = scratch();
    let wanted = Wanted { urls: wanted.urls[..3].to_vec(), ..wanted };
    let error = get(&s, wanted).unwrap_err();
    assert_eq!(error.code(), "http.digest", "wrong bytes tell more than absent ones");
    for part in [dead.as_str(), "404", "none of the 3 URLs"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(server.seen().len(), 5, "what will never do is asked once");
}

#[test]
fn a_mirror_goes_on_with_what_another_one_began() {
    let s = scratch();
    let body = bytes(12, 400_000);
    let sent = Arc::clone(&body);
    let server = Server::start(move |r| match r.target.as_str() {
        "/a" if r.nth == 0 => Reply::ok(Arc::clone(&sent)).header("etag", "\"a\"").cut(150_000),
        "/a" => Reply::status(503),
        _ => Reply::ok(Arc::clone(&sent)).header("etag", "\"b\"").ranged(r),
    });
    let wanted = Wanted { urls: vec![server.url("/a"), server.url("/b")], ..pinned("", &body) };
    let fetched = get(&s, wanted).unwrap();
    assert_eq!(s.store.read(&fetched.object).unwrap(), &body[..]);
    let last = server.seen().pop().unwrap();
    assert_eq!((last.target.as_str(), last.first_byte()), ("/b", Some(150_000)));
    assert_eq!(last.header("if-range"), None, "the other one's tag means nothing here");
}

#[test]
fn one_that_fails_ends_the_others_and_keeps_what_they_have() {
    let s = scratch();
    let server = Server::start(|r| match r.target.as_str() {
        "/bad" => {
            std::thread::sleep(Duration::from_millis(150));
            Reply::status(404)
        }
        _ => Reply::ok(bytes(13, 1 << 20)).header("etag", "\"x\"").drip(1000, Duration::from_millis(50)),
    });
    let begin = Instant::now();
    let wanted = [blind(server.url("/slow")), blind(server.url("/bad"))];
    let error = fetch_with(&s.store, &wanted, &Silent, &hasty()).unwrap_err();
    assert_eq!(error.code(), "http.status");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let kept = s.store.partials().unwrap();
    assert!(kept.len() == 1 && kept[0].size > 0, "{kept:?}");
}

#[test]
fn a_chain_that_comes_back_brings_no_password_back() {
    let s = scratch();
    let back = Arc::new(std::sync::OnceLock::<String>::new());
    let to = Arc::clone(&back);
    let stranger = Server::start(move |_| Reply::redirect(to.get().unwrap().clone()));
    let away = stranger.url("/x");
    let server = Server::start(move |r| match r.target.as_str() {
        "/back" => Reply::ok(*b"right"),
        _ => Reply::redirect(away.clone()),
    });
    back.set(server.url("/back")).unwrap();
    get(&s, pinned(format!("http://me:hunter2@{}/x", server.address()), b"right")).unwrap();
    let sent: Vec<bool> = server.seen().iter().map(|r| r.header("authorization").is_some()).collect();
    assert_eq!(sent, [true, false]);
    assert!(stranger.seen().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn passwords_are_sent_to_whom_they_are_for_and_never_shown() {
    let s = scratch();
    let other = Server::start(|_| Reply::status(404));
    let elsewhere = other.url("/x?token=hunter2");
    let server = Server::start(move |r| match r.target.as_str() {
        "/first?key=hunter2" => Reply::redirect("/second"),
        _ => Reply::redirect(elsewhere.clone()),
    });
    let address = server.address();
    let url = format!("http://me:hunter2@{address}/first?key=hunter2");
    let error = get(&s, pinned(url, b"right")).unwrap_err();
    let shown = format!("{error} {:?} {:?}", error.help_text(), std::error::Error::source(&error));
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(server.seen().iter().all(|r| r.header("authorization") == Some("Basic bWU6aHVudGVyMg==")));
    assert_eq!(server.seen().len(), 2);
    assert!(other.seen().iter().all(|r| r.header("authorization").is_none()));
    // Nor kept.
    let store = s.store.home().store();
    let files = walkdir::WalkDir::new(store).into_iter().flatten().filter(|e| e.file_type().is_file());
    for file in files {
        assert!(!String::from_utf8_lossy(&fs_err::read(file.path()).unwrap()).contains("hunter2"));
    }
}
