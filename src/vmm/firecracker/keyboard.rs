//! Presses Ctrl-Alt-Del on a guest's keyboard, through the API socket in its jail.

use super::stage::API_SOCKET;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// An API thread that is alive answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to one VMM's API.
#[derive(Debug)]
pub struct Keyboard {
    /// The jail's root. What is in it may be anything.
    pub(super) root: OwnedFd,
}

impl Keyboard {
    /// Asks the guest's kernel to restart, which ends the VM. Fails if the API does not take it within seconds.
    pub async fn ctrl_alt_del(&self) -> io::Result<()> {
        let asked = async {
            let mut api = self.connect().await?;
            let body = r#"{"action_type":"SendCtrlAltDel"}"#;
            let request = format!(
                "PUT /actions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            api.write_all(request.as_bytes()).await?;
            let mut answer = [0; 12];
            api.read_exact(&mut answer).await?;
            if answer.starts_with(b"HTTP/1.1 20") {
                return Ok(());
            }
            let status = String::from_utf8_lossy(&answer).into_owned();
            Err(io::Error::other(format!("the VMM refused Ctrl-Alt-Del: {status}")))
        };
        tokio::time::timeout(PATIENCE, asked).await?
    }

    /// Never through a link: the VMM may have put one there.
    async fn connect(&self) -> io::Result<UnixStream> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let socket = std::fs::File::from(openat2(&self.root, API_SOCKET, how)?);
        if !socket.metadata()?.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the API's socket is no socket"));
        }
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }
}
