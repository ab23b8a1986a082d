//! Full systems, from the host's sources: skipped, saying why, where these or the privileges are lacking.

use super::*;
use crate::home::Home;
use crate::image::tests::Tar;
use crate::lock::AssetId;
use crate::packages::PackageSet;
use crate::store::{Store, TempDir};
use fs_err as fs;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

/// What tests share below `target/`, so that each package is downloaded once.
fn home() -> Home {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().nth(3).unwrap();
    Home::new(target.join("tmp").join(format!("scripts-{}", nix::unistd::geteuid())))
}

fn debs(store: &Store, apt: &Apt, id: &AssetId) -> Option<Vec<PathBuf>> {
    let resolved = resolve_all(store, apt, std::slice::from_ref(id), &Silent);
    let pins = crate::testing::unless_without_packages(resolved)?;
    Some(fetch_debs(store, apt, id, &pins[0].packages, &Silent).unwrap())
}

/// Sandboxes for what a test makes; `None`, and the reason counted, where scripts cannot run.
pub(crate) struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    pub(crate) fn new() -> Option<Workshop> {
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("scripts run here as root only");
            return None;
        }
        Some(Workshop { dir: tempfile::tempdir().unwrap() })
    }

    /// The packages with which dpkg installs others.
    pub(crate) fn dpkgs_own(with: &[&str]) -> Option<Vec<PathBuf>> {
        crate::testing::debs(
            &[
                &[
                    "base-files",
                    "base-passwd",
                    "coreutils",
                    "dash",
                    "diffutils",
                    "dpkg",
                    "findutils",
                    "libc-bin",
                    "sed",
                    "tar",
                ],
                with,
            ]
            .concat(),
        )
    }

    /// A package with a script and a finished data tar.
    pub(crate) fn package(&self, name: &str, fields: &str, postinst: &str, data: Vec<u8>) -> PathBuf {
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n\
             Description: a test\n{fields}"
        );
        let control = Tar::default().file("./control", control.as_bytes());
        let control = match postinst {
            "" => control,
            text => control.raw(b"./postinst", b'0', 0o755, (0, 0), b"", text.len() as u64, text.as_bytes()),
        };
        let mut ar = ar::Builder::new();
        for (name, bytes) in
            [("debian-binary", b"2.0\n".to_vec()), ("control.tar", control.end()), ("data.tar", data)]
        {
            ar.add(name, &bytes);
        }
        let path = self.dir.path().join(name);
        fs::write(&path, ar.0).unwrap();
        path
    }

    /// Installs packages, the work being in a store at `home`.
    pub(crate) fn install(&self, home: &Path, debs: &[PathBuf]) -> crate::error::Result<(TempDir, PathBuf)> {
        let temp = Store::open(Home::new(home)).unwrap().temp_dir().unwrap();
        let tar = run_scripts(debs, &temp, &Silent)?;
        Ok((temp, tar))
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}

mod ar {
    /// Packages' outer archives, ar(5).
    pub(super) struct Builder(pub Vec<u8>);

    impl Builder {
        pub(super) fn new() -> Builder {
            Builder(b"!<arch>\n".to_vec())
        }

        pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
            let head = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len());
            self.0.extend_from_slice(head.as_bytes());
            self.0.extend_from_slice(bytes);
            if self.0.len() % 2 == 1 {
                self.0.push(b'\n');
            }
        }
    }
}

#[test]
fn a_package_whose_script_fails_is_named_with_what_it_said() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(mut debs) = Workshop::dpkgs_own(&[]) else { return };
    let script = "#!/bin/sh\necho 'no such luck' >&2\nexit 3\n";
    debs.push(workshop.package("fg-fails", "", script, Tar::default().dir("./").end()));
    let error = workshop.install(&workshop.home(), &debs).unwrap_err();
    assert_eq!(error.code(), "asset.scripts");
    assert_eq!(
        error.to_string(),
        "the packages cannot be installed with their scripts: fg-fails: no such luck (installed fg-fails package \
         post-installation script subprocess returned error exit status 3)"
    );
    let help = error.help_text().unwrap();
    assert!(help.starts_with("without `scripts=#true` they are unpacked"), "{help}");
    assert!(help.contains("the last words were:\n"), "{help}");
}

