//! Removes what was chosen. Records go before objects, and trees leave `objects/` in one rename: whatever moment
//! this is killed at, no record promises what is not there whole.

use super::Victim;
use crate::error::{Error, Result};
use crate::store::Exclusive;
use crate::store::temp::remove_tree;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

impl Exclusive<'_> {
    /// Removes the victims and says how many bytes went. Goes on after a failure and returns the first.
    pub fn remove(&self, victims: &[Victim]) -> Result<u64> {
        let mut failed = None;
        let mut note = |path: &Path, error: io::Error| {
            failed.get_or_insert_with(|| {
                Error::failed("store.remove", format!("cannot remove {}", path.display())).because(error)
            });
        };
        let is_record = |victim: &&Victim| victim.kind == "record";
        let alone = victims.iter().filter(is_record).map(|v| &v.path);
        for path in victims.iter().flat_map(|v| &v.records).chain(alone) {
            if let Err(e) = unlink(path) {
                note(path, e);
            }
        }
        // Before what they promise: after a power cut a record may come back otherwise.
        let objects = victims.iter().any(|v| v.object.is_some());
        if objects && let Err(e) = File::open(self.dir("tmp")).and_then(|d| Ok(nix::unistd::syncfs(d)?)) {
            note(&self.dir("tmp"), e);
        }
        let mut freed = 0;
        let mut removed = BTreeSet::new();
        for victim in victims {
            let result = match is_record(&victim) {
                true => Ok(()),
                false => self.remove_one(&victim.path),
            };
            match result {
                Ok(()) if removed.insert(&victim.path) => freed += victim.bytes,
                Ok(()) => {}
                Err(e) => note(&victim.path, e),
            }
        }
        failed.map_or(Ok(freed), Err)
    }

    fn remove_one(&self, path: &Path) -> io::Result<()> {
        match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return unlink(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        // No directory is made for it: a full disk may have no room for one. What a kill leaves in tmp/ is swept.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let away = self.dir("tmp").join(format!("{}gc-{name}", super::super::temp::owner()));
        std::fs::rename(path, &away)?;
        remove_tree(&away)
    }
}

fn unlink(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
