//! What a fresh volume takes over from the image, and what a guest pays for holes.

use crate::bases::busybox;
use crate::harness::{Project, guests, lacks_packages, skip_for_want_of_packages};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Fetching and unpacking a database takes minutes where other machines are busy.
const LIMIT: Duration = Duration::from_secs(900);

const LOOK: &str = r##"b=/bin/busybox
echo "root: $($b ls -A / | $b grep lost)"
cd /data
$b find . | $b sort | while read name; do $b stat -c '%n %a %u:%g %h %s' "$name"; done | $b sed 's/^\(\. .*\) [0-9]*$/\1/'
$b readlink link
$b cat conf/file 2>/dev/null
/data/busybox ping -c1 -W5 127.0.0.1 >/dev/null 2>&1 && echo capable
$b rm -f conf/file; echo mine >/data/mine
printf x | $b dd of=/var/log/lastlog conv=notrunc bs=1 seek=300 2>/dev/null || echo "no room"
[ $($b du -k /var/log/lastlog | $b cut -f1) -lt 4096 ] && echo "holes stay holes"
"##;

fn rootfs(path: &Path, busybox: &[u8]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let header = |kind: tar::EntryType, mode: u32, owner: u64, size: usize| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_000_000_000);
        header.set_size(size as u64);
        header
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    for (name, mode, owner) in [("bin/", 0o755, 0), ("data/", 0o2750, 70), ("data/conf/", 0o700, 70)] {
        tar.append_data(&mut header(Directory, mode, owner, 0), name, &b""[..]).unwrap();
    }
    for (name, mode, owner, bytes) in [
        ("bin/busybox", 0o755, 0, busybox),
        ("look", 0o644, 0, LOOK.as_bytes()),
        ("data/conf/file", 0o640, 70, b"of the image\n"),
        ("data/suid", 0o4711, 0, b"suid"),
    ] {
        tar.append_data(&mut header(Regular, mode, owner, bytes.len()), name, bytes).unwrap();
    }
    tar.append_link(&mut header(Link, 0o640, 70, 0), "data/same", "data/conf/file").unwrap();
    tar.append_link(&mut header(Symlink, 0o777, 70, 0), "data/link", "conf/file").unwrap();
    // VFS_CAP_REVISION_2, effective, cap_net_raw.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tar.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])]).unwrap();
    tar.append_data(&mut header(Regular, 0o755, 0, busybox.len()), "data/busybox", busybox).unwrap();
    tar.finish().unwrap();
}

#[test]
fn a_fresh_volume_takes_over_what_the_image_has_and_holes_cost_nothing() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-static\" }; run \"true\" }");
    let busybox = busybox(&project);
    rootfs(&project.path().join("rootfs.tar"), &busybox);
    project.write("log/lastlog", "");
    let lastlog = std::fs::File::options().write(true).open(project.path().join("log/lastlog")).unwrap();
    lastlog.set_len(200 << 20).unwrap();
    lastlog.write_all_at(b"the end", (200 << 20) - 7).unwrap();
    project.manifest(
        r#"vm "a" {
            image { path "rootfs.tar" }
            workload "./log" to="/var/log" owner="70:70"
            user "70:70"
            // Only the capability of its file lets the copy in the volume ping.
            sysctl "net.ipv4.ping_group_range" "1 0"
            run "/bin/busybox" "sh" "/look"
            root "scratch" size="48MiB"
            volume "data" at="/data" size="32MiB"
        }"#,
    );
    let size = busybox.len();
    let tail = "holes stay holes\n";
    assert_eq!(
        project.up(&[]).stdout,
        format!(
            "root: \n. 2750 70:70 3\n./busybox 755 0:0 1 {size}\n./conf 700 70:70 2 4096\n\
             ./conf/file 640 70:70 2 13\n./link 777 70:70 1 9\n./same 640 70:70 2 13\n./suid 4711 0:0 1 4\n\
             conf/file\nof the image\ncapable\n{tail}"
        )
    );
    // What the workload has made of it stands: nothing is filled in again.
    assert_eq!(
        project.up(&[]).stdout,
        format!(
            "root: \n. 2750 70:70 3\n./busybox 755 0:0 1 {size}\n./conf 700 70:70 2 4096\n./link 777 70:70 1 9\n\
             ./mine 644 70:70 1 5\n./same 640 70:70 1 13\n./suid 4711 0:0 1 4\nconf/file\ncapable\n{tail}"
        )
    );
    project.ok(&["down", "--volumes"]);
}

#[test]
fn a_volume_that_is_too_small_for_what_the_image_has_fails_the_boot_and_says_so() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-static\" }; run \"true\" }");
    let busybox = busybox(&project);
    let image = |large: &[u8]| {
        let mut tar = tar::Builder::new(std::fs::File::create(project.path().join("rootfs.tar")).unwrap());
        for (name, bytes) in [("bin/busybox", &busybox[..]), ("data/large", large)] {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o755);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.finish().unwrap();
    };
    image(&vec![7; 40 << 20]);
    project.manifest(
        r#"vm "a" {
            image { path "rootfs.tar" }
            run "/bin/busybox" "cat" "/data/large"
            volume "data" at="/data" size="32MiB"
        }"#,
    );
    project.run(&["up"]).expect(1).says("the volume \"data\" at /data").says("make it larger (`size`)");
    // It is begun anew once the image has less there.
    image(b"little");
    project.up(&[]).prints("little");
    project.ok(&["down", "--volumes"]);
}

/// It wants an empty directory of its own user's, and makes one of some thousand files.
#[test]
fn initdb_makes_a_database_in_a_fresh_volume() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new(
        r#"vm "a" {
            memory "512MiB"
            image { debian "postgresql-15" }
            user "postgres"
            run "/usr/lib/postgresql/15/bin/initdb" "-D" "/var/lib/postgresql/data"
            volume "data" at="/var/lib/postgresql/data" size="256MiB"
        }"#,
    );
    let built = project.command(&["build"]).limit(LIMIT).output();
    if built.code != Some(0) && lacks_packages(&built.stderr) {
        return skip_for_want_of_packages(&built.stderr);
    }
    built.expect(0);
    let up = project.command(&["up"]).limit(LIMIT).output().expect(0);
    assert!(up.stdout.contains("owned by user \"postgres\""), "{up:?}");
    assert!(up.stdout.contains("\nSuccess. You can now start the database server"), "{up:?}");
    project.ok(&["down", "--volumes"]);
}
