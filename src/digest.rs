//! Digests and step keys, and the length-prefixed hashing behind both.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::str::FromStr;

/// Lower-case hexadecimal digits, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("invariant: a String takes all writes");
        text
    })
}

/// The hashes by which container images name bytes.
#[derive(Debug, Clone)]
pub enum Sha {
    /// What nearly all are named by.
    Sha256(Sha256),
    /// The other one that the specification registers.
    Sha512(Sha512),
}

impl Sha {
    /// A new hash of the kind that `digest` is of.
    pub fn like(digest: &str) -> Sha {
        match digest.starts_with("sha512:") {
            true => Sha::Sha512(Sha512::new()),
            false => Sha::Sha256(Sha256::new()),
        }
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Sha::Sha256(hasher) => hasher.update(bytes),
            Sha::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes, with its kind: `sha256:…`.
    pub fn finish(self) -> String {
        match self {
            Sha::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Sha::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        }
    }
}

/// The BLAKE3 digest of sealed bytes: a file's contents, or a tree's canonical listing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectDigest([u8; 32]);

/// Names one pure computation: its kind, parameters, inputs and tools.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepKey([u8; 32]);

macro_rules! hex_newtype {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Wraps a digest computed elsewhere.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The raw 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// 64 lower-case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                blake3::Hash::from_bytes(self.0).to_hex().to_string()
            }
            /// `b3:` and the first eight digits, for people.
            pub fn short(&self) -> String {
                format!("b3:{}", &self.to_hex()[..8])
            }
        }
        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let hash = blake3::Hash::from_hex(s).map_err(|e| format!("not a {}: {e}", $what))?;
                Ok(hash.into())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.to_hex())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_newtype!(ObjectDigest, "BLAKE3 digest");
hex_newtype!(StepKey, "step key");

/// BLAKE3 over fields that are each prefixed with their length, so that no two field lists collide.
pub struct FieldHasher(blake3::Hasher);

impl FieldHasher {
    /// Starts a hash in its own domain, such as `firegopher step v1`.
    pub fn new(domain: &str) -> Self {
        let mut this = FieldHasher(blake3::Hasher::new());
        this.field(domain.as_bytes());
        this
    }

    /// Adds one field: its length as u64 little-endian, then its bytes.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The digest of all fields so far.
    pub fn finish(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_boundaries_change_the_digest() {
        let ab_c = FieldHasher::new("t").field("ab").field("c").finish();
        let a_bc = FieldHasher::new("t").field("a").field("bc").finish();
        assert_ne!(ab_c, a_bc);
    }

    #[test]
    fn digests_round_trip_through_text() {
        let digest = ObjectDigest::from(blake3::hash(b"x"));
        assert_eq!(digest.to_hex().parse::<ObjectDigest>(), Ok(digest));
        assert!("zz".parse::<ObjectDigest>().is_err());
    }
}
