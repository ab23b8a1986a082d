//! Where a download's bytes go: a file, and a thread that hashes them meanwhile.

use crate::digest::{ObjectDigest, hex};
use crate::error::{Error, Result};
use crate::store::write_failed;
use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// What is written and hashed at once. Networks deliver less.
const PIECE: usize = 256 << 10;
/// Pieces that hashing may lag behind.
const LAG: usize = 16;

/// What the bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::asset) struct Hashed {
    pub blake3: ObjectDigest,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
    pub size: u64,
}

/// A file that grows and is hashed as it does.
pub(in crate::asset) struct Sink {
    path: PathBuf,
    file: File,
    /// Not yet written.
    held: Vec<u8>,
    /// With what is held.
    length: u64,
    hashing: Hashing,
}

struct Hashing {
    pieces: SyncSender<Bytes>,
    thread: JoinHandle<Hashed>,
}

impl Hashing {
    fn start() -> io::Result<Hashing> {
        let (pieces, arriving) = sync_channel(LAG);
        let thread = std::thread::Builder::new().name("hash".to_owned()).spawn(move || hash(&arriving))?;
        Ok(Hashing { pieces, thread })
    }

    fn end(self) -> Result<Hashed> {
        drop(self.pieces);
        self.thread.join().map_err(|_| Error::bug("hashing a download panicked"))
    }
}

fn hash(arriving: &Receiver<Bytes>) -> Hashed {
    let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
    for piece in arriving {
        sha256.update(&piece);
        blake3.update(&piece);
    }
    Hashed { sha256: hex(&sha256.finalize()), size: blake3.count(), blake3: blake3.finalize().into() }
}

impl Sink {
    /// Goes on with the file at `path`: what it holds is hashed first. A file that is not there is made.
    pub fn open(path: &Path) -> Result<Sink> {
        let failed = |e| write_failed(format_args!("writing {}", path.display()), e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        let hashing = Hashing::start().map_err(failed)?;
        let mut length = 0;
        loop {
            let mut piece = vec![0; PIECE];
            let got = match file.read(&mut piece) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
            piece.truncate(got);
            length += got as u64;
            // Whoever hashes ends after us, or `finish` finds out.
            let _ = hashing.pieces.send(piece.into());
        }
        Ok(Sink { path: path.to_owned(), file, held: Vec::with_capacity(PIECE), length, hashing })
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Appends.
    pub fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.length += bytes.len() as u64;
        if self.held.is_empty() && bytes.len() >= PIECE {
            return self.write(bytes);
        }
        self.held.extend_from_slice(&bytes);
        if self.held.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    /// Writes what is held back, so that a process after us finds it.
    pub fn flush(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::replace(&mut self.held, Vec::with_capacity(PIECE));
        self.write(held.into())
    }

    fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.file
            .write_all(&bytes)
            .map_err(|e| write_failed(format_args!("writing {}", self.path.display()), e))?;
        let _ = self.hashing.pieces.send(bytes);
        Ok(())
    }

    /// Forgets everything.
    pub fn restart(&mut self) -> Result<()> {
        let failed = |e| write_failed(format_args!("writing {}", self.path.display()), e);
        self.held.clear();
        self.length = 0;
        self.hashing = Hashing::start().map_err(failed)?;
        self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file)).map_err(failed)
    }

    /// What arrived, all of it written. Hashing starts over: more may follow a [`Sink::restart`] only.
    pub fn finish(&mut self) -> Result<Hashed> {
        self.flush()?;
        let failed = |e| write_failed(format_args!("writing {}", self.path.display()), e);
        let hashing = std::mem::replace(&mut self.hashing, Hashing::start().map_err(failed)?);
        let hashed = hashing.end()?;
        if hashed.size == self.length {
            Ok(hashed)
        } else {
            Err(Error::bug(format!("{} of {} bytes were hashed", hashed.size, self.length)))
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // As much as there is: somebody may go on with it.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_pieces_the_digests_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for (n, sizes) in
            [vec![], vec![1], vec![PIECE, 1, PIECE - 1], vec![3 * PIECE + 7, 5]].iter().enumerate()
        {
            let path = dir.path().join(n.to_string());
            let mut sink = Sink::open(&path).unwrap();
            let mut whole = Vec::new();
            for size in sizes {
                let bytes: Vec<u8> = (0..*size).map(|i| (i % 251) as u8).collect();
                whole.extend_from_slice(&bytes);
                sink.push(bytes.into()).unwrap();
            }
            let hashed = sink.finish().unwrap();
            assert_eq!(hashed.blake3, blake3::hash(&whole).into());
            assert_eq!(hashed.size, whole.len() as u64);
            let sha: String = Sha256::digest(&whole).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hashed.sha256, sha);
            assert_eq!(fs_err::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_gone_on_with_and_what_is_started_over_hash_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut sink = Sink::open(&path).unwrap();
        sink.push(Bytes::from_static(b"fire")).unwrap();
        drop(sink);
        let mut sink = Sink::open(&path).unwrap();
        assert_eq!(sink.len(), 4);
        sink.push(Bytes::from_static(b"gopher")).unwrap();
        assert_eq!(sink.finish().unwrap().blake3, blake3::hash(b"firegopher").into());
        sink.restart().unwrap();
        sink.push(Bytes::from_static(b"water")).unwrap();
        assert_eq!(sink.finish().unwrap().blake3, blake3::hash(b"water").into());
        assert_eq!(fs_err::read(&path).unwrap(), b"water");
    }
}
