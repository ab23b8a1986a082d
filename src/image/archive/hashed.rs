//! Hashes a stream while somebody else reads it: on a thread of its own, as unpacking takes a core by itself.

use crate::digest::Sha;
use crate::error::{Context, Error, Result};
use std::io::{self, Read};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Pieces that hashing may lag behind. Whoever reads decides how large they are.
const LAG: usize = 4;

/// A reader whose bytes are hashed as they are read.
pub(super) struct Hashed<R> {
    inner: R,
    pieces: SyncSender<Vec<u8>>,
    thread: JoinHandle<Sha>,
}

impl<R: Read> Hashed<R> {
    /// The digest shall be of the same kind as another.
    pub fn new(inner: R, like: &str) -> Result<Self> {
        let (pieces, arriving) = sync_channel::<Vec<u8>>(LAG);
        let mut sha = Sha::like(like);
        let hash = move || {
            arriving.iter().for_each(|piece| sha.update(&piece));
            sha
        };
        let thread = std::thread::Builder::new().name("hash".to_owned()).spawn(hash);
        let thread = thread.or_failed("archive.read", || "cannot start a thread that hashes")?;
        Ok(Hashed { inner, pieces, thread })
    }

    /// The digest of all that was read.
    pub fn finish(self) -> Result<String> {
        drop(self.pieces);
        let hasher = self.thread.join().map_err(|_| Error::bug("hashing an archive panicked"))?;
        Ok(hasher.finish())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        // Whoever hashes ends after us, or `finish` finds out.
        let _ = self.pieces.send(buffer[..got].to_vec());
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    #[test]
    fn what_is_read_is_hashed_whole() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut read = Vec::new();
        let mut hashed = Hashed::new(&bytes[..], "sha256:").unwrap();
        hashed.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hashed.finish().unwrap(), format!("sha256:{hex}"));
    }
}
