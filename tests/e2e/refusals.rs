//! Input that is refused: each time with what, where and how to mend it, and nothing lost.

use crate::harness::{Project, guests, lacks_packages, skip, skip_for_want_of_packages};
use crate::oci::{other_blake3, without_blake3};
use crate::traces::{SLEEP, assert_clean, home_with_packages, is_root};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

// --- Hostile archives -------------------------------------------------------------------------------------------

fn tar_of(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o644);
        header.set_size(0);
        // Past the checks of the writer.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, &[][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn hostile_archives_publish_nothing() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP}; workload \"app.tar\" to=\"/app\" }}"));
    let cut = tar_of(&[("a", b'0', "")])[..300].to_vec();
    let mut lying = tar_of(&[("a", b'0', "")]);
    lying[124..135].copy_from_slice(b"77777777777");
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("..", tar_of(&[("../../etc/evil", b'0', "")])),
        ("absolute", tar_of(&[("/etc/evil", b'0', "")])),
        ("through a link", tar_of(&[("link", b'2', "/etc"), ("link/evil", b'0', "")])),
        ("hard link out", tar_of(&[("link", b'1', "../../etc/passwd")])),
        ("twice", tar_of(&[("a", b'0', ""), ("a", b'0', "")])),
        ("cut off", cut),
        ("lying", lying),
        ("no archive", b"nonsense".repeat(100)),
    ];
    for (what, bytes) in hostile {
        project.write("app.tar", bytes);
        let output = project.run(&["build"]);
        assert!(matches!(output.code, Some(1 | 64)), "{what}: {output:?}");
        assert!(output.stderr.contains("app.tar") && output.stderr.contains("error: "), "{what}: {output:?}");
        assert!(!output.stderr.contains("unpack app"), "{what}: {output:?}");
        assert!(project.run(&["plan", "--detailed-exitcode"]).code == Some(2), "{what} is in the store");
    }
}

#[test]
fn a_vm_with_less_memory_than_its_kernel_starts_in_is_refused_and_told_what_boots() {
    let Some(_guests) = guests(1) else { return };
    let vm = |memory: &str| {
        format!(
            "vm \"a\" {{\n    memory \"{memory}\"\n    boot-timeout \"180s\"\n    run \"echo\" \"booted\"\n}}\n"
        )
    };
    let project = Project::new(&vm("64MiB"));
    for command in ["build", "plan", "up"] {
        let refused = project.run(&[command]).expect(64);
        let refused = refused.says("64 MiB of memory are too little for its kernel").says("memory \"64MiB\"");
        assert!(!refused.stderr.contains("panicked"), "{refused:?}");
    }
    let told = project.run(&["build"]).stderr;
    let least = told.split_once("write memory \"").expect(&told).1.split('"').next().unwrap().to_owned();
    project.manifest(&vm(&least));
    assert_eq!(project.ok(&["run"]).stdout, "booted\n", "with {least}");
}

// --- Secrets, homes, directories, locks -------------------------------------------------------------------------

#[test]
fn a_missing_secret_costs_no_running_vm() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.up(&["-d"]);
    project.manifest(&format!("vm \"a\" {{ {SLEEP}; secret \"KEY\" env=\"FIREGOPHER_TEST_UNSET\" }}"));
    let output = project.run(&["up", "-d"]).expect(64);
    output.says("VM a: the secret KEY comes from $FIREGOPHER_TEST_UNSET, which is not set").says("help:");
    assert_eq!(project.ps("a").unwrap()["status"], "running");
    project.ok(&["down", "--kill"]);
    assert_clean(&project);
}

