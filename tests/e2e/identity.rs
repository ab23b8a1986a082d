//! Which project a directory holds, and who may touch its VMs: moved, renamed, copied and removed directories, and
//! commands that see other pids.

use crate::harness::{Command, Output, Project, guests, home_like_the_warm_one, public_dir, skip};
use crate::traces::assert_clean;
use std::path::Path;

const NOBODY: u32 = 65534;

/// A command in a directory inside of the project's, by the project's user.
fn at(project: &Project, dir: &Path, args: &[&str]) -> Output {
    let mut command = project.command(&[]);
    let inner = command.inner();
    let mut again = std::process::Command::new(inner.get_program());
    // All but `-C DIR`, which is at the end.
    let before: Vec<_> = inner.get_args().map(|arg| arg.to_owned()).collect();
    again.args(&before[..before.len() - 2]).arg("-C").arg(dir).args(args);
    again.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Command::new(again).output()
}

fn vms(output: &Output) -> Vec<String> {
    let rows = output.json()["vms"].as_array().unwrap().clone();
    rows.iter()
        .map(|row| format!("{} {}", row["name"].as_str().unwrap(), row["status"].as_str().unwrap()))
        .collect()
}

/// `logs` once it shows this.
fn wait_log(project: &Project, dir: &Path, text: &str) -> Output {
    let begun = std::time::Instant::now();
    loop {
        let logs = at(project, dir, &["logs"]);
        if logs.stdout.contains(text) {
            return logs;
        }
        assert!(begun.elapsed() < crate::harness::PATIENCE, "{text:?} never came: {logs:?}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn as_root_and_not(test: impl Fn(&Project)) {
    let Some(_turn) = guests(1) else { return };
    let users: &[Option<u32>] =
        if nix::unistd::geteuid().is_root() { &[None, Some(NOBODY)] } else { &[None] };
    for uid in users {
        let public = public_dir();
        let (exe, home) = (public.path().join("firegopher"), public.path().join("home"));
        std::fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
        home_like_the_warm_one(&home, *uid);
        let project = Project::new("vm \"unused\" { run \"true\" }").with_exe(&exe).with_home(&home);
        project.write("shop/firegopher.lock", project.read("firegopher.lock"));
        test(&match uid {
            Some(uid) => project.as_user(*uid),
            None => project,
        });
    }
}

/// Also that a VM may be called what older versions called a file of theirs.
const SHOP: &str = "vm \"lock\" {
    volume \"data\" at=\"/data\" size=\"32MiB\"
    run \"sh\" \"-c\" \"echo boot >> /data/log; cat /data/log; exec sleep 600\"
}\n";

#[test]
fn a_project_that_was_moved_renamed_or_removed_keeps_its_vms_and_volumes() {
    as_root_and_not(|project| {
        let (shop, market) = (project.path().join("shop"), project.path().join("market"));
        project.write("shop/firegopher.kdl", SHOP);
        at(project, &shop, &["up", "-d", "--offline"]).expect(0);
        let running = || ["lock running".to_owned()];
        let pid = |output: &Output| output.json()["vms"][0]["supervisor_pid"].clone();
        let first = pid(&at(project, &shop, &["ps", "--json"]).expect(0));

        std::fs::rename(&shop, &market).unwrap();
        let ps = at(project, &market, &["ps", "--json"]).expect(0);
        assert_eq!(vms(&ps), running());
        ps.says("came along").says(&shop.canonicalize().unwrap_or(shop.clone()).display().to_string());
        at(project, &market, &["plan"]).expect(0).prints("Nothing changes");
        at(project, &market, &["up", "-d", "--offline"]).expect(0).says("came along");
        let ps = at(project, &market, &["ps", "--json"]).expect(0);
        assert!(!ps.stderr.contains("came along"), "said once it is written down: {ps:?}");

        project.write("market/firegopher.kdl", format!("project \"market\"\n{SHOP}"));
        wait_log(project, &market, "boot\n").says("was called shop-");
        at(project, &market, &["up", "-d", "--offline"]).expect(0);
        let ps = at(project, &market, &["ps", "--json"]).expect(0);
        assert_eq!((vms(&ps), pid(&ps)), (running().to_vec(), first), "nothing was restarted");
        assert_eq!(ps.json()["project"], "market");

        // A copy is another project, and a name is one project's.
        let copy = project.path().join("copy");
        crate::harness::copy_tree(&market, &copy);
        at(project, &copy, &["ps"]).expect(64).says("the project name market belongs to ");
        project.write("copy/firegopher.kdl", SHOP);
        assert!(vms(&at(project, &copy, &["ps", "--json"]).expect(0)).is_empty());

        // Another boot finds what the first one wrote.
        at(project, &market, &["down"]).expect(0).says("lock is down");
        at(project, &market, &["up", "-d", "--offline"]).expect(0);
        wait_log(project, &market, "boot\nboot\n");

        // From anywhere, also when the directory is gone.
        let root = Path::new("/");
        std::fs::remove_dir_all(&market).unwrap();
        let all = at(project, root, &["ps", "--all", "--json"]).expect(0).json();
        crate::schemas::check_document("ps-all", &all);
        let row = all["projects"]
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["project"] == "market")
            .unwrap()
            .clone();
        assert_eq!((&row["directory_exists"], &row["volumes"]), (&false.into(), &1.into()), "{row}");
        at(project, root, &["ps", "--all"]).expect(0).prints("(gone)").prints("running");
        at(project, root, &["logs", "--project", "market"]).expect(0).prints("boot\nboot\n");
        at(project, root, &["down", "--project", "nobody"]).expect(64).says("market");
        at(project, root, &["down", "--project", "market"])
            .expect(0)
            .says("lock is down")
            .says("its volumes stay");
        at(project, root, &["down", "--project", "market", "--volumes"]).expect(0).says("forgot the project");
        let all = at(project, root, &["ps", "--all", "--json"]).expect(0).json();
        assert!(!all["projects"].as_array().unwrap().iter().any(|row| row["project"] == "market"), "{all}");
    });
}

