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
        "init",
        "plan",
        "build",
        "up",
        "run",
        "down",
        "ps",
        "logs",
        "doctor",
        "lock",
        "update",
        "gc",
        "verify",
        "store",
        "completions",
        "man",
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
    // Where there are projects elsewhere, their list is named.
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
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
    project.run(&["plan"]).expect(64).says("nothing is not there");
}

#[test]
fn a_lock_from_before_everything_had_a_blake3_names_update() {
    let project = Project::empty();
    project.manifest("vm \"web\" { run \"true\" }");
    let sha256 = "0123456789abcdef".repeat(4);
    let entry = |head: &str, package: &str| {
        format!(
            "[[asset]]\n{head}distribution = \"debian\"\nsuite = \"bookworm\"\npackages = [\n  {{ name = \"{package}\", \
             arch = \"amd64\", version = \"1\", size = 1, sha256 = \"{sha256}\", path = \"pool/x.deb\" }},\n]\n\n"
        )
    };
    let kernel = entry("kind = \"kernel\"\nnames = [\"linux-image-cloud-amd64\"]\n", "linux-image-6.1-amd64");
    let names = r#"["base-files", "base-passwd", "bash", "coreutils", "dash", "libc-bin"]"#;
    let image = entry(&format!("kind = \"image\"\nnames = {names}\n"), "dash");
    project.write("firegopher.lock", format!("format = 1\n\n{kernel}{image}"));
    insta::assert_snapshot!(all(&project, &[&["lock"], &["build", "--locked"], &["run", "--offline"]]));
}

/// Nothing built, nothing pinned, nothing running: what every command says then.
#[test]
fn a_project_that_has_done_nothing_yet() {
    let own = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&own.path().join("home"));
    project.manifest(
        "project \"fresh\"\nvm \"web\" {\n    workload \"./app\" to=\"/app\"\n    run \"/app/server\"\n    port 8080 to=80\n}\n",
    );
    project.write("app/server", "#!/bin/sh\n");
    let commands: [&[&str]; 12] = [
        &["plan"],
        &["plan", "--detailed-exitcode", "--json"],
        &["plan", "--graph", "dot"],
        &["plan", "--graph", "mermaid"],
        &["ps"],
        &["ps", "--json"],
        &["lock", "--locked"],
        &["build", "--locked"],
        &["run", "--offline"],
        &["logs", "web"],
        &["down"],
        &["init"],
    ];
    insta::assert_snapshot!(all(&project, &commands));
}

#[test]
fn a_starter_manifest_is_written_once_and_can_be_planned() {
    let project = Project::empty();
    project.ok(&["init"]).says("firegopher up");
    project.ok(&["plan"]).prints("+ app boots\n").prints("Pins ");
    project.run(&["init"]).expect(64).says("exists already");
}

#[test]
fn doctor_says_the_same_in_words_and_as_json() {
    let project = Project::empty();
    let words = project.run(&["doctor"]);
    let json = project.run(&["doctor", "--json"]);
    let document = json.json();
    crate::schemas::check_document("doctor", &document);
    let checks = document["checks"].as_array().unwrap();
    assert!(checks.len() > 5, "{document}");
    for check in checks {
        let (name, status) = (check["name"].as_str().unwrap(), check["status"].as_str().unwrap());
        let mark = match status {
            "ok" => "ok ",
            "warn" => "note ",
            _ => "missing ",
        };
        let line = words.stdout.lines().find(|line| line.starts_with(mark) && line[8..].starts_with(name));
        assert!(line.is_some(), "{mark}{name} is not in {}", words.stdout);
        if status != "ok" {
            assert!(check["help"].is_string(), "{name} does not say how to mend it");
        }
    }
    let missing = checks.iter().any(|check| check["status"] == "missing");
    assert_eq!((words.code, json.code), if missing { (Some(69), Some(69)) } else { (Some(0), Some(0)) });
}

#[test]
fn completions_know_commands_options_and_the_names_of_the_moment() {
    let project = Project::empty();
    project.manifest("vm \"web\" { run \"true\" }\nvm \"db\" { run \"true\" }");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = project.ok(&["completions", shell]).stdout;
        assert!(script.contains("FIREGOPHER_COMPLETE"), "{shell}: {script}");
    }
    // Bash takes it as a script.
    let script = project.ok(&["completions", "bash"]).stdout;
    let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
    assert!(checked.success());
    project.run(&["completions", "tcsh"]).expect(64).says("[possible values: bash");
    // As fish asks: what could stand at the end of the line.
    let dir = project.path().to_str().unwrap();
    let offered = |line: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_firegopher"));
        command.env("FIREGOPHER_COMPLETE", "fish").env("FIREGOPHER_HOME", project.home());
        command.args(["--", "firegopher", "-C", dir]).args(line);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        said.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let has = |line: &[&str], words: &[&str]| {
        let offered = offered(line);
        assert!(words.iter().all(|word| offered.iter().any(|o| o == word)), "{line:?}: {offered:?}");
    };
    has(&[""], &["up", "completions", "help"]);
    has(&["plan", "--"], &["--detailed-exitcode", "--json"]);
    has(&["up", ""], &["web", "db"]);
    has(&["run", "w"], &["web"]);
    has(&["update", ""], &["kernel", "image", "linux-image-cloud-amd64"]);
}

#[test]
fn every_command_has_a_man_page() {
    let project = Project::empty();
    project.ok(&["man", "pages/man1"]).says("man pages into ");
    let page = project.read("pages/man1/firegopher-down.1");
    assert!(page.contains("volumes") && page.contains("Stop VMs"), "{page}");
    assert!(project.path().join("pages/man1/firegopher.1").exists());
}