#[test]
fn homes_that_others_own_or_enter_are_refused() {
    let own = tempfile::tempdir().unwrap();
    let at = own.path().join("home");
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    let project = Project::empty().with_home(&at);
    project.manifest("vm \"a\" { run \"x\" }");
    let commands: [&[&str]; 10] = [
        &["up"],
        &["plan"],
        &["down"],
        &["ps"],
        &["logs", "a"],
        &["run"],
        &["gc"],
        &["verify"],
        &["store"],
        &["doctor"],
    ];
    let refused = |command: &[&str]| match command {
        // How `run` says that the code is not the workload's.
        ["run"] => project.run(command).expect(125),
        _ => project.run(command).expect(1),
    };
    for command in commands {
        refused(command).says("is open to other users (mode 0755)").says("chmod 700");
    }
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    if is_root() {
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&at, Some(1234), None).unwrap();
        for command in commands {
            refused(command).says("belongs to uid 1234").says("FIREGOPHER_HOME");
        }
    }
    let nowhere = Project::empty().with_home(Path::new("/dev/null/home"));
    nowhere.manifest("vm \"a\" { run \"x\" }");
    nowhere.run(&["up"]).expect(1).says("/dev/null/home").says("FIREGOPHER_HOME");
}

#[test]
fn pipes_and_huge_files_are_no_manifests_or_locks_and_nobody_waits_for_them() {
    let project = Project::empty();
    let manifest = project.path().join("firegopher.kdl");
    let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    pipe(&manifest);
    for command in ["plan", "up", "ps", "lock"] {
        project.run(&[command]).expect(64).says("firegopher.kdl is not a regular file");
    }
    fs::remove_file(&manifest).unwrap();
    // Far more than may be held in memory: read whole, it would fail otherwise.
    fs::File::create(&manifest).unwrap().set_len(64 << 30).unwrap();
    project.run(&["plan"]).expect(64).says("is larger than 1MiB");
    project.manifest("vm \"a\" { run \"x\" }");
    let lock = project.path().join("firegopher.lock");
    pipe(&lock);
    project.run(&["plan"]).expect(64).says("firegopher.lock is no regular file");
    fs::remove_file(&lock).unwrap();
    fs::File::create(&lock).unwrap().set_len(64 << 30).unwrap();
    project.run(&["plan"]).expect(64).says("is larger than 4 MiB");
}

#[test]
fn all_files_that_are_not_there_are_told_at_once_with_their_places() {
    let project = Project::empty();
    project.manifest(
        r#"vm "a" {
    kernel { path "vmlinux" }
    image { path "/nowhere/root.tar" }
    workload "app" to="/app"
    workload "there" to="/there"
    run "x"
}
vm "b" {
    image {
        debian "bash" {
            source "https://example.com/ubuntu" "jammy" "main" keyring="keys/absent.gpg"
        }
    }
    vmm "qemu" { path "/nowhere/qemu" }
    workload "two.zip" to="/app"
    run "x"
}
"#,
    );
    project.write("there/file", "");
    for command in ["plan", "up", "build", "run"] {
        // 125 is how `run` says that the code is not the workload's.
        let (args, code): (&[&str], i32) =
            if command == "run" { (&["run", "b"], 125) } else { (&[command], 64) };
        let output = project.run(args).expect(code);
        let problems = output.stderr.matches("manifest.no-such-file").count();
        assert_eq!(problems, 6, "{command}: {output:?}");
        output.says("vmlinux is not there").says("keys/absent.gpg").says("firegopher.kdl:15").says("two.zip");
    }
    // What is stopped or looked at needs none of them.
    project.ok(&["ps"]);
    project.ok(&["down"]);
    project.manifest("vm \"a\" { vmm \"firecracker\" { path \"/bin/sh\" }; run \"x\" }");
    project.run(&["plan"]).expect(64).says("/bin/sh is a file").says("name the directory that holds");
}

