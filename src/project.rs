//! A project on this host: its manifest, name, lock and store, opened together and guarded by one lock.

use crate::asset::oci;
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::listing::Listing;
use crate::lock::{Lock, OciImage};
use crate::manifest::model::{ImageSource, Manifest, Vm, VmmSource};
use crate::manifest::{self, Location};
use crate::name::Name;
use crate::net::netns::Netns;
use crate::plan::{
    Host, ObservedVm, Plan, Running, Scan, Situation, StepKind, StoreView, Tools, fill_defaults,
};
use crate::step::{self, Work, tools};
use crate::store::{Action, FileLock, Last, Store, create_private_dir};
use crate::supervise::{self, Drift, Observed, Status};
use crate::ui::Ui;
use crate::vmm::probe;
use fs_err as fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

mod claim;
pub mod identity;
mod left_out;
mod pins;
mod scanning;
mod sensitive;
mod vmms;

pub use claim::{Claim, Claimed, Standing, claims};
pub use identity::{Identity, Naming, claimed_at, identify, named};
pub use left_out::{LeftOut, verdict};
pub use pins::needs_of;
pub use vmms::graph_of_any_host;

pub use crate::lock::FILE_NAME as LOCK_FILE;

/// An opened project.
pub struct Project {
    /// The checked manifest, with what this host makes of it.
    pub manifest: Manifest,
    /// Names its state and volumes on the disk; see [`identity`].
    pub name: Name,
    /// What people call it.
    pub label: Name,
    /// Paths.
    pub home: Home,
    /// Objects and records.
    pub store: Store,
    /// The pins as on disk.
    pub lock: Lock,
    /// VMs of the manifest file whose images are no good, which are not in `manifest`. Empty if those stop the command.
    pub left_out: Vec<LeftOut>,
    /// `manifest` was narrowed to the VMs that a command names.
    pub partial: bool,
    /// Whether VMs may be left out.
    lenient: bool,
    /// What this build brings along.
    pub tools: Tools,
    /// From before manifest and lock were read.
    read: Texts,
    /// Its lock was taken: what is said once can be written down.
    guarded: bool,
}

/// The bytes of manifest and lock file, to see whether they changed.
#[derive(PartialEq, Eq)]
struct Texts([Option<Vec<u8>>; 2]);

impl Texts {
    fn read(at: &Location) -> Texts {
        // What cannot be read is told by whoever parses it.
        Texts([at.path(), at.lock_path()].map(|path| Self::of(&path).ok().flatten()))
    }

