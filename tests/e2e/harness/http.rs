//! HTTP as `curl` would, to published ports.

use super::PATIENCE;
use std::io::{Error, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// A port that nobody listens on now, and that no other test of this process is given. It lies below the ports
/// that the kernel hands out by itself, so that no connection of anybody's takes it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 10_000) as u16;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks until there is an answer of 200; returns its body.
#[track_caller]
pub fn get(port: u16, path: &str) -> String {
    let begun = Instant::now();
    loop {
        match try_get(port, path) {
            Ok(body) => return body,
            Err(e) => assert!(begun.elapsed() < PATIENCE, "port {port} does not answer {path}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One request; an error unless the answer is a 200.
pub fn try_get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| Error::other("no answer"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(Error::other(head.to_owned())),
    }
}
