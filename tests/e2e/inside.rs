//! What a workload finds inside its guest: who it is, what it may do, what is mounted, and that nothing it says or
//! keeps is lost.

use crate::harness::{PATIENCE, Project, guests, skip};
use crate::traces::{assert_clean, processes_in};
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Busybox as `$b`; each section of what it prints begins with a line `# NAME`.
const LOOK: &str = r##"b=/bin/busybox
section() { echo "# $1"; }
section id; $b id -u; $b id -g; $b id -G
section status; $b cat /proc/self/status
section limits; umask; ulimit -n; ulimit -Hn
section mounts; $b cat /proc/mounts
section modes; $b stat -c '%n %a %u:%g' / /tmp /dev/shm /run /run/lock /dev/null /data /data/deeper
section links; $b readlink /dev/fd; $b readlink /dev/stdin; $b readlink /dev/stderr
section hosts; $b cat /etc/hosts
section resolv; $b cat /etc/resolv.conf
section hostname; $b hostname
section env; echo "$HOME $USER $PWD"
section write; for at in /data /data/deeper /tmp /dev/shm .; do echo kept >$at/file && echo "$at"; done
section refused; echo x 2>/dev/null >/etc/file || echo /etc; $b mount -t tmpfs none /mnt 2>/dev/null || echo mount
section pid1; $b cat /proc/1/comm
section zombies; ( ( $b true & ) ); $b sleep 0.2; $b ps -o stat | $b grep -c Z; true
"##;

fn sections(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut all = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        match line.strip_prefix("# ") {
            // /etc/hosts may hold comments, but not of one word.
            Some(title) if !title.contains(' ') => name = title,
            _ => all.entry(name).or_insert_with(Vec::new).push(line),
        }
    }
    all
}

/// The file that holds a volume.
fn volume(project: &Project, name: &str) -> PathBuf {
    let of = project.state_dir().file_name().unwrap().to_owned();
    project.home().join("volumes").join(of).join(format!("{name}.ext4"))
}

