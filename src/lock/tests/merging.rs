//! What git makes of locks that two branches changed.

use super::*;

/// What `git merge-file` makes of two branches, and how many conflicts it leaves; `None`, and the reason counted,
/// without git.
fn merged(base: &Lock, ours: &Lock, theirs: &Lock) -> Option<(String, i32)> {
    let dir = tempfile::tempdir().unwrap();
    let paths = [("ours", ours), ("base", base), ("theirs", theirs)].map(|(name, lock)| {
        let path = dir.path().join(name);
        lock.save(&path).unwrap();
        path
    });
    let Ok(said) = std::process::Command::new("git").args(["merge-file", "-p"]).args(paths).output() else {
        crate::testing::skip("this host has no git");
        return None;
    };
    Some((String::from_utf8(said.stdout).unwrap(), said.status.code().unwrap()))
}

/// `lock` with other pins of an asset.
fn with(lock: &Lock, id: AssetId, pinned: impl Into<Pinned>) -> Lock {
    let mut lock = lock.clone();
    lock.set(id, pinned.into()).unwrap();
    lock
}

/// The download of an image.
fn image_at(name: &str) -> (AssetId, Pinned) {
    let id =
        AssetId::File { role: FileRole::Image, url: format!("https://example.org/{name}"), member: None };
    let sha256 = "0123456789abcdef".repeat(4);
    (id, Pinned::File(FilePin { size: 7, sha256, blake3: blake3::hash(name.as_bytes()).into() }))
}

#[test]
fn branches_that_add_assets_in_different_places_merge() {
    let base = sample();
    let (id, pinned) = image_at("a.tar");
    let ours = with(&base, AssetId::kernel("a-kernel"), pins(&["linux-image-a"]));
    let theirs = with(&base, id.clone(), pinned.clone());
    let Some((text, conflicts)) = merged(&base, &ours, &theirs) else { return };
    assert_eq!(conflicts, 0, "{text}");
    let both = with(&ours, id, pinned);
    assert_eq!(load(&text).unwrap(), both);
    assert_eq!(text, both.render());
}

#[test]
fn packages_of_one_set_that_move_on_two_branches_merge_if_another_is_between_them() {
    let names = ["bash", "dash", "libc6", "sed"];
    let moved = |these: &[&str]| {
        let mut pins = pins(&names);
        let these = pins.packages.iter_mut().filter(|pin| these.contains(&pin.package.as_str()));
        these.for_each(|pin| pin.version = "9".to_owned());
        with(&sample(), AssetId::image(["bash"]), pins)
    };
    let Some((text, conflicts)) = merged(&moved(&[]), &moved(&["bash"]), &moved(&["libc6", "sed"])) else {
        return;
    };
    assert_eq!(conflicts, 0, "{text}");
    assert_eq!(load(&text).unwrap(), moved(&["bash", "libc6", "sed"]));
    // Neighbours are one place.
    let (text, conflicts) = merged(&moved(&[]), &moved(&["bash"]), &moved(&["dash"])).unwrap();
    assert_eq!(conflicts, 1);
    assert_eq!(load(&text).unwrap_err().code(), "lock.conflict");
}

#[test]
fn branches_that_add_assets_in_one_place_conflict_and_either_side_is_a_lock() {
    let base = sample();
    let sides = ["a.tar", "b.tar"].map(|name| {
        let (id, pinned) = image_at(name);
        with(&base, id, pinned)
    });
    let Some((text, conflicts)) = merged(&base, &sides[0], &sides[1]) else { return };
    assert!(conflicts > 0, "{text}");
    let error = load(&text).unwrap_err();
    assert_eq!(error.code(), "lock.conflict");
    assert!(error.help_text().unwrap().starts_with("take one side of the conflict"));
    for (side, wanted) in sides.iter().enumerate() {
        let mut kept = String::new();
        let mut within = None;
        for line in text.lines() {
            match ["<<<<<<< ", "=======", ">>>>>>> "].iter().position(|mark| line.starts_with(mark)) {
                Some(2) => within = None,
                Some(part) => within = Some(part),
                None if within.is_none_or(|part| part == side) => kept.push_str(&format!("{line}\n")),
                None => {}
            }
        }
        assert_eq!(load(&kept).unwrap(), *wanted);
    }
}
