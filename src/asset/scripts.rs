//! Runs the maintainer scripts of an image's packages, through mmdebstrap: in namespaces, from a repository that
//! holds exactly the pinned packages, to a tar that is the same for every run.

use super::named::sha256;
use super::parallel::parallel;
use super::progress::Progress;
use super::{apt_error, apt_run, parse};
use crate::error::{Context, Error, Result};
use crate::image::room;
use crate::store::TempDir;
use fs_err as fs;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What scripts and mmdebstrap take from the host, or make anew in each run.
const CLEAN: &str = r#"cd "$1" && rm -rf etc/apt/sources.list etc/apt/apt.conf.d/99mmdebstrap \
etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/hostname etc/resolv.conf etc/.pwd.lock etc/passwd- etc/group- etc/shadow- \
etc/gshadow- etc/subuid- etc/subgid- var/cache/ldconfig/aux-cache var/cache/debconf/*-old var/lib/dpkg/*-old \
var/lib/systemd/random-seed var/lib/systemd/catalog/database var/lib/apt/lists/auxfiles \
var/log/dpkg.log var/log/alternatives.log var/log/bootstrap.log var/log/fontconfig.log var/log/apt/* \
&& for dir in var/cache/apt/archives/partial var/lib/apt/lists/partial; do [ ! -d $dir ] || chown 0:0 $dir; done \
&& for dir in var/cache/apt var/lib/apt/lists; do [ ! -d $dir ] || find $dir -type f -delete; done \
&& find var/log -type f -exec truncate -s 0 {} + \
&& if [ -e etc/machine-id ]; then : > etc/machine-id; fi"#;

/// Installs `debs` with their scripts; gives a tar in `temp`, the same bytes for the same packages.
///
/// # Errors
/// Host if this user or host cannot (no root and no subordinate ids, say); failed with mmdebstrap's last words if a
/// script fails, and if there is too little room.
pub fn run_scripts(
    tool: &Path,
    debs: &[PathBuf],
    temp: &TempDir,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        can_map_ids()?;
    }
    progress.start("running maintainer scripts", None);
    // Subordinate ids cannot look into the store's private directories.
    let shared = if root { None } else { Some(temp.outside()?) };
    let work = shared.as_ref().map_or(temp.path(), |dir| dir.path());
    let packages = parallel(debs, |deb| Package::read(deb))?;
    check_room(&packages, work, temp.path())?;
    let repository = work.join("repository");
    write_repository(&packages, &repository)?;
    let mut names: Vec<String> = packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
    names.sort();
    let newest = packages.iter().map(|package| package.built).max().unwrap_or_default();

    let tar = temp.path().join("root.tar");
    let scratch = work.join("work");
    fs::create_dir(&scratch)
        .and_then(|()| fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o1777)))
        .or_failed("asset.scripts", || format!("cannot prepare {}", scratch.display()))?;
    let mut command = command(tool, root);
    command
        .args(["--variant=custom", "--format=tar"])
        .arg(if root { "--mode=root" } else { "--mode=unshare" })
        .arg(format!("--include={}", names.join(",")))
        .arg(format!("--setup-hook={}", merged_usr(tool)?))
        .arg(format!("--customize-hook={CLEAN}"))
        // The tree is thrown away if anything goes wrong: nothing in it needs to be on a disk.
        .arg("--dpkgopt=force-unsafe-io")
        // Whom apt gives its directories to depends on the host; CLEAN does the rest.
        .arg("--skip=cleanup/apt")
        .arg("") // no suite: the repository has none
        .arg(&tar)
        .arg(format!("deb [trusted=yes] copy://{} ./", plain(&repository)?))
        .env("TMPDIR", &scratch)
        .env("SOURCE_DATE_EPOCH", newest.to_string())
        .current_dir("/");
    if !root {
        // All that it starts can be ended at once, whatever their ids.
        command.process_group(0);
    }
    let said = apt_run::collect(command, "mmdebstrap", work, None, &mut |_| ())?;
    if said.status.success() {
        return Ok(tar);
    }
    Err(failure(&said, [work, temp.path()], root))
}

/// What mmdebstrap failed of, working in the first directory and writing its tar to the second.
fn failure(said: &apt_run::Said, dirs: [&Path; 2], root: bool) -> Error {
    let failed = "the packages cannot be installed with their scripts";
    let words: Vec<&str> = said.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = words[words.len().saturating_sub(15)..].join("\n");
    let help = |mend: &str| parse::printable(&format!("{mend}; mmdebstrap's last words were:\n{tail}"));
    if said.complaints.disk_full() || apt_error::says_disk_full(&said.stderr) {
        // Their own names mean nothing, and both are gone by now.
        let mut places = dirs.map(|dir| dir.parent().unwrap_or(dir).display().to_string()).to_vec();
        places.dedup();
        let message = format!("{failed}: no space is left in {}", places.join(" or "));
        let mend = format!("free some space there, or {}", elsewhere(root));
        return Error::failed("asset.disk-full", message).help(help(&mend));
    }
    let message = match apt_error::why_not_installed(&said.stderr) {
        Some(why) => format!("{failed}: {why}"),
        None => format!("{failed}: mmdebstrap ended with {}", said.status),
    };
    let mend = "without `scripts=#true` they are unpacked and no script runs";
    Error::failed("asset.scripts", message).help(help(mend))
}

/// How the work gets another disk.
fn elsewhere(root: bool) -> &'static str {
    if root { "set FIREGOPHER_HOME to a larger disk" } else { "set TMPDIR to a directory on a larger disk" }
}

/// Refuses what would not fit: the tree and the tar of it, and copies of the packages where they cannot be links.
fn check_room(packages: &[Package], work: &Path, temp: &Path) -> Result<()> {
    let sum = |of: fn(&Package) -> u64| packages.iter().map(of).sum::<u64>();
    let (installed, size) = (sum(|package| package.installed), sum(|package| package.size));
    let what = "installing the packages with their scripts";
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    if device(work) == device(temp) {
        return room::check(temp, installed.saturating_mul(2), what);
    }
    room::check(temp, installed, "the tar of the packages, installed with their scripts,")?;
    room::check(work, installed.saturating_add(size), what)
        .map_err(|e| e.help(format!("free some space there, or {}", elsewhere(false))))
}

/// mmdebstrap by the tree's own perl; as root without network and with an end for all its children.
fn command(tool: &Path, root: bool) -> Command {
    // The system's own programs first; newuidmap may be elsewhere.
    let mut path = OsString::from("/usr/sbin:/usr/bin:/sbin:/bin:");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = if root {
        // Of util-linux, which is essential.
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--net", "--"]);
        unshare.arg(tool.join("ld.so"));
        unshare
    } else {
        Command::new(tool.join("ld.so"))
    };
    command
        .args(["--inhibit-cache", "--library-path"])
        .arg(tool.join("lib"))
        .arg(tool.join("perl"))
        .arg("-I")
        .arg(tool.join("modules"))
        .arg(tool.join("mmdebstrap"))
        .env_clear()
        .env("PATH", path)
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// The hook that makes /bin and the like links before anything is unpacked: its text, for whoever it runs as.
fn merged_usr(tool: &Path) -> Result<String> {
    let path = tool.join("merged-usr.sh");
    let text =
        fs::read_to_string(&path).or_failed("asset.read", || format!("cannot read {}", path.display()))?;
    // A hook that is no program's path is given to `sh -c`; as the last word of a line, a comment would hide "$@".
    Ok(format!("{text}\n:"))
}

/// Whether mmdebstrap can map subordinate ids to the users of the image.
fn can_map_ids() -> Result<()> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let user = user.ok().flatten().map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let lacks = |why: String, mend: String| {
        Err(Error::host(
            "asset.scripts-user",
            format!("maintainer scripts cannot run as the user {user}: {why}"),
        )
        .help(format!("{mend}; or run as root, or remove `scripts=#true`")))
    };
    for program in ["newuidmap", "newgidmap"] {
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            return lacks(
                format!("this host has no {program}"),
                "install it (the package uidmap on Debian)".to_owned(),
            );
        }
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !text.lines().any(|line| line.split(':').next() == Some(&user)) {
            return lacks(
                format!("{file} gives it no subordinate ids"),
                format!(
                    "run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root"
                ),
            );
        }
    }
    // Debian's and Ubuntu's switches; hosts without them allow it.
    for (file, off, on) in [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("/proc/sys/user/max_user_namespaces", "0", "10000"),
    ] {
        if fs::read_to_string(file).is_ok_and(|text| text.trim() == off) {
            let name = file.trim_start_matches("/proc/sys/").replace('/', ".");
            return lacks(
                format!("{name} is {off}, so it cannot make user namespaces"),
                format!("run `sysctl {name}={on}` as root"),
            );
        }
    }
    Ok(())
}

/// A flat repository of just these packages.
fn write_repository(packages: &[Package], dir: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", dir.display());
    fs::create_dir(dir).or_failed("asset.scripts", failed)?;
    let stanzas = parallel(packages, |Package { deb, control, size, .. }| {
        let file = format!("{}.deb", deb.file_name().unwrap_or_default().to_string_lossy());
        let to = dir.join(&file);
        if fs::hard_link(deb, &to).is_err() {
            fs::copy(deb, &to).or_failed("asset.scripts", failed)?;
        }
        let sha256 = sha256(&to)?;
        Ok(format!("{control}\nFilename: ./{file}\nSize: {size}\nSHA256: {sha256}\n\n"))
    })?;
    fs::write(dir.join("Packages"), stanzas.concat()).or_failed("asset.scripts", failed)?;
    for entry in [dir.to_owned(), dir.join("Packages")] {
        let mode = if entry == dir { 0o755 } else { 0o644 };
        fs::set_permissions(&entry, std::fs::Permissions::from_mode(mode))
            .or_failed("asset.scripts", failed)?;
    }
    Ok(())
}

/// What is to be known of a package before it is installed.
struct Package {
    deb: PathBuf,
    name: String,
    version: String,
    /// The whole control file.
    control: String,
    /// Of the file, in bytes.
    size: u64,
    /// In bytes, as the package says; 0 if it does not.
    installed: u64,
    /// When it was built, in seconds.
    built: u64,
}

impl Package {
    fn read(deb: &Path) -> Result<Package> {
        let text = control(deb)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let (Some(name), Some(version)) = (field("Package"), field("Version")) else {
            let message = format!("cannot read the package {}: it does not say which it is", deb.display());
            return Err(Error::failed("asset.deb", message));
        };
        // deb-control(5): in KiB.
        let installed = field("Installed-Size").and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
        let size =
            fs::metadata(deb).or_failed("asset.deb", || format!("cannot read {}", deb.display()))?.len();
        Ok(Package {
            deb: deb.to_owned(),
            name,
            version,
            size,
            installed: installed.saturating_mul(1024),
            built: built(deb)?,
            control: text,
        })
    }
}

/// The control file of a package.
fn control(deb: &Path) -> Result<String> {
    let failed = || format!("cannot read the package {}", deb.display());
    let mut archive = tar::Archive::new(crate::image::deb::control_tar(deb)?);
    for entry in archive.entries().or_failed("asset.deb", failed)? {
        let entry = entry.or_failed("asset.deb", failed)?;
        if entry.path_bytes().strip_prefix(b"./").unwrap_or(&entry.path_bytes()) != b"control" {
            continue;
        }
        let mut text = String::new();
        entry.take(1 << 20).read_to_string(&mut text).or_failed("asset.deb", failed)?;
        return Ok(text.trim_end().to_owned());
    }
    Err(Error::failed("asset.deb", format!("{}: it has no control file", failed())))
}

/// When a package was built, in seconds: the time of its first member (ar(5)).
fn built(deb: &Path) -> Result<u64> {
    let failed = || format!("cannot read the package {}", deb.display());
    let mut head = [0; 8 + 28];
    fs::File::open(deb).and_then(|mut file| file.read_exact(&mut head)).or_failed("asset.deb", failed)?;
    let text = String::from_utf8_lossy(&head[8 + 16..]);
    text.trim().parse().or_failed("asset.deb", failed)
}

/// A path as a word of a line in sources.list.
fn plain(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|path| !path.contains(|c: char| c.is_whitespace() || "[]#\"\\".contains(c)))
        .ok_or_else(|| {
            Error::host("asset.scripts", format!("apt takes no repository in {}", path.display()))
                .help("set FIREGOPHER_HOME (or TMPDIR) to a directory whose path holds no white space")
        })
}