/// In a pid namespace of its own, where no process of the outer one can be seen.
fn elsewhere(project: &Project, args: &[&str]) -> Option<Output> {
    let mut command = project.command(args);
    let inner = command.inner();
    let mut unshare = std::process::Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-current-user"]);
    }
    unshare
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(inner.get_program())
        .args(inner.get_args());
    unshare.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = Command::new(unshare).output();
    if output.stderr.starts_with("unshare: ") {
        skip(format!("no pid namespaces here: {}", output.stderr.trim()));
        return None;
    }
    Some(output)
}

#[test]
fn commands_in_another_pid_namespace_leave_what_runs_outside_alone() {
    let Some(_turn) = guests(1) else { return };
    let public = public_dir();
    let home = public.path().join("home");
    home_like_the_warm_one(&home, None);
    let manifest = "vm \"box\" { workload \"./app\" to=\"/app\"; run \"sleep\" \"600\" }";
    let project = Project::new(manifest).with_home(&home);
    project.write("app/file", "one");
    project.up(&["-d", "--offline"]);
    let before = project.ps("box").unwrap();
    let Some(ps) = elsewhere(&project, &["ps", "--json"]) else { return };
    assert_eq!(vms(&ps.expect(0)), ["box running"]);
    let run = |args: &[&str]| elsewhere(&project, args).unwrap();
    run(&["plan"]).expect(0).prints("Nothing changes");
    // Nothing holds what the VM was started from but the VM itself.
    std::fs::rename(project.path().join("firegopher.kdl"), project.path().join("kept")).unwrap();
    std::fs::rename(project.path().join("firegopher.lock"), project.path().join("kept.lock")).unwrap();
    let freed = run(&["gc", "--max-size", "0"]).expect(0);
    assert!(!freed.stdout.contains("lost VM"), "{freed:?}");
    std::fs::rename(project.path().join("kept"), project.path().join("firegopher.kdl")).unwrap();
    std::fs::rename(project.path().join("kept.lock"), project.path().join("firegopher.lock")).unwrap();
    for object in project.state("box")["objects"].as_array().unwrap() {
        let hex = object.as_str().unwrap();
        assert!(home.join("v1/objects").join(&hex[..2]).join(hex).exists(), "{hex} was freed");
    }
    assert_eq!(project.ps("box").unwrap()["supervisor_pid"], before["supervisor_pid"]);
    assert_eq!(project.ps("box").unwrap()["status"], "running");
    // Stopped from there, by its socket.
    run(&["down"]).expect(0).says("box is down");
    assert_eq!(project.ps("box"), None);
    assert_clean(&project);
}

#[test]
fn a_workload_holds_neither_the_projects_own_files_nor_what_git_ignores() {
    let project =
        Project::new("vm \"a\" { workload \".\" to=\"/app\" { ignore from=\".gitignore\" }; run \"true\" }");
    let Some(_turn) = guests(1) else { return };
    project.write(".gitignore", "*.log\n");
    project.write("web/.gitignore", "dist/\n");
    for file in ["a.log", "web/dist/out", "main.py", ".env", ".git/config"] {
        project.write(file, "x");
    }
    let unpacked = |project: &Project, says: bool| {
        let built = project.ok(&["build", "--json", "--offline"]);
        assert_eq!(built.stderr.contains("./.env: looks like a secret"), says, "{built:?}");
        let steps = built.json()["steps"].as_array().unwrap().clone();
        steps.iter().find(|step| step["kind"] == "unpack").unwrap()["key"].clone()
    };
    project.ok(&["plan"]).says("./.env: looks like a secret").says("`ignore \".env\"`");
    let first = unpacked(&project, true);
    // None of this is part of it.
    project.write("firegopher.lock", project.read("firegopher.lock") + "\n");
    project.manifest(&(project.read("firegopher.kdl") + "\n// changed\n"));
    for file in ["b.log", "web/dist/more", ".git/index"] {
        project.write(file, "y");
    }
    assert_eq!(unpacked(&project, false), first, "and it is told once");
    project.write("web/.gitignore", "none\n");
    assert_ne!(unpacked(&project, false), first);
}

#[test]
fn a_manifest_above_is_used_and_one_that_is_named() {
    let project = Project::new("project \"above\"\nvm \"a\" { run \"true\" }");
    project.write("deep/er/file", "");
    project.write("deep/other.kdl", "vm \"b\" { run \"true\" }");
    let deep = project.path().join("deep/er");
    let ps = at(&project, &deep, &["ps", "--json"]).expect(0);
    assert_eq!(ps.json()["project"], "above");
    let found = project.path().canonicalize().unwrap().join("firegopher.kdl");
    ps.says(&format!("using {}", found.display()));
    let other = at(&project, &deep, &["-f", "../other.kdl", "ps", "--json"]).expect(0);
    assert!(other.json()["project"].as_str().unwrap().starts_with("deep-"), "{other:?}");
    at(&project, &deep, &["-f", "none.kdl", "plan"]).expect(64).says("there is no manifest").says("none.kdl");
    at(&project, &deep, &["plan", "-f", "x"]).expect(64).says("write it before the command");
}
