//! Plans as pages, at the widths of terminals that people have.

use super::*;
use crate::ui::page::{Look, page};

fn at(plan: &Plan, width: usize) -> String {
    let text = page(plan, Look { colours: false, width: Some(width) });
    assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
    text
}

const TWO: &str = r#"vm "web" {
    image { debian "python3-minimal" }
    workload "./app" to="/app"
    run "python3" "server.py"
    port 8080 to=8000
}
vm "db" {
    image { debian "redis-server" }
    workload "./lib" to="/lib/app"
    run "redis-server"
    port 6379
}
vm "old" {
    image { debian "redis-server" }
    run "redis-server"
}
"#;

/// A project of which much is changed at once: files, memory, a port, an environment, packages, a VM that goes.
fn changed() -> World {
    let mut world = World::new(TWO);
    world.up_plainly();
    let observed = world.observed.clone();
    let old = &TWO[..TWO.find("vm \"old\"").unwrap()];
    let new = old
        .replace("port 8080", "memory \"300MiB\"; env { GREETING \"hello there\"; }; port 8081")
        .replace("port 6379", "port 6379 address=\"0.0.0.0\"");
    world.remanifest(&new);
    world.observed = observed;
    world.workload(&[("server.py", "edited"), ("static/a.css", "two"), ("new.py", "three")]);
    world
}

#[test]
fn a_plan_is_a_page_that_fits_the_terminal() {
    let plan = changed().plan();
    insta::assert_snapshot!("page_80", at(&plan, 80));
    insta::assert_snapshot!("page_120", at(&plan, 120));
}

#[test]
fn a_first_plan_is_a_short_page() {
    insta::assert_snapshot!("first_page_80", at(&World::new(TWO).plan(), 80));
}

#[test]
fn an_edit_of_code_is_one_line_with_its_condition() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("server.py", "edited"), ("static/a.css", "two")]);
    let text = at(&world.plan(), 120);
    assert_eq!(
        text.lines().next(),
        Some("~ web restarts: app/server.py (unless unpack app gives the same output)")
    );
    world.pin(AssetId::kernel("linux-image-cloud-amd64"), "2.0");
    let text = at(&world.plan(), 120);
    assert!(
        text.starts_with("~ web restarts: linux-image-cloud-amd64 1.0 → 2.0, app/server.py (unless"),
        "{text}"
    );
}

#[test]
fn a_vm_that_ended_says_how_and_one_that_never_ran_says_nothing() {
    let mut world = World::new(WEB);
    assert_eq!(at(&world.plan(), 80).lines().next(), Some("+ web boots"));
    world.up_plainly();
    assert_eq!(at(&world.plan(), 80), "Nothing changes: all 10 steps are up to date.\n");
    world.observed[0].running = Running::Ended("exited 0".to_owned());
    let text = at(&world.plan(), 80);
    assert_eq!(text.lines().next(), Some("+ web boots: exited 0"));
}

#[test]
fn only_signs_names_and_verbs_are_coloured_and_words_are_the_same() {
    let plan = changed().plan();
    let plain = page(&plan, Look { colours: false, width: None });
    let coloured = page(&plan, Look { colours: true, width: None });
    assert!(coloured.contains("\u{1b}[1;33m~ web restarts\u{1b}[0m: "), "{coloured}");
    assert!(coloured.contains("\u{1b}[1;31m- old stops\u{1b}[0m: "), "{coloured}");
    let mut bare = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        bare.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    assert_eq!(bare + rest, plain);
}

#[test]
fn a_name_cannot_drive_the_terminal() {
    let mut world = World::new(WEB);
    world.up_plainly();
    world.workload(&[("\u{1b}[31mred", "x")]);
    assert!(!at(&world.plan(), 80).contains('\u{1b}'));
}
