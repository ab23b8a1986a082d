//! The least of HTTP: asks until a server answers with 200.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Between refused attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// An emulated guest is slow to answer; asking again meanwhile would only slow it further.
const ANSWER: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(120);

/// Connects to a host's address.
pub fn connect(address: &str) -> io::Result<TcpStream> {
    TcpStream::connect(address)
}

/// Returns once a connection has brought a 200.
pub fn wait_for_200(connect: impl Fn() -> io::Result<TcpStream>) {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        if connect().and_then(ask).unwrap_or(false) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("no answer within {LIMIT:?}");
}

fn ask(mut stream: TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: guest\r\n\r\n")?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    Ok(&head[9..] == b"200")
}

/// Waits until a connection that was only begun stands.
pub fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::from(1000_u16))?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}
