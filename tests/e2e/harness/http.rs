//! HTTP as `curl` would, to published ports.

use super::PATIENCE;
use std::io::{Error, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
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
