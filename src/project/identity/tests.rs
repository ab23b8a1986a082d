use super::super::claim::{Edited, Inode};
use super::*;

const USUAL: &str = "firegopher.kdl";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn inode(number: u64) -> Option<Inode> {
    Some(Inode { device: 1, number, born: Some(i128::from(number) * 7) })
}

/// A manifest in a directory, last edited when its inode's number says.
fn claim(dir: &str, number: u64, called: Option<&str>) -> Claim {
    Claim {
        directory: dir.into(),
        manifest: USUAL.into(),
        name: called.map(name),
        inode: inode(number),
        edited: Some(Edited { at: number.into(), size: 1 }),
    }
}

/// A home: keys with claims, whose directories still have which manifests, and which keys hold something.
#[derive(Default)]
struct World {
    claims: Vec<Claimed>,
    standing: Vec<(&'static str, Option<&'static str>)>,
    holding: Vec<&'static str>,
}

impl World {
    fn with(mut self, key: &str, claim: Claim) -> World {
        self.claims.push(Claimed { key: name(key), claim });
        self
    }
    fn stands(mut self, dir: &'static str, called: Option<&'static str>) -> World {
        self.standing.push((dir, called));
        self
    }
    fn holds(mut self, key: &'static str) -> World {
        self.holding.push(key);
        self
    }
    fn decide(&self, here: &Claim) -> Result<Identity> {
        let standing = |claim: &Claim| {
            let found = self.standing.iter().find(|(dir, _)| claim.directory == Path::new(dir));
            found.map_or(Standing::Gone, |(_, called)| Standing::There { name: Some(called.map(name)) })
        };
        let search = Search {
            claims: &self.claims,
            standing: &standing,
            holds: &|key| self.holding.contains(&key.as_str()),
            derived: &|attempt| name(&format!("dir-{attempt}")),
        };
        search.decide(here)
    }
    /// Key, label, whether it moved, what it was called.
    fn found(&self, here: &Claim) -> (String, String, bool, Option<String>) {
        let found = self.decide(here).unwrap();
        let text = |name: Name| name.to_string();
        (text(found.key), text(found.label), found.moved_from.is_some(), found.was_called.map(text))
    }
}

fn found(key: &str, label: &str, moved: bool, was: Option<&str>) -> (String, String, bool, Option<String>) {
    (key.to_owned(), label.to_owned(), moved, was.map(str::to_owned))
}

#[test]
fn a_project_that_is_new_gets_its_name_or_one_of_its_directory() {
    let world = World::default().with("other", claim("/other", 9, None)).stands("/other", None);
    assert_eq!(world.found(&claim("/here", 1, Some("shop"))), found("shop", "shop", false, None));
    assert_eq!(world.found(&claim("/here", 1, None)), found("dir-0", "dir-0", false, None));
}

#[test]
fn a_project_is_found_where_it_was_whatever_became_of_its_inode() {
    for now in [1, 2] {
        let world = World::default().with("shop", claim("/here", 1, Some("shop")));
        assert_eq!(world.found(&claim("/here", now, Some("shop"))), found("shop", "shop", false, None));
        let world = World::default().with("dir-0", claim("/here", 1, None));
        assert_eq!(world.found(&claim("/here", now, None)), found("dir-0", "dir-0", false, None));
    }
}

#[test]
fn a_project_that_was_renamed_keeps_its_state() {
    let world =
        World::default().with("shop", claim("/here", 1, Some("shop"))).stands("/here", Some("market"));
    let renamed = found("shop", "market", false, Some("shop"));
    assert_eq!(world.found(&claim("/here", 1, Some("market"))), renamed);
    // Its first name is free for others, its key is not.
    let other = world.found(&claim("/new", 2, Some("shop")));
    assert_eq!(other, found("dir-0", "shop", false, None));
    // A name that is taken away, and one that is given.
    assert_eq!(world.found(&claim("/here", 1, None)), found("shop", "shop", false, None));
    let unnamed = World::default().with("dir-0", claim("/here", 1, None));
    assert_eq!(unnamed.found(&claim("/here", 1, Some("shop"))), found("dir-0", "shop", false, Some("dir-0")));
}

