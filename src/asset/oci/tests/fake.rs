//! A registry that does what the test tells it to: for answers that a real one never gives.

use super::local::Layout;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// What it gets.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What Content-Length says instead of the truth; none leaves the header out.
    pub length: Option<usize>,
    /// The same body again and again, until the client has enough.
    pub endless: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        Reply { status, headers: Vec::new(), length: Some(body.len()), body, endless: false }
    }
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A running server on loopback; its thread ends with the process.
pub struct Fake {
    pub address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    log.lock().unwrap().push(request.clone());
                    // A client that hangs up early is none of our business.
                    let _ = write(stream, answer(&request));
                });
            }
        });
        Fake { address, asked }
    }

    /// Serves a layout's blobs and `image` as the manifest `app:1`, each answer passed through `change`.
    pub fn registry(
        layout: &Layout,
        image: &Value,
        change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Fake {
        let (blobs, digest) = (layout.0.clone(), image["digest"].as_str().unwrap().to_owned());
        Fake::new(move |request| {
            let version = request.path.rsplit('/').next().unwrap_or_default();
            let digest = if version == "1" { &digest } else { version };
            let reply = match blobs.get(&format!("blobs/{}", digest.replace(':', "/"))) {
                Some(blob) => ranged(request, blob),
                None => Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
            };
            change(request, reply)
        })
    }

    pub fn reference(&self) -> String {
        format!("{}/app:1", self.address)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

fn ranged(request: &Request, blob: &[u8]) -> Reply {
    let range =
        request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match range {
        Some(from) if from < blob.len() => Reply::new(206, &blob[from..])
            .header("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        _ => Reply::new(200, blob),
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn write(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = reply.length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body)?;
    if !reply.endless {
        return Ok(());
    }
    loop {
        stream.write_all(&reply.body)?;
    }
}
