//! What is printed for help, wrong usage and broken manifests: all of it, with the exit code.

use crate::harness::{Output, Project};

/// One document out of a command and all that it said; the project's directory is shown as DIR.
fn shown(project: &Project, args: &[&str]) -> String {
    let mut command = project.command(args);
    // Help is wrapped to the terminal's width where there is one.
    command.inner().env("COLUMNS", "100");
    let Output { code, stdout, stderr, .. } = command.output();
    let dir = project.path().display().to_string();
    let text = format!(
        "$ firegopher {}\n== exit code {}\n== stdout\n{stdout}== stderr\n{stderr}",
        args.join(" "),
        code.unwrap()
    );
    text.replace(&dir, "DIR")
}

fn all(project: &Project, commands: &[&[&str]]) -> String {
    commands.iter().map(|args| shown(project, args)).collect::<Vec<_>>().join("\n")
}

#[test]
fn help_lists_every_command() {
    let project = Project::empty();
    insta::assert_snapshot!(shown(&project, &["--help"]));
}

#[test]
fn help_of_every_command() {
    let project = Project::empty();
    let names = [
        "init", "plan", "build", "up", "run", "down", "ps", "logs", "doctor", "lock", "update", "gc",
        "verify", "store",
    ];
    let pages: Vec<String> = names.iter().map(|name| shown(&project, &[name, "--help"])).collect();
    insta::assert_snapshot!(pages.join("\n"));
}

#[test]
fn wrong_usage_exits_with_64() {
    let project = Project::empty();
    project.manifest("vm \"web\" { run \"true\" }");
    let commands: [&[&str]; 8] = [
        &[],
        &["pu"],
        &["up", "--detatch"],
        &["plan", "--json", "--graph", "dot"],
        &["plan", "wbe"],
        &["logs", "--console", "--follow"],
        &["down", "web", "--volumes"],
        &["update", "nothing-of-ours"],
    ];
    insta::assert_snapshot!(all(&project, &commands));
}

#[test]
fn a_directory_without_a_manifest_is_wrong_usage() {
    let project = Project::empty();
    insta::assert_snapshot!(all(&project, &[&["plan"], &["up"], &["ps"], &["down"], &["logs"]]));
}

#[test]
fn every_problem_of_a_manifest_is_shown_at_once() {
    let project = Project::empty();
    project.manifest(
        "vm \"Web\" {\n    memroy \"256MiB\"\n    port 8080\n    port 8080 to=80\n    cpus \"two\"\n    \
         volume \"data\" at=\"/data\" size=\"1GB\"\n    workload \"../outside\" to=\"/app\"\n}\n",
    );
    insta::assert_snapshot!(all(&project, &[&["plan"], &["run"]]));
}

#[test]
fn hostile_manifests_are_refused_quickly() {
    let project = Project::empty();
    let deep = format!("{}{}", "a {".repeat(5000), "}".repeat(5000));
    let cases: [(&str, Vec<u8>); 5] = [
        ("the manifest is empty", b"".to_vec()),
        ("larger than 1MiB", vec![b' '; 10 << 20]),
        ("not UTF-8", b"vm \"\xff\" {}".to_vec()),
        ("nest", deep.into_bytes()),
        ("firegopher.kdl", b"vm \"x\" { run \"true\"".to_vec()),
    ];
    for (says, bytes) in cases {
        project.write("firegopher.kdl", bytes);
        let plan = project.run(&["plan"]).expect(64).says(says);
        assert!(plan.took.as_secs() < 5, "{plan:?}");
    }
}

#[test]
fn a_manifest_that_names_what_is_not_there_says_so() {
    let project = Project::empty();
    project.manifest("vm \"web\" { run \"true\"; workload \"./nothing\" to=\"/app\" }");
    project.run(&["plan"]).expect(64).says("cannot open nothing").says("because: ");
}
