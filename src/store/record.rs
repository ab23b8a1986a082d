//! What is remembered about steps: the action record of each key, and the last keys of each VM.
//! Records are written whole or not at all. One that cannot be read is absent: its step runs again and
//! replaces it.

use super::{Store, create_private_dir, write_failed};
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Error, Result};
use crate::name::Name;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The kind of what was found out about objects, where another kind is a step's.
pub const VERDICT: &str = "program check";

/// What running a step gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// The step's kind, such as `image`.
    pub kind: String,
    /// What it was about, for people; empty where its inputs say it.
    #[serde(default)]
    pub subject: String,
    /// What it made.
    pub output: ObjectDigest,
    /// All that went into its key, as (name, value) for people.
    pub inputs: Vec<(String, String)>,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// The steps of one VM when they last ran, by name: what a miss is explained against.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// By step name.
    pub steps: BTreeMap<String, LastStep>,
    /// The same of the last boot: what a running VM is compared with, whatever was built since.
    #[serde(default)]
    pub booted: BTreeMap<String, LastStep>,
}

/// One step when it last ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStep {
    /// Its key then.
    pub key: StepKey,
    /// Its inputs then, as (name, value).
    pub inputs: Vec<(String, String)>,
    /// What it made, if it is a pure step that ended well.
    pub output: Option<ObjectDigest>,
    /// The encoded [`crate::listing::Listing`]s of its workload directories.
    #[serde(default)]
    pub listings: Vec<ObjectDigest>,
}

impl Store {
    /// What is recorded for a key. The output may have been collected since: ask [`Store::has`].
    pub fn action(&self, key: &StepKey) -> Option<Action> {
        read_json(&self.action_path(key))
    }

    /// Records what running a step gave.
    pub fn record(&self, key: &StepKey, action: &Action) -> Result<()> {
        self.write_json(&self.action_path(key), action)
    }

    /// What is recorded of a VM's last run.
    pub fn last(&self, project: &Name, vm: &Name) -> Option<Last> {
        read_json(&self.last_path(project, vm))
    }

    /// Records a VM's steps.
    pub fn record_last(&self, project: &Name, vm: &Name, last: &Last) -> Result<()> {
        let path = self.last_path(project, vm);
        let json = serde_json::to_vec(last).map_err(|e| Error::bug("a record is no JSON").because(e))?;
        // One command at a time works on a project. Not by way of the store's own directory for unfinished files:
        // the state of VMs may lie on another file system.
        create_private_dir(path.parent().expect("invariant: records have a directory"))?;
        crate::replace::replace(&path, &json)
            .map_err(|e| write_failed(format_args!("writing {}", path.display()), e))
    }

    fn last_path(&self, project: &Name, vm: &Name) -> PathBuf {
        self.home().vm(project, vm).join("last.json")
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|e| Error::bug("a record is no JSON").because(e))?;
        self.replace(path, &json)
    }

    /// Writes a small file whole. Not synced: after a power cut it may be old or empty, and both are handled.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let dir = path.parent().expect("invariant: records have a directory");
        if !dir.is_dir() {
            create_private_dir(dir)?;
        }
        let temp = self.temp_dir()?;
        let new = temp.path().join("record");
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(|e| write_failed(format_args!("writing {}", path.display()), e))
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::scratch;

    fn action() -> Action {
        Action {
            kind: "image".into(),
            subject: "dash".into(),
            output: ObjectDigest::new([7; 32]),
            inputs: vec![("package".into(), "dash 0.5".into())],
            millis: 12,
        }
    }

    #[test]
    fn actions_and_last_steps_are_remembered() {
        let s = scratch();
        let key = StepKey::new([1; 32]);
        assert_eq!(s.store.action(&key), None);
        s.store.record(&key, &action()).unwrap();
        assert_eq!(s.store.action(&key), Some(action()));

        let name = |n| Name::new(n).unwrap();
        let step = LastStep { key, inputs: vec![], output: None, listings: vec![ObjectDigest::new([2; 32])] };
        let last = Last { steps: BTreeMap::from([("unpack".to_owned(), step)]), ..Last::default() };
        assert_eq!(s.store.last(&name("p"), &name("web")), None);
        s.store.record_last(&name("p"), &name("web"), &last).unwrap();
        assert_eq!(s.store.last(&name("p"), &name("web")), Some(last));
        assert_eq!(s.store.last(&name("p"), &name("db")), None);
    }

    #[test]
    fn a_corrupt_record_is_absent_and_gets_replaced() {
        let s = scratch();
        let key = StepKey::new([1; 32]);
        s.store.record(&key, &action()).unwrap();
        for garbage in [&b""[..], b"{", b"{\"kind\":3}", b"\0\0\0\0"] {
            fs_err::write(s.store.action_path(&key), garbage).unwrap();
            assert_eq!(s.store.action(&key), None);
        }
        s.store.record(&key, &action()).unwrap();
        assert_eq!(s.store.action(&key), Some(action()));
    }
}