#[test]
fn a_full_disk_is_told_beforehand_or_by_what_the_programs_say() {
    let Some(workshop) = Workshop::new() else { return };
    let data = vec![7; 12 << 20];
    let tar = || Tar::default().dir("./").file("./large", &data).end();
    let honest = workshop.package("fg-honest", "Installed-Size: 12288\n", "", tar());
    let silent = workshop.package("fg-silent", "Essential: yes\n", "", tar());
    crate::testing::on_small_disk(16 << 20, |disk| {
        let error = workshop.install(&disk.join("home"), &[honest]).unwrap_err();
        assert_eq!(error.code(), "image.disk-full");
        let says = "installing the packages with their scripts needs 24 MiB in ";
        assert!(error.to_string().starts_with(says), "{error}");
        assert!(error.help_text().unwrap().contains("FIREGOPHER_HOME"));

        let error = workshop.install(&disk.join("home"), &[silent]).unwrap_err();
        assert_eq!(error.code(), "asset.disk-full", "{error}: {:?}", error.help_text());
        let says = format!("scripts: no space is left in {}", disk.display());
        assert!(error.to_string().contains(&says), "{error}");
        assert!(error.help_text().unwrap().starts_with("free some space there"));
        let left = fs::read_dir(disk.join("home/v1/tmp")).unwrap().count();
        assert_eq!(left, 0, "what was begun is gone");
    });
}

#[test]
fn a_full_system_is_the_same_bytes_twice_and_its_scripts_ran() {
    if !nix::unistd::geteuid().is_root() {
        crate::testing::skip("scripts run here as root only");
        return;
    }
    let home = home();
    fs::create_dir_all(home.root().parent().unwrap()).unwrap();
    let store = Store::open(home.clone()).unwrap();
    let apt = Apt::new(&home);
    let dir = tempfile::tempdir().unwrap();
    // A user made by a script, a daemon with units to enable, certificates hashed by a trigger.
    let set = PackageSet { scripts: true, ..PackageSet::of(["systemd", "dbus", "ca-certificates"]) };
    let Some(debs) = debs(&store, &apt, &AssetId::Image(set)) else { return };
    let run = || {
        let temp = store.temp_dir().unwrap();
        let tar = match run_scripts(&debs, &temp, &Silent) {
            Ok(tar) => tar,
            Err(e) => panic!("{e}: {:?}", e.help_text()),
        };
        (temp, tar)
    };
    let ((_one, first), (_two, second)) = (run(), run());
    let names = |tar: &Path| {
        let mut names = std::collections::BTreeMap::new();
        let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut hasher = blake3::Hasher::new();
            std::io::copy(&mut entry, &mut hasher).unwrap();
            names.insert(path, (entry.header().as_bytes().to_vec(), hasher.finalize()));
        }
        names
    };
    let (a, b) = (names(&first), names(&second));
    let differ: Vec<_> = a.keys().filter(|path| a.get(*path) != b.get(*path)).collect();
    assert!(differ.is_empty() && a.len() == b.len(), "two runs differ in {differ:?}");
    assert_eq!(named::sha256(&first).unwrap(), named::sha256(&second).unwrap());
    for gone in
        ["./etc/hostname", "./etc/resolv.conf", "./etc/apt/sources.list", "./var/cache/ldconfig/aux-cache"]
    {
        assert!(!a.contains_key(gone), "{gone}");
    }
    let there = |path: &str| assert!(a.contains_key(path), "{path}");
    there("./bin");
    // By scripts: the bundle, the list of users, the shell's link, dpkg's own list.
    for path in
        ["./etc/ssl/certs/ca-certificates.crt", "./etc/shadow", "./var/lib/dpkg/status", "./etc/machine-id"]
    {
        there(path);
    }
    let text = |wanted: &str| text_in(&first, wanted);
    assert_eq!(text("./etc/machine-id"), "");
    assert!(text("./etc/passwd").contains("messagebus:"));
    let status = text("./var/lib/dpkg/status");
    assert_eq!(status.matches("\nStatus: install ok installed\n").count(), debs.len());

    // What a base image is made of it.
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    crate::image::build_base(crate::image::BaseSource::Tar(&first), &out, dir.path()).unwrap();
    let Some(mut e2fsck) = crate::testing::programs::e2fsprogs("e2fsck") else { return };
    let said = e2fsck.arg("-fn").arg(out.join(crate::image::BASE_IMAGE)).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// What a postinst tries that belongs to somebody who means ill; each line of what it says begins with what it reached.
const ATTACK: &str = r#"#!/bin/sh
exec >/attack 2>/dev/null
id -u
# The session is its own, and it has no terminal that input could be put into.
cut -d ' ' -f 6,7 /proc/self/stat
if [ -e /dev/tty ]; then echo 'a terminal'; fi
# What the caller has open.
for open in /proc/self/fd/HOSTFD /proc/1/fd/HOSTFD; do
    if [ -h $open ]; then echo "has $open"; fi
done
# Out of the root: chroot within chroot, and back up from outside of it.
cat > /escape.pl <<'PERL'
mkdir "/x$$"; opendir(my $out, "/"); chroot "/x$$" or exit 1;
chdir $out; chdir ".." for 1 .. 64; chroot "." or exit 1;
print "escaped\n" if -e "SECRET"; open(my $f, ">", "HOSTFILE") && print "wrote\n";
PERL
perl /escape.pl
for root in /proc/1/root /proc/self/root /proc/$PPID/root; do
    for up in "" /.. /../../..; do
        if [ -e "$root${up}SECRET" ]; then echo "reached $root$up"; fi
        if echo x > "$root${up}HOSTFILE"; then echo "wrote $root$up"; fi
    done
