//! Projects in fresh directories over one warm store, and the commands that are run on them.

mod command;
mod host;
mod http;
pub mod terminal;

pub use command::{Command, Output};
pub use host::{
    guests, home, home_like_the_warm_one, lacks_packages, on_small_disk, seed_home, skip,
    skip_for_want_of_packages,
};
pub use http::{free_port, get, try_get};

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is waited for longest: a guest that boots on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A project of its own, with every pin it may need. Dropped, it takes its VMs, volumes and state along.
pub struct Project {
    dir: tempfile::TempDir,
    home: PathBuf,
    exe: PathBuf,
    env: Vec<(String, String)>,
    /// Runs commands as this user and group, as root would with setpriv.
    uid: Option<u32>,
    /// The host ports of an example, in the manifest's order.
    pub ports: Vec<u16>,
}

impl Project {
    /// An empty directory.
    pub fn empty() -> Project {
        let prefix = format!("fg-e2e-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let exe = PathBuf::from(env!("CARGO_BIN_EXE_firegopher"));
        Project { dir, home: home(), exe, env: Vec::new(), uid: None, ports: Vec::new() }
    }

    /// A directory with this manifest and the lock of the warm store.
    pub fn new(manifest: &str) -> Project {
        let project = Project::empty();
        project.manifest(manifest);
        project.pinned();
        project
    }

    /// A copy of one of `examples/`, its published ports replaced by free ones.
    pub fn example(name: &str) -> Project {
        let mut project = Project::new("");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        copy_tree(&source, project.path());
        project.pinned();
        let text = project.read("firegopher.kdl");
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.trim_start().strip_prefix("port ") {
                Some(rest) => {
                    let port = free_port();
                    project.ports.push(port);
                    let (_, more) = rest.split_once(' ').unwrap();
                    format!("    port {port} {more}")
                }
                None => line.to_owned(),
            })
            .collect();
        project.manifest(&lines.join("\n"));
        project
    }

    /// Keeps everything in another home, which starts empty.
    pub fn with_home(mut self, home: &Path) -> Project {
        self.home = home.to_owned();
        self
    }

    /// Runs another copy of the binary.
    pub fn with_exe(mut self, exe: &Path) -> Project {
        self.exe = exe.to_owned();
        self
    }

    /// Runs all commands as this user; the directory becomes theirs. Only root can.
    #[expect(clippy::wrong_self_convention, reason = "it says who runs the commands; nothing is converted")]
    pub fn as_user(mut self, uid: u32) -> Project {
        self.uid = Some(uid);
        chown_tree(self.path(), uid);
        self
    }

    /// Sets a variable for all commands.
    pub fn env(mut self, name: &str, value: &str) -> Project {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where the project is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where its store and state are.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Writes firegopher.kdl.
    pub fn manifest(&self, text: &str) {
        self.write("firegopher.kdl", text);
    }

    /// Writes a file, with the directories above it.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        if let Some(uid) = self.uid {
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        }
    }

    /// Reads a file.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    fn pinned(&self) {
        if let Some(lock) = host::lock() {
            self.write("firegopher.lock", lock);
        }
    }

    /// The directories of this project's state: `state/NAME`, one for each name it has had.
    pub fn state_dirs(&self) -> Vec<PathBuf> {
        let here = self.path().canonicalize().unwrap();
        host::claims(&self.home).into_iter().filter(|(_, dir)| *dir == here).map(|(state, _)| state).collect()
    }

    /// The directory of this project's state.
    pub fn state_dir(&self) -> PathBuf {
        let mut dirs = self.state_dirs();
        assert_eq!(dirs.len(), 1, "{dirs:?}");
        dirs.remove(0)
    }

    /// A VM's state as its supervisor wrote it.
    pub fn state(&self, vm: &str) -> serde_json::Value {
        let text = std::fs::read(self.state_dir().join(vm).join("state.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// A command on this project, not yet run: `-C DIR ARGS`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.uid {
            None => std::process::Command::new(&self.exe),
            Some(uid) => {
                let mut setpriv = std::process::Command::new("setpriv");
                setpriv.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
                setpriv.arg("--clear-groups").arg("--").arg(&self.exe);
                setpriv
            }
        };
        command.arg("-C").arg(self.path()).args(args);
        command.env("FIREGOPHER_HOME", &self.home).env("NO_COLOR", "1");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Command::new(command)
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output()
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Output {
        self.run(args).expect(0)
    }

    /// `up ARGS`, which must succeed.
    pub fn up(&self, args: &[&str]) -> Output {
        self.ok(&[&["up"], args].concat())
    }

    /// What the VM called `vm` has written so far.
    pub fn logs(&self, vm: &str) -> String {
        self.ok(&["logs", vm]).stdout
    }

    /// Waits until the VM has written this; returns all that it wrote.
    pub fn wait_log(&self, vm: &str, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let logs = self.run(&["logs", vm]);
            if logs.stdout.contains(text) {
                return logs.stdout;
            }
            assert!(begun.elapsed() < PATIENCE, "{vm} never wrote {text:?}: {logs:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// `ps --json`'s row of a VM.
    pub fn ps(&self, vm: &str) -> Option<serde_json::Value> {
        let rows = self.ok(&["ps", "--json"]).json();
        rows["vms"].as_array().unwrap().iter().find(|row| row["name"] == vm).cloned()
    }

    /// Waits for a status in `ps`; returns the row.
    pub fn wait_status(&self, vm: &str, status: &str) -> serde_json::Value {
        let begun = Instant::now();
        loop {
            let row = self.ps(vm);
            if let Some(row) = row.as_ref().filter(|row| row["status"] == status) {
                return row.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "{vm} is never {status}: {row:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the first published port answers; returns the body.
    pub fn wait_http(&self, path: &str) -> String {
        get(self.ports[0], path)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        for state in self.state_dirs() {
            host::remove_project(&self.exe, &self.home, &state);
        }
    }
}

/// Copies a directory; a lock that an example was tried with stays behind.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false if entry.file_name() == "firegopher.lock" => {}
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Gives a directory and all in it to a user.
pub fn chown_tree(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            chown_tree(&entry.unwrap().path(), uid);
        }
    }
}

/// A directory that every user can enter, for tests that change the user.
pub fn public_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("fg-e2e-public-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// The process that waits for a supervisor's end.
pub fn guard_of(supervisor: i32) -> i32 {
    let path = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let waits =
        |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "firegopher-wait";
    children.split_whitespace().find(|pid| waits(pid)).unwrap().parse().unwrap()
}
