mod pages;
mod reasons;
mod settings;
mod world;

use super::*;
use crate::digest::ObjectDigest;
use crate::lock::{AssetId, FilePin, Lock, OciConfig, OciLayer, OciPin, Origin, Pin, Pinned, Pins};
use crate::manifest::model::{ImageSource, User};
use crate::manifest::parse;
use crate::store;
use world::{WEB, World, digest};

#[test]
fn a_first_plan_runs_and_creates_everything_and_guesses_nothing() {
    let world = World::new(WEB);
    let plan = world.plan();
    assert!(plan.has_changes());
    insta::assert_snapshot!(render::text(&plan));
    // What follows from an unknown output has no key.
    assert!(plan.steps.iter().filter(|s| s.action == Action::Unknown).all(|s| s.key.is_none()));
}

#[test]
fn after_up_nothing_changes() {
    let mut world = World::new(WEB);
    world.up_plainly();
    let plan = world.plan();
    assert!(!plan.has_changes(), "{}", render::text(&plan));
    insta::assert_snapshot!(render::text(&plan));
}

#[test]
fn an_edited_file_is_named_with_the_steps_that_follow() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("server.py", "edited"), ("static/a.css", "two"), ("new.py", "three")]);
    insta::assert_snapshot!(render::text(&world.plan()));
}

#[test]
fn an_output_that_stays_the_same_stops_the_rebuild() {
    let mut world = World::new(WEB);
    // The kernel's output does not depend on its pin: the same bytes under a new version.
    let output = |kind: StepKind, key: StepKey| match kind {
        StepKind::FetchKernel => digest("kernel"),
        _ => digest(&key.to_hex()),
    };
    world.up(output);
    let boot_key = world.observed[0].boot_key;
    world.pin(AssetId::kernel("linux-image-cloud-amd64"), "2.0");
    let before = world.plan();
    assert_eq!(before.steps[0].action, Action::Run);
    let boot = before.step(StepKind::Boot, &world.observed[0].name).unwrap();
    assert_eq!(
        (boot.action, boot.unless.as_slice()),
        (Action::Replace, &[0][..]),
        "unless it is the same kernel"
    );
    world.up(output);
    assert_eq!(world.observed[0].boot_key, boot_key);
}

#[test]
fn comments_and_spacing_change_nothing() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.remanifest(&WEB.replace("    run", "    // a comment\n\n  run"));
    assert!(!world.plan().has_changes());
}

#[test]
fn drift_is_told_as_such_and_replaces_the_vm() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.observed[0].drift = vec![(StepKind::Tap, "fg-1 is gone".to_owned())];
    let plan = world.plan();
    let told = |kind| {
        let step = plan.step(kind, &world.observed[0].name).unwrap();
        (step.action, step.reasons.clone())
    };
    assert_eq!(told(StepKind::Tap), (Action::Replace, vec![Reason::cause("drift: fg-1 is gone")]));
    assert_eq!(told(StepKind::Jail), (Action::Replace, vec![Reason::follows("made anew with its VM")]));
    assert_eq!(told(StepKind::Boot), (Action::Replace, vec![Reason::follows("made anew with its VM")]));
    assert!(plan.is_decided());
}

#[test]
fn an_ended_vm_is_created_again_and_says_how_it_ended() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.observed[0].running = Running::Ended("exited 0".to_owned());
    let plan = world.plan();
    let boot = plan.step(StepKind::Boot, &world.observed[0].name).unwrap();
    assert_eq!((boot.action, boot.reasons[0].what.as_str()), (Action::Create, "exited 0"));
}

#[test]
fn a_vm_that_left_the_manifest_is_removed() {
    let mut world = World::new(&format!("{WEB}\nvm \"old\" {{ run \"true\" }}"));
    world.up_plainly();
    world.remanifest(WEB);
    let plan = world.plan();
    let removed: Vec<_> = plan.steps.iter().filter(|s| s.action == Action::Remove).collect();
    assert_eq!(removed.len(), 1);
    assert_eq!(removed[0].subject, "old");
    assert_eq!(plan.steps.iter().filter(|s| s.action.is_change()).count(), 1);
}

