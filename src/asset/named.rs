//! Looks up what the lock names twice, as publishers do by SHA-256 and as the store does by BLAKE3. A record leads from
//! the first name to the second; where there is none, the bytes are read once and it is made.

use crate::digest::{ObjectDigest, Sha, StepKey};
use crate::error::{Context, Result};
use crate::lock;
use crate::store::{Action, Store};
use fs_err as fs;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;

/// Some bytes by both of their names.
pub(super) struct Named<'a> {
    /// Of the record that leads from the SHA-256 to the object.
    pub key: StepKey,
    /// Lower-case hexadecimal digits: 64 of a SHA-256, or 128 of a SHA-512.
    pub sha: &'a str,
    pub blake3: ObjectDigest,
    /// In bytes, if the lock says it.
    pub size: Option<u64>,
}

impl Named<'_> {
    /// Whether the store has the bytes. `what` they are is for the error; `record` gives the kind and the inputs of a
    /// record that has to be made.
    ///
    /// # Errors
    /// `lock.contradiction` if the names are those of different bytes, as far as the store can tell; failed if an
    /// object cannot be read.
    pub fn is_stored(
        &self,
        store: &Store,
        what: &dyn Display,
        record: impl FnOnce() -> (&'static str, Vec<(String, String)>),
    ) -> Result<bool> {
        let contradiction = || Err(lock::contradiction(what, "a sha256 and a blake3 of different bytes"));
        let path = store.object_path(&self.blake3);
        let meta = fs::metadata(&path).ok();
        let there = meta.is_some_and(|m| m.is_file() && self.size.is_none_or(|size| size == m.len()));
        match store.action(&self.key).map(|action| action.output) {
            Some(output) if output == self.blake3 => return Ok(there),
            Some(output) if store.has(&output) => return contradiction(),
            _ => {}
        }
        if !there {
            return Ok(false);
        }
        let kind = if self.sha.len() == 128 { "sha512:" } else { "sha256:" };
        if digest_of_file(&path, kind)?.strip_prefix(kind) != Some(self.sha) {
            return contradiction();
        }
        let (kind, inputs) = record();
        store.record(
            &self.key,
            &Action { kind: kind.to_owned(), output: self.blake3, inputs, millis: 0, subject: String::new() },
        )?;
        Ok(true)
    }
}

/// A file's SHA-256, as 64 lower-case hexadecimal digits.
pub(super) fn sha256(path: &Path) -> Result<String> {
    digest_of_file(path, "sha256:").map(|digest| digest.trim_start_matches("sha256:").to_owned())
}

/// A file's digest, of the same kind as another.
pub(super) fn digest_of_file(path: &Path, like: &str) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = fs::File::open(path).or_failed("asset.read", failed)?;
    let mut sha = Sha::like(like);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).or_failed("asset.read", failed)? {
            0 => break,
            n => sha.update(&buffer[..n]),
        }
    }
    Ok(sha.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{FieldHasher, hex};
    use crate::store::testing::{Scratch, scratch};
    use sha2::{Digest as _, Sha256};

    #[test]
    fn bytes_may_be_named_by_their_sha512() {
        let s = scratch();
        s.store.publish_bytes(b"a").unwrap();
        let sha512 = hex(&sha2::Sha512::digest(b"a"));
        assert!(ask(&s, &sha512, b"a", Some(1)).0.unwrap());
        contradicts(ask(&s, &sha512.replace(['0', '1'], "2"), b"a", Some(1)));
    }

    fn sha256_of(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn key(sha256: &str) -> StepKey {
        FieldHasher::new("test").field(sha256).finish().into()
    }

    /// Asks for bytes of these names, and says whether a record had to be made.
    fn ask(s: &Scratch, sha256: &str, blake3: &[u8], size: Option<u64>) -> (Result<bool>, bool) {
        let named = Named { key: key(sha256), sha: sha256, blake3: blake3::hash(blake3).into(), size };
        let mut made = false;
        let stored = named.is_stored(&s.store, &"the thing", || {
            made = true;
            ("thing", vec![("sha256".to_owned(), sha256.to_owned())])
        });
        (stored, made)
    }

    fn contradicts(asked: (Result<bool>, bool)) {
        let error = asked.0.unwrap_err();
        assert_eq!(error.code(), "lock.contradiction");
        assert_eq!(
            error.to_string(),
            "firegopher.lock gives the thing a sha256 and a blake3 of different bytes"
        );
        assert!(error.help_text().unwrap().contains("firegopher update"));
    }

    #[test]
    fn bytes_without_a_record_are_read_once() {
        let s = scratch();
        assert!(!ask(&s, &sha256_of(b"a"), b"a", Some(1)).0.unwrap());
        let object = s.store.publish_bytes(b"a").unwrap();
        for made in [true, false] {
            let asked = ask(&s, &sha256_of(b"a"), b"a", Some(1));
            assert_eq!((asked.0.unwrap(), asked.1), (true, made));
        }
        assert_eq!(s.store.action(&key(&sha256_of(b"a"))).unwrap().output, object);
        assert!(ask(&s, &sha256_of(b"a"), b"a", None).0.unwrap());
        assert!(!ask(&s, &sha256_of(b"a"), b"a", Some(2)).0.unwrap(), "of another size it is something else");
    }

    #[test]
    fn names_of_different_bytes_contradict_each_other_whichever_of_them_is_there() {
        let s = scratch();
        assert!(!ask(&s, &sha256_of(b"a"), b"b", None).0.unwrap(), "nothing is there to tell");
        // The object by its BLAKE3, without a record of the SHA-256.
        s.store.publish_bytes(b"b").unwrap();
        contradicts(ask(&s, &sha256_of(b"a"), b"b", None));
        assert_eq!(s.store.action(&key(&sha256_of(b"a"))), None);
        // The SHA-256 with its object, and no other.
        let s = scratch();
        s.store.publish_bytes(b"a").unwrap();
        assert!(ask(&s, &sha256_of(b"a"), b"a", None).0.unwrap());
        contradicts(ask(&s, &sha256_of(b"a"), b"b", None));
    }

    #[test]
    fn a_tree_is_no_file() {
        let s = scratch();
        let temp = s.store.temp_dir().unwrap();
        let dir = temp.path().join("tree");
        fs::create_dir(&dir).unwrap();
        let blake3 = s.store.publish_tree(&dir).unwrap();
        let named = Named { key: key("x"), sha: "x", blake3, size: None };
        assert!(!named.is_stored(&s.store, &"it", || unreachable!()).unwrap());
    }
}
