use super::*;
use crate::store::TempDir;
use crate::store::testing::scratch;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn file_in(temp: &TempDir, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
    let path = temp.path().join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, bytes).unwrap();
    fs_err::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn tree_in(temp: &TempDir, content: &[u8]) -> PathBuf {
    file_in(temp, "tree/bin/tool", content, 0o700);
    file_in(temp, "tree/lib/data", content, 0o600);
    let root = temp.path().join("tree");
    std::os::unix::fs::symlink("../lib/data", root.join("bin/link")).unwrap();
    fs_err::create_dir(root.join("empty")).unwrap();
    root
}

/// Nothing broken, and nothing under objects/ that is not an object.
fn assert_consistent(store: &Store) -> usize {
    let objects = store.objects().unwrap();
    for digest in &objects {
        assert!(store.verify_object(digest).unwrap(), "{digest}");
    }
    let names = walkdir::WalkDir::new(store.dir("objects")).min_depth(2).max_depth(2).into_iter().count();
    assert_eq!(names, objects.len());
    objects.len()
}

#[test]
fn objects_are_sealed_and_found_by_their_digest() {
    let s = scratch();
    let temp = s.store.temp_dir().unwrap();
    let bytes = s.store.publish_bytes(b"bytes").unwrap();
    assert_eq!(bytes, blake3::hash(b"bytes").into());
    assert_eq!(mode(&s.store.object_path(&bytes)), 0o444);
    assert_eq!(s.store.read(&bytes).unwrap(), b"bytes");

    let source = file_in(&temp, "f", b"program", 0o600);
    let program = s.store.publish_file(&source, true).unwrap();
    assert!(!source.exists(), "a published file is consumed");
    assert_eq!(mode(&s.store.object_path(&program)), 0o555);

    let tree = s.store.publish_tree(&tree_in(&temp, b"x")).unwrap();
    let at = s.store.object_path(&tree);
    assert_eq!(mode(&at.join("bin/tool")), 0o555);
    assert_eq!(mode(&at.join("lib/data")), 0o444);
    assert_eq!(mode(&at.join("empty")), 0o755);
    assert_eq!(fs_err::read_link(at.join("bin/link")).unwrap(), Path::new("../lib/data"));
    assert_eq!(assert_consistent(&s.store), 3);
}

#[test]
fn what_is_not_there_is_missing() {
    let s = scratch();
    let digest = ObjectDigest::new([9; 32]);
    assert!(!s.store.has(&digest));
    assert_eq!(s.store.read(&digest).unwrap_err().code(), "store.missing");
    assert_eq!(s.store.verify_object(&digest).unwrap_err().code(), "store.missing");
}

#[test]
fn publishing_again_changes_nothing() {
    let s = scratch();
    let temp = s.store.temp_dir().unwrap();
    let publish = || {
        let tree = s.store.publish_tree(&tree_in(&temp, b"x")).unwrap();
        let file = s.store.publish_file(&file_in(&temp, "f", b"y", 0o644), false).unwrap();
        [tree, file, s.store.publish_bytes(b"y").unwrap()]
    };
    let first = publish();
    let inodes = first.map(|d| s.store.object_path(&d).metadata().unwrap().ino());
    assert_eq!(publish(), first);
    assert_eq!(first.map(|d| s.store.object_path(&d).metadata().unwrap().ino()), inodes);
    assert_eq!(fs_err::read_dir(temp.path()).unwrap().count(), 0, "sources are consumed");
}

#[test]
fn one_content_published_both_ways_is_executable() {
    let s = scratch();
    let temp = s.store.temp_dir().unwrap();
    for (executable, expected) in [(false, 0o444), (true, 0o555), (false, 0o555)] {
        let digest = s.store.publish_file(&file_in(&temp, "f", b"x", 0o600), executable).unwrap();
        assert_eq!(mode(&s.store.object_path(&digest)), expected);
    }
}

#[test]
fn links_and_directories_are_not_published_as_files() {
    let s = scratch();
    let temp = s.store.temp_dir().unwrap();
    let link = temp.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    assert!(s.store.publish_file(&link, false).is_err());
    assert!(s.store.publish_file(temp.path(), false).is_err());
    assert_eq!(assert_consistent(&s.store), 0);
}

