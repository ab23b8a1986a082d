//! What tests that boot real guests share: artifacts out of one store, and turns, so that two cores are not
//! asked for ten emulated CPUs.

#[path = "../tests/support/disk.rs"]
mod disk;
#[path = "../tests/support/skip.rs"]
mod skipping;
#[expect(dead_code, reason = "the benchmarks use the rest")]
#[path = "../tests/support/web.rs"]
pub mod web;

pub mod programs;
pub mod refused;
pub mod tls;

pub use disk::{on_disk, on_small_disk};
pub use skipping::{skip, skip_for_want_of_packages};

use crate::error::{Error, Result};
use crate::home::Home;
use crate::lock::Lock;
use crate::plan::{Graph, Scan};
use crate::step::{Work, execute, tools};
use crate::store::Store;
use crate::ui::Ui;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// A QEMU tree and a kernel tree, as the fetch steps make them.
#[derive(Debug, Clone)]
pub struct Artifacts {
    pub qemu: PathBuf,
    pub kernel: PathBuf,
}

/// What came of fetching; `None`, and the reason counted, where this machine has no packages to fetch. Everything
/// else that goes wrong is a failure of ours.
pub fn unless_without_packages<T>(fetched: Result<T>) -> Option<T> {
    match fetched {
        Ok(it) => Some(it),
        Err(e) if matches!(e.code(), "asset.no-apt" | "asset.network" | "asset.no-sources") => {
            skip_for_want_of_packages(e);
            None
        }
        Err(e) => panic!("cannot fetch what the test needs: {e}: {e:?}"),
    }
}

/// The artifacts, fetched once and kept below `target/`; `None`, and the reason counted, where they cannot be had.
pub fn artifacts() -> Option<Artifacts> {
    static ARTIFACTS: OnceLock<Option<Artifacts>> = OnceLock::new();
    let artifacts = ARTIFACTS.get_or_init(|| unless_without_packages(fetch())).clone();
    if artifacts.is_none() {
        skip("no QEMU and no kernel");
    }
    artifacts
}

/// The home that tests share: `target/tmp/home-UID`, beside cargo's own directories.
pub fn home() -> Home {
    if let Some(home) = std::env::var_os("FIREGOPHER_TEST_HOME") {
        return Home::new(PathBuf::from(home));
    }
    let exe = std::env::current_exe().expect("a test runs from a file");
    let target = exe.ancestors().nth(3).expect("a test binary is TARGET/PROFILE/deps/NAME");
    Home::new(target.join("tmp").join(format!("home-{}", nix::unistd::geteuid())))
}

/// The packages that `names` need, all of them, fetched once into the shared home and pinned there until the archive
/// has others; `None`, and the reason counted, where there are none.
pub fn debs(names: &[&str]) -> Option<Vec<PathBuf>> {
    let fetch = |anew: bool| -> Result<Vec<PathBuf>> {
        let home = home();
        fs_err::create_dir_all(home.root().parent().expect("it has a parent"))
            .expect("target/ can be written to");
        let store = Store::open(home.clone())?;
        let _guard = crate::store::lock_file(&home.root().join("test.lock.guard"), &|_| ())?;
        let path = home.root().join("test.lock");
        let mut lock = Lock::load(&path)?;
        let id = crate::lock::AssetId::image(names.iter().copied());
        let apt = crate::asset::Apt::new(&home);
        if anew || lock.get(&id).is_none() {
            let mut pins =
                crate::asset::resolve_all(&store, &apt, std::slice::from_ref(&id), &crate::asset::Silent)?;
            lock.set(id.clone(), pins.remove(0))?;
            lock.save(&path)?;
        }
        crate::asset::fetch_debs(&store, &apt, &id, lock.get(&id).unwrap_or_default(), &crate::asset::Silent)
    };
    unless_without_packages(fetch(false).or_else(|e| if is_gone(&e) { fetch(true) } else { Err(e) }))
}

/// Whether the archive has moved on since the packages were pinned.
fn is_gone(error: &Error) -> bool {
    error.code() == "asset.gone"
}

fn fetch() -> Result<Artifacts> {
    fetch_pinned(false).or_else(|e| if is_gone(&e) { fetch_pinned(true) } else { Err(e) })
}

fn fetch_pinned(anew: bool) -> Result<Artifacts> {
    let dir = tempfile::tempdir().map_err(|e| Error::bug(e.to_string()))?;
    let manifest =
        crate::manifest::parse("vm \"x\" { run \"x\" }\n", "test", dir.path()).expect("it is valid");
    let mut graph = Graph::of(&manifest);
    // The kernel and the VMM come first and need nothing else.
    graph.nodes.truncate(2);
    // No VM is made of two nodes alone.
    graph.vms.clear();
    let home = home();
    fs_err::create_dir_all(home.root().parent().expect("it has a parent"))
        .expect("target/ can be written to");
    let store = Store::open(home.clone())?;
    let ui = Ui::stderr().quiet();
    let mut lock = Lock::load(&home.root().join("test.lock"))?;
    let guard = crate::store::lock_file(&home.root().join("test.lock.guard"), &|_| ())?;
    let assets: Vec<_> = crate::project::needs_of(&graph).into_iter().map(|need| need.id).collect();
    if anew || assets.iter().any(|asset| lock.get(asset).is_none()) {
        let pins = crate::asset::resolve_all(&store, &crate::asset::Apt::new(&home), &assets, &ui)?;
        for (asset, pins) in assets.into_iter().zip(pins) {
            lock.set(asset, pins)?;
        }
        lock.save(&home.root().join("test.lock"))?;
    }
    drop(guard);
    let project = crate::manifest::project_name(&manifest);
    let (scan, tools) = (Scan::default(), tools());
    let work = Work {
        dir: &manifest.dir,
        manifest: manifest.location(),
        project: &project,
        home: &home,
        store: &store,
        lock: &lock,
        scan: &scan,
        tools: &tools,
        offline: false,
        ui: &ui,
    };
    let done = execute(&graph, &work)?;
    let object = |n: usize| store.object_path(&done.outputs[n]);
    Ok(Artifacts { kernel: object(0), qemu: object(1) })
}

/// Starts a process that downloads into `store` and kills it when more than `least` bytes have arrived; how many had.
pub fn killed_after(process: &mut std::process::Command, store: &Store, least: u64) -> u64 {
    let mut process = process.spawn().unwrap();
    let arrived = || store.partials().unwrap().iter().map(|partial| partial.size).sum::<u64>();
    for _ in 0..1000 {
        if arrived() > least {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let had = arrived();
    assert!(had > least, "{had}");
    had
}

/// Leave to boot; given back when dropped.
pub struct Turn;

static TURNS: Mutex<usize> = Mutex::new(2);
static FREE: Condvar = Condvar::new();

/// Waits until fewer than two other guests of this process boot or run.
pub fn turn() -> Turn {
    let mut free = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    while *free == 0 {
        free = FREE.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free -= 1;
    Turn
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREE.notify_one();
    }
}
