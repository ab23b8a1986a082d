//! Which parts of a file become holes of the image: its whole chunks of zeros, wherever the bytes come from. They cost
//! no space, and a guest that writes to such a file copies none of them. Contents alone decide, so that equal files make
//! equal images; a look at the first bytes of each chunk finds nearly all that are not zero.

use super::content::{Content, ContentReader, SparseReader};
use super::copy::next_data;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// Shorter runs of zeros are data: every hole costs extents.
const CHUNK: usize = 64 << 10;
/// That many zeros.
pub(super) static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Smaller files are data throughout: most of an image's files are, and looking at them would cost more than they do.
const LEAST: u64 = 1 << 20;
/// A deflated file is unpacked once more only if it is this much smaller than its contents.
const DEFLATED: u64 = 8;
/// As many runs as `mkext4`'s trees of extents have room for, with some to spare.
const MOST: usize = 400_000;

/// A run of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// In bytes: whole blocks, except for the last run of a file.
    pub length: u64,
    /// Nothing but zeros, which take no space.
    pub hole: bool,
}

/// The runs of a file of `size` bytes; `None` if it has no holes. A file that cannot be read has none: filling the image
/// tells why.
pub(super) fn of(content: &Content, size: u64) -> Option<Vec<Run>> {
    if size < LEAST {
        return None;
    }
    let runs = find(content, size).ok()??;
    let runs = at_most(runs, MOST);
    runs.iter().any(|run| run.hole).then_some(runs)
}

fn find(content: &Content, size: u64) -> io::Result<Option<Vec<Run>>> {
    Ok(Some(match content {
        Content::Bytes(_) => return Ok(None),
        Content::Slice { file, offset } => in_file(file.file(), *offset, size)?,
        Content::Beneath { .. } | Content::Host { .. } => in_file(&content.open_file()?, 0, size)?,
        Content::Sparse { file, extents } => {
            let zeros = |at: u64, length: u64| {
                let next = extents.partition_point(|run| run.at + run.length <= at);
                match extents.get(next) {
                    Some(run) if run.at < at + length => {
                        all_zero(&mut SparseReader::new(file, extents, at, size), length)
                    }
                    _ => Ok(true),
                }
            };
            runs(size, zeros)?
        }
        Content::Zip { compressed, .. } => {
            if compressed.saturating_mul(DEFLATED) > size {
                return Ok(None);
            }
            let mut reader = content.open(size)?;
            runs(size, |_, length| all_zero(&mut reader, length))?
        }
    }))
}

/// In `size` bytes of a file from `offset` on. What the file system knows to be holes is not read.
fn in_file(file: &File, offset: u64, size: u64) -> io::Result<Vec<Run>> {
    if file.metadata()?.len() < offset + size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (mut data, mut buffer) = ((0, 0), [0; CHUNK]);
    runs(size, |at, length| {
        let (begin, end) = (offset + at, offset + at + length);
        if data.1 <= begin {
            data = next_data(file, begin, offset + size)?.unwrap_or((offset + size, offset + size));
        }
        if end <= data.0 {
            return Ok(true);
        }
        let mut first = [0; 8];
        let few = first.len().min(length as usize);
        file.read_exact_at(&mut first[..few], begin)?;
        if first != [0; 8] {
            return Ok(false);
        }
        let all = &mut buffer[..length as usize];
        file.read_exact_at(all, begin)?;
        Ok(*all == ZEROS[..all.len()])
    })
}

fn all_zero(reader: &mut impl Read, length: u64) -> io::Result<bool> {
    let mut buffer = [0; CHUNK];
    let all = &mut buffer[..length as usize];
    reader.read_exact(all)?;
    Ok(*all == ZEROS[..all.len()])
}

/// Asks for each chunk of a file, in order, whether it is all zeros.
fn runs(size: u64, mut zeros: impl FnMut(u64, u64) -> io::Result<bool>) -> io::Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < size {
        let length = (size - at).min(CHUNK as u64);
        push(&mut runs, Run { length, hole: zeros(at, length)? });
        at += length;
    }
    Ok(runs)
}

fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.hole == run.hole => last.length += run.length,
        _ => runs.push(run),
    }
}

/// The same file in at most `most` runs: the shortest holes become data.
fn at_most(mut runs: Vec<Run>, most: usize) -> Vec<Run> {
    let mut shortest = CHUNK as u64;
    while runs.len() > most {
        shortest *= 2;
        let all = std::mem::take(&mut runs);
        for run in all {
            push(&mut runs, Run { hole: run.hole && run.length >= shortest, ..run });
        }
    }
    runs
}

/// Reads the data of a file and leaves out its holes.
pub(super) struct DataReader<'a> {
    content: ContentReader<'a>,
    /// Those that are not yet begun.
    runs: &'a [Run],
    /// Of the current run of data.
    left: u64,
}

impl<'a> DataReader<'a> {
    pub fn new(content: ContentReader<'a>, runs: &'a [Run]) -> Self {
        DataReader { content, runs, left: 0 }
    }

