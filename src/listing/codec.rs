//! Listings as bytes, for the store: compact, and quick for tens of thousands of entries.
//!
//! ```text
//! "fglist1\n"  entries as u32, then for each:
//!   kind u8 ('d', 'f', 'l')  mode u16  path (length u32, bytes)
//!   'f': size u64, digest 32 bytes     'l': target (length u32, bytes)
//! ```
//! All numbers are little-endian.

use super::{Listed, ListedKind, Listing};
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"fglist1\n";

impl Listing {
    /// Whether a file that starts with these bytes holds a listing.
    pub(crate) fn starts(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// As bytes to publish; equal listings give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &str| {
            let length = u32::try_from(text.len()).expect("invariant: paths are shorter than 4 GiB");
            out.extend(length.to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut out = MAGIC.to_vec();
        out.reserve(self.entries.len() * 96);
        let count =
            u32::try_from(self.entries.len()).expect("invariant: a directory has fewer than 2^32 entries");
        out.extend(count.to_le_bytes());
        for entry in &self.entries {
            out.push(match entry.kind {
                ListedKind::Dir => b'd',
                ListedKind::File { .. } => b'f',
                ListedKind::Symlink { .. } => b'l',
            });
            out.extend(entry.mode.to_le_bytes());
            text(&mut out, &entry.path);
            match &entry.kind {
                ListedKind::Dir => {}
                ListedKind::File { size, digest } => {
                    out.extend(size.to_le_bytes());
                    out.extend(digest.as_bytes());
                }
                ListedKind::Symlink { target } => text(&mut out, target),
            }
        }
        out
    }

    /// Reads what [`Listing::encode`] wrote. `listing.malformed` for anything else, unsorted paths and paths
    /// that are absolute or hold `..` included.
    pub fn decode(bytes: &[u8]) -> Result<Listing> {
        Reader(bytes)
            .listing()
            .ok_or_else(|| Error::failed("listing.malformed", "a stored listing is damaged"))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn listing(mut self) -> Option<Listing> {
        if self.array::<8>()? != MAGIC {
            return None;
        }
        let count = self.u32()?;
        let mut entries: Vec<Listed> = Vec::new();
        for _ in 0..count {
            let [kind] = *self.array::<1>()?;
            let mode = u16::from_le_bytes(*self.array()?);
            let path = self.text()?.to_owned();
            let sorted = entries.last().is_none_or(|last| last.path < path);
            if !sorted || !path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
                return None;
            }
            let kind = match kind {
                b'd' => ListedKind::Dir,
                b'f' => ListedKind::File {
                    size: u64::from_le_bytes(*self.array()?),
                    digest: ObjectDigest::new(*self.array()?),
                },
                b'l' => ListedKind::Symlink { target: self.text()?.to_owned() },
                _ => return None,
            };
            entries.push(Listed { path, mode, kind });
        }
        self.0.is_empty().then_some(Listing { entries })
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(first)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.array()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn listing() -> impl Strategy<Value = Listing> {
        let kind = prop_oneof![
            Just(ListedKind::Dir),
            (any::<u64>(), any::<[u8; 32]>())
                .prop_map(|(size, d)| ListedKind::File { size, digest: ObjectDigest::new(d) }),
            ".{0,9}".prop_map(|target| ListedKind::Symlink { target }),
        ];
        prop::collection::btree_map("[a-zé\n]{1,5}(/[a-z]{1,5}){0,3}", (any::<u16>(), kind), 0..9).prop_map(
            |map| Listing {
                entries: map.into_iter().map(|(path, (mode, kind))| Listed { path, mode, kind }).collect(),
            },
        )
    }

    proptest! {
        #[test]
        fn listings_survive_their_bytes(listing in listing()) {
            let bytes = listing.encode();
            prop_assert_eq!(Listing::decode(&bytes).unwrap(), listing);
            for length in 0..bytes.len() {
                prop_assert!(Listing::decode(&bytes[..length]).is_err());
            }
        }

        #[test]
        fn random_bytes_are_no_listing(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Listing::decode(&bytes).is_err());
            bytes.splice(0..0, *MAGIC);
            let _ = Listing::decode(&bytes); // Must not panic or allocate by a lie about the count.
        }
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        for path in ["/a", "a/../b", "..", "a//b", "a/", "", "."] {
            let entry = Listed { path: path.to_owned(), mode: 0, kind: ListedKind::Dir };
            let bytes = Listing { entries: vec![entry] }.encode();
            assert_eq!(Listing::decode(&bytes).unwrap_err().code(), "listing.malformed", "{path}");
        }
    }
}
