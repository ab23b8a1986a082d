//! A web server on loopback that is as bad as a test wants it: each answer says what is wrong with it. The library's
//! own tests, those of the built binary and the benchmarks share it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// As it stands in the request: `/path?query`, or a whole URL if we are its proxy.
    pub target: String,
    /// How often this target was asked for before.
    pub nth: usize,
    headers: HashMap<String, String>,
}

impl Request {
    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// `N` of `Range: bytes=N-`.
    pub fn first_byte(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer and what is wrong with it.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<[u8]>,
    start: usize,
    length: Length,
    /// The connection ends after so many bytes of the body.
    cut: Option<usize>,
    /// Nothing more comes after so many bytes of the body, but the connection stays.
    stall: Option<usize>,
    /// Bytes at a time, and the time between them.
    drip: Option<(usize, Duration)>,
    /// Bytes a second.
    rate: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Length {
    True,
    Lie(usize),
    Absent,
    Chunked,
}

impl Reply {
    /// 200 and a body.
    pub fn ok(body: impl Into<Arc<[u8]>>) -> Reply {
        Reply {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
            start: 0,
            length: Length::True,
            cut: None,
            stall: None,
            drip: None,
            rate: None,
        }
    }

    /// A status without a body worth reading.
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::ok(*b"sorry\n") }
    }

    /// A redirect.
    pub fn redirect(to: impl Into<String>) -> Reply {
        Reply::status(302).header("location", to)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// 206, whatever was asked for.
    pub fn partial(self) -> Reply {
        Reply { status: 206, ..self }
    }

    /// Honours Range, and If-Range against the ETag that was given before.
    pub fn ranged(mut self, request: &Request) -> Reply {
        let Some(start) = request.first_byte() else { return self };
        let tag = self.headers.iter().find(|(name, _)| name == "etag").map(|(_, tag)| tag.as_str());
        let last = self.headers.iter().find(|(name, _)| name == "last-modified").map(|(_, at)| at.as_str());
        if let Some(condition) = request.header("if-range")
            && Some(condition) != tag
            && Some(condition) != last
        {
            return self;
        }
        let total = self.body.len();
        if start >= total {
            self.body = Arc::from(*b"");
            self.status = 416;
            return self.header("content-range", format!("bytes */{total}"));
        }
        (self.status, self.start) = (206, start);
        self.header("content-range", format!("bytes {start}-{}/{total}", total - 1))
    }

    /// Closes the connection after so many bytes of what is sent.
    pub fn cut(self, after: usize) -> Reply {
        Reply { cut: Some(after), ..self }
    }

    /// Falls silent after so many bytes of what is sent.
    pub fn stall(self, after: usize) -> Reply {
        Reply { stall: Some(after), ..self }
    }

    /// Sends few bytes at a time.
    pub fn drip(self, bytes: usize, every: Duration) -> Reply {
        Reply { drip: Some((bytes, every)), ..self }
    }

    /// Sends no faster than this, in bytes a second.
    pub fn rate(self, rate: u64) -> Reply {
        Reply { rate: Some(rate), ..self }
    }

    /// Declares another length than it sends.
    pub fn lie(self, length: usize) -> Reply {
        Reply { length: Length::Lie(length), ..self }
    }

    /// Declares no length; the end of the connection is the end of the body.
    pub fn lengthless(self) -> Reply {
        Reply { length: Length::Absent, ..self }
    }

    /// Sends the body in chunks, without a length.
    pub fn chunked(self) -> Reply {
        Reply { length: Length::Chunked, ..self }
    }

    fn send(&self, out: &mut dyn Write, gone: &AtomicBool) -> io::Result<()> {
        let body = &self.body[self.start..];
        let mut head = format!("HTTP/1.1 {} Whatever\r\nconnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.length {
            Length::True => head += &format!("content-length: {}\r\n", body.len()),
            Length::Lie(length) => head += &format!("content-length: {length}\r\n"),
            Length::Chunked => head += "transfer-encoding: chunked\r\n",
            Length::Absent => {}
        }
        out.write_all(format!("{head}\r\n").as_bytes())?;
        let end = self.cut.or(self.stall).unwrap_or(body.len()).min(body.len());
        let (piece, pause) = match (self.drip, self.rate) {
            (Some((bytes, every)), _) => (bytes, every),
            // Pieces of a millisecond or so.
            (None, Some(rate)) => ((rate / 1000).max(1) as usize, Duration::ZERO),
            (None, None) => (1 << 20, Duration::ZERO),
        };
        let begin = Instant::now();
        let mut sent = 0;
        for bytes in body[..end].chunks(piece) {
            if matches!(self.length, Length::Chunked) {
                out.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
                out.write_all(bytes)?;
                out.write_all(b"\r\n")?;
            } else {
                out.write_all(bytes)?;
            }
            sent += bytes.len();
            if let Some(rate) = self.rate {
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            std::thread::sleep(pause);
            if gone.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        if matches!(self.length, Length::Chunked) && self.cut.is_none() {
            out.write_all(b"0\r\n\r\n")?;
        }
        out.flush()?;
        while self.stall.is_some() && !gone.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A connection, plain or not.
pub trait Stream: Read + Write + Send {
    /// How long a read may wait.
    fn set_patience(&self, time: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn set_patience(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }
}

type Wrap = dyn Fn(TcpStream) -> Box<dyn Stream> + Send + Sync;

/// The server; ends when dropped.
pub struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    gone: Arc<AtomicBool>,
    scheme: &'static str,
}

impl Server {
    /// Answers each request as `answer` says.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::start_with("http", Box::new(|stream| Box::new(stream)), answer)
    }

    /// The same over something around each connection, such as TLS.
    pub fn start_with(
        scheme: &'static str,
        wrap: Box<Wrap>,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let gone = Arc::new(AtomicBool::new(false));
        let shared = (Arc::new(answer), Arc::new(wrap), Arc::clone(&seen), Arc::clone(&gone));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, wrap, seen, gone) = shared.clone();
                if gone.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || {
                    let socket = stream.try_clone();
                    // Clients that hang up are what many tests are about.
                    let _ = serve(wrap(stream), &*answer, &seen, &gone);
                    let _ = socket.and_then(|s| s.shutdown(Shutdown::Both));
                });
            }
        });
        Server { address, seen, gone, scheme }
    }

    /// The URL of a path that begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        lock(&self.seen).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: Box<dyn Stream>,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Request>>,
    gone: &AtomicBool,
) -> io::Result<()> {
    let request = {
        let mut reader = BufReader::new(&mut stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let first = lines.first().cloned().unwrap_or_default();
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let header = |line: &String| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.iter().skip(1).filter_map(header).collect();
        let mut seen = lock(seen);
        let nth = seen.iter().filter(|r| r.target == target).count();
        let request = Request { method, target, nth, headers };
        seen.push(request.clone());
        request
    };
    if request.method == "CONNECT" {
        return tunnel(&mut *stream, &request.target);
    }
    answer(&request).send(&mut stream, gone)
}

/// What a proxy does for https: one exchange, which the far side ends.
fn tunnel(near: &mut dyn Stream, target: &str) -> io::Result<()> {
    let mut far = TcpStream::connect(target)?;
    near.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    far.set_read_timeout(Some(Duration::from_millis(20)))?;
    near.set_patience(Duration::from_millis(20))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        for towards_far in [true, false] {
            let got = if towards_far { near.read(&mut buffer) } else { far.read(&mut buffer) };
            let got = match got {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
                Err(e) => return Err(e),
            };
            if towards_far { far.write_all(&buffer[..got])? } else { near.write_all(&buffer[..got])? }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
