//! Runs the host's `apt-get` and `apt-cache` with lists, state and cache of firegopher's own: the host's sources,
//! keys, proxies and preferences, nothing of its installed packages, and no root. Owns `home.apt()`.

use super::apt_error::{Complaints, network_error};
use super::parse::download_percent;
use super::progress::Progress;
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::lock::Origin;
use fs_err as fs;
use nix::fcntl::OFlag;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
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

/// The host's apt with private directories.
#[derive(Debug, Clone)]
pub struct Apt {
    dir: PathBuf,
    os_release: PathBuf,
    /// Where apt's programs are looked for.
    path: OsString,
}

/// Holds the private directories against other commands.
pub(super) struct AptLock(#[expect(dead_code, reason = "its flock is the point")] File);

/// What a child said.
pub(super) struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub complaints: Complaints,
}

impl Apt {
    /// apt with its directories under `home`. Touches nothing yet.
    pub fn new(home: &Home) -> Apt {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        Apt { dir: home.apt(), os_release: PathBuf::from("/etc/os-release"), path }
    }

    /// The same with other programs.
    #[cfg(test)]
    pub(super) fn with_path(home: &Home, path: &Path) -> Apt {
        Apt { path: path.into(), ..Apt::new(home) }
    }

    /// The distribution whose packages this host's apt serves.
    ///
    /// # Errors
    /// Host if there is no os-release that names one.
    pub fn origin(&self) -> Result<Origin> {
        let text = fs::read_to_string(&self.os_release)
            .or_host("asset.os-release", || "cannot tell this host's distribution".to_owned())?;
        super::parse::os_release(&text).ok_or_else(|| {
            Error::host("asset.os-release", format!("{} names no distribution", self.os_release.display()))
        })
    }

    /// Refuses pins of another distribution than this host's, whose apt could not serve them.
    ///
    /// # Errors
    /// Usage, naming `firegopher update`.
    pub fn check_origin(&self, locked: &Origin) -> Result<()> {
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
        write("apt.conf", CONF)?;
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
            && fs::read_to_string(&stamp).is_ok_and(|text| text == sources_fingerprint())
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
            let _ = fs::write(&stamp, sources_fingerprint());
            return Ok(said.complaints);
        }
        if said.complaints.disk_full() {
            return Err(network_error("fetch the package lists", &said.complaints));
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
        // Messages are parsed; nothing may ask.
        command.env("LC_ALL", "C").env_remove("LANGUAGE").env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }
}

fn collect(
    mut command: Command,
    program: &str,
    dir: &Path,
    status_pipe: Option<(OwnedFd, OwnedFd)>,
    on_percent: &mut dyn FnMut(f64),
) -> Result<Said> {
    let failed = || format!("cannot run {program}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let inherit = status_pipe.as_ref().map(|(_, write)| write.as_raw_fd());
    die_with_us(&mut command, inherit);
    let mut child = command.spawn().or_failed("asset.apt-run", failed)?;
    // Our copy of the write end goes, so that reading ends with the child.
    let status_read = status_pipe.map(|(read, _write)| read);
    let out = child.stdout.take().expect("invariant: stdout is piped");
    let err = child.stderr.take().expect("invariant: stderr is piped");
    let pid = nix::unistd::Pid::from_raw(child.id() as libc::pid_t);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (stdout, stderr, full) = std::thread::scope(|scope| {
        // apt's http method waits for ever once the disk is full, and apt for it.
        let full = scope.spawn(move || {
            let full = stays_full(dir, &is_done);
            if full {
                // Not reaped yet, so the pid is still its own; its methods end with it.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            full
        });
        let out = scope.spawn(|| drain(out));
        let err = scope.spawn(|| drain(err));
        if let Some(read) = status_read {
            for line in BufReader::new(File::from(read)).lines().map_while(Result::ok) {
                if let Some(percent) = download_percent(&line) {
                    on_percent(percent);
                }
            }
        }
        let join = |handle: std::thread::ScopedJoinHandle<'_, String>| handle.join().unwrap_or_default();
        let said = (join(out), join(err));
        drop(done);
        (said.0, said.1, full.join().unwrap_or(false))
    });
    let status = child.wait().or_failed("asset.apt-run", failed)?;
    let mut complaints = Complaints::from_stderr(&stderr);
    if full {
        complaints.extend(Complaints::from_stderr("E: No space left on device"));
    }
    Ok(Said { status, complaints, stdout })
}

/// Whether the disk of `dir` has been full for seconds before `done` was closed.
fn stays_full(dir: &Path, done: &std::sync::mpsc::Receiver<()>) -> bool {
    const PATIENCE: u32 = 6;
    let mut full = 0;
    while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(Duration::from_millis(500)) {
        let room = nix::sys::statvfs::statvfs(dir).is_ok_and(|fs| fs.blocks_available() > 0);
        full = if room { 0 } else { full + 1 };
        if full == PATIENCE {
            return true;
        }
    }
    false
}

fn drain(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read is what there is to say.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The child is killed when the thread that waits for it is gone, and keeps `inherit` open.
fn die_with_us(command: &mut Command, inherit: Option<RawFd>) {
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: only prctl, getppid and fcntl run between fork and exec: async-signal-safe, no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                // We may have died before prctl took effect.
                && libc::getppid() == parent
                && inherit.is_none_or(|fd| libc::fcntl(fd, libc::F_SETFD, 0) == 0);
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

/// Changes whenever the host's sources do: names, sizes and times of the files that hold them.
fn sources_fingerprint() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    for dir in ["/etc/apt/sources.list.d", "/etc/apt/preferences.d"] {
        files.extend(fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()));
    }
    files.sort();
    let describe = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        let mtime = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(format!("{} {} {}\n", path.display(), meta.len(), mtime.as_nanos()))
    };
    files.iter().filter_map(describe).collect()
}
