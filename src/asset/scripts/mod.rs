//! Runs the maintainer scripts of an image's packages: installs the pinned packages by their own dpkg in a sandbox, and
//! takes a tar of the result that is the same for every run.

mod failure;
mod ids;
mod package;
mod sandbox;

use super::apt_run::{self, Said};
use super::parallel::parallel;
use super::parse;
use super::progress::Progress;
use crate::error::{Context, Error, Result};
use crate::image::deb::data_tar;
use crate::image::room;
use crate::store::TempDir;
use failure::elsewhere;
use fs_err as fs;
use ids::Ids;
use package::Package;
use sandbox::{PACKAGES, ROOT, View};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Installs group after group, then removes what a run leaves or makes anew each time. `$1` is how many groups there are.
const INSTALL: &str = include_str!("install.sh");

/// Where the sandbox has its programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Installs `debs` with their scripts; gives a tar in `temp`, the same bytes for the same packages.
///
/// # Errors
/// Host if this user or host cannot (no root and no subordinate ids, say); failed with the words of the script that
/// failed; and if there is too little room.
pub fn run_scripts(debs: &[PathBuf], temp: &TempDir, progress: &dyn Progress) -> Result<PathBuf> {
    let ids = Ids::of_this_user()?;
    progress.start("running maintainer scripts", None);
    // Subordinate ids cannot look into the store's private directories; root's leased ones are led past them.
    let outside = temp.outside(nix::unistd::geteuid().is_root())?;
    let place = outside.path();
    let packages = parallel(debs, |deb| Package::read(deb))?;
    check_room(&packages, place, temp.path())?;
    let groups = package::order(&packages);
    let sandbox = Sandbox { place, ids: &ids };
    prepare(&packages, &groups, place)?;

    sandbox.own_root()?;
    let unpacked = sandbox.run(unpacker(), View::Host, None, |to| unpack(&packages, &groups, to))?;
    if !unpacked.status.success() {
        return Err(failure::of("unpack what is essential", &unpacked, [place, temp.path()]));
    }
    let installed = sandbox.run(installer(groups.len()), View::System, None, |_| Ok(()))?;
    if !installed.status.success() {
        return Err(failure::of_installing(&installed, [place, temp.path()]));
    }
    let path = temp.path().join("root.tar");
    let tar =
        fs::File::create(&path).or_failed("asset.scripts", || format!("cannot write {}", path.display()))?;
    let newest = packages.iter().map(|package| package.built).max().unwrap_or_default();
    let packed = sandbox.run(packer(newest), View::Root, Some(tar.into_parts().0.into()), |_| Ok(()))?;
    if !packed.status.success() {
        return Err(failure::of("pack what was installed", &packed, [place, temp.path()]));
    }
    Ok(path)
}

/// Where and with which ids programs run.
struct Sandbox<'a> {
    place: &'a Path,
    ids: &'a Ids,
}

impl Sandbox<'_> {
    /// Makes the sandbox's root the owner of its tree.
    fn own_root(&self) -> Result<()> {
        let root = self.place.join(ROOT);
        let failed = || format!("cannot give {} away", root.display());
        if let Some(id) = self.ids.leased_root() {
            return std::os::unix::fs::chown(&root, Some(id), Some(id)).or_failed("asset.scripts", failed);
        }
        let mut command = Command::new("chown");
        command.args(["1:1", "."]);
        let said = self.run(command, View::Owner, None, |_| Ok(()))?;
        match said.status.success() {
            true => Ok(()),
            false => Err(failure::of("own the tree", &said, [self.place, self.place])),
        }
    }

    /// Runs a program to its end, with what `feed` writes as its input.
    fn run(
        &self,
        mut command: Command,
        view: View,
        stdout: Option<Stdio>,
        feed: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    ) -> Result<Said> {
        command
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            // By this those are found who work here; it also is where a program's own temporary files go.
            .env("FIREGOPHER_SANDBOX", self.place)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("DEBCONF_NONINTERACTIVE_SEEN", "true")
            .stdin(Stdio::piped())
            .stdout(stdout.unwrap_or_else(Stdio::piped))
            .stderr(Stdio::piped());
        let mut child = sandbox::spawn(command, self.place, view, self.ids)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        std::thread::scope(|scope| {
            // Nobody needs it, and there may be any amount of it.
            scope.spawn(move || stdout.map(|mut stdout| io::copy(&mut stdout, &mut io::sink())));
            let feeder = scope.spawn(move || match stdin {
                Some(mut stdin) => feed(&mut stdin),
                None => Ok(()),
            });
            let said = apt_run::hear(child, "a program of the packages", self.place, None, &mut |_| ());
            let fed = feeder.join().unwrap_or_else(|_| Err(Error::bug("a thread that unpacks panicked")));
            match said {
                // What it lacked is the cause of its failure only if it has not said another.
                Ok(said) if said.status.success() => fed.map(|()| said),
                other => other,
            }
        })
    }
}