    /// The start of a file, which is all of a valid manifest or lock; nothing of a pipe, which would be waited for.
    fn of(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
        let mut options = std::fs::File::options();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(Lock::BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

impl Project {
    /// Opens a project: its manifest, its lock, the store. Says so if it was moved or has another name.
    pub fn open(at: &Location) -> Result<Project> {
        let project = Self::open_leaving_out(at)?;
        let left_out = project.left_out;
        verdict(left_out, Project { left_out: Vec::new(), lenient: false, ..project })
    }

    /// As [`Self::open`]. VMs whose images are no good are left out, unless all are.
    pub fn open_leaving_out(at: &Location) -> Result<Project> {
        let read = Texts::read(at);
        let manifest = manifest::load_at(at)?;
        let home = Home::from_env()?;
        let found = identify(&home, &manifest)?;
        found.news().iter().for_each(|news| Ui::stderr().note(news));
        let store = open_store(&home)?;
        let (manifest, lock, left_out) = complete(manifest, &home, &store)?;
        let (name, label, tools) = (found.key, found.label, tools());
        let lenient = true;
        Ok(Project {
            manifest,
            name,
            label,
            home,
            store,
            lock,
            left_out,
            partial: false,
            lenient,
            tools,
            read,
            guarded: false,
        })
    }

    /// The lock file's name, for messages.
    pub fn lock_name(&self) -> String {
        self.manifest.location().lock_name().to_string_lossy().into_owned()
    }

    /// What runs of this project, by its state on this host.
    pub fn observed(&self) -> Result<Vec<Observed>> {
        supervise::observe(&self.home, &self.name)
    }

    /// Whether hard links lead from the store into no jail. Without root there are none.
    fn store_is_elsewhere(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let device = |path: &Path| path.ancestors().find_map(|dir| Some(fs::metadata(dir).ok()?.dev()));
        nix::unistd::geteuid().is_root()
            && device(&self.home.project(&self.name)) != device(&self.home.store().join("objects"))
    }

    /// Plans against what is observed.
    pub fn plan(&self, scan: &Scan, observed: &[Observed]) -> Plan {
        let any = observed.iter().any(|o| o.alive);
        // What cannot be looked at is not known to have drifted.
        let namespace =
            any.then(|| supervise::project_netns(&self.home, &self.name).ok().flatten()).flatten();
        // Whoever is left out stays as it is.
        let left_out = |o: &Observed| self.left_out.iter().any(|left| left.vm == o.state.vm);
        let lasting = observed.iter().filter(|o| !o.state.ephemeral && !left_out(o));
        let observed: Vec<ObservedVm> = lasting.map(|o| self.observed_vm(o, namespace.as_ref())).collect();
        crate::plan::plan(&Situation {
            project: &self.name,
            manifest: &self.manifest,
            lock: &self.lock,
            scan,
            tools: &self.tools,
            store: &View { store: &self.store, project: &self.name, elsewhere: self.store_is_elsewhere() },
            observed: &observed,
        })
    }

    fn observed_vm(&self, observed: &Observed, namespace: Option<&Netns>) -> ObservedVm {
        let state = &observed.state;
        let running = match (observed.alive, state.status) {
            (true, Status::Starting | Status::Running | Status::Stopping | Status::Restarting) => {
                Running::Yes
            }
            (_, Status::Exited | Status::Failed) => {
                let how = state.outcome().map(|o| o.describe()).unwrap_or_default();
                Running::Ended(how.lines().next().unwrap_or_default().to_owned())
            }
            (true, Status::Unknown) => Running::Yes,
            (false, _) => Running::Lost,
        };
        let drift = supervise::drift(&self.home, &self.name, observed, namespace);
        let drift = drift.unwrap_or_default().into_iter().map(|drift| match drift {
            Drift::Jail => (StepKind::Jail, "its directory is gone".to_owned()),
            Drift::Tap(name) => (StepKind::Tap, format!("{name} is gone")),
        });
        let drift = drift.collect();
        ObservedVm { name: state.vm.clone(), boot_key: state.boot_key, running, drift }
    }

    /// What steps work with.
    pub fn work<'a>(&'a self, scan: &'a Scan, offline: bool, ui: &'a Ui) -> Work<'a> {
        Work {
            project: &self.name,
            dir: &self.manifest.dir,
            manifest: self.manifest.location(),
            home: &self.home,
            store: &self.store,
            lock: &self.lock,
            scan,
            tools: &self.tools,
            offline,
            ui,
        }
    }

    /// Claims the project's state for this directory and takes its lock; waits for whoever holds it. Then reads
    /// manifest and lock file again: they may have changed meanwhile.
    pub fn guard(&mut self, ui: &Ui) -> Result<ProjectGuard> {
        loop {
            let guard = take(&self.home, &self.name, ui)?;
            let at = self.manifest.location();
            let read = Texts::read(&at);
            // An image in a directory fills in settings, too, and may be another one by now.
            let local = |vm: &Vm| matches!(vm.image, ImageSource::OciPath { .. });
            if read != self.read || self.manifest.vms.iter().any(local) {
                let (manifest, lock, left_out) = complete(manifest::load_at(&at)?, &self.home, &self.store)?;
                if !self.lenient {
                    verdict(left_out, ())?;
                    self.left_out.clear();
                } else {
                    self.left_out = left_out;
                }
                (self.manifest, self.lock) = (manifest, lock);
                self.read = read;
            }
            let found = identify(&self.home, &self.manifest)?;
            self.label = found.label;
            if found.key == self.name {
                self.claim()?;
                self.guarded = true;
                return Ok(guard);
            }
            // It was given another name, or somebody took the name: the state there has a lock of its own.
            self.name = found.key;
        }
    }

    /// Writes down whose the state is. The caller holds its lock.
    fn claim(&self) -> Result<()> {
        let state = self.home.project(&self.name);
        let claim = Claim::of(&self.manifest);
        if Claim::load(&state).as_ref() == Some(&claim) {
            return Ok(());
        }
        // What is under its usual key is found by that, too.
        claim.save(&state, self.name != manifest::project_name(&self.manifest))
    }
}

/// A manifest with its lock, and with what only this host and the lock know filled in; and the VMs that are left out.
fn complete(mut manifest: Manifest, home: &Home, store: &Store) -> Result<(Manifest, Lock, Vec<LeftOut>)> {
    let lock = Lock::load(&manifest.location().lock_path())?;
    let (root, dir) = (nix::unistd::geteuid().is_root(), manifest.dir.clone());
    let hardware = || probe::kvm().is_usable();
    vmms::decide(&mut manifest, root, hardware, |source| step::proof::auto(store, &lock, home, &dir, source));
    let left_out = fill(&mut manifest, &lock, store)?;
    Ok((manifest, lock, left_out))
}

/// Fills in what container images say of running them.
fn fill(manifest: &mut Manifest, lock: &Lock, store: &Store) -> Result<Vec<LeftOut>> {
    let dir = manifest.dir.clone();
    let local = |image: &ImageSource| Ok(local_image(store, &dir, image)?.map(|image| image.config));
    let failed = fill_defaults(manifest, lock, local)?;
    Ok(failed.into_iter().map(|(vm, error)| LeftOut { vm, error }).collect())
}

/// What a container image on this host holds; `None` for other sources.
fn local_image(store: &Store, dir: &Path, image: &ImageSource) -> Result<Option<OciImage>> {
    match image {
        ImageSource::OciPath { path, tag } => oci::inspect(store, &dir.join(path), tag.as_deref()).map(Some),
        _ => Ok(None),
    }
}

/// Opens the store; says after a second who keeps it to themselves.
pub fn open_store(home: &Home) -> Result<Store> {
    Store::open_with(home.clone(), &|who| {
        Ui::stderr().note(&format!("waiting for {who}, which has the store"))
    })
}

/// Takes a project's lock, whether its manifest can be read or not; says after a second who is waited for.
pub fn take(home: &Home, key: &Name, ui: &Ui) -> Result<ProjectGuard> {
    let dir = home.project(key);
    let on_wait =
        |who: &str| ui.note(&format!("waiting for {who}, which works on project {}", label(home, key)));
    loop {
        create_private_dir(&dir)?;
        let (path, old) = (dir.join(PROJECT_LOCK), dir.join(OLD_LOCK));
        let lock = crate::store::lock_file(&path, &on_wait)?;
        // Where an older version may be at work, or a VM of that name could not be made.
        let old = match fs::symlink_metadata(&old) {
            Ok(meta) if meta.is_file() => {
                let lock = crate::store::lock_file(&old, &on_wait)?;
                fs::remove_file(&old)
                    .or_failed("state.lock", || format!("cannot remove {}", old.display()))?;
                Some(lock)
            }
            _ => None,
        };
        // A `down` that removed the last of a project took the file away.
        if lock.is_at(&path) {
            return Ok(ProjectGuard { _lock: lock, _old: old });
        }
    }
}

/// The project's lock, in its state. No name of a VM has a dot.
const PROJECT_LOCK: &str = "project.lock";
/// What older versions call it.
const OLD_LOCK: &str = "lock";

/// What people call the project of a key.
pub fn label(home: &Home, key: &Name) -> Name {
    Claim::load(&home.project(key)).and_then(|claim| claim.name).unwrap_or_else(|| key.clone())
}

/// Holds the project's lock until dropped.
pub struct ProjectGuard {
    _lock: FileLock,
    _old: Option<FileLock>,
}

/// The directory that a project's state belongs to.
pub fn claimed_by(state: &Path) -> Option<PathBuf> {
    Some(Claim::load(state)?.directory)
}

/// What this host allows to VMs of this manifest. Making a VM to ask KVM for its worth takes some milliseconds: spared
/// where all of them insist on it.
pub fn host(manifest: &Manifest) -> Host {
    let insist = manifest.vms.iter().all(|vm| matches!(vm.vmm, VmmSource::Firecracker(_)));
    Host { root: nix::unistd::geteuid().is_root(), kvm: insist || probe::kvm().is_usable() }
}

/// Something would have to be fetched, and that was forbidden.
pub fn offline_error(what: &str) -> Error {
    Error::failed("offline", format!("{what}, and --offline forbids fetching"))
        .help("Run the command once without --offline.")
}

struct View<'a> {
    store: &'a Store,
    project: &'a Name,
    /// The store is on another file system than the jails.
    elsewhere: bool,
}