#[test]
fn a_user_has_no_more_rights_than_it_needs_and_all_the_mounts_it_expects() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r#"vm "inside" {
            image { debian "busybox-static" }
            workload "./look.sh" to="/app/"
            workdir "/home/app"
            run "/bin/busybox" "sh" "/app/look.sh"
            user "app"
            hostname "inside.example"
            // The one within the other comes first: mounted second all the same.
            volume "deeper" at="/data/deeper" size="32MiB"
            volume "data" at="/data" size="32MiB"
        }"#,
    );
    project.write("look.sh", LOOK);
    let up = project.up(&[]);
    let told = sections(&up.stdout);
    let line = |section: &str, start: &str| {
        let found = told[section].iter().find(|line| line.starts_with(start));
        *found.unwrap_or_else(|| panic!("no {start:?} in {:?}", told[section]))
    };

    let uid = told["id"][0];
    assert_ne!(uid, "0");
    assert_eq!(told["id"], [uid, uid, uid], "a group of its own, and no other");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line("status", set).split_whitespace().nth(1), Some("0000000000000000"), "{set}");
    }
    assert_eq!(line("status", "CapBnd:"), "CapBnd:\t00000000a98475ff", "what programs may bring it");
    assert_eq!(line("status", "NoNewPrivs:"), "NoNewPrivs:\t0");
    assert_eq!(line("status", "Groups:").trim(), format!("Groups:\t{uid}"));
    assert_eq!(told["limits"], ["0022", "65536", "1048576"]);

    let mounts: BTreeMap<&str, (&str, &str)> = told["mounts"]
        .iter()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[1], (words[2], words[3]))
        })
        .collect();
    for (at, kind, options) in [
        ("/", "overlay", "rw"),
        ("/dev", "devtmpfs", "nosuid"),
        ("/proc", "proc", "nosuid,nodev,noexec"),
        ("/sys", "sysfs", "nosuid,nodev,noexec"),
        ("/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "tmpfs", "nosuid,nodev"),
        ("/dev/mqueue", "mqueue", "nosuid,nodev,noexec"),
        ("/dev/hugepages", "hugetlbfs", "nosuid,nodev"),
        ("/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec"),
        ("/run", "tmpfs", "nosuid,nodev"),
        ("/data", "ext4", "nodev"),
        ("/data/deeper", "ext4", "nodev"),
    ] {
        let (found, with) = mounts.get(at).unwrap_or_else(|| panic!("nothing at {at}: {mounts:#?}"));
        assert_eq!(*found, kind, "{at}");
        assert!(with.contains(options), "{at}: {with}");
    }
    assert_eq!(
        told["modes"],
        [
            "/ 755 0:0",
            "/tmp 1777 0:0",
            "/dev/shm 1777 0:0",
            "/run 755 0:0",
            "/run/lock 1777 0:0",
            "/dev/null 666 0:0",
            &format!("/data 755 {uid}:{uid}"),
            &format!("/data/deeper 755 {uid}:{uid}"),
        ]
    );
    assert_eq!(told["links"], ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/2"]);
    assert!(line("hosts", "127.0.0.1").contains("localhost"));
    assert!(told["hosts"].iter().any(|line| line.contains("inside.example")), "{:?}", told["hosts"]);
    assert_eq!(told["hostname"], ["inside.example"]);
    assert_eq!(told["env"], ["/home/app app /home/app"]);
    assert_eq!(told["write"], ["/data", "/data/deeper", "/tmp", "/dev/shm", "."]);
    assert_eq!(told["refused"], ["/etc", "mount"]);
    assert_eq!(told["pid1"], ["init"]);
    assert_eq!(told["zombies"], ["0"], "what is left to PID 1 is reaped");

    // The host reads no image that a guest could write; e2fsck on a copy says whether it was left whole.
    for name in ["data", "deeper"] {
        let copy = project.path().join(name);
        std::fs::copy(volume(&project, name), &copy).unwrap();
        match Command::new("e2fsck").arg("-fn").arg(&copy).output() {
            Ok(said) => {
                let text = String::from_utf8_lossy(&said.stdout);
                assert!(said.status.success() && !text.contains("recovering journal"), "{text}");
            }
            Err(e) => skip(format!("no e2fsck to check a volume with: {e}")),
        }
    }
    project.ok(&["down", "--volumes"]);
    assert_clean(&project);
}

#[test]
fn root_keeps_what_servers_need_and_nothing_that_reaches_the_kernel() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r##"vm "a" {
            image { debian "busybox-static" }
            run "/bin/busybox" "sh" "-c" #"""
                b=/bin/busybox
                $b grep -E '^(Cap|NoNewPrivs|Groups|Uid|Gid)' /proc/self/status
                $b chown 7:7 /tmp && echo "an owner"
                $b mount -t tmpfs none /mnt 2>/dev/null || echo "no mount"
                $b date -s @0 >/dev/null 2>&1; [ $($b date +%Y) -gt 2000 ] && echo "no clock"
                $b dd if=/dev/mem count=1 of=/dev/null 2>/dev/null || echo "no memory"
                $b readlink /proc/1/exe || echo "no tracing of PID 1"
            """#
        }"##,
    );
    let told = project.ok(&["run"]).stdout;
    // chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
    // net_admin, net_raw, ipc_lock, sys_chroot, sys_nice, sys_resource, mknod, audit_write and setfcap.
    let kept = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 14, 18, 23, 24, 27, 29, 31];
    let kept = kept.iter().fold(0_u64, |set, capability| set | 1 << capability);
    assert_eq!(kept, 0xa984_75ff);
    let none = 0;
    assert_eq!(
        told,
        format!(
            "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 \n\
             CapInh:\t{none:016x}\nCapPrm:\t{kept:016x}\nCapEff:\t{kept:016x}\nCapBnd:\t{kept:016x}\n\
             CapAmb:\t{none:016x}\nNoNewPrivs:\t0\n\
             an owner\nno mount\nno clock\nno memory\nno tracing of PID 1\n"
        )
    );
}

/// Whether an ext4 file system was left whole: state and incompatible features of its superblock (fs/ext4/ext4.h).
fn was_unmounted(image: &std::path::Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut superblock = [0; 1024];
    std::fs::File::open(image).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
    let word = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().unwrap());
    assert_eq!(word(0x38) & 0xffff, 0xef53, "no ext4");
    let (state, incompat) = (word(0x38) >> 16, word(0x60));
    // EXT4_VALID_FS alone, and no EXT4_FEATURE_INCOMPAT_RECOVER.
    state == 1 && incompat & 4 == 0
}

#[test]
fn a_volume_is_left_whole_by_a_workload_that_has_to_be_killed() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r##"vm "a" {
            image { debian "busybox-static" }
            run "/bin/busybox" "sh" "-c" #"""
                trap '' TERM
                exec 3>/data/open
                echo writing
                while :; do echo x >&3; echo x >/data/new; done
            """#
            volume "data" at="/data" size="32MiB"
            grace "1s"
        }"##,
    );
    project.up(&["-d"]);
    project.wait_log("a", "writing");
    assert!(!was_unmounted(&volume(&project, "data")), "it is in use");
    let begun = std::time::Instant::now();
    project.ok(&["down"]);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "it was given its grace");
    assert!(was_unmounted(&volume(&project, "data")));
    project.ok(&["down", "--volumes"]);
}

#[test]
fn a_volume_that_cannot_be_mounted_ends_the_boot_by_name() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r#"vm "a" {
            image { debian "busybox-static" }
            run "/bin/busybox" "true"
            volume "data" at="/data" size="32MiB"
        }"#,
    );
    project.up(&[]);
    // Both the first superblock and the group descriptors behind it.
    let mut file = std::fs::OpenOptions::new().write(true).open(volume(&project, "data")).unwrap();
    file.seek(SeekFrom::Start(1024)).unwrap();
    file.write_all(&[0x5a; 16 << 10]).unwrap();
    drop(file);
    project.run(&["up"]).expect(1).says("the volume \"data\" at /data");
    assert_eq!(project.ps("a").unwrap()["status"], "failed");
    assert_clean(&project);
    assert!(volume(&project, "data").exists(), "nothing of the user's is thrown away");
}

#[test]
fn the_last_bytes_before_the_end_arrive() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(r#"vm "a" { image { debian "busybox-static" }; run "true" }"#);
    const MIB: usize = 8;
    let script = format!(
        "b=/bin/busybox; $b dd if=/dev/zero bs=1M count={MIB} 2>/dev/null | $b tr '\\0' x; echo end; exit 3"
    );
    let run = project.command(&["run", "--", "/bin/busybox", "sh", "-c", &script]).limit(PATIENCE * 2);
    let run = run.output().expect(3);
    assert_eq!(run.stdout.len(), (MIB << 20) + 4);
    assert!(run.stdout.ends_with("xend\n"));
    assert!(run.stdout[..MIB << 20].bytes().all(|byte| byte == b'x'));
}

/// Keeps every core of this host busy twice over until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn new() -> Busy {
        let go_on = Arc::new(AtomicBool::new(true));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cores * 2 {
            let go_on = go_on.clone();
            std::thread::spawn(move || while go_on.load(Ordering::Relaxed) {});
        }
        Busy(go_on)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn boots_survive_a_busy_host() {
    // A kernel that calibrates its clock against an emulated timer hangs when the emulator is not scheduled in time.
    let Some(_turns) = guests(2) else { return };
    let project = Project::new(r#"vm "a" { image { debian "busybox-static" }; run "true" }"#);
    project.ok(&["build"]);
    let _busy = Busy::new();
    for n in 0..3 {
        let run = project.ok(&["run", "--", "/bin/busybox", "echo", "booted"]);
        println!("boot {n} on a busy host: {:?}", run.took);
        assert_eq!(run.stdout, "booted\n");
    }
    assert_eq!(processes_in(&project.state_dir()), [0; 0]);
}