#[test]
fn vms_share_what_is_the_same() {
    let world = World::new(&format!("{WEB}\n{}", WEB.replace("\"web\"", "\"two\"").replace("8080", "8081")));
    let plan = world.plan();
    let count = |kind| plan.steps.iter().filter(|s| s.kind == kind).count();
    assert_eq!(count(StepKind::Image), 1);
    assert_eq!(count(StepKind::Unpack), 1);
    assert_eq!(count(StepKind::Initramfs), 1);
    assert_eq!(count(StepKind::Boot), 2);
}

#[test]
fn an_object_that_is_gone_is_built_again() {
    let mut world = World::new(WEB);
    world.up_plainly();
    let plan = world.plan();
    let image = plan.steps.iter().find(|s| s.kind == StepKind::Image).unwrap();
    world.store.gone.borrow_mut().push(image.output.unwrap());
    let again = world.plan();
    let image = again.steps.iter().find(|s| s.kind == StepKind::Image).unwrap();
    assert_eq!(image.action, Action::Run);
    assert!(image.reasons[0].what.contains("gone from the store"));
}

#[test]
fn a_missing_pin_is_shown_and_not_guessed() {
    let mut world = World::new(WEB);
    world.lock = Lock::default();
    let plan = world.plan();
    assert!(plan.steps[0].reasons[0].what.contains("firegopher.lock"));
    assert_eq!(plan.steps[0].key, None);
}

#[test]
fn drawings_name_every_step_and_every_arrow() {
    let world = World::new(WEB);
    let plan = world.plan();
    insta::assert_snapshot!(render::graph(&plan, render::GraphFormat::Dot));
    insta::assert_snapshot!(render::graph(&plan, render::GraphFormat::Mermaid));
}

#[test]
fn json_has_a_version_and_full_digests() {
    let mut world = World::new(WEB);
    world.up_plainly();
    let json: serde_json::Value = serde_json::from_str(&render::json(&world.plan(), &[])).unwrap();
    assert_eq!(json["format_version"], 1);
    assert_eq!(json["changes"], false);
    assert_eq!(json["steps"][0]["output"].as_str().unwrap().len(), 64);
}

#[test]
fn control_characters_in_names_are_escaped() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("\u{1b}[31mred", "x")]);
    assert!(!render::text(&world.plan()).contains('\u{1b}'));
}

#[test]
fn a_plan_does_not_depend_on_where_and_when_it_is_made() {
    let (mut here, mut elsewhere) = (World::new(WEB), World::new(WEB));
    assert_ne!(here.manifest.dir, elsewhere.manifest.dir);
    assert_eq!(here.plan(), elsewhere.plan());
    // What was built and booted in one place is what another wants.
    here.up_plainly();
    elsewhere.store = here.store;
    elsewhere.observed = here.observed;
    assert!(!elsewhere.plan().has_changes(), "{}", render::text(&elsewhere.plan()));
}

const URLS: &str = r#"vm "web" {
    kernel { url "https://example.org/vmlinux" "https://mirror.example.org/vmlinux"; }
    image { oci "example.org/python:3"; }
    workload to="/tool" { url "https://example.org/tool.tar" sha256="aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; }
}
"#;

/// A world whose downloads and image are pinned.
fn downloads(text: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let manifest = parse(text, "firegopher.kdl", dir.path()).map_err(|d| d.render(false, 100)).unwrap();
    let mut world = World::new(WEB);
    world.manifest = manifest;
    world.lock = Lock::default();
    world.pin(AssetId::Vmm, "1.0");
    let graph = Graph::of(&world.manifest);
    for need in graph.nodes.iter().flat_map(|node| needs(&node.task)) {
        let sha256 = need.source.and_then(|s| s.sha256.clone()).unwrap_or_else(|| "b".repeat(64));
        let pinned = match &need.id {
            AssetId::File { .. } => Pinned::File(FilePin { size: 1, blake3: digest(&sha256), sha256 }),
            AssetId::Oci(_) => Pinned::Oci(OciPin {
                manifest: format!("sha256:{}", "c".repeat(64)),
                blake3: digest("manifest"),
                layers: vec![OciLayer {
                    digest: format!("sha256:{}", "d".repeat(64)),
                    size: 1,
                    media: "application/vnd.oci.image.layer.v1.tar".to_owned(),
                    blake3: digest("layer"),
                }],
                config: OciConfig {
                    digest: format!("sha256:{}", "e".repeat(64)),
                    blake3: digest("config"),
                    entrypoint: vec!["python3".to_owned()],
                    cmd: vec![],
                    env: vec![("A".to_owned(), "image".to_owned()), ("B".to_owned(), "image".to_owned())],
                    user: "1000".to_owned(),
                    workdir: String::new(),
                    ports: vec![8000],
                },
            }),
            _ => continue,
        };
        world.lock.set(need.id, pinned).unwrap();
    }
    fill_defaults(&mut world.manifest, &world.lock, |_| Ok(None)).unwrap();
    world
}

