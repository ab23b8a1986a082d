//! What users other than root may do: what containers let them, unless the manifest says otherwise.

use crate::bases::busybox;
use crate::harness::{Project, guests};
use std::path::Path;

/// Prints what works. The programs are all busybox, which looks at its name.
const TRY: &str = r##"b=/bin/busybox
$b id -u
$b grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
$b cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
answers() { for n in 1 2 3 4 5 6 7 8 9 10; do $b wget -q -O- http://127.0.0.1:$1/etc/note && return; $b sleep 0.3; done; }
$b httpd -p 80 -h / 2>/dev/null; echo "port 80: $(answers 80 2>/dev/null)"
/cap/ping -c1 -W5 127.0.0.1 >/dev/null 2>&1 && echo "raw socket by a file capability"
/cap/httpd -p 81 -h / 2>/dev/null; echo "port 81 by a file capability: $(answers 81 2>/dev/null)"
/suid/ping -c1 -W5 127.0.0.1 >/dev/null 2>&1 && echo "raw socket by a set-user-ID bit"
true
"##;

/// VFS_CAP_REVISION_2, effective, with one permitted capability (linux/capability.h).
fn capability(number: u32) -> Vec<u8> {
    [0x0200_0001, 1 << number, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect()
}

fn rootfs(path: &Path, busybox: &[u8]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut put = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        let kind = if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for dir in ["bin/", "etc/", "suid/", "cap/"] {
        put(dir, 0o755, b"");
    }
    put("etc/note", 0o644, b"works");
    put("etc/try", 0o644, TRY.as_bytes());
    put("bin/busybox", 0o755, busybox);
    put("suid/ping", 0o4755, busybox);
    for (name, number) in [("cap/ping", 13), ("cap/httpd", 10)] {
        let value = capability(number);
        tar.append_pax_extensions([("SCHILY.xattr.security.capability", &value[..])]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_size(busybox.len() as u64);
        tar.append_data(&mut header, name, busybox).unwrap();
    }
    tar.finish().unwrap();
}

#[test]
fn users_may_what_containers_let_them_unless_the_manifest_says_otherwise() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-static\" }; run \"true\" }");
    rootfs(&project.path().join("rootfs.tar"), &busybox(&project));
    let run = |settings: &str| {
        project.manifest(&format!(
            "vm \"a\" {{ image {{ path \"rootfs.tar\" }}; user \"1000:1000\"\n{settings}\n\
             run \"/bin/busybox\" \"sh\" \"/etc/try\" }}"
        ));
        project.ok(&["run"]).stdout
    };
    assert_eq!(
        run(""),
        "1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a98475ff\nNoNewPrivs:\t0\n0\n0\t2147483647\n\
         port 80: works\nraw socket by a file capability\nport 81 by a file capability: works\n\
         raw socket by a set-user-ID bit\n"
    );
    // With the ports as the kernel has them, only what a program brings opens them.
    assert_eq!(
        run(
            "sysctl \"net.ipv4.ip_unprivileged_port_start\" 1024\nsysctl \"net.ipv4.ping_group_range\" \"1 0\""
        ),
        "1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a98475ff\nNoNewPrivs:\t0\n1024\n1\t0\n\
         port 80: \nraw socket by a file capability\nport 81 by a file capability: works\n\
         raw socket by a set-user-ID bit\n"
    );
    assert_eq!(
        run(
            "sysctl \"net.ipv4.ip_unprivileged_port_start\" 1024\nsysctl \"net.ipv4.ping_group_range\" \"1 0\"\n\
             no-new-privileges #true"
        ),
        "1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a98475ff\nNoNewPrivs:\t1\n1024\n1\t0\n\
         port 80: \nport 81 by a file capability: \n"
    );
}
