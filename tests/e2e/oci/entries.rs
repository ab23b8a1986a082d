//! A container image's entry in the lock, edited or of old.

use super::*;

/// A project whose image is pinned to what the registry serves, and the image's reference.
fn locked(registry: &Server) -> (Project, String) {
    let reference = format!("{}/group/app:1", registry.address());
    let project = Project::new(&format!("vm \"app\" {{ image {{ oci \"{reference}\"; }} }}"));
    project.ok(&["lock"]);
    (project, reference)
}

#[test]
fn an_entry_of_the_lock_that_was_edited_builds_nothing() {
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image(free_port()) else { return };
    let registry = layout.serve();
    let (project, _) = locked(&registry);
    let lock = project.read("firegopher.lock");
    let layers: Vec<&str> = lock.lines().filter(|line| line.starts_with("  { digest = ")).collect();
    assert_eq!(layers.len(), 2, "{lock}");
    let swapped =
        lock.replace(&format!("{}\n{}", layers[0], layers[1]), &format!("{}\n{}", layers[1], layers[0]));
    let edits = [
        lock.replace(&format!("{}\n", layers[1]), ""),
        swapped,
        lock.replace(
            "entrypoint = [\"/bin/sh\", \"/bin/main\"]",
            "entrypoint = [\"/bin/sh\", \"/etc/passwd\"]",
        ),
        lock.replace("user = \"app:staff\"", "user = \"root\""),
        other_blake3(&lock, layers[1]),
    ];
    let refused = |edited: &str| {
        assert_ne!(edited, lock);
        project.write("firegopher.lock", edited);
        project
            .run(&["build", "--locked"])
            .expect(1)
            .says("firegopher.lock gives the image")
            .says("edited by hand");
    };
    edits.iter().for_each(|edited| refused(edited));
    project.write("firegopher.lock", &lock);
    project.ok(&["build", "--locked"]);
    // With everything in the store, too, and with what was built under the true entry.
    edits.iter().for_each(|edited| refused(edited));
    project.write("firegopher.lock", &lock);
    project.ok(&["build", "--locked", "--offline"]).says("Nothing to build");
}

#[test]
fn an_entry_from_before_everything_had_a_blake3_is_mended_by_update() {
    let Some(_turn) = guests(1) else { return };
    let Some(layout) = image(free_port()) else { return };
    let registry = layout.serve();
    let (project, reference) = locked(&registry);
    let good = project.read("firegopher.lock");
    let (others, entry) = good.split_at(good.find(&format!("oci = \"{reference}\"")).unwrap());
    let old = format!("{others}{}", without_blake3(entry));
    project.write("firegopher.lock", &old);
    let asked = registry.seen().len();
    for args in [&["lock"][..], &["build"], &["build", "--locked"], &["up", "--offline"]] {
        let refused = project.run(args).expect(64).says(&format!("no blake3 for: image {reference}"));
        refused.says("firegopher update");
    }
    let plan = project.run(&["plan", "--verbose"]).expect(64).says("no blake3 for: image ");
    plan.prints("its entry in firegopher.lock has no blake3");
    assert_eq!(registry.seen().len(), asked);
    assert_eq!(project.read("firegopher.lock"), old, "a lock is never lost");
    project.ok(&["update", &reference]).says("Wrote firegopher.lock");
    assert!(project.read("firegopher.lock").ends_with(entry), "the same image: {entry}");
    project.ok(&["build", "--locked"]);
}
