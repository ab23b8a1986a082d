//! As much of rtnetlink as one guest needs: requests with an acknowledgement, one at a time.
//! Layouts are those of linux/netlink.h and linux/rtnetlink.h; all integers are of host order.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::{AsRawFd, OwnedFd};

/// nlmsghdr: length, type, flags, sequence, port.
const HEADER: usize = 16;

/// A request under construction.
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of `kind` (`RTM_…`) with its fixed part. `flags` are added to REQUEST and ACK.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Request {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Request { bytes }
    }

    /// Appends an attribute, padded to four bytes as NLA_ALIGN asks.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let len = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A NETLINK_ROUTE socket of the current network namespace.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket.
    pub fn open() -> nix::Result<Netlink> {
        let fd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        Ok(Netlink { fd, sequence: 0 })
    }

    /// Sends a request and returns the kernel's verdict.
    pub fn ask(&mut self, request: Request) -> nix::Result<()> {
        self.sequence += 1;
        // An unbound netlink socket sends to the kernel by default.
        send(self.fd.as_raw_fd(), &request.finish(self.sequence), MsgFlags::empty())?;
        let mut buffer = [0; 8192];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            if let Some(verdict) = verdict(&buffer[..n], self.sequence) {
                return verdict;
            }
        }
    }
}

/// The answer to `sequence` in a datagram: NLMSG_ERROR with the negated errno, 0 for success.
fn verdict(mut datagram: &[u8], sequence: u32) -> Option<nix::Result<()>> {
    let word = |bytes: &[u8], at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    while let Some(len) = word(datagram, 0) {
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        if i32::from(kind) == libc::NLMSG_ERROR && word(datagram, 8) == Some(sequence) {
            return Some(match word(datagram, HEADER)? as i32 {
                0 => Ok(()),
                negated => Err(Errno::from_raw(negated.wrapping_neg())),
            });
        }
        let len = (len as usize).max(HEADER).next_multiple_of(4);
        datagram = datagram.get(len..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_the_length_counts_everything() {
        let bytes = Request::new(16, 0, &[1; 16]).attribute(4, &[9, 9]).finish(7);
        assert_eq!(bytes.len(), HEADER + 16 + 8);
        assert_eq!(bytes[0..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[8..12], 7u32.to_ne_bytes());
        assert_eq!(bytes[32..40], [6, 0, 4, 0, 9, 9, 0, 0]);
    }

    #[test]
    fn a_verdict_is_taken_only_for_its_own_sequence_and_noise_is_survived() {
        let mut reply = vec![0; 36];
        reply[0..4].copy_from_slice(&36u32.to_ne_bytes());
        reply[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        reply[8..12].copy_from_slice(&5u32.to_ne_bytes());
        reply[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(verdict(&reply, 5), Some(Err(Errno::EEXIST)));
        assert_eq!(verdict(&reply, 6), None);
        for cut in 0..reply.len() {
            let _ = verdict(&reply[..cut], 5);
        }
        assert_eq!(verdict(&[0; 64], 5), None);
    }
}
