//! Runs the host's `apt-get` and `apt-cache` with lists, state and cache of firegopher's own: the host's sources,
//! keys, proxies and preferences, nothing of its installed packages, and no root. Sources that a manifest names have
//! directories apart, with neither the host's sources nor its keys. Owns `home.apt()`.

use super::apt_error::{Complaints, network_error, source_error};
use super::apt_run::{Said, collect};
use super::apt_sources::{Foreign, host_fingerprint};
use super::progress::Progress;
use super::release;
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::lock::{AssetId, Origin, Release};
use fs_err as fs;
use nix::fcntl::OFlag;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// Lists older than this are renewed before anything new is pinned.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// Settings that `-o` cannot express: what the host adds for its own system must not run or be fetched here.
const CONF: &str = r##"// Written by firegopher; rewritten when it differs.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear AptCli::Hooks;
#clear APT::Architectures;
#clear APT::Default-Release;
#clear Acquire::IndexTargets;
#clear Acquire::Languages;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Color "false";
Acquire::Languages "none";
Acquire::GzipIndexes "false";
Acquire::PDiffs "false";
Acquire::Retries "2";
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
  Optional "0";
};
Debug::NoLocking "true";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
"##;

/// For sources that a manifest names: nothing of the host's may vouch for them, and each of them counts. How old lists
/// may be stays the host's decision (`Acquire::Check-Valid-Until`): snapshots of an archive are always old.
const FOREIGN_CONF: &str = r##"
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Update::Error-Mode "any";
"##;

/// The host's apt with private directories.
#[derive(Debug, Clone)]
pub struct Apt {
    dir: PathBuf,
    os_release: PathBuf,
    /// Where apt's programs are looked for.
    path: OsString,
    /// The project's directory, where paths of keyrings start.
    project: PathBuf,
    /// Sources in place of the host's.
    foreign: Option<Foreign>,
}