#[test]
fn the_same_bytes_from_another_address_rerun_nothing() {
    let key = |world: &World, kind| world.plan().step(kind, &world.manifest.vms[0].name).unwrap().key;
    let here = downloads(URLS);
    let moved = downloads(&URLS.replace("example.org/vmlinux", "example.net/kernel"));
    assert!(key(&here, StepKind::FetchKernel).is_some());
    assert_eq!(key(&here, StepKind::FetchKernel), key(&moved, StepKind::FetchKernel));
}

#[test]
fn a_pin_with_another_digest_than_the_manifest_is_none() {
    let mut world = downloads(URLS);
    let other = downloads(&URLS.replace("aaaa", "0000"));
    let graph = Graph::of(&world.manifest);
    let unpack = graph.nodes.iter().find(|n| n.task.kind() == StepKind::Unpack).unwrap();
    assert!(needs(&unpack.task)[0].pinned(&world.lock).is_some());
    assert!(needs(&unpack.task)[0].pinned(&other.lock).is_none());
    world.lock = other.lock;
    let plan = world.plan();
    let step = plan.step(StepKind::Unpack, &world.manifest.vms[0].name).unwrap();
    assert_eq!(step.reasons, [Reason::cause("not in firegopher.lock yet")]);
}

#[test]
fn everything_that_the_lock_says_of_a_container_image_is_in_its_key() {
    let key = |edit: &dyn Fn(&mut OciPin)| {
        let mut world = downloads(URLS);
        let id = AssetId::Oci("example.org/python:3".to_owned());
        let mut pin = world.lock.oci(&id).unwrap().clone();
        edit(&mut pin);
        world.lock.set(id, Pinned::Oci(pin)).unwrap();
        world.plan().step(StepKind::FetchImage, &world.manifest.vms[0].name).unwrap().key.unwrap()
    };
    let other = format!("sha256:{}", "0".repeat(64));
    let mut seen = vec![key(&|_| ())];
    // gc keeps the step for as long as the lock has the entry: by the digests that both name.
    let world = downloads(URLS);
    let graph = Graph::of(&world.manifest);
    let fetch = graph.nodes.iter().find(|node| node.task.kind() == StepKind::FetchImage).unwrap();
    let inputs = node_inputs(&graph, fetch, &[], &world.lock, &world.scan, &world.tools).unwrap();
    let lock = world.lock.render();
    let values = inputs.0.iter().flat_map(|(_, value)| value.split(|c: char| !c.is_ascii_hexdigit()));
    let digests: Vec<&str> = values.filter(|word| word.len() >= 64).collect();
    assert_eq!(digests.len(), 2, "manifest and layer: {inputs:?}");
    assert!(digests.iter().all(|digest| lock.contains(digest)), "{inputs:?}");
    let edits: [&dyn Fn(&mut OciPin); 9] = [
        &|pin| pin.blake3 = digest("other"),
        &|pin| pin.layers[0].blake3 = digest("other"),
        &|pin| pin.config.blake3 = digest("other"),
        &|pin| pin.manifest.clone_from(&other),
        &|pin| pin.layers[0].digest.clone_from(&other),
        &|pin| pin.layers[0].size = 2,
        &|pin| pin.layers.push(pin.layers[0].clone()),
        &|pin| pin.config.digest.clone_from(&other),
        &|pin| pin.config.entrypoint[0] = "sh".to_owned(),
    ];
    for edit in edits {
        let key = key(edit);
        assert!(!seen.contains(&key));
        seen.push(key);
    }
}

