//! Hosts that run out of disk space or descriptors while VMs run.

use crate::harness::{Project, free_port, get, guests, home, on_small_disk, skip};
use crate::traces::{assert_clean, is_root};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Leaves `bytes` free.
fn fill(disk: &Path, bytes: u64) -> PathBuf {
    let path = disk.join("filler");
    let free = nix::sys::statvfs::statvfs(disk).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    fs::write(&path, vec![1; free.saturating_sub(bytes) as usize]).unwrap();
    path
}

#[test]
fn a_vm_on_a_full_disk_is_paused_goes_on_when_there_is_space_and_is_down_at_once() {
    if !is_root() {
        return skip("a mount needs root");
    }
    let Some(_guests) = guests(1) else { return };
    const PATTERN: &str = "yes 0123456789abcdef | head -c 24000000";
    on_small_disk(600 << 20, |disk| {
        // All but the store, which is the warm one.
        let store = disk.join("v1");
        fs::create_dir(&store).unwrap();
        mount(Some(&home().join("v1")), &store, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let port = free_port();
        let script = format!(
            "nc -l -p 80; {PATTERN} > /data/file; sync; md5sum < /data/file; echo done; \
             nc -l -p 80; {PATTERN} > /data/more; sync; sleep 1000"
        );
        let project = Project::new(&format!(
            "vm \"a\" {{
                image {{ debian \"busybox-static\" }}
                memory \"128MiB\"
                port {port} to=80
                volume \"data\" at=\"/data\" size=\"256MiB\"
                run \"/bin/busybox\" \"sh\" \"-c\" #\"{script}\"#
            }}"
        ))
        .with_home(disk);
        project.up(&["-d"]);
        let filler = fill(disk, 4 << 20);
        // The guest begins to write.
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let row = project.wait_status("a", "paused");
        let detail = row["detail"].as_str().unwrap();
        assert!(detail.starts_with("host disk full: no space is left in"), "{detail}");
        assert!(detail.contains("volume data"), "{detail}");
        let table = project.ok(&["ps"]).stdout;
        assert!(table.contains("paused") && table.contains("host disk full"), "{table}");
        assert!(!project.logs("a").contains("done"));
        fs::remove_file(filler).unwrap();
        let logs = project.wait_log("a", "done");
        let expected = std::process::Command::new("sh").args(["-c", &format!("{PATTERN} | md5sum")]).output();
        let expected = String::from_utf8(expected.unwrap().stdout).unwrap();
        assert!(logs.starts_with(&expected), "{logs:?} instead of {expected:?}");
        assert_eq!(project.ps("a").unwrap()["status"], "running");
        let told = || fs::read_to_string(project.state_dir().join("a/supervisor.log")).unwrap();
        let begun = Instant::now();
        while !told().contains("goes on") {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", told());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(told().contains("paused: host disk full"), "{}", told());
        // Once more, and nobody makes space.
        fill(disk, 4 << 20);
        drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
        project.wait_status("a", "paused");
        let output = project.ok(&["down"]).says("a is paused: host disk full").says("is lost");
        assert!(output.took < Duration::from_secs(8), "{output:?}");
        assert_clean(&project);
    });
}

#[test]
fn clients_that_hold_all_connections_keep_neither_ps_nor_down_from_working() {
    if !is_root() {
        return skip("an ordinary user's ports are published by QEMU itself");
    }
    let Some(_guests) = guests(1) else { return };
    let port = free_port();
    let project = Project::new(&format!(
        "vm \"a\" {{
            image {{ debian \"busybox-static\" }}
            memory \"192MiB\"
            port {port} to=80
            run \"/bin/busybox\" \"httpd\" \"-f\" \"-p\" \"80\" \"-h\" \"/etc\"
        }}"
    ));
    // What many hosts begin with, only less.
    let exe = project.path().join("few-descriptors");
    let binary = env!("CARGO_BIN_EXE_firegopher");
    fs::write(&exe, format!("#!/bin/sh\nulimit -Sn 200 && ulimit -Hn 360 || exit 9\nexec {binary} \"$@\"\n"))
        .unwrap();
    fs::set_permissions(&exe, PermissionsExt::from_mode(0o755)).unwrap();
    let project = project.with_exe(&exe);
    project.up(&["-d"]);
    get(port, "/hostname");
    for round in 0..2 {
        // As many as are taken, and as the backlog holds.
        let mut crowd: Vec<TcpStream> = Vec::new();
        let to = ([127, 0, 0, 1], port).into();
        while let Ok(client) = TcpStream::connect_timeout(&to, Duration::from_secs(2)) {
            crowd.push(client);
            assert!(crowd.len() < 4000, "all get in");
        }
        assert!(crowd.len() > 100, "{}", crowd.len());
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(project.ps("a").unwrap()["status"], "running");
        let supervisor = project.state("a")["supervisor"]["pid"].as_i64().unwrap();
        let open = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().count();
        assert!(open < 300, "{open} descriptors are open");
        if round == 0 {
            drop(crowd);
            get(port, "/hostname");
        } else {
            let output = project.ok(&["down"]);
            assert!(output.took < Duration::from_secs(20), "{output:?}");
            assert_clean(&project);
        }
    }
}
