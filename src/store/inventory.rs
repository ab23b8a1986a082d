//! What lies in the store: every object with its size, last use, origin and parts, every record, and the caches beside
//! them. Sizes are allocated blocks, so that holes cost nothing.

use super::lock::{Mode, try_acquire};
use super::{Action, Store, describe};
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An object that may name others by digest, as what a fetch step gives, is small.
const PARTS_MAX: u64 = 1 << 20;

/// All that the store holds, but for unfinished work.
#[derive(Debug, Default)]
pub struct Inventory {
    /// By digest.
    pub objects: BTreeMap<ObjectDigest, Object>,
    /// In no order; objects refer to them by index.
    pub records: Vec<Record>,
    /// What lies beside them.
    pub others: Vec<Other>,
}

/// One object.
#[derive(Debug)]
pub struct Object {
    /// Allocated.
    pub bytes: u64,
    /// The latest use of any step that gave it, else when it was published.
    pub used: SystemTime,
    /// The kind of step that made it; `listing` for the listing of a workload, `orphan` if no record names it.
    pub kind: String,
    /// What that step was about, for people; may be empty.
    pub subject: String,
    /// The records whose output it is.
    pub records: Vec<usize>,
    /// Objects that it names: the packages of an image.
    pub parts: Vec<ObjectDigest>,
}

/// The record of a step.
#[derive(Debug)]
pub struct Record {
    /// The step's key.
    pub key: StepKey,
    /// Where it is.
    pub path: PathBuf,
    /// Allocated.
    pub bytes: u64,
    /// When its output was last reused.
    pub used: SystemTime,
    /// What it says; `None` if that cannot be read.
    pub action: Option<Action>,
}

/// Where in the store something lies that is neither object nor record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// A stat cache of a workload.
    StatCache,
    /// apt's package lists and caches, as a whole.
    AptLists,
    /// A download that was interrupted and can be resumed.
    Partial,
    /// An object that was found broken.
    Quarantine,
    /// The lock of a step's key that nobody holds.
    KeyLock,
}

impl Area {
    /// The name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Area::StatCache => "stat cache",
            Area::AptLists => "apt lists",
            Area::Partial => "partial download",
            Area::Quarantine => "quarantine",
            Area::KeyLock => "lock file",
        }
    }
}

/// Something beside objects and records.
#[derive(Debug)]
pub struct Other {
    /// Where.
    pub area: Area,
    /// Its path.
    pub path: PathBuf,
    /// Allocated.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

impl Inventory {
    /// Allocated bytes of everything.
    pub fn bytes(&self) -> u64 {
        let objects = self.objects.values().map(|o| o.bytes);
        let records = self.records.iter().map(|r| r.bytes);
        objects.chain(records).chain(self.others.iter().map(|o| o.bytes)).sum()
    }
}

impl Store {
    /// Looks at everything the store holds. What others remove meanwhile is left out.
    pub fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        for (path, name, meta) in shards(&self.dir("actions"))? {
            let Ok(key) = name.parse() else { continue };
            let action = self.action(&key);
            inventory.records.push(Record {
                key,
                path,
                bytes: allocated_of(&meta),
                used: used(&meta),
                action,
            });
        }
        let mut by_output: BTreeMap<ObjectDigest, Vec<usize>> = BTreeMap::new();
        for (index, record) in inventory.records.iter().enumerate() {
            if let Some(action) = &record.action {
                by_output.entry(action.output).or_default().push(index);
            }
        }
        for (path, name, meta) in shards(&self.dir("objects"))? {
            let Ok(digest) = name.parse::<ObjectDigest>() else { continue };
            let records = by_output.remove(&digest).unwrap_or_default();
            let latest = records.iter().map(|&r| &inventory.records[r]).max_by_key(|r| r.used);
            let made_by = latest.and_then(|r| r.action.as_ref());
            let kind = match made_by {
                Some(action) => action.kind.clone(),
                None if describe::is_listing(&path) => "listing".to_owned(),
                None => "orphan".to_owned(),
            };
            let parts = match made_by.is_some_and(|a| a.kind.starts_with("fetch")) {
                true if meta.is_file() && meta.len() <= PARTS_MAX => parts(&path),
                _ => Vec::new(),
            };
            let object = Object {
                bytes: allocated(&path)?,
                used: latest.map_or_else(|| used(&meta), |r| r.used.max(used(&meta))),
                kind,
                subject: made_by.map(describe::subject).unwrap_or_default(),
                records,
                parts,
            };
            inventory.objects.insert(digest, object);
        }
        // A digest that is no object is that of a file on the host.
        let known: BTreeSet<ObjectDigest> = inventory.objects.keys().copied().collect();
        inventory.objects.values_mut().for_each(|o| o.parts.retain(|part| known.contains(part)));
        inventory.others = self.others()?;
        Ok(inventory)
    }