#[test]
fn a_project_that_was_moved_keeps_its_state_and_a_copy_gets_its_own() {
    let world = World::default().with("dir-0", claim("/old", 1, None));
    assert_eq!(world.found(&claim("/new", 1, None)), found("dir-0", "dir-0", true, None));
    // cp -r: another inode, and another time of the manifest.
    let copied = World::default().with("web", claim("/old", 1, None)).stands("/old", None);
    assert_eq!(copied.found(&claim("/copy", 2, None)), found("dir-0", "dir-0", false, None));
    // cp -a keeps the time, but the first is still there.
    let exact = Claim { edited: claim("/old", 1, None).edited, ..claim("/copy", 2, None) };
    assert_eq!(copied.found(&exact), found("dir-0", "dir-0", false, None));
    // mv to another file system keeps the time, and the first is gone.
    let moved = World::default().with("web", claim("/old", 1, None));
    assert_eq!(moved.found(&exact), found("web", "web", true, None));
    // Two that could have been it: neither is.
    let twice = moved.with("api", claim("/older", 1, None));
    assert_eq!(twice.found(&exact), found("dir-0", "dir-0", false, None));
}

#[test]
fn moved_and_renamed_at_once() {
    let world = World::default().with("shop", claim("/old", 1, Some("shop")));
    let both = found("shop", "market", true, Some("shop"));
    assert_eq!(world.found(&claim("/new", 1, Some("market"))), both);
}

#[test]
fn directories_that_were_swapped_are_told_by_their_inodes() {
    let world = World::default()
        .with("blue", claim("/a", 1, None))
        .with("green", claim("/b", 2, None))
        .stands("/a", None)
        .stands("/b", None);
    assert_eq!(world.found(&claim("/a", 2, None)), found("green", "green", true, None));
    assert_eq!(world.found(&claim("/b", 1, None)), found("blue", "blue", true, None));
}

#[test]
fn a_name_belongs_to_one_directory_while_that_is_there() {
    let world = World::default().with("shop", claim("/first", 1, Some("shop")));
    let here = claim("/clone", 2, Some("shop"));
    // A clone elsewhere after the first was removed.
    assert_eq!(world.found(&here), found("shop", "shop", true, None));
    let world = world.stands("/first", Some("shop"));
    assert_eq!(world.decide(&here).unwrap_err().code(), "project.claimed");
    // The first gave its name up, although nothing has been done with it since.
    let world = World { standing: vec![("/first", Some("market"))], ..world };
    assert_eq!(world.found(&here), found("dir-0", "shop", false, None));
}

#[test]
fn two_states_with_something_in_them_are_not_mixed() {
    let world = || {
        World::default()
            .with("dir-0", claim("/here", 1, None))
            .with("shop", claim("/gone", 2, Some("shop")))
            .stands("/here", Some("shop"))
    };
    let here = claim("/here", 1, Some("shop"));
    assert_eq!(world().found(&here), found("dir-0", "shop", false, Some("dir-0")));
    assert_eq!(world().holds("shop").found(&here), found("shop", "shop", true, None));
    assert_eq!(world().holds("dir-0").found(&here), found("dir-0", "shop", false, Some("dir-0")));
    let refused = world().holds("shop").holds("dir-0").decide(&here).unwrap_err();
    assert_eq!(refused.code(), "project.ambiguous");
    assert!(refused.help_text().unwrap().contains("down --project shop --volumes"));
}

#[test]
fn another_manifest_in_the_same_directory_is_another_project() {
    let world = World::default().with("dir-0", claim("/here", 1, None)).stands("/here", None);
    let staging = Claim { manifest: "staging.kdl".into(), ..claim("/here", 1, None) };
    assert_eq!(world.found(&staging), found("dir-1", "dir-1", false, None));
}

#[test]
fn state_of_older_versions_is_found_by_path_and_name() {
    let old = Claim { inode: None, edited: None, ..claim("/here", 1, None) };
    let world = World::default().with("shop", old.clone()).stands("/here", Some("shop"));
    assert_eq!(world.found(&claim("/here", 1, Some("shop"))), found("shop", "shop", false, None));
    let world = World::default().with("dir-0", old.clone());
    assert_eq!(world.found(&claim("/here", 1, None)), found("dir-0", "dir-0", false, None));
    // Older versions left one behind with each new name.
    let world = World::default().with("shop", old.clone()).with("market", old);
    assert_eq!(world.found(&claim("/here", 1, Some("market"))), found("market", "market", false, None));
}

