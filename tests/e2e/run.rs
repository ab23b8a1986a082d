//! `run`: one throw-away VM, and the workload's own exit code.

use crate::harness::{Project, guests};

fn boxed() -> Project {
    Project::new(r#"vm "box" { run "sh" "-c" "echo from the manifest" }"#)
}

#[test]
fn run_takes_a_command_as_it_is_and_leaves_nothing() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    assert_eq!(project.ok(&["run", "box"]).stdout, "from the manifest\n");
    let run = project.ok(&["run", "--", "printf", "<%s>", "two words", "", "-n"]);
    assert_eq!(run.stdout, "<two words><><-n>");
    assert_eq!(project.ok(&["ps", "--json"]).json()["vms"].as_array().unwrap().len(), 0);
}

#[test]
fn run_copies_standard_input_output_and_error() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let run = project.command(&["run", "--", "sh", "-c", "cat; echo done >&2"]).stdin(text.clone()).output();
    let run = run.expect(0).says("done\n");
    assert!(run.stdout == text, "{} of {} bytes came back", run.stdout.len(), text.len());
}

#[test]
fn run_exits_with_128_and_the_signal_that_ended_the_workload() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    project.run(&["run", "--", "sh", "-c", "kill -9 $$"]).expect(137);
    project.run(&["run", "--", "sh", "-c", "kill -TERM $$"]).expect(143);
}

#[test]
fn run_exits_with_125_when_nothing_ran() {
    let Some(_turn) = guests(1) else { return };
    let project = boxed();
    project.run(&["run", "--", "/no/such/program"]).expect(125).says("/no/such/program");
    project.run(&["run", "bxo"]).expect(125).says("Did you mean box?");
    project.manifest("vm \"box\" { }");
    project.run(&["run"]).expect(125);
    project.manifest("vm \"a\" { run \"true\" }\nvm \"b\" { run \"true\" }");
    project.run(&["run"]).expect(125).says("firegopher run a|b");
}