    fn others(&self) -> Result<Vec<Other>> {
        let mut all = Vec::new();
        let areas = [("stat", Area::StatCache), ("partial", Area::Partial), ("quarantine", Area::Quarantine)];
        for (name, area) in areas {
            for (path, meta) in entries(&self.dir(name))? {
                let used = match area {
                    // What arrives is appended, of which the directory knows nothing.
                    Area::Partial => used(&path.join("bytes").metadata().unwrap_or(meta)),
                    _ => used(&meta),
                };
                all.push(Other { area, bytes: allocated(&path)?, used, path });
            }
        }
        for (path, meta) in entries(&self.dir("locks"))? {
            let free = File::open(&path).and_then(|file| try_acquire(&file, Mode::Exclusive));
            if free.unwrap_or(false) {
                all.push(Other { area: Area::KeyLock, bytes: allocated_of(&meta), used: used(&meta), path });
            }
        }
        let apt = self.home().apt();
        let within = entries(&apt)?;
        if let Some(used) = within.iter().map(|(_, meta)| used(meta)).max() {
            all.push(Other { area: Area::AptLists, bytes: allocated(&apt)?, used, path: apt });
        }
        Ok(all)
    }
}

/// The digests in a small file.
fn parts(path: &Path) -> Vec<ObjectDigest> {
    let text = std::fs::read(path).unwrap_or_default();
    describe::digests(&String::from_utf8_lossy(&text)).filter_map(|hex| hex.parse().ok()).collect()
}

/// What lies two levels down, with its name.
fn shards(dir: &Path) -> Result<Vec<(PathBuf, String, Metadata)>> {
    let mut all = Vec::new();
    for (shard, meta) in entries(dir)? {
        if meta.is_dir() {
            for (path, meta) in entries(&shard)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                all.push((path, name, meta));
            }
        }
    }
    Ok(all)
}

/// What a directory holds, links not followed; nothing if it is absent.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, Metadata)>> {
    let list = || {
        let mut all = Vec::new();
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(meta) => all.push((entry.path(), meta)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    };
    list().map_err(|e| unreadable(dir, e))
}

fn unreadable(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed("store.io", format!("cannot look at {}", path.display())).because(error)
}

/// Bytes that a file, or a directory and all below it, occupy on the disk; 0 for what is gone.
pub fn allocated(path: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in walkdir::WalkDir::new(path) {
        match entry.and_then(|entry| entry.metadata()) {
            Ok(meta) => sum += allocated_of(&meta),
            Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => {}
            Err(e) => return Err(unreadable(path, e)),
        }
    }
    Ok(sum)
}

fn allocated_of(meta: &Metadata) -> u64 {
    // stat(2) counts in units of 512 bytes, whatever the file system's blocks are.
    meta.blocks() * 512
}

fn used(meta: &Metadata) -> SystemTime {
    meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::scratch;

    fn made(store: &Store, key: u8, kind: &str, bytes: &[u8], input: (&str, &str)) -> ObjectDigest {
        let output = store.publish_bytes(bytes).unwrap();
        let inputs = vec![(input.0.to_owned(), input.1.to_owned())];
        let action = Action { kind: kind.to_owned(), output, inputs, millis: 1, subject: String::new() };
        store.record(&StepKey::new([key; 32]), &action).unwrap();
        output
    }

    #[test]
    fn objects_are_known_by_who_made_them_and_what_they_name() {
        let s = scratch();
        let deb = made(&s.store, 1, "deb", b"deb", ("package", "dash 0.5 amd64"));
        let nobody = ObjectDigest::new([9; 32]);
        let parts = format!("{{\"debs\":[\"{deb}\",\"{nobody}\"]}}");
        let image = made(&s.store, 2, "fetch image", parts.as_bytes(), ("dash", "0.5 x"));
        let listing = s.store.publish_bytes(&crate::listing::Listing::default().encode()).unwrap();
        let orphan = s.store.publish_bytes(b"who?").unwrap();
        let inventory = s.store.inventory().unwrap();
        let of = |d: &ObjectDigest| {
            let object = &inventory.objects[d];
            (object.kind.as_str(), object.subject.as_str(), object.parts.as_slice())
        };
        assert_eq!(of(&deb), ("deb", "dash 0.5 amd64", &[][..]));
        assert_eq!(of(&image), ("fetch image", "dash", &[deb][..]));
        assert_eq!(of(&listing).0, "listing");
        assert_eq!(of(&orphan).0, "orphan");
        assert_eq!(inventory.records.len(), 2);
    }

    #[test]
    fn holes_take_no_room() {
        let s = scratch();
        let temp = s.store.temp_dir().unwrap();
        let sparse = temp.path().join("sparse");
        let file = File::create(&sparse).unwrap();
        file.set_len(64 << 20).unwrap();
        let object = s.store.publish_file(&sparse, false).unwrap();
        let bytes = s.store.inventory().unwrap().objects[&object].bytes;
        assert!(bytes < 1 << 20, "{bytes}");
    }

    #[test]
    fn a_lock_that_is_held_is_no_leftover() {
        let s = scratch();
        let _held = s.store.lock_key(&StepKey::new([1; 32]), &|_| ()).unwrap();
        std::fs::write(s.store.dir("locks").join("dead"), "").unwrap();
        let others = s.store.inventory().unwrap().others;
        let locks: Vec<_> = others.iter().filter(|o| o.area == Area::KeyLock).map(|o| &o.path).collect();
        assert_eq!(locks, [&s.store.dir("locks").join("dead")]);
    }
}
