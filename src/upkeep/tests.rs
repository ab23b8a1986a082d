use super::*;
use crate::digest::{ObjectDigest, StepKey};
use crate::store::gc::{Needed, User};
use crate::store::testing::{Scratch, scratch};
use crate::store::{Last, LastStep};
use crate::ui::Ui;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn object(n: u8) -> ObjectDigest {
    ObjectDigest::new([n; 32])
}

/// A project's directory, claimed, with a VM that was built.
fn project(s: &Scratch, project: &str, vms: &[(&str, u8)]) -> PathBuf {
    let dir = s.dir.path().join(project);
    fs::create_dir_all(&dir).unwrap();
    let manifest: String = vms.iter().map(|(vm, _)| format!("vm \"{vm}\" {{ run \"true\" }}\n")).collect();
    fs::write(dir.join("firegopher.kdl"), format!("project \"{project}\"\n{manifest}")).unwrap();
    for (vm, n) in vms {
        let step = |n| LastStep {
            key: StepKey::new([n; 32]),
            inputs: vec![],
            output: Some(object(n)),
            listings: vec![object(n + 100)],
        };
        let last = Last { steps: BTreeMap::from([("unpack".to_owned(), step(*n))]), ..Last::default() };
        s.store.record_last(&name(project), &name(vm), &last).unwrap();
    }
    let claim = serde_json::json!({"directory": dir.canonicalize().unwrap()});
    fs::write(s.store.home().project(&name(project)).join("project.json"), claim.to_string()).unwrap();
    dir
}

fn needed(s: &Scratch) -> Needed {
    roots(s.store.home(), &s.store).unwrap()
}

fn objects(s: &Scratch) -> Vec<ObjectDigest> {
    needed(s).objects.into_keys().collect()
}

#[test]
fn the_newest_outputs_of_all_known_projects_are_needed() {
    let s = scratch();
    project(&s, "shop", &[("web", 1), ("db", 2)]);
    project(&s, "blog", &[("web", 3)]);
    assert_eq!(objects(&s), [1, 2, 3, 101, 102, 103].map(object));
    let users = &needed(&s).objects[&object(3)];
    assert_eq!(users.first(), Some(&User::Built { project: name("blog"), vm: name("web") }));
    assert!(needed(&s).keys.contains(&StepKey::new([3; 32])));
}

#[test]
fn vms_that_left_the_manifest_need_nothing() {
    let s = scratch();
    let dir = project(&s, "shop", &[("web", 1), ("db", 2)]);
    fs::write(dir.join("firegopher.kdl"), "project \"shop\"\nvm \"db\" { run \"true\" }\n").unwrap();
    assert_eq!(objects(&s), [2, 102].map(object));
    // While it cannot be read, each may be one of them.
    fs::write(dir.join("firegopher.kdl"), "vm {").unwrap();
    assert_eq!(objects(&s), [1, 2, 101, 102].map(object));
}

#[test]
fn a_project_that_is_gone_needs_nothing_and_one_with_another_name_needs_what_it_did() {
    let s = scratch();
    let dir = project(&s, "shop", &[("web", 1)]);
    fs::write(dir.join("firegopher.kdl"), "project \"market\"\nvm \"web\" { run \"true\" }\n").unwrap();
    assert_eq!(objects(&s), [1, 101].map(object));
    // Older versions began anew under the new name: what they left is of no use.
    let claim = s.store.home().project(&name("shop")).join("project.json");
    let newer = s.store.home().project(&name("market"));
    fs::create_dir_all(&newer).unwrap();
    fs::copy(claim, newer.join("project.json")).unwrap();
    assert!(objects(&s).is_empty());
    fs::remove_dir_all(&dir).unwrap();
    assert!(objects(&s).is_empty());
}

#[test]
fn what_a_dead_supervisor_left_is_found_and_removed() {
    let s = scratch();
    project(&s, "shop", &[("web", 1), ("db", 2)]);
    let (home, project, vm) = (s.store.home(), name("shop"), name("web"));
    assert_eq!(lost(home).unwrap(), []);
    let dir = home.vm(&project, &vm);
    let scratch_disk = dir.join("scratch.ext4");
    fs::write(&scratch_disk, "x").unwrap();
    let effect = serde_json::json!({"effect": "file", "path": scratch_disk});
    let journal = serde_json::json!({"version": 1, "effects": [effect]});
    fs::write(dir.join("journal.json"), journal.to_string()).unwrap();
    let expected = [Lost { project, vm }];
    assert_eq!(lost(home).unwrap(), expected);
    assert_eq!(reclaim(home, &Ui::stderr().quiet()).unwrap(), expected);
    assert!(!scratch_disk.exists());
    assert_eq!(lost(home).unwrap(), []);
}

#[test]
fn a_state_that_cannot_be_read_stops_gc() {
    let s = scratch();
    project(&s, "shop", &[("web", 1)]);
    fs::write(s.store.home().vm(&name("shop"), &name("web")).join("state.json"), "{").unwrap();
    assert_eq!(roots(s.store.home(), &s.store).unwrap_err().code(), "supervise.state-broken");
}