/// The host's tar, which unpacks what the system's own programs need to run.
fn unpacker() -> Command {
    let mut command = Command::new("tar");
    command.args(["--extract", "--preserve-permissions", "--numeric-owner", "--ignore-zeros"]);
    // The links of merged /usr stay links.
    command.args(["--keep-directory-symlink", "--file=-"]);
    command
}

fn installer(groups: usize) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-euc", INSTALL, "sh"]).arg(groups.to_string()).arg(format!("/dev/{PACKAGES}"));
    command
}

/// The system's own tar: it knows the ids and attributes as the sandbox sees them.
fn packer(newest: u64) -> Command {
    let mut command = Command::new("/bin/tar");
    command.args(["--create", "--sort=name", "--numeric-owner", "--format=pax", "--one-file-system"]);
    command.args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]);
    command.args(["--xattrs", "--xattrs-include=*", "--clamp-mtime"]);
    command.arg(format!("--mtime=@{newest}")).args(["--directory=/", "."]);
    command
}

/// Makes the sandbox's directories, with the packages and a list of the files of each group.
fn prepare(packages: &[Package], groups: &[Vec<usize>], place: &Path) -> Result<()> {
    let failed = || format!("cannot prepare {}", place.display());
    let dir = place.join(PACKAGES);
    for dir in [&place.join(ROOT), &dir] {
        fs::create_dir(dir).or_failed("asset.scripts", failed)?;
        fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
            .or_failed("asset.scripts", failed)?;
    }
    parallel(packages, |package| {
        let to = dir.join(package.file());
        if fs::hard_link(&package.deb, &to).is_err() {
            fs::copy(&package.deb, &to).or_failed("asset.scripts", failed)?;
        }
        Ok(())
    })?;
    for (at, group) in groups.iter().enumerate() {
        let mut files: Vec<String> =
            group.iter().map(|&at| format!("/dev/{PACKAGES}/{}\n", packages[at].file())).collect();
        files.sort();
        let list = dir.join(format!("group-{at}"));
        fs::write(&list, files.concat()).or_failed("asset.scripts", failed)?;
    }
    for entry in fs::read_dir(&dir).or_failed("asset.scripts", failed)? {
        let path = entry.or_failed("asset.scripts", failed)?.path();
        // Objects of the store can be read by everybody already, and are shared with it.
        if fs::metadata(&path).or_failed("asset.scripts", failed)?.mode() & 0o444 != 0o444 {
            fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                .or_failed("asset.scripts", failed)?;
        }
    }
    Ok(())
}

/// Writes tars, one after the other: the root's first directories, then the files of the first group.
fn unpack(packages: &[Package], groups: &[Vec<usize>], to: &mut dyn Write) -> Result<()> {
    let gone = || "cannot unpack the packages".to_owned();
    to.write_all(&skeleton().or_failed("asset.scripts", gone)?).or_failed("asset.scripts", gone)?;
    for &at in groups.first().into_iter().flatten() {
        io::copy(&mut data_tar(&packages[at].deb)?, to).or_failed("asset.scripts", gone)?;
    }
    Ok(())
}

/// What no package brings and all count on: merged /usr, as Debian 12 and later have it, and places to mount on.
fn skeleton() -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, mode, target: Option<&str>, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(text.len() as u64);
        match target {
            Some(target) => tar.append_link(&mut header, path, target),
            None => tar.append_data(&mut header, path, text.as_bytes()),
        }
    };
    use tar::EntryType::{Directory, Regular, Symlink};
    add("./", Directory, 0o755, None, "")?;
    for (path, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
        ("var/lib", 0o755),
        ("var/lib/dpkg", 0o755),
    ] {
        add(path, Directory, mode, None, "")?;
    }
    for name in ["bin", "lib", "lib32", "lib64", "libx32", "sbin"] {
        add(&format!("usr/{name}"), Directory, 0o755, None, "")?;
        add(name, Symlink, 0o777, Some(&format!("usr/{name}")), "")?;
    }
    for name in ["available", "status"] {
        add(&format!("var/lib/dpkg/{name}"), Regular, 0o644, None, "")?;
    }
    tar.into_inner()
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
        .map_err(|e| e.help(format!("free some space there, or {}", elsewhere())))
}