done
if [ -s /proc/1/environ ] && tr '\0' '\n' < /proc/1/environ | grep FIREGOPHER_SECRET; then echo 'the environment'; fi
mknod /disk b 8 0 && echo 'made a block device'
mknod /memory c 1 1 && echo 'made a character device'
mount -t tmpfs none /mnt && echo 'mounted'
mount --bind /proc /mnt && echo 'bound'
mount -t proc none /mnt && echo 'mounted proc'
unshare --user --map-root-user true && echo 'made a user namespace'
unshare --mount true && echo 'made a mount namespace'
unshare --net true && echo 'made a network namespace'
echo b > /proc/sysrq-trigger && echo 'sysrq'
echo x > /proc/sys/kernel/core_pattern && echo 'core pattern'
kill -0 HOSTPID && echo 'reached a process'
cat /proc/HOSTPID/status && echo 'saw a process'
ls /proc | grep -x HOSTPID && echo 'saw a pid'
for n in /sys/class/net/*; do echo "$n"; done | grep -v 'class/net/[*]$'
tail -n +3 /proc/net/dev | grep -v 'lo:'
perl -MSocket -e 'socket(my $s, PF_INET, SOCK_STREAM, 0); print "connected\n" if connect($s, sockaddr_in(HOSTPORT, inet_aton("127.0.0.1")))'
perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); print "connected by name\n" if connect($s, sockaddr_un("\0HOSTNAME"))'
perl -e 'print "traced\n" if syscall(101, 16, HOSTPID, 0, 0) == 0'
perl -e 'my $k = syscall(250, 10, "user", "firegopher-attack", 0); print "found a key\n" if $k > 0'
perl -e 'my $b = "\0" x 4096; my $p = "user"; my $d="firegopher-attack"; my $r = syscall(250, 10, -3, $p, $d, 0); print "found a session key\n" if $r > 0'
perl -e 'print "asked for keyrings: $!\n" unless syscall(250, 0, -4, 1) < 0 && $! == 1'
grep -E '^Cap(Prm|Eff|Bnd)|^NoNewPrivs' /proc/self/status
echo done
exit 0
"#;

/// All that is left to see of it: its id within, its session and terminal, the capabilities over its own files, and that it came to its end.
const HARMLESS: &str = "0\n1 0\nCapPrm:\t00000000a00405ff\nCapEff:\t00000000a00405ff\nCapBnd:\t00000000a00405ff\nNoNewPrivs:\t1\ndone\n";

#[test]
fn a_package_that_means_ill_reaches_nothing_of_the_hosts() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(debs) =
        Workshop::dpkgs_own(&["perl-base", "grep", "util-linux", "mount", "init-system-helpers"])
    else {
        return;
    };
    attack(&workshop, debs.clone());

    // Nor of a user's, whose subordinate ids are in a mount namespace of the command's own.
    let needs = [
        "/usr/bin/newuidmap",
        "/usr/bin/newgidmap",
        "/usr/bin/unshare",
        "/usr/bin/setpriv",
        "/etc/subuid",
        "/etc/subgid",
    ];
    if let Some(path) = needs.into_iter().find(|path| !Path::new(path).exists()) {
        return crate::testing::skip(format!("no {path} to give a user subordinate ids"));
    }
    let public = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(public.path(), 0o755);
    let [exe, theirs, temp, ids] = ["test", "debs", "tmp", "ids"].map(|name| public.path().join(name));
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    fs::create_dir(&theirs).unwrap();
    for deb in &debs {
        let copy = theirs.join(deb.file_name().unwrap());
        fs::copy(deb, &copy).unwrap();
        mode(&copy, 0o644);
    }
    fs::create_dir(&temp).unwrap();
    mode(&temp, 0o1777);
    fs::write(&ids, "nobody:200000:65536\n").unwrap();
    let script = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$@\"";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script])
        .args([&ids, &exe])
        .args(["--exact", "asset::scripts_tests::a_users_package_means_ill", "--ignored", "--nocapture"])
        .env(DEBS, &theirs)
        .env("TMPDIR", &temp)
        .current_dir(public.path())
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && said.contains("maintainer scripts cannot run") {
        return crate::testing::skip(format!("users cannot map ids here: {said}"));
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "nothing is left");
}

/// Where a user's test has the packages.
const DEBS: &str = "FIREGOPHER_TEST_DEBS";

#[test]
#[ignore = "other tests run it in a process of its own"]
fn a_users_package_means_ill() {
    let dir = std::env::var_os(DEBS).unwrap();
    let mut debs: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    debs.sort();
    assert!(!nix::unistd::geteuid().is_root());
    attack(&Workshop { dir: tempfile::tempdir().unwrap() }, debs);
}

/// Installs a package that tries to reach what this process has.
fn attack(workshop: &Workshop, mut debs: Vec<PathBuf>) {
    // A file, a listener of each kind, a process, and a key of the caller's session.
    let host = tempfile::tempdir().unwrap();
    let secret = host.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let written = host.path().join("written");
    fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("firegopher-attack-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name)
            .unwrap();
    let _by_name = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    // And a file that it inherits.
    let open = fs::File::open(&secret).unwrap();
    // SAFETY: makes a new descriptor, which is owned from then on.
    let open =
        unsafe { std::os::fd::OwnedFd::from_raw_fd(libc::fcntl(open.as_raw_fd(), libc::F_DUPFD, 200)) };
    let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let script = ATTACK
        .replace("SECRET", secret.to_str().unwrap())
        .replace("HOSTFILE", written.to_str().unwrap())
        .replace("HOSTPID", &process.id().to_string())
        .replace("HOSTPORT", &listener.local_addr().unwrap().port().to_string())
        .replace("HOSTNAME", &name)
        .replace("HOSTFD", &open.as_raw_fd().to_string());
    debs.push(workshop.package("fg-ill", "", &script, Tar::default().dir("./").end()));
    let installed = workshop.install(&workshop.home(), &debs);
    let alive = process.try_wait().unwrap().is_none();
    process.kill().unwrap();
    process.wait().unwrap();
    let (_temp, tar) = installed.unwrap_or_else(|e| panic!("{e}: {:?}", e.help_text()));
    assert!(alive && !written.exists() && fs::read(&secret).unwrap() == b"secret");
    assert_eq!(text_in(&tar, "./attack"), HARMLESS);
    assert!(!names_in(&tar).iter().any(|name| name == "./disk" || name == "./memory"));
}

fn names_in(tar: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

fn text_in(tar: &Path, wanted: &str) -> String {
    let mut archive = tar::Archive::new(fs::File::open(tar).unwrap());
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let found = entries.find(|entry| entry.path().unwrap().display().to_string() == wanted);
    std::io::read_to_string(found.unwrap_or_else(|| panic!("no {wanted}"))).unwrap()
}

#[test]
fn the_hosts_ids_are_unknown_in_the_sandbox_and_its_ids_on_the_host() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(mut debs) = Workshop::dpkgs_own(&[]) else { return };
    // Long enough to be looked at.
    let script = "#!/bin/sh\ncat /proc/self/uid_map > /map\n: > /waiting\nsleep 3\n";
    debs.push(workshop.package("fg-ids", "", script, Tar::default().dir("./").end()));
    let done = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            // Every process that works in this home, by its environment: what ids has it?
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seen.extend(uids_below(&workshop.home()));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            seen
        });
        let installed = workshop.install(&workshop.home(), &debs);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        installed.unwrap_or_else(|e| panic!("{e}: {:?}", e.help_text()));
        watcher.join().unwrap()
    });
    assert!(!seen.is_empty());
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    for uid in seen {
        assert!(uid >= 1_900_000_000, "{uid}");
        assert!(!passwd.contains(&format!(":{uid}:")), "{uid}");
    }
}

/// The uids of processes that have a directory in their environment.
fn uids_below(dir: &Path) -> Vec<u32> {
    let finder = dir.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        std::fs::read(entry.path().join("environ"))
            .is_ok_and(|environment| environment.windows(finder.len()).any(|window| window == finder))
    });
    processes
        .filter_map(|entry| {
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok())
        })
        .collect()
}

#[test]
fn what_is_needed_before_unpacking_is_configured_by_then() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(mut debs) = Workshop::dpkgs_own(&[]) else { return };
    // Unpacked before fg-common is configured, dpkg refuses it.
    let tar = || Tar::default().dir("./").end();
    debs.push(workshop.package("fg-server", "Pre-Depends: fg-common\n", "#!/bin/sh\ncat /made\n", tar()));
    debs.push(workshop.package(
        "fg-common",
        "",
        "#!/bin/sh\nmkdir -p /run/fg\necho x > /run/fg/pid; echo made > /made\n",
        tar(),
    ));
    let (_temp, tar) =
        workshop.install(&workshop.home(), &debs).unwrap_or_else(|e| panic!("{e}: {:?}", e.help_text()));
    let status = text_in(&tar, "./var/lib/dpkg/status");
    assert!(status.contains("Package: fg-server\nStatus: install ok installed\n"), "{status}");
    let names = names_in(&tar);
    assert!(names.iter().any(|name| name == "./run/fg/"), "a directory in /run stays");
    assert!(!names.iter().any(|name| name == "./run/fg/pid"), "and what a process left there does not");
}
