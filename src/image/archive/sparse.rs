//! Members of tars that are stored without their holes, in each way that GNU tar has had for it: the type `S`, and PAX
//! records in the versions 0.0, 0.1 and 1.0. A map says where the stored bytes go; it is believed only if it is in
//! order, within the declared size and exactly about the bytes that there are.

use super::header::{self, Header, NoNumber};
use super::tar::Window;
use crate::image::content::Extent;
use std::io;

const BLOCK: u64 = 512;
/// No number of a map has more digits (2^63).
const LONGEST_NUMBER: usize = 19;

/// Why a map is not believed.
#[derive(Debug)]
pub(super) enum Wrong {
    /// In words, to stand after the member's name.
    Map(&'static str),
    /// There are more runs than this archive may still have entries.
    TooMany,
    Io(io::Error),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Wrong::Io(error)
    }
}

/// A member's map, not checked yet: offset and length of each run of stored bytes.
#[derive(Debug, Default)]
pub(super) struct Map {
    pub runs: Vec<(u64, u64)>,
    /// The file's size with its holes.
    pub size: u64,
    /// How many bytes the map itself takes of where contents begin.
    pub taken: u64,
}

/// What PAX records say of the next member's holes.
#[derive(Debug, Default, Clone)]
pub(super) struct Said {
    /// Its true name; the header's is one for readers that know nothing of this.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    version: (Option<u64>, Option<u64>),
    /// Of version 0.0, until its length comes.
    offset: Option<u64>,
    runs: Vec<(u64, u64)>,
}