#[test]
fn an_edited_blake3_of_a_package_or_download_is_another_key() {
    let keys = |world: &World| {
        let plan = world.plan();
        [StepKind::FetchKernel, StepKind::FetchImage, StepKind::Unpack]
            .map(|kind| plan.step(kind, &world.manifest.vms[0].name).and_then(|step| step.key))
    };
    let edited = |mut world: World| {
        for (id, pinned) in world.lock.clone().iter() {
            let mut pinned = pinned.clone();
            match &mut pinned {
                Pinned::Packages(pins) => pins.packages[0].blake3 = digest("other"),
                Pinned::File(pin) => pin.blake3 = digest("other"),
                Pinned::Oci(_) => {}
            }
            world.lock.set(id.clone(), pinned).unwrap();
        }
        world
    };
    let [kernel, image, _] = keys(&World::new(WEB));
    let [other_kernel, other_image, _] = keys(&edited(World::new(WEB)));
    assert!(kernel.is_some() && image.is_some() && other_kernel != kernel && other_image != image);
    let [kernel, image, _] = keys(&downloads(URLS));
    let [other_kernel, same_image, _] = keys(&edited(downloads(URLS)));
    assert!(kernel.is_some() && other_kernel != kernel && same_image == image);
}

/// Two VMs of images on this host, of which `local` says what they are.
fn of_local_images(
    local: impl Fn(&str) -> crate::error::Result<OciConfig>,
) -> crate::error::Result<(crate::manifest::model::Manifest, Vec<String>)> {
    let text = "vm \"a\" { image { oci-path \"./one\"; }; }\nvm \"b\" { image { oci-path \"./two\"; }; }";
    let dir = tempfile::tempdir().unwrap();
    for image in ["one", "two"] {
        std::fs::create_dir(dir.path().join(image)).unwrap();
    }
    let mut manifest = parse(text, "firegopher.kdl", dir.path()).map_err(|d| d.render(false, 100)).unwrap();
    let failed = fill_defaults(&mut manifest, &Lock::default(), |image| match image {
        ImageSource::OciPath { path, .. } => local(&path.display().to_string()).map(Some),
        _ => Ok(None),
    })?;
    let failed = failed.into_iter().map(|(name, error)| format!("{name} {}", error.code()));
    Ok((manifest, failed.collect()))
}

fn exposing(ports: Vec<u16>) -> OciConfig {
    OciConfig {
        digest: format!("sha256:{}", "0c".repeat(32)),
        blake3: ObjectDigest::new([3; 32]),
        entrypoint: vec!["/app".into()],
        cmd: Vec::new(),
        env: Vec::new(),
        user: String::new(),
        workdir: String::new(),
        ports,
    }
}

#[test]
fn ports_that_only_root_may_bind_and_those_of_an_image_with_many_are_published_by_the_manifest_alone() {
    let published = |ports: Vec<u16>| {
        let local = |path: &str| Ok(exposing(if path.ends_with("one") { ports.clone() } else { Vec::new() }));
        let (manifest, _) = of_local_images(local).unwrap();
        manifest.vms[0].ports.iter().map(|port| port.host).collect::<Vec<u16>>()
    };
    assert_eq!(published(vec![80, 443, 1023, 1024, 8080]), [1024, 8080]);
    assert_eq!(published((1..=1500).collect()), [0; 0]);
    assert_eq!(published((2000..2016).collect()).len(), 16);
    assert_eq!(published((2000..2017).collect()), [0; 0]);
}

#[test]
fn a_bad_image_leaves_out_the_vms_that_use_it_and_no_other() {
    let bad = |path: &str| match path.ends_with("one") {
        true => Err(crate::error::Error::failed("oci.invalid", "it is damaged")),
        false => Ok(exposing(Vec::new())),
    };
    let (manifest, failed) = of_local_images(bad).unwrap();
    assert_eq!(failed, ["a oci.invalid"]);
    assert_eq!(manifest.vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["b"]);
    let none = |_: &str| Ok(OciConfig { entrypoint: vec![], ..exposing(Vec::new()) });
    assert_eq!(of_local_images(none).unwrap_err().code(), "manifest.missing-run", "nobody is left");
}

