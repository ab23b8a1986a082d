//! Remembers when something was last used, for gc: as the modification time of a step's record, one system call a
//! use. Planning looks and is no use.

use super::Store;
use crate::digest::{ObjectDigest, StepKey};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::path::Path;

impl Store {
    /// The output of a key, if it is recorded and still there. Counts as a use of it.
    pub fn reuse(&self, key: &StepKey) -> Option<ObjectDigest> {
        let output = self.action(key)?.output;
        self.has(&output).then(|| {
            touch(&self.action_path(key));
            output
        })
    }
}

/// Says that something is used now. What cannot be touched is collected a little early, that is all.
pub(super) fn touch(path: &Path) {
    let now = TimeSpec::UTIME_NOW;
    let _ = utimensat(AT_FDCWD, path, &now, &now, UtimensatFlags::NoFollowSymlink);
}

#[cfg(test)]
pub(super) mod testing {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    /// Makes something look as if it was last used so long ago.
    pub fn age(path: &Path, ago: Duration) {
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(SystemTime::now() - ago).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::testing::age;
    use crate::digest::StepKey;
    use crate::store::Action;
    use crate::store::testing::scratch;
    use std::time::Duration;

    #[test]
    fn a_reuse_is_remembered_and_a_look_is_not() {
        let s = scratch();
        let key = StepKey::new([1; 32]);
        let output = s.store.publish_bytes(b"x").unwrap();
        let action =
            Action { kind: "init".into(), output, inputs: vec![], millis: 1, subject: String::new() };
        s.store.record(&key, &action).unwrap();
        let path = s.store.action_path(&key);
        let day = Duration::from_secs(24 * 3600);
        let old = || path.metadata().unwrap().modified().unwrap().elapsed().unwrap_or_default() >= day;
        age(&path, day);
        assert_eq!(s.store.action(&key), Some(action));
        assert!(old());
        assert_eq!(s.store.reuse(&key), Some(output));
        assert!(!old());
    }

    #[test]
    fn nothing_is_reused_whose_output_is_gone() {
        let s = scratch();
        let key = StepKey::new([1; 32]);
        assert_eq!(s.store.reuse(&key), None);
        let output = s.store.publish_bytes(b"x").unwrap();
        s.store
            .record(
                &key,
                &Action { kind: "init".into(), output, inputs: vec![], millis: 1, subject: String::new() },
            )
            .unwrap();
        std::fs::remove_file(s.store.object_path(&output)).unwrap();
        assert_eq!(s.store.reuse(&key), None);
    }

    #[test]
    fn publishing_what_is_there_is_a_use_of_it() {
        let s = scratch();
        let object = s.store.publish_bytes(b"x").unwrap();
        let path = s.store.object_path(&object);
        age(&path, Duration::from_secs(24 * 3600));
        s.store.publish_bytes(b"x").unwrap();
        assert!(path.metadata().unwrap().modified().unwrap().elapsed().unwrap_or_default().as_secs() < 3600);
    }
}