/// Holds the private directories against other commands.
pub(super) struct AptLock(#[expect(dead_code, reason = "its flock is the point")] File);

impl Apt {
    /// apt with its directories under `home`. Touches nothing yet.
    pub fn new(home: &Home) -> Apt {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        Apt {
            dir: home.apt(),
            os_release: PathBuf::from("/etc/os-release"),
            path,
            project: PathBuf::from("."),
            foreign: None,
        }
    }

    /// The same for a project, whose manifest names keyrings by paths that start at `dir`.
    #[must_use]
    pub fn in_project(self, dir: &Path) -> Apt {
        Apt { project: dir.to_owned(), ..self }
    }

    /// The apt that serves an asset: the host's, or one with directories of its own for the asset's sources.
    pub(super) fn of(&self, id: &AssetId) -> Apt {
        match id.sources() {
            [] => self.clone(),
            sources => {
                let foreign = Foreign::new(sources, &self.project);
                let dir = self.dir.join("sources").join(foreign.name());
                Apt { dir, foreign: Some(foreign), ..self.clone() }
            }
        }
    }

    /// Whether the keyrings of the manifest's sources can be read.
    pub(super) fn check_keyrings(&self) -> Result<()> {
        self.foreign.as_ref().map_or(Ok(()), Foreign::check_keyrings)
    }

    /// Whether `other` has the same sources.
    pub(super) fn is(&self, other: &Apt) -> bool {
        self.dir == other.dir
    }

    /// The same with other programs.
    #[cfg(test)]
    pub(super) fn with_path(home: &Home, path: &Path) -> Apt {
        Apt { path: path.into(), ..Apt::new(home) }
    }

    /// The distribution whose packages this apt serves: the host's, or that of the first source by its Release file,
    /// which is there once the lists are.
    ///
    /// # Errors
    /// Host if there is no os-release that names one.
    pub fn origin(&self) -> Result<Origin> {
        if let Some(foreign) = &self.foreign {
            return foreign.origin(&self.dir.join("lists"));
        }
        let text = fs::read_to_string(&self.os_release)
            .or_host("asset.os-release", || "cannot tell this host's distribution".to_owned())?;
        super::parse::os_release(&text).ok_or_else(|| {
            Error::host("asset.os-release", format!("{} names no distribution", self.os_release.display()))
        })
    }

    /// Refuses pins of another distribution than this host's, whose apt could not serve them. Sources that the
    /// manifest names serve everywhere.
    ///
    /// # Errors
    /// Usage, naming `firegopher update`.
    pub fn check_origin(&self, id: &AssetId, locked: &Origin) -> Result<()> {
        if !id.sources().is_empty() {
            return Ok(());
        }
        let here = self.origin()?;
        if here == *locked {
            return Ok(());
        }
        Err(Error::usage(
            "lock.other-distribution",
            format!("the lock pins packages of {locked}, this host has {here}"),
        )
        .help("run `firegopher update` to pin this host's packages, or build on the other distribution"))
    }

    /// Fetches the package lists anew. Sources that fail while others answer are noted, not fatal.
    ///
    /// # Errors
    /// Host without apt-get or without any package source; failed without network.
    pub fn refresh(&self, progress: &dyn Progress) -> Result<()> {
        let _lock = self.lock(progress)?;
        self.update(progress).map(|_| ())
    }

    /// The Release files of the lists that are there.
    pub(super) fn snapshot(&self) -> Result<Vec<Release>> {
        release::all(&self.dir.join("lists"))
    }

    /// The suites and codenames of the sources whose lists are there.
    pub(super) fn suites(&self) -> Vec<String> {
        release::suites(&self.dir.join("lists"))
    }

    /// Takes the private directories and makes sure they are there.
    pub(super) fn lock(&self, progress: &dyn Progress) -> Result<AptLock> {
        let failed = || format!("cannot prepare {}", self.dir.display());
        for sub in ["lists/partial", "cache", "empty/partial"] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(self.dir.join(sub))
                .or_failed("asset.apt-dir", failed)?;
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.dir.join("lock"))
            .or_failed("asset.apt-dir", failed)?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(e).or_failed("asset.apt-dir", failed),
                Err(TryLockError::WouldBlock) if start.elapsed() < Duration::from_secs(1) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    progress.note("waiting for another firegopher command that fetches packages");
                    file.lock().or_failed("asset.apt-dir", failed)?;
                    break;
                }
            }
        }
        let write = |name: &str, text: &str| {
            let path = self.dir.join(name);
            let same = fs::read(&path).is_ok_and(|old| old == text.as_bytes());
            if same { Ok(()) } else { fs::write(&path, text) }.or_failed("asset.apt-dir", failed)
        };
        match &self.foreign {
            None => write("apt.conf", CONF)?,
            Some(foreign) => {
                let sources = foreign.prepare(&self.dir)?;
                write("apt.conf", &format!("{CONF}{FOREIGN_CONF}"))?;
                write("source.sources", &sources)?;
            }
        }
        // An empty dpkg status: nothing is installed, so every dependency is part of a closure.
        write("status", "")?;
        Ok(AptLock(file))
    }

    /// Fetches the lists if they are older than an hour or the host's sources changed. The caller holds the lock.
    pub(super) fn update_if_stale(&self, progress: &dyn Progress) -> Result<Complaints> {
        let stamp = self.dir.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| SystemTime::now().duration_since(t).ok());
        let fresh = age.is_some_and(|age| age < FRESH)
            && fs::read_to_string(&stamp).is_ok_and(|text| text == self.fingerprint())
            && self.has_lists();
        if fresh { Ok(Complaints::default()) } else { self.update(progress) }
    }

    /// Fetches the lists. What went wrong with some of the sources is returned, and noted.
    pub(super) fn update(&self, progress: &dyn Progress) -> Result<Complaints> {
        progress.start("fetching package lists", None);
        let stamp = self.dir.join("updated");
        let _ = fs::remove_file(&stamp);
        let said = self.run_with_status(&["update"], None, &mut |_| ())?;
        if said.status.success() && said.complaints.is_empty() && self.has_lists() {
            // Without a stamp the next command fetches the lists again, that is all.
            let _ = fs::write(&stamp, self.fingerprint());
            return Ok(said.complaints);
        }
        if said.complaints.disk_full() {
            return Err(network_error("fetch the package lists", &said.complaints));
        }
        if self.foreign.is_some() {
            // Each of them is named on purpose, and a missing one would change what is chosen from the others.
            return Err(source_error(&said.complaints));
        }
        if self.has_lists() {
            for line in said.complaints.lines() {
                progress.note(&format!("apt-get update: {line}"));
            }
            return Ok(said.complaints);
        }
        if said.complaints.is_empty() {
            return Err(Error::host("asset.no-sources", "this host's apt has no package sources")
                .help("add the distribution's sources to /etc/apt/sources.list.d (see sources.list(5))"));
        }
        Err(network_error("fetch the package lists", &said.complaints))
    }

    /// Changes whenever the sources do.
    fn fingerprint(&self) -> String {
        match &self.foreign {
            Some(foreign) => foreign.fingerprint(&self.dir),
            None => host_fingerprint(self),
        }
    }

    /// Whether any package list is there.
    pub(super) fn has_lists(&self) -> bool {
        let Ok(entries) = fs::read_dir(self.dir.join("lists")) else { return false };
        entries.flatten().any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    }

    /// Runs `apt-get` or `apt-cache` to its end.
    pub(super) fn run<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<Said> {
        let mut command = self.command(program)?;
        command.args(args);
        collect(command, program, &self.dir, None, &mut |_| ())
    }

    /// Runs `apt-get` to its end, in `cwd` if given; hears the percentage of what is being downloaded.
    pub(super) fn run_with_status<S: AsRef<OsStr>>(
        &self,
        args: &[S],
        cwd: Option<&Path>,
        on_percent: &mut dyn FnMut(f64),
    ) -> Result<Said> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)
            .or_failed("asset.apt-run", || "cannot make a pipe for apt-get".to_owned())?;
        let mut command = self.command("apt-get")?;
        command.arg("-o").arg(format!("APT::Status-Fd={}", write.as_raw_fd())).args(args);
        if let Some(cwd) = cwd {
            command.current_dir(cwd);
        }
        collect(command, "apt-get", &self.dir, Some((read, write)), on_percent)
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut programs = std::env::split_paths(&self.path).map(|dir| dir.join(program));
        let found = programs.find(|p| p.is_file()).ok_or_else(|| {
            Error::host("asset.no-apt", format!("this host has no {program}"))
                .help("Debian packages need a host with apt (Debian, Ubuntu or a relative); elsewhere give `path` sources")
        })?;
        let mut command = Command::new(found);
        command.arg("-q").arg("-c").arg(self.dir.join("apt.conf"));
        let dirs = [
            ("Dir::State", ""),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            // Never filled, so --print-uris leaves nothing out.
            ("Dir::Cache::archives", "empty"),
        ];
        for (name, sub) in dirs {
            let mut option = OsString::from(format!("{name}="));
            option.push(self.dir.join(sub));
            command.arg("-o").arg(option);
        }
        if self.foreign.is_some() {
            let mut option = OsString::from("Dir::Etc::sourcelist=");
            option.push(self.dir.join("source.sources"));
            command.arg("-o").arg(option);
        }
        // Messages are parsed; nothing may ask.
        command.env("LC_ALL", "C").env_remove("LANGUAGE").env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }
}