#[test]
fn what_cannot_be_started_is_told_before_anything_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&home.path().join("home"));
    project.manifest(&format!("vm \"a\" {{ {SLEEP}; secret \"KEY\" env=\"FIREGOPHER_TEST_UNSET\" }}"));
    for (command, code) in [(&["plan"][..], 64), (&["up"], 64), (&["up", "-d"], 64), (&["run"], 125)] {
        project.run(command).expect(code).says("$FIREGOPHER_TEST_UNSET, which is not set");
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = port.local_addr().unwrap().port();
    project.manifest(&format!("vm \"a\" {{ {SLEEP}; port {number} to=80 }}"));
    let own = format!("(process {})", std::process::id());
    for command in ["plan", "up"] {
        project.run(&[command]).expect(1).says(&own).says("publish another host port");
    }
    assert!(!project.path().join("firegopher.lock").exists(), "something was pinned");
    assert_eq!(fs::read_dir(project.home().join("v1/objects")).unwrap().count(), 0);
}

#[test]
fn a_program_that_is_no_qemu_is_refused_before_anything_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let project = Project::empty().with_home(&home.path().join("home"));
    project.manifest("vm \"a\" { run \"x\"; vmm \"qemu\" { path \"/bin/true\" } }");
    for command in ["plan", "up"] {
        let output = project.run(&[command]).expect(64);
        assert!(!output.stderr.contains("fetch"), "{output:?}");
        output.says("true is no QEMU: it has no monitor").says("help: name a `qemu-system-x86_64`");
    }
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let project = Project::empty();
    let at = |dir: &str, command: &str| {
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_firegopher"));
        run.args(["-C", dir, command]).env("FIREGOPHER_HOME", project.home());
        crate::harness::Command::new(run).output()
    };
    for (dir, text) in
        [("/nonexistent/dir", "there is no directory"), ("/etc/passwd", "there is no directory")]
    {
        for command in ["up", "plan", "down", "ps", "init"] {
            at(dir, command).expect(64).says(text).says(dir);
        }
    }
    project.run(&["up"]).expect(64).says("there is no firegopher.kdl").says("firegopher init");
}

#[test]
fn a_read_only_project_needs_a_whole_lock() {
    if !is_root() {
        return skip("changing the user needs root");
    }
    let Some(_guests) = guests(1) else { return };
    let public = crate::harness::public_dir();
    let exe = public.path().join("firegopher");
    fs::copy(env!("CARGO_BIN_EXE_firegopher"), &exe).unwrap();
    let at = public.path().join("home");
    home_with_packages(&at);
    crate::harness::chown_tree(&at, 65534);
    let project =
        Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&at).with_exe(&exe).as_user(65534);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o555)).unwrap();
    project.ok(&["build"]);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(project.path().join("firegopher.lock")).unwrap();
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let output = project.run(&["build"]);
    if lacks_packages(&output.stderr) {
        skip_for_want_of_packages("no package source answers");
    } else {
        output.expect(1).says("cannot write").says("firegopher.lock");
    }
    assert_eq!(fs::read_dir(project.path()).unwrap().count(), 1);
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn lock_files_that_cannot_be_used_say_what_to_do() {
    let Some(_guests) = guests(1) else { return };
    let own = tempfile::tempdir().unwrap();
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}")).with_home(&own.path().join("home"));
    let good = project.read("firegopher.lock");
    let other = good.replace("\"bookworm\"", "\"elsewhere\"").replace("\"trixie\"", "\"elsewhere\"");
    for (lock, texts) in [
        ("garbage", ["is not a lock file", "firegopher lock"]),
        ("format = 99\n", ["has format 99", "newer"]),
        ("\0\u{fffd}", ["is not a lock file", "firegopher lock"]),
        (&other, ["elsewhere", "firegopher update"]),
    ] {
        project.write("firegopher.lock", lock);
        let output = project.run(&["build"]).expect(64);
        texts.iter().for_each(|text| assert!(output.stderr.contains(text), "{text}: {output:?}"));
        assert_eq!(project.read("firegopher.lock"), lock, "a lock is never lost");
    }
}

