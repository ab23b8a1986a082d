//! Decides what leaves the store, and removes it so that a kill at any moment leaves a consistent one.
//!
//! What running VMs, the newest outputs of known projects and their lock files need stays. Of the rest goes what was
//! last used longest ago: by age first, then until the store is as small as it should be.

mod needed;
mod remove;

#[cfg(test)]
mod tests;

pub use needed::{Needed, User};

use super::describe;
use super::inventory::{Area, Inventory, Object};
use super::partial::STALE;
use crate::digest::ObjectDigest;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How much may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Allocated bytes of the whole store.
    pub size: u64,
    /// Since the last use.
    pub age: Duration,
}

impl Default for Caps {
    /// 10 GiB and 30 days.
    fn default() -> Self {
        Caps { size: 10 << 30, age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The store is too big, and this was used longest ago.
    Size,
    /// It was not used for too long.
    Age,
    /// It is of no use to anybody.
    Useless,
}

/// Something that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// What it is: the step's kind of an object, `record`, `stat cache` and so on.
    pub kind: String,
    /// What it is about, for people; may be empty.
    pub subject: String,
    /// The object, if it is one.
    pub object: Option<ObjectDigest>,
    /// Where it is.
    pub path: PathBuf,
    /// Records that go with it, before it.
    pub records: Vec<PathBuf>,
    /// Allocated, records included.
    pub bytes: u64,
    /// Its last use.
    pub used: SystemTime,
    /// Which cap it exceeds.
    pub why: Why,
    /// More about that, for people; empty if there is nothing to say.
    pub because: &'static str,
}

/// What is to go, those that are of no use first, then by age, then by size.
pub fn choose(
    inventory: &Inventory,
    object_path: &dyn Fn(&ObjectDigest) -> PathBuf,
    needed: &Needed,
    caps: Caps,
    now: SystemTime,
) -> Vec<Victim> {
    let mut chooser = Chooser { inventory, object_path, victims: Vec::new(), gone: BTreeSet::new() };
    chooser.useless();
    // A clock that was set back makes nothing old.
    let old = |used: SystemTime, cap: Duration| now.duration_since(used).is_ok_and(|age| age > cap);
    let objects = inventory.objects.iter().filter(|(digest, _)| !needed.objects.contains_key(digest));
    let mut candidates: Vec<Candidate> =
        objects.map(|(digest, o)| (o.used, Thing::Object(*digest))).collect();
    for (index, other) in inventory.others.iter().enumerate() {
        if other.area != Area::KeyLock {
            candidates.push((other.used, Thing::Other(index)));
        }
    }
    candidates.sort();
    let (aged, mut rest): (Vec<Candidate>, Vec<Candidate>) =
        candidates.into_iter().partition(|(used, thing)| {
            let partial = matches!(thing, Thing::Other(n) if inventory.others[*n].area == Area::Partial);
            old(*used, if partial { caps.age.min(STALE) } else { caps.age })
        });
    aged.into_iter().for_each(|(_, thing)| chooser.add(thing, Why::Age));
    // An object that stays keeps the record that gave it last: without one nobody would find it.
    let latest = |object: &Object| object.records.iter().copied().max_by_key(|r| inventory.records[*r].used);
    let kept: BTreeSet<usize> = inventory.objects.values().filter_map(latest).collect();
    for (index, record) in inventory.records.iter().enumerate() {
        if old(record.used, caps.age) && !needed.keys.contains(&record.key) && !kept.contains(&index) {
            chooser.record(index, Why::Age, "");
        }
    }
    let mut left = inventory.bytes().saturating_sub(chooser.victims.iter().map(|v| v.bytes).sum());
    // Stat caches are small, and losing one costs reading a whole workload.
    rest.retain(
        |(_, thing)| !matches!(thing, Thing::Other(n) if inventory.others[*n].area == Area::StatCache),
    );
    for (_, thing) in rest {
        if left <= caps.size {
            break;
        }
        chooser.add(thing, Why::Size);
        left = left.saturating_sub(chooser.victims.last().map_or(0, |v| v.bytes));
    }
    chooser.headless();
    chooser.victims
}

/// Something that may go, and its last use.
type Candidate = (SystemTime, Thing);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Object(ObjectDigest),
    Other(usize),
}

struct Chooser<'a> {
    inventory: &'a Inventory,
    object_path: &'a dyn Fn(&ObjectDigest) -> PathBuf,
    victims: Vec<Victim>,
    /// Records that are chosen already, alone or with their object.
    gone: BTreeSet<usize>,
}

impl Chooser<'_> {
    fn useless(&mut self) {
        for (index, record) in self.inventory.records.iter().enumerate() {
            match &record.action {
                None => self.record(index, Why::Useless, "it cannot be read"),
                Some(action) if !self.inventory.objects.contains_key(&action.output) => {
                    self.record(index, Why::Useless, "its output is gone");
                }
                Some(_) => {}
            }
        }
        for (index, other) in self.inventory.others.iter().enumerate() {
            if other.area == Area::KeyLock {
                self.add(Thing::Other(index), Why::Useless);
            }
        }
    }

    fn add(&mut self, thing: Thing, why: Why) {
        let victim = match thing {
            Thing::Object(digest) => {
                let object = &self.inventory.objects[&digest];
                let records: Vec<usize> =
                    object.records.iter().copied().filter(|r| self.gone.insert(*r)).collect();
                let records = records.into_iter().map(|r| &self.inventory.records[r]);
                Victim {
                    kind: object.kind.clone(),
                    subject: object.subject.clone(),
                    object: Some(digest),
                    path: (self.object_path)(&digest),
                    bytes: object.bytes + records.clone().map(|r| r.bytes).sum::<u64>(),
                    records: records.map(|r| r.path.clone()).collect(),
                    used: object.used,
                    why,
                    because: "",
                }
            }
            Thing::Other(index) => {
                let other = &self.inventory.others[index];
                Victim {
                    kind: other.area.label().to_owned(),
                    subject: String::new(),
                    object: None,
                    path: other.path.clone(),
                    records: Vec::new(),
                    bytes: other.bytes,
                    used: other.used,
                    why,
                    because: match other.area {
                        Area::KeyLock => "nobody holds it",
                        Area::Partial if why == Why::Age => "interrupted, and not resumed",
                        _ => "",
                    },
                }
            }
        };
        self.victims.push(victim);
    }

    fn record(&mut self, index: usize, why: Why, because: &'static str) {
        if !self.gone.insert(index) {
            return;
        }
        let record = &self.inventory.records[index];
        let subject = record.action.as_ref().map(|action| {
            let about = describe::subject(action);
            [action.kind.as_str(), &about].join(" ").trim_end().to_owned()
        });
        self.victims.push(Victim {
            kind: "record".to_owned(),
            subject: subject.unwrap_or_default(),
            object: None,
            path: record.path.clone(),
            records: Vec::new(),
            bytes: record.bytes,
            used: record.used,
            why,
            because,
        });
    }

    /// What names a victim must be fetched anew: its record says that all of it is there.
    fn headless(&mut self) {
        let going: BTreeSet<ObjectDigest> = self.victims.iter().filter_map(|v| v.object).collect();
        for object in self.inventory.objects.values() {
            if object.parts.iter().any(|part| going.contains(part)) {
                for record in &object.records {
                    self.record(*record, Why::Useless, "part of its output goes");
                }
            }
        }
    }
}