    /// After the data: whether the contents, holes included, are what was announced.
    pub fn finish(mut self) -> Result<(), Option<io::Error>> {
        for run in self.runs {
            self.content.skip_zeros(run.length).map_err(Some)?;
        }
        self.content.finish()
    }

    /// As [`ContentReader::fault`].
    pub fn fault(&mut self) -> Option<Option<io::Error>> {
        self.content.fault()
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let Some((run, rest)) = self.runs.split_first() else { return Ok(0) };
            if run.hole {
                self.content.skip_zeros(run.length)?;
            } else {
                self.left = run.length;
            }
            self.runs = rest;
        }
        let want = self.left.min(buffer.len() as u64) as usize;
        let got = self.content.read(&mut buffer[..want])?;
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    fn text(runs: &[Run]) -> String {
        let word = |run: &Run| format!("{}{}", if run.hole { "hole " } else { "data " }, run.length);
        runs.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_same_bytes_have_the_same_holes_wherever_they_come_from() {
        let dir = tempfile::tempdir().unwrap();
        let size = (3 << 20) + 17;
        let mut bytes = vec![0; size];
        bytes[70_000] = 1;
        bytes[1_000_000..1_200_000].fill(2);
        let (sparse, dense) = (dir.path().join("sparse"), dir.path().join("dense"));
        std::fs::write(&dense, &bytes).unwrap();
        let file = fs::File::create(&sparse).unwrap();
        file.set_len(size as u64).unwrap();
        let written = [(70_000, 1), (1_000_000, 200_000)];
        for (at, length) in written {
            file.file().write_all_at(&bytes[at..at + length], at as u64).unwrap();
        }
        let digest = crate::digest::ObjectDigest::from(blake3::hash(&bytes));
        let mut packed = Vec::new();
        let mut extents = Vec::new();
        for (at, length) in written {
            let extent = super::super::content::Extent {
                at: at as u64,
                length: length as u64,
                offset: packed.len() as u64,
            };
            extents.push(extent);
            packed.extend_from_slice(&bytes[at..at + length]);
        }
        std::fs::write(dir.path().join("packed"), &packed).unwrap();
        let mut before = vec![7; 1000];
        before.extend_from_slice(&bytes);
        std::fs::write(dir.path().join("archive"), &before).unwrap();
        let open = |name: &str| std::sync::Arc::new(fs::File::open(dir.path().join(name)).unwrap());
        let contents = [
            Content::Host { path: sparse, digest },
            Content::Host { path: dense, digest },
            Content::Slice { file: open("archive"), offset: 1000 },
            Content::Sparse { file: open("packed"), extents: extents.into() },
        ];
        for content in contents {
            let runs = of(&content, size as u64).unwrap();
            let wanted = "hole 65536, data 65536, hole 851968, data 262144, hole 1900561";
            assert_eq!(text(&runs), wanted, "{content:?}");
            let mut read = Vec::new();
            let mut reader = DataReader::new(content.open(size as u64).unwrap(), &runs);
            let data: u64 = runs.iter().filter(|run| !run.hole).map(|run| run.length).sum();
            io::Read::by_ref(&mut reader).take(data).read_to_end(&mut read).unwrap();
            reader.finish().unwrap();
            assert!(read[..65536] == bytes[65536..131_072] && read[65536..] == bytes[983_040..1_245_184]);
        }
    }

    #[test]
    fn small_files_and_full_ones_have_no_holes() {
        let dir = tempfile::tempdir().unwrap();
        let of_bytes = |bytes: &[u8]| {
            std::fs::write(dir.path().join("f"), bytes).unwrap();
            let content = Content::Slice {
                file: std::sync::Arc::new(fs::File::open(dir.path().join("f")).unwrap()),
                offset: 0,
            };
            of(&content, bytes.len() as u64)
        };
        assert_eq!(of_bytes(&vec![0; LEAST as usize - 1]), None);
        assert_eq!(of_bytes(&vec![1; LEAST as usize]), None);
        // A chunk whose first bytes are zero is looked at whole.
        let mut late = vec![0; LEAST as usize];
        late.chunks_mut(CHUNK).for_each(|chunk| chunk[CHUNK - 1] = 1);
        assert_eq!(of_bytes(&late), None);
        assert_eq!(text(&of_bytes(&vec![0; LEAST as usize]).unwrap()), "hole 1048576");
    }

    #[test]
    fn more_holes_than_an_inode_can_have_lose_the_shortest() {
        let (short, long) = (CHUNK as u64, 4 * CHUNK as u64);
        let mut all = Vec::new();
        for n in 0..10 {
            all.push(Run { length: short, hole: false });
            all.push(Run { length: if n == 4 { long } else { short }, hole: true });
        }
        let fewer = at_most(all.clone(), 6);
        assert_eq!(text(&fewer), "data 589824, hole 262144, data 655360");
        assert_eq!(
            fewer.iter().map(|run| run.length).sum::<u64>(),
            all.iter().map(|run| run.length).sum::<u64>()
        );
        assert_eq!(at_most(all.clone(), 20), all);
    }
}