#[test]
fn two_publishers_of_one_object() {
    let s = scratch();
    for round in 0..30_u8 {
        let barrier = std::sync::Barrier::new(4);
        let digests: Vec<_> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..4)
                .map(|n| {
                    let (store, barrier) = (&s.store, &barrier);
                    scope.spawn(move || {
                        let temp = store.temp_dir().unwrap();
                        let tree = tree_in(&temp, &[round]);
                        let file = file_in(&temp, "f", &[round, round], 0o600);
                        barrier.wait();
                        (store.publish_tree(&tree).unwrap(), store.publish_file(&file, n == 0).unwrap())
                    })
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        assert!(digests.iter().all(|d| *d == digests[0]));
        assert_eq!(mode(&s.store.object_path(&digests[0].1)), 0o555, "whoever comes first");
    }
    assert_eq!(assert_consistent(&s.store), 60);
}

#[test]
fn damage_is_found_quarantined_and_mended() {
    let s = scratch();
    let temp = s.store.temp_dir().unwrap();
    let file = s.store.publish_bytes(b"whole").unwrap();
    let tree = s.store.publish_tree(&tree_in(&temp, b"x")).unwrap();
    let damage = |path: &Path| {
        fs_err::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        fs_err::write(path, b"hole!").unwrap();
    };
    damage(&s.store.object_path(&file));
    damage(&s.store.object_path(&tree).join("lib/data"));
    assert_eq!(s.store.read(&file).unwrap_err().code(), "store.corrupt");
    for digest in [file, tree] {
        assert!(!s.store.verify_object(&digest).unwrap());
        let moved = s.store.quarantine(&digest).unwrap();
        assert!(moved.symlink_metadata().is_ok());
        assert!(!s.store.has(&digest));
    }
    assert_eq!(s.store.publish_bytes(b"whole").unwrap(), file);
    assert_eq!(s.store.publish_tree(&tree_in(&temp, b"x")).unwrap(), tree);
    assert_eq!(assert_consistent(&s.store), 2);
    // The same object broken twice: both are kept.
    assert_ne!(s.store.quarantine(&file).unwrap(), s.store.dir("quarantine").join(file.to_hex()));
}

#[test]
fn a_full_disk_publishes_nothing() {
    crate::testing::on_small_disk(1 << 20, |disk| {
        let store = Store::open(crate::home::Home::new(disk.join("home"))).unwrap();
        let kept = store.publish_bytes(b"kept").unwrap();
        let big = vec![1; 2 << 20];

        let error = store.publish_bytes(&big).unwrap_err();
        assert_eq!(error.code(), "store.disk-full", "{error:?}");
        assert!(error.help_text().is_some());
        let temp = store.temp_dir().unwrap();
        let error =
            std::fs::write(temp.path().join("f"), &big).map_err(|e| write_failed("writing", e)).unwrap_err();
        assert_eq!(error.code(), "store.disk-full");
        let key = crate::digest::StepKey::new([1; 32]);
        let inputs = vec![("x".into(), "y".repeat(1 << 20))];
        let action = crate::store::Action {
            kind: "k".into(),
            output: kept,
            inputs,
            millis: 0,
            subject: String::new(),
        };
        assert_eq!(store.record(&key, &action).unwrap_err().code(), "store.disk-full");
        assert_eq!(store.action(&key), None);

        drop(temp);
        assert_eq!(fs_err::read_dir(store.dir("tmp")).unwrap().count(), 0, "nothing unfinished stays");
        assert_eq!(store.objects().unwrap(), [kept]);
        assert_consistent(&store);
        // With room again the same works.
        store.publish_bytes(&big[..100 << 10]).unwrap();
    });
}

const CHILD_HOME: &str = "FIREGOPHER_TEST_PUBLISH_HOME";

/// Not a test of its own: what `killed_at_any_moment…` runs in a process of its own.
#[test]
fn child_that_publishes_until_killed() {
    let Some(home) = std::env::var_os(CHILD_HOME) else { return };
    let store = Store::open(crate::home::Home::new(home)).unwrap();
    for n in std::process::id().. {
        let bytes = n.to_le_bytes().repeat(20_000);
        store.publish_bytes(&bytes).unwrap();
        let temp = store.temp_dir().unwrap();
        store.publish_tree(&tree_in(&temp, &bytes)).unwrap();
        store.publish_file(&file_in(&temp, "f", &bytes[1..], 0o600), true).unwrap();
        let key = crate::digest::StepKey::new(*blake3::hash(&bytes).as_bytes());
        let _lock = store.lock_key(&key, &|_| ()).unwrap();
        let output = ObjectDigest::new(*blake3::hash(&bytes).as_bytes());
        let action = crate::store::Action {
            kind: "test".into(),
            output,
            inputs: vec![],
            millis: 1,
            subject: String::new(),
        };
        store.record(&key, &action).unwrap();
    }
}

#[test]
fn killed_at_any_moment_the_store_holds_whole_objects() {
    let s = scratch();
    let name = format!("{}::child_that_publishes_until_killed", module_path!().split_once("::").unwrap().1);
    let mut published = 0;
    let mut random = blake3::Hasher::new().finalize_xof();
    for _ in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(CHILD_HOME, s.store.home().root())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Until it has published something, however slow the disk is, then a random while.
        let started = Instant::now();
        while s.store.objects().unwrap().len() <= published && started.elapsed().as_secs() < 60 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut byte = [0; 2];
        random.fill(&mut byte);
        std::thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes(byte))));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it ran until killed");

        let next = Store::open(s.store.home().clone()).unwrap();
        assert_eq!(fs_err::read_dir(next.dir("tmp")).unwrap().count(), 0, "swept");
        published = assert_consistent(&next);
        for entry in walkdir::WalkDir::new(next.dir("actions")).min_depth(2) {
            let key = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert!(next.has(&next.action(&key).expect("a whole record").output));
        }
    }
    assert!(published >= 25, "the children published {published} objects");
}
