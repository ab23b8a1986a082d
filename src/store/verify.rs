//! Rehashes objects, and takes those that are broken out of the store together with what is recorded of them, so that
//! the next run makes them anew.

use super::inventory::Inventory;
use super::{Exclusive, Store, describe};
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// An object whose bytes are not those that its name promises, or cannot be read.
#[derive(Debug)]
pub struct Broken {
    /// Its name.
    pub object: ObjectDigest,
    /// Why it cannot be read, if that is what is wrong.
    pub error: Option<Error>,
}

/// A broken object that is out of the store.
#[derive(Debug, PartialEq, Eq)]
pub struct TakenOut {
    /// What it was.
    pub object: ObjectDigest,
    /// Where it is now.
    pub quarantine: PathBuf,
    /// Kind and subject of the steps that give it, and run again.
    pub steps: Vec<(String, String)>,
}

/// Rehashes objects on several threads; `advance` hears the size of each that is done. What is removed meanwhile is
/// neither sound nor broken. Sorted by name.
pub fn check(store: &Store, objects: &[(ObjectDigest, u64)], advance: &mut dyn FnMut(u64)) -> Vec<Broken> {
    // The large ones first, so that no thread ends up alone with one.
    let mut queue = objects.to_vec();
    queue.sort_by_key(|(digest, bytes)| (std::cmp::Reverse(*bytes), *digest));
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).min(queue.len());
    let mut broken = Vec::new();
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (tell, next, queue) = (tell.clone(), &next, &queue);
            scope.spawn(move || {
                while let Some((object, bytes)) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The receiver lives until all have ended.
                    let _ = tell.send((*bytes, examine(store, *object)));
                }
            });
        }
        drop(tell);
        for (bytes, found) in told {
            advance(bytes);
            broken.extend(found);
        }
    });
    broken.sort_by_key(|b| b.object);
    broken
}

fn examine(store: &Store, object: ObjectDigest) -> Option<Broken> {
    match store.verify_object(&object) {
        Ok(true) => None,
        Ok(false) => Some(Broken { object, error: None }),
        Err(_) if !store.has(&object) => None,
        // What the disk does not give back is lost as well.
        Err(error) => Some(Broken { object, error: Some(error) }),
    }
}

impl Exclusive<'_> {
    /// Moves broken objects to quarantine and forgets the steps that gave them. Looks at each again: somebody may
    /// have mended it before this lock was held.
    pub fn take_out(&self, broken: &[Broken], inventory: &Inventory) -> Result<Vec<TakenOut>> {
        let still: Vec<ObjectDigest> =
            broken.iter().filter_map(|b| examine(self, b.object)).map(|b| b.object).collect();
        let gone: BTreeSet<ObjectDigest> = still.iter().copied().collect();
        // What names a broken object is fetched anew; these records first, while all they promise is still there.
        let headless = inventory
            .objects
            .iter()
            .filter(|(digest, object)| {
                !gone.contains(digest) && object.parts.iter().any(|part| gone.contains(part))
            })
            .flat_map(|(_, object)| &object.records);
        for record in headless {
            self.forget(&inventory.records[*record].path)?;
        }
        let mut out = Vec::new();
        for object in still {
            let quarantine = self.quarantine(&object)?;
            let mut steps = Vec::new();
            let records = inventory.objects.get(&object).map(|o| o.records.as_slice()).unwrap_or_default();
            for record in records.iter().map(|r| &inventory.records[*r]) {
                self.forget(&record.path)?;
                steps.extend(record.action.as_ref().map(|a| (a.kind.clone(), describe::subject(a))));
            }
            steps.sort();
            steps.dedup();
            out.push(TakenOut { object, quarantine, steps });
        }
        Ok(out)
    }

    fn forget(&self, record: &std::path::Path) -> Result<()> {
        match std::fs::remove_file(record) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(super::write_failed(format_args!("removing {}", record.display()), e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::StepKey;
    use crate::store::Action;
    use crate::store::testing::{Scratch, scratch};
    use std::os::unix::fs::PermissionsExt;

    fn made(s: &Scratch, key: u8, kind: &str, bytes: &[u8]) -> ObjectDigest {
        let output = s.store.publish_bytes(bytes).unwrap();
        let inputs = vec![("fetch image python3".to_owned(), "x".to_owned())];
        let action = Action { kind: kind.to_owned(), output, inputs, millis: 1, subject: String::new() };
        s.store.record(&StepKey::new([key; 32]), &action).unwrap();
        output
    }

    /// Changes a byte and nothing else, as a failing disk does.
    fn flip(path: &std::path::Path) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[0] ^= 1;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o444)).unwrap();
    }

    fn verify(s: &mut Scratch) -> Vec<TakenOut> {
        let inventory = s.store.inventory().unwrap();
        let all: Vec<_> = inventory.objects.iter().map(|(d, o)| (*d, o.bytes)).collect();
        let mut seen = 0;
        let broken = check(&s.store, &all, &mut |bytes| seen += bytes);
        assert_eq!(seen, all.iter().map(|(_, bytes)| bytes).sum::<u64>());
        s.store.lock_exclusive(&|_| ()).unwrap().take_out(&broken, &inventory).unwrap()
    }

    #[test]
    fn a_broken_object_goes_to_quarantine_and_its_step_runs_again() {
        let mut s = scratch();
        let (good, bad) = (made(&s, 1, "image", b"good"), made(&s, 2, "image", b"bad"));
        flip(&s.store.object_path(&bad));
        let out = verify(&mut s);
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].object, &out[0].steps), (bad, &vec![("image".to_owned(), "python3".to_owned())]));
        assert_eq!(std::fs::read(&out[0].quarantine).unwrap(), b"cad");
        assert!(s.store.has(&good) && !s.store.has(&bad));
        assert!(s.store.action(&StepKey::new([1; 32])).is_some());
        assert_eq!(s.store.action(&StepKey::new([2; 32])), None);
        assert!(verify(&mut s).is_empty());
    }

    #[test]
    fn what_names_a_broken_object_is_fetched_anew() {
        let mut s = scratch();
        let deb = made(&s, 1, "deb", b"deb");
        let parts = made(&s, 2, "fetch image", format!("[\"{deb}\"]").as_bytes());
        flip(&s.store.object_path(&deb));
        assert_eq!(verify(&mut s).len(), 1);
        assert_eq!(s.store.action(&StepKey::new([2; 32])), None);
        assert!(s.store.has(&parts));
    }

    #[test]
    fn a_tree_is_broken_by_any_of_its_files() {
        let mut s = scratch();
        let temp = s.store.temp_dir().unwrap();
        let dir = temp.path().join("out");
        std::fs::create_dir_all(dir.join("a")).unwrap();
        std::fs::write(dir.join("a/b"), "x").unwrap();
        let tree = s.store.publish_tree(&dir).unwrap();
        drop(temp);
        assert!(verify(&mut s).is_empty());
        flip(&s.store.object_path(&tree).join("a/b"));
        assert_eq!(verify(&mut s)[0].object, tree);
    }

    #[test]
    fn what_was_mended_meanwhile_stays() {
        let mut s = scratch();
        let object = made(&s, 1, "image", b"x");
        let inventory = s.store.inventory().unwrap();
        let broken = [Broken { object, error: None }];
        assert_eq!(s.store.lock_exclusive(&|_| ()).unwrap().take_out(&broken, &inventory).unwrap(), []);
        assert!(s.store.has(&object));
    }
}