#[test]
fn exposed_ports_are_published_once_and_not_where_the_manifest_says_none() {
    let image = "image { oci \"example.org/python:3\"; }";
    let filled = |text: &str| {
        let world = downloads(&URLS.replace("    image", "    port \"none\"\n    image"));
        let dir = tempfile::tempdir().unwrap();
        let mut manifest =
            parse(text, "firegopher.kdl", dir.path()).map_err(|d| d.render(false, 100)).unwrap();
        fill_defaults(&mut manifest, &world.lock, |_| Ok(None))?;
        let ports = manifest.vms.iter().map(|vm| vm.ports.iter().map(|p| (p.host, p.guest)).collect());
        Ok::<Vec<Vec<_>>, crate::error::Error>(ports.collect())
    };
    let one = |rest: &str| format!("vm \"a\" {{ {image}; {rest}; }}");
    assert_eq!(filled(&one("cpus 1")).unwrap(), [[(8000, 8000)]]);
    assert_eq!(filled(&one("port 1 to=2")).unwrap(), [[(1, 2)]]);
    assert_eq!(filled(&one("port \"none\"")).unwrap(), [Vec::new()]);
    let two = |rest: &str| format!("{}; vm \"b\" {{ {image}; {rest}; }}", one("cpus 1"));
    let error = filled(&two("cpus 1")).unwrap_err();
    assert_eq!(error.code(), "manifest.duplicate-port");
    assert!(error.to_string().contains("published by a and by b"), "{error}");
    assert!(error.help_text().unwrap().contains("port \"none\""), "{error:?}");
    assert_eq!(filled(&two("port \"none\"")).unwrap(), [vec![(8000, 8000)], vec![]]);
    assert_eq!(filled(&two("port 8001 to=8000")).unwrap(), [[(8000, 8000)], [(8001, 8000)]]);
}

#[test]
fn a_container_image_gives_the_defaults_and_the_manifest_wins() {
    let vm = &downloads(URLS).manifest.vms[0];
    assert_eq!(vm.run, ["python3"]);
    assert_eq!(vm.env.len(), 2);
    assert_eq!(vm.user, Some(User::Image { user: "1000".to_owned(), group: None }));
    assert_eq!((vm.ports[0].host, vm.ports[0].guest), (8000, 8000));
    let own = URLS.replace("workload", "run \"sh\"; user \"app\"; port 1; env { A \"own\"; }; workload");
    let vm = &downloads(&own).manifest.vms[0];
    assert_eq!(vm.run, ["sh"]);
    assert_eq!(vm.env, [("B".to_owned(), "image".to_owned()), ("A".to_owned(), "own".to_owned())]);
    assert_eq!(vm.user, Some(User::Name("app".to_owned())));
    assert_eq!(vm.ports.len(), 1);
}

#[test]
fn whether_scripts_run_is_part_of_the_images_key() {
    let (mut plain, mut scripts) = (
        World::new(WEB),
        World::new(&WEB.replace("\"python3-minimal\"", "\"python3-minimal\" scripts=#true")),
    );
    plain.up(|_, key| digest(&key.to_string()));
    scripts.up(|_, key| digest(&key.to_string()));
    let key = |world: &World| {
        let plan = world.plan();
        plan.steps.iter().find(|step| step.kind == StepKind::Image).unwrap().key
    };
    assert_ne!(key(&plain), key(&scripts));
}

#[test]
fn a_snapshot_is_in_no_key() {
    let mut world = World::new(WEB);
    world.up(|_, key| digest(&key.to_string()));
    let (id, mut pins) = {
        let need = Graph::of(&world.manifest)
            .nodes
            .iter()
            .flat_map(|n| needs(&n.task))
            .find(|n| n.id.kind() == "image")
            .unwrap()
            .id;
        let pins = world.lock.entry(&need).unwrap().clone();
        (need, pins)
    };
    pins.snapshot = vec![crate::lock::Release {
        origin: "Debian".into(),
        suite: "stable".into(),
        codename: "bookworm".into(),
        date: "20261121T143000Z".into(),
        sha256: "0".repeat(64),
    }];
    world.lock.set(id.clone(), pins).unwrap();
    assert_eq!(world.lock.entry(&id).unwrap().snapshot.len(), 1);
    assert!(
        world.plan().steps.iter().all(|step| step.action != Action::Run && step.action != Action::Unknown)
    );
}