#[test]
fn what_changed_is_said_in_one_line() {
    let at = |moved: Option<&str>, was: Option<&str>| Identity {
        key: name("k"),
        label: name("shop"),
        moved_from: moved.map(PathBuf::from),
        was_called: was.map(name),
    };
    assert_eq!(at(None, None).news(), None);
    for (moved, was) in [(Some("/old"), None), (None, Some("web")), (Some("/old"), Some("web"))] {
        let news = at(moved, was).news().unwrap();
        assert!(news.starts_with("project shop was ") && !news.contains('\n'), "{news}");
        assert!([moved, was].into_iter().flatten().all(|word| news.contains(word)), "{news}");
    }
}

#[test]
fn what_names_a_project_leads_to_it_and_to_no_other_that_is_called_as_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path());
    for (key, claim) in [
        // It was called shop, and another one is now.
        ("shop", claim("/market", 1, Some("market"))),
        ("new-1", claim("/shop", 2, Some("shop"))),
        // Two that are called the same.
        ("web", claim("/a", 3, None)),
        ("new-2", claim("/b", 4, Some("web"))),
        ("last", claim("/last", 5, None)),
    ] {
        fs_err::create_dir_all(home.project(&name(key))).unwrap();
        claim.save(&home.project(&name(key)), false).unwrap();
    }
    // State whose claim was lost, of a key that another one is called by.
    fs_err::create_dir_all(home.project(&name("lost"))).unwrap();
    let naming = |key| Naming::of(&home, &name(key)).to_string();
    for (key, shown) in [
        ("shop", "market"),
        ("new-1", "shop"),
        ("web", "key:web"),
        ("new-2", "key:new-2"),
        ("last", "last"),
        ("lost", "lost"),
    ] {
        assert_eq!(naming(key), shown);
        assert_eq!(named(&home, &shown.parse().unwrap()).unwrap().key, name(key), "{shown}");
    }
    claim("/c", 6, Some("lost")).save(&home.project(&name("last")), false).unwrap();
    assert_eq!(naming("lost"), "key:lost");
    assert_eq!(named(&home, &"key:lost".parse().unwrap()).unwrap().key, name("lost"));
    let unknown = named(&home, &"key:market".parse().unwrap()).unwrap_err();
    assert_eq!(unknown.code(), "project.unknown");
    assert!(unknown.help_text().unwrap().contains("market"), "{unknown:?}");
    assert!("key:".parse::<Naming>().is_err() && "other:web".parse::<Naming>().is_err());
}

#[test]
fn the_state_in_question_is_named_so_that_no_other_is_deleted() {
    let world = World::default()
        .with("dir-0", claim("/here", 1, None))
        .with("web", claim("/gone", 2, Some("shop")))
        // It is called as the key of the one that is gone.
        .with("dir-7", claim("/live", 3, Some("web")))
        .stands("/here", Some("shop"))
        .stands("/live", Some("web"))
        .holds("web")
        .holds("dir-0");
    let refused = world.decide(&claim("/here", 1, Some("shop"))).unwrap_err();
    assert!(refused.help_text().unwrap().contains("down --project shop --volumes"), "{refused:?}");
}

#[test]
fn a_snapshot_of_a_file_system_is_a_copy_while_the_original_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("shop");
    fs_err::create_dir(&original).unwrap();
    let Some(Inode { device, number, born: Some(born) }) = Inode::of(&original) else {
        eprintln!("skipped: this file system knows no births");
        return;
    };
    let there = Claim { inode: Inode::of(&original), ..claim(original.to_str().unwrap(), 1, None) };
    // As under /snapshots: all is the same but the device.
    let copied = Inode { device: device + 1, number, born: Some(born) };
    let snapshot = Claim { inode: Some(copied), ..claim("/snapshots/shop", 1, None) };
    let path: &'static str = original.to_str().unwrap().to_owned().leak();
    let world = World::default().with("web", there.clone()).stands(path, None);
    let key = |claim: &Claim| world.found(claim).0;
    assert_eq!(key(&snapshot), "dir-0");
    assert_eq!(key(&there), "web");
    // By a bind mount, and by a boot that gave the device another number.
    let bound = Claim { directory: "/bound".into(), ..there.clone() };
    assert_eq!(key(&bound), "web");
    let rebooted = Claim { inode: Some(copied), ..there.clone() };
    let world = World::default().with("web", rebooted);
    assert_eq!(world.found(&there).0, "web");
    // The original is gone: it was moved there for all that can be seen.
    fs_err::remove_dir(&original).unwrap();
    assert!(there.is_on(&copied));
}