impl Said {
    /// Takes the record `GNU.sparse.KEY`; `None` if it makes no sense.
    pub fn record(&mut self, key: &str, value: &[u8]) -> Option<()> {
        match key {
            "name" => self.name = Some(value.to_vec()),
            "size" | "realsize" => self.size = Some(number(value)?),
            "numblocks" => self.count = Some(number(value)?),
            "major" => self.version.0 = Some(number(value)?),
            "minor" => self.version.1 = Some(number(value)?),
            "offset" if self.offset.is_none() => self.offset = Some(number(value)?),
            "numbytes" => {
                let offset = self.offset.take()?;
                self.runs.push((offset, number(value)?));
            }
            "map" if self.runs.is_empty() => {
                let mut numbers = value.split(|byte| *byte == b',').map(number);
                while let Some(offset) = numbers.next() {
                    self.runs.push((offset?, numbers.next()??));
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// The map of a member whose contents, of which there are `stored` bytes, begin at `at`.
    pub fn map(&self, window: &mut Window<'_>, at: u64, stored: u64, most: usize) -> Result<Map, Wrong> {
        let size = self.size.ok_or(Wrong::Map("does not say how large it is"))?;
        match self.version {
            (None | Some(0), None | Some(0 | 1)) => {
                if self.offset.is_some() || self.count.is_some_and(|count| count != self.runs.len() as u64) {
                    return Err(Wrong::Map("has another number of runs than it declares"));
                }
                if self.runs.len() > most {
                    return Err(Wrong::TooMany);
                }
                Ok(Map { runs: self.runs.clone(), size, taken: 0 })
            }
            (Some(1), Some(0)) if self.runs.is_empty() => {
                let mut text = Text { window, at, end: at.saturating_add(stored), start: at };
                let count = text.number()?;
                if count > most as u64 {
                    return Err(Wrong::TooMany);
                }
                let mut runs = Vec::new();
                for _ in 0..count {
                    runs.push((text.number()?, text.number()?));
                }
                // The map is filled up to whole blocks.
                let taken = (text.at - at).next_multiple_of(BLOCK);
                if taken > stored {
                    return Err(Wrong::Map("ends within its map"));
                }
                Ok(Map { runs, size, taken })
            }
            _ => Err(Wrong::Map("has a map of an unknown version")),
        }
    }
}

/// Where a header of type `S` has its runs, whether more of them follow, and the file's size; and where a block of
/// more runs has them. A run is two numbers of 12 bytes.
const RUNS: std::ops::Range<usize> = 386..482;
const MORE: usize = 482;
const REAL_SIZE: std::ops::Range<usize> = 483..495;
const BLOCK_RUNS: std::ops::Range<usize> = 0..504;
const BLOCK_MORE: usize = 504;

/// The map of a member of type `S`; `taken` are the blocks of it that follow the header.
pub(super) fn old(
    header: &Header,
    window: &mut Window<'_>,
    at: u64,
    end: u64,
    most: usize,
) -> Result<Map, Wrong> {
    let number = |field: &[u8]| {
        let number = header::number(field).and_then(|number| u64::try_from(number).map_err(|_| NoNumber));
        number.map_err(|_| Wrong::Map("has a map with a number that is none"))
    };
    if !header.is_gnu() {
        return Err(Wrong::Map("has no header of GNU tar"));
    }
    let mut map = Map { size: number(&header.0[REAL_SIZE])?, ..Map::default() };
    let take = |map: &mut Map, runs: &[u8]| {
        // Either number may be left out with the whole run, and only so.
        for run in runs.chunks_exact(24).filter(|run| run[0] != 0 && run[12] != 0) {
            if map.runs.len() >= most {
                return Err(Wrong::TooMany);
            }
            map.runs.push((number(&run[..12])?, number(&run[12..])?));
        }
        Ok(())
    };
    take(&mut map, &header.0[RUNS])?;
    let mut more = header.0[MORE] != 0;
    while more {
        let from = at + map.taken;
        let bytes = window.get(from, BLOCK as usize)?;
        if bytes.len() as u64 != BLOCK || from + BLOCK > end {
            return Err(Wrong::Map("ends within its map"));
        }
        let before = map.runs.len();
        take(&mut map, &bytes[BLOCK_RUNS])?;
        more = bytes[BLOCK_MORE] != 0;
        map.taken += BLOCK;
        if more && map.runs.len() == before {
            return Err(Wrong::Map("has a map with an empty block"));
        }
    }
    Ok(map)
}

/// Demands that a map is one that could have been made of a file; `stored` are the bytes that the archive has of it,
/// from `offset` on.
pub(super) fn check(map: &Map, offset: u64, stored: u64) -> Result<Vec<Extent>, Wrong> {
    // As files are in ext4, and so that sums of two of them cannot overflow.
    if map.size > i64::MAX as u64 {
        return Err(Wrong::Map("is larger than a file can be"));
    }
    let mut extents: Vec<Extent> = Vec::with_capacity(map.runs.len());
    let (mut reached, mut used) = (0, 0_u64);
    for (at, length) in map.runs.iter().copied() {
        let end = at.checked_add(length).filter(|end| *end <= map.size);
        let end = end.ok_or(Wrong::Map("has a map that leads beyond its end"))?;
        if at < reached {
            return Err(Wrong::Map("has a map whose runs overlap or are out of order"));
        }
        reached = end;
        if length == 0 {
            // GNU tar marks the end of a file that ends in a hole so.
            continue;
        }
        // Readers disagree on what follows a run that ends within a block, if another run follows.
        if used % BLOCK != 0 {
            return Err(Wrong::Map("has a map with a run that ends within a block"));
        }
        extents.push(Extent { at, length, offset: offset + used });
        used += length;
        if used > stored {
            return Err(Wrong::Map("has a map of more bytes than are there"));
        }
    }
    if used != stored {
        return Err(Wrong::Map("has a map of fewer bytes than are there"));
    }
    Ok(extents)
}

/// Numbers in decimal, each on a line of its own.
struct Text<'a, 'w> {
    window: &'a mut Window<'w>,
    start: u64,
    at: u64,
    end: u64,
}

impl Text<'_, '_> {
    fn number(&mut self) -> Result<u64, Wrong> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(LONGEST_NUMBER + 1);
        let bytes = self.window.get(self.at, left)?;
        let digits = bytes.iter().position(|byte| *byte == b'\n');
        let value = digits.and_then(|digits| number(&bytes[..digits]));
        let (Some(digits), Some(value)) = (digits, value) else {
            return Err(Wrong::Map(match self.at == self.start {
                true => "does not begin with a map",
                false => "has a map with a number that is none",
            }));
        };
        self.at += digits as u64 + 1;
        Ok(value)
    }
}

/// Digits and nothing else.
fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > LONGEST_NUMBER || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