impl StoreView for View<'_> {
    fn action(&self, key: &StepKey) -> Option<Action> {
        self.store.action(key)
    }
    fn has(&self, object: &ObjectDigest) -> bool {
        self.store.has(object)
    }
    fn last(&self, vm: &Name) -> Option<Last> {
        self.store.last(self.project, vm)
    }
    fn copied(&self, object: &ObjectDigest, file: Option<&str>) -> Option<u64> {
        if !self.elsewhere {
            return None;
        }
        let mut path = self.store.object_path(object);
        path.extend(file);
        let files = walkdir::WalkDir::new(path).into_iter().flatten().filter(|e| e.file_type().is_file());
        let bytes: u64 = files.filter_map(|e| Some(e.metadata().ok()?.len())).sum();
        (bytes > 0).then_some(bytes)
    }
    fn listing(&self, object: &ObjectDigest) -> Option<Listing> {
        Listing::decode(&self.store.read(object).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_older_versions_makes_way_for_a_vm_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (home, key, ui) = (Home::new(dir.path()), Name::new("shop").unwrap(), Ui::stderr().quiet());
        let old = home.project(&key).join(OLD_LOCK);
        fs::create_dir_all(home.project(&key)).unwrap();
        // An older command is at work: it is waited for.
        let held = crate::store::lock_file(&old, &|_| ()).unwrap();
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| take(&home, &key, &ui).map(drop));
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(!taking.is_finished());
            drop(held);
            taking.join().unwrap().unwrap();
        });
        assert!(!old.exists());
        fs::create_dir(&old).unwrap();
        drop(take(&home, &key, &ui).unwrap());
        assert!(old.is_dir(), "a VM of that name");
    }
}