#[test]
fn a_lock_that_lacks_a_package_or_gives_one_another_version_builds_nothing() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    let good = project.read("firegopher.lock");
    let image = good.find("kind = \"image\"").unwrap();
    let at = image + good[image..].find("{ name = \"libc6\"").unwrap();
    let line = good[at..].lines().next().unwrap();
    project
        .write("firegopher.lock", good.replace(&good[good[..at].rfind('\n').unwrap()..at + line.len()], ""));
    let output = project.run(&["build", "--locked"]).expect(1);
    output
        .says("the packages of the image are not whole")
        .says(" needs libc6")
        .says("firegopher update image");
    let version = line.split("version = \"").nth(1).unwrap().split('"').next().unwrap();
    project.write("firegopher.lock", good.replace(line, &line.replace(version, "9.99-1")));
    project.run(&["build", "--locked"]).expect(1).says("the package libc6 the digests of libc6 ");
    project.write("firegopher.lock", &good);
    project.ok(&["build", "--locked"]);
}

#[test]
fn a_lock_that_names_different_bytes_builds_nothing() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP} }}"));
    project.ok(&["build", "--locked"]);
    let good = project.read("firegopher.lock");
    let package = good.lines().find(|line| line.contains("name = \"busybox-static\"")).unwrap();
    let edited = other_blake3(&good, package);
    project.write("firegopher.lock", &edited);
    let plan = project.ok(&["plan", "--verbose"]).stdout;
    assert!(plan.contains("→") && plan.contains("b3:00000000"), "{plan}");
    let output = project.run(&["build", "--locked", "--offline"]).expect(1);
    output.says("gives the package busybox-static a sha256 and a blake3 of different bytes").says("by hand");
    project.write("firegopher.lock", &good);
    project.ok(&["build", "--locked", "--offline"]).says("Nothing to build");
}

#[test]
fn a_lock_from_before_everything_had_a_blake3_is_mended_by_update() {
    let Some(_guests) = guests(1) else { return };
    let text = format!("vm \"a\" {{ {SLEEP} }}");
    let project = Project::new(&text);
    let before = without_blake3(&project.read("firegopher.lock"));
    project.write("firegopher.lock", &before);
    project
        .run(&["build"])
        .expect(64)
        .says("no blake3 for: kernel linux-image-cloud-amd64; ")
        .says("firegopher update");
    let output = project.run(&["update", "kernel"]);
    if lacks_packages(&output.stderr) {
        return skip_for_want_of_packages("no package source answers");
    }
    let update = output.expect(0);
    assert!(update.stdout.contains("image busybox-static "), "what pins nothing is pinned, too: {update:?}");
    project.ok(&["build", "--locked"]);
    project.ok(&["build", "--locked", "--offline"]).says("Nothing to build");
}

// --- Volumes ----------------------------------------------------------------------------------------------------

#[test]
fn volumes_keep_their_size_and_belong_to_one_vm() {
    let Some(_guests) = guests(1) else { return };
    let with = |size: &str| format!("vm \"a\" {{ {SLEEP}; volume \"data\" at=\"/data\" size=\"{size}\" }}");
    let project = Project::new(&with("64MiB"));
    project.up(&["-d"]);
    let volumes = project.home().join("volumes").join(project.state_dir().file_name().unwrap());
    let volume = volumes.join("data.ext4");
    assert_eq!(fs::metadata(&volume).unwrap().len(), 64 << 20);

    let shared = project.run(&["run", "a"]).expect(125);
    shared.says("volume data").says("is used by another VM").says("stop the other one first");
    assert_eq!(project.ps("a").unwrap()["status"], "running");

    project.ok(&["down", "--kill"]);
    assert_clean(&project);
    let inode = fs::metadata(&volume).unwrap().ino();
    project.manifest(&with("128MiB"));
    project.run(&["up"]).expect(64).says("volume data").says("keeps its size").says("down --volumes");
    assert_eq!(fs::metadata(&volume).unwrap().ino(), inode, "the data is still there");
    assert_clean(&project);
}
