//! What a plan says of why a VM is replaced, and that no two inputs are taken for one.

use super::*;
use crate::manifest::model::{Workload, WorkloadFrom};
use proptest::prelude::*;

fn step<'a>(world: &World, plan: &'a Plan, kind: StepKind) -> &'a PlannedStep {
    plan.step(kind, &world.manifest.vms[0].name).unwrap()
}

fn told(step: &PlannedStep) -> Vec<String> {
    step.reasons.iter().map(render::reason_text).collect()
}

#[test]
fn what_is_known_to_change_is_told_before_a_step_has_run() {
    let mut world = World::new(WEB);
    world.up_plainly();
    let (observed, lock) = (world.observed.clone(), world.lock.clone());
    world.remanifest(&WEB.replace("port 8080", "memory \"300MiB\"; port 8081"));
    world.lock = lock;
    world.observed = observed;
    world.workload(&[("server.py", "edited"), ("static/a.css", "two")]);
    let plan = world.plan();
    assert_eq!(step(&world, &plan, StepKind::Unpack).action, Action::Run);
    let jail = step(&world, &plan, StepKind::Jail);
    assert_eq!((jail.action, told(jail)), (Action::Replace, vec!["memory 256MiB → 300MiB".to_owned()]));
    let tap = step(&world, &plan, StepKind::Tap);
    assert_eq!(told(tap), ["port 8081 to 8000 (new)", "port 8080 to 8000 (gone)"]);
    let boot = step(&world, &plan, StepKind::Boot);
    assert_eq!((boot.action, boot.unless.len()), (Action::Replace, 0), "whatever the workload becomes");
}

#[test]
fn an_edit_of_code_replaces_the_vm_unless_its_layer_stays_the_same() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("server.py", "edited"), ("static/a.css", "two")]);
    let plan = world.plan();
    let unpack = step(&world, &plan, StepKind::Unpack);
    for kind in [StepKind::Jail, StepKind::Tap, StepKind::Boot] {
        let effect = step(&world, &plan, kind);
        assert_eq!((effect.action, &effect.unless), (Action::Replace, &vec![unpack.id]), "{kind}");
    }
    assert!(!plan.is_decided());
    assert!(render::text(&plan).contains("unless unpack app gives the same output"));
}

#[test]
fn what_changed_of_a_step_is_told_although_its_parent_has_yet_to_run() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("server.py", "edited"), ("static/a.css", "two")]);
    let graph = Graph::of(&world.manifest);
    let mut wanted = graph.nodes.iter().flat_map(|node| needs(&node.task));
    let image = wanted.find(|need| need.id.kind() == "image").unwrap().id;
    world.pin(image, "2.0");
    let plan = world.plan();
    let unpack = step(&world, &plan, StepKind::Unpack);
    assert_eq!(unpack.action, Action::Unknown);
    assert!(told(unpack)[0].starts_with("app/server.py "), "{:?}", told(unpack));
    assert!(told(unpack)[1].starts_with("runs if image python3-minimal gives another"), "{:?}", told(unpack));
    // The image follows the packages: only they and the workload decide.
    let fetch = step(&world, &plan, StepKind::FetchImage);
    assert_eq!(step(&world, &plan, StepKind::Boot).unless, [fetch.id, unpack.id]);
}

#[test]
fn swapped_workloads_are_explained_by_their_order() {
    let two = |first: &str, second: &str| {
        WEB.replace("workload \"./app\" to=\"/app\"", &format!("workload {first}; workload {second}"))
    };
    let (app, lib) = ("\"./app\" to=\"/app\"", "\"./lib\" to=\"/lib\"");
    let mut world = World::new(&two(app, lib));
    world.up_plainly();
    let observed = world.observed.clone();
    world.remanifest(&two(lib, app));
    world.observed = observed;
    let plan = world.plan();
    let unpack = step(&world, &plan, StepKind::Unpack);
    assert_eq!(told(unpack), ["order of workloads changed: app, lib → lib, app"]);
}

#[test]
fn the_same_directory_may_be_placed_twice() {
    let twice = |one: &str, two: &str| {
        let places = format!("workload \"./app\" to=\"{one}\"; workload \"./app\" to=\"{two}\"");
        WEB.replace("workload \"./app\" to=\"/app\"", &places)
    };
    let mut world = World::new(&twice("/a", "/b"));
    world.up_plainly();
    assert!(!world.plan().has_changes());
    let observed = world.observed.clone();
    world.remanifest(&twice("/a", "/c"));
    world.observed = observed;
    let plan = world.plan();
    assert_eq!(told(step(&world, &plan, StepKind::Unpack)), ["app to /b → /c"]);
}

#[test]
fn a_path_that_looks_like_a_pattern_is_a_scan_of_its_own() {
    let text = "vm \"one\" { workload \"./app\" to=\"/a\" { ignore \"lib\"; }; run \"x\"; }\n\
                vm \"two\" { workload \"./app !lib\" to=\"/a\"; run \"x\"; }\n";
    let world = World::new(text);
    let ids: Vec<ScanId> = world.manifest.vms.iter().map(|vm| Scan::workload_id(&vm.workloads[0])).collect();
    assert_ne!(ids[0], ids[1]);
    assert_eq!(world.scan.sources.len(), 2, "each has its files");
}

fn workload() -> impl Strategy<Value = Workload> {
    let text = "[ab !/]{0,4}";
    let from = prop::option::of(text.prop_map(Into::into));
    (text, any::<bool>(), prop::collection::vec(text, 0..3), from).prop_map(
        |(path, keep_modes, ignore, ignore_from)| Workload {
            source: WorkloadFrom::Path(path.into()),
            to: "/".to_owned(),
            owner: (0, 0),
            keep_modes,
            ignore,
            ignore_from,
        },
    )
}

proptest! {
    #[test]
    fn two_workloads_share_a_scan_only_if_they_see_the_same(a in workload(), b in workload()) {
        let seen = |w: &Workload| (w.source.clone(), w.keep_modes, w.ignore.clone(), w.ignore_from.clone());
        prop_assert_eq!(Scan::workload_id(&a) == Scan::workload_id(&b), seen(&a) == seen(&b));
    }

    /// Names and values of any text: two vectors have one key only if they are equal.
    #[test]
    fn distinct_vectors_never_have_one_key(
        a in prop::collection::vec(("[a\" ]{0,3}", "[a\" ]{0,3}"), 0..4),
        b in prop::collection::vec(("[a\" ]{0,3}", "[a\" ]{0,3}"), 0..4),
    ) {
        let inputs = |list: &[(String, String)]| {
            let mut inputs = Inputs::default();
            for (name, value) in list {
                inputs.push(InputName::Env(name.clone()), value);
            }
            inputs
        };
        let same = inputs(&a).key(StepKind::Init) == inputs(&b).key(StepKind::Init);
        prop_assert_eq!(same, a == b);
        prop_assert_ne!(inputs(&a).key(StepKind::Init), inputs(&a).key(StepKind::Unpack));
    }
}
