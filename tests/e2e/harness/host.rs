//! What all tests of this process share: the warm store with its pins, turns to boot, and the count of what could
//! not be tested here.

#[path = "../../support/disk.rs"]
mod disk;
#[path = "../../support/skip.rs"]
mod skipping;

pub use disk::on_small_disk;
pub use skipping::{skip, skip_for_want_of_packages};

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// More would starve each other: the tests' machines have two cores.
const GUESTS_AT_ONCE: usize = 2;

/// Every image that a test boots, so that one run of apt pins them all.
const WARM: &str = r#"
vm "plain" { run "true" }
vm "hello" { image { debian "busybox-static" }; run "true" }
vm "python" { image { debian "python3" }; run "true" }
"#;

/// The home that these tests and the library's share.
pub fn home() -> PathBuf {
    std::env::var_os("FIREGOPHER_TEST_HOME").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("home-{}", nix::unistd::geteuid())),
        PathBuf::from,
    )
}

/// The pins of everything in the warm store, once it is warm.
pub fn lock() -> Option<String> {
    std::fs::read_to_string(lock_path()).ok()
}

fn lock_path() -> PathBuf {
    home().join("e2e.lock")
}

/// Leave to run this many guests; given back when dropped.
pub struct Guests(usize);

static FREE: Mutex<usize> = Mutex::new(GUESTS_AT_ONCE);
static FREED: Condvar = Condvar::new();

/// Waits for the turn of a test that runs `count` guests at once. `None`, and the reason printed and counted, where
/// none can run.
pub fn guests(count: usize) -> Option<Guests> {
    static WARMED: OnceLock<Result<(), String>> = OnceLock::new();
    if let Err(why) = WARMED.get_or_init(warm) {
        skip_for_want_of_packages(why);
        return None;
    }
    let count = count.min(GUESTS_AT_ONCE);
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    while *free < count {
        free = FREED.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free -= count;
    Some(Guests(count))
}

impl Drop for Guests {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        FREED.notify_all();
    }
}

/// Pins, fetches and builds what the tests boot. Costs seconds the first time and little afterwards.
fn warm() -> Result<(), String> {
    remove_orphans();
    let project = super::Project::empty();
    project.manifest(WARM);
    // A home is its owner's alone, whatever the umask.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home()).unwrap();
    // One from before everything had a BLAKE3 pins nothing.
    if let Some(lock) = lock().filter(|lock| lock.contains("blake3 = ")) {
        project.write("firegopher.lock", lock);
    }
    let built = project.command(&["build"]).limit(Duration::from_secs(900)).output();
    match built.code {
        Some(0) => {}
        // Anything else is a failure of firegopher's.
        _ if lacks_packages(&built.stderr) => return Err(built.stderr),
        _ => panic!("cannot build what the tests boot: {built:?}"),
    }
    std::fs::write(lock_path(), project.read("firegopher.lock")).unwrap();
    Ok(())
}

/// Whether a command said that this machine has no packages to give: no apt, no sources, no network.
pub fn lacks_packages(stderr: &str) -> bool {
    [
        "this host has no apt-get",
        "this host's apt has no package sources",
        "check this host's network, or the proxy",
    ]
    .iter()
    .any(|sentence| stderr.contains(sentence))
}

/// Every `state/NAME` of a home with the directory that claims it.
pub fn claims(home: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(home.join("state")) else { return Vec::new() };
    let claim = |path: PathBuf| Some((firegopher::project::claimed_by(&path)?, path));
    entries.flatten().filter_map(|e| claim(e.path())).map(|(dir, state)| (state, dir)).collect()
}

/// Stops what runs of a project and removes its state, whatever became of its directory.
pub fn remove_project(exe: &Path, home: &Path, state: &Path) {
    let name = state.file_name().unwrap().to_string_lossy();
    let mut command = std::process::Command::new(exe);
    command.args(["down", "--project", &name, "--volumes", "--kill"]).env("FIREGOPHER_HOME", home);
    // Homes are used by their owners alone.
    if let Ok(meta) = std::fs::metadata(home) {
        use std::os::unix::fs::MetadataExt;
        use std::os::unix::process::CommandExt;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            command.uid(meta.uid()).gid(meta.gid()).current_dir("/");
        }
    }
    match command.output() {
        Ok(output) if output.status.success() => drop(std::fs::remove_dir_all(state)),
        other => eprintln!("cannot remove the project {name}: {other:?}"),
    }
}

/// Removes the projects of earlier runs that were killed before they could.
fn remove_orphans() {
    let exe = Path::new(env!("CARGO_BIN_EXE_firegopher"));
    for (state, dir) in claims(&home()) {
        let Some(name) = dir.file_name().and_then(|n| n.to_str()) else { continue };
        let Some(pid) = name.strip_prefix("fg-e2e-").and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            remove_project(exe, &home(), &state);
            let _ = std::fs::remove_dir_all(&dir);
        }
    }
}

/// A home of somebody else's with nothing in it but the packages of the warm store: what a download leaves.
pub fn seed_home(to: &Path, uid: u32) {
    let (from, into) = (home().join("v1"), to.join("v1"));
    let kept = |path: &str| {
        std::fs::create_dir_all(into.join(path).parent().unwrap()).unwrap();
        std::fs::copy(from.join(path), into.join(path)).unwrap();
    };
    for dir in std::fs::read_dir(from.join("actions")).unwrap().flatten() {
        for action in std::fs::read_dir(dir.path()).unwrap().flatten() {
            let text = std::fs::read(action.path()).unwrap();
            let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
            if record["kind"] != "deb" {
                continue;
            }
            let output = record["output"].as_str().unwrap();
            kept(&format!("objects/{}/{output}", &output[..2]));
            kept(action.path().strip_prefix(&from).unwrap().to_str().unwrap());
        }
    }
    private(to);
    super::chown_tree(to, uid);
}

/// A home of one's own that holds what the warm one does, in files of its own. Belongs to `uid` if there is one.
pub fn home_like_the_warm_one(to: &Path, uid: Option<u32>) {
    let (from, into) = (home().join("v1"), to.join("v1"));
    // Records first: others may be filling the warm store, and a record comes after what it names.
    for area in ["actions", "objects"] {
        clone_tree(&from.join(area), &into.join(area), area == "objects" && uid.is_none());
    }
    private(to);
    if let Some(uid) = uid {
        super::chown_tree(to, uid);
    }
    // What is still to be written out may take other blocks than it said, and gc counts them.
    nix::unistd::syncfs(std::fs::File::open(to).unwrap()).unwrap();
}

/// Copies a tree with its modes and links, files by hard link if they may be shared.
fn clone_tree(from: &Path, to: &Path, share: bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            clone_tree(&path, &target, share);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path).unwrap(), &target).unwrap();
        } else if !share || std::fs::hard_link(&path, &target).is_err() {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Directories 0700, as the store demands.
fn private(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.path().is_dir()) {
        private(&entry.path());
    }
}
