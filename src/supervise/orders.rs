//! What a supervisor is told once, over the socket that is its standard input: its VM's settings, and with them the
//! descriptors of its log and of the project's namespace.

use super::spec::{SuperviseSpec, wipe};
use super::wire::MAX_SPEC;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// What arrived.
pub(super) struct Orders {
    pub spec: SuperviseSpec,
    /// Becomes its standard error.
    pub log: OwnedFd,
    pub netns: Option<OwnedFd>,
}

/// Sends them: the length with the descriptors, then the settings as JSON.
pub(super) fn send(
    mut to: &UnixStream,
    spec: &SuperviseSpec,
    log: BorrowedFd<'_>,
    netns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // Room beforehand: growing would leave copies of secrets in freed memory.
    let mut bytes = Vec::with_capacity(256 * 1024);
    serde_json::to_writer(&mut bytes, spec)?;
    let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= MAX_SPEC);
    let len = len.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "its settings are too large"))?;
    let fds: Vec<RawFd> = [Some(log), netns].into_iter().flatten().map(|fd| fd.as_raw_fd()).collect();
    let head = len.to_le_bytes();
    let sent = sendmsg::<()>(
        to.as_raw_fd(),
        &[IoSlice::new(&head)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(io::Error::from)
    // The rest of a head that did not fit, if that ever happens, goes without descriptors.
    .and_then(|sent| to.write_all(&head[sent..]))
    .and_then(|()| to.write_all(&bytes));
    wipe(&mut bytes);
    sent
}

/// Waits for them; `None` if the other end has gone without a word.
pub(super) fn receive(socket: &mut UnixStream) -> io::Result<Option<Orders>> {
    let mut head = [0; 4];
    let (got, mut fds) = first(socket, &mut head)?;
    if got == 0 {
        return Ok(None);
    }
    socket.read_exact(&mut head[got..])?;
    let len = u32::from_le_bytes(head);
    if len > MAX_SPEC {
        return Err(io::Error::new(ErrorKind::InvalidData, "the settings are too large"));
    }
    let mut bytes = vec![0; len as usize];
    socket.read_exact(&mut bytes)?;
    let spec = serde_json::from_slice(&bytes);
    wipe(&mut bytes);
    if fds.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidData, "the settings came without a log"));
    }
    let log = fds.remove(0);
    Ok(Some(Orders { spec: spec?, log, netns: fds.pop() }))
}

/// The first bytes and the descriptors that came with them, close-on-exec.
fn first(socket: &UnixStream, head: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = nix::cmsg_space!([RawFd; 2]);
    loop {
        let mut slices = [IoSliceMut::new(head)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just put these descriptors into this process; nobody else knows of them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        return Ok((message.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::tests::spec;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    fn inode(fd: &OwnedFd) -> u64 {
        File::from(fd.try_clone().unwrap()).metadata().unwrap().ino()
    }

    #[test]
    fn settings_arrive_with_the_very_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let [log, netns] = [(); 2].map(|()| OwnedFd::from(tempfile::tempfile().unwrap()));
        for netns in [Some(&netns), None] {
            let mut sent = spec(dir.path());
            // More than a socket holds at once.
            sent.run.env = vec![("BULK".to_owned(), "x".repeat(1 << 20))];
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let arrived = std::thread::scope(|scope| {
                let sending = scope.spawn(|| send(&ours, &sent, log.as_fd(), netns.map(AsFd::as_fd)));
                let arrived = receive(&mut theirs).unwrap().unwrap();
                sending.join().unwrap().unwrap();
                arrived
            });
            assert!(arrived.spec == sent);
            assert_eq!(inode(&arrived.log), inode(&log));
            assert_eq!(arrived.netns.as_ref().map(inode), netns.map(inode));
        }
    }

    #[test]
    fn no_word_is_no_error_and_half_a_word_is_one() {
        let received = |bytes: &[u8]| {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            ours.write_all(bytes).unwrap();
            drop(ours);
            receive(&mut theirs).map(|orders| orders.is_some())
        };
        assert!(!received(b"").unwrap());
        assert_eq!(received(&[1, 0]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(received(&[5, 0, 0, 0, b'{']).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(received(&[255; 4]).unwrap_err().to_string().contains("too large"));
        assert!(received(&[2, 0, 0, 0, b'{', b'}']).unwrap_err().to_string().contains("without a log"));
    }
}
