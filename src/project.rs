//! A project on this host: its manifest, name, lock and store, opened together and guarded by one lock.

use crate::asset::oci;
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::listing::Listing;
use crate::lock::{Lock, OciImage};
use crate::manifest::model::{ImageSource, Manifest, Vm, VmmSource};
use crate::manifest::{self};
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
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

mod left_out;
mod pins;
mod scanning;
mod vmms;

pub use left_out::{LeftOut, verdict};
pub use pins::needs_of;
pub use vmms::graph_of_any_host;

pub use crate::lock::FILE_NAME as LOCK_FILE;

/// An opened project.
pub struct Project {
    /// The checked manifest, with what this host makes of it.
    pub manifest: Manifest,
    /// Its name on this host.
    pub name: Name,
    /// Paths.
    pub home: Home,
    /// Objects and records.
    pub store: Store,
    /// The pins as on disk.
    pub lock: Lock,
    /// VMs of the manifest file whose images are no good, which are not in `manifest`. Empty if those stop the command.
    pub left_out: Vec<LeftOut>,
    /// Whether VMs may be left out.
    lenient: bool,
    /// What this build brings along.
    pub tools: Tools,
    /// From before manifest and lock were read.
    read: Texts,
}

/// The bytes of manifest and lock file, to see whether they changed.
#[derive(PartialEq, Eq)]
struct Texts([Option<Vec<u8>>; 2]);

impl Texts {
    fn read(dir: &Path) -> Texts {
        // What cannot be read is told by whoever parses it.
        Texts([manifest::FILE_NAME, LOCK_FILE].map(|name| Self::of(&dir.join(name)).ok().flatten()))
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
    /// Opens the project in `dir`: its manifest, its lock, the store.
    pub fn open(dir: &Path) -> Result<Project> {
        let project = Self::open_leaving_out(dir)?;
        let left_out = project.left_out;
        verdict(left_out, Project { left_out: Vec::new(), lenient: false, ..project })
    }

    /// As [`Self::open`]. VMs whose images are no good are left out, unless all are.
    pub fn open_leaving_out(dir: &Path) -> Result<Project> {
        let read = Texts::read(dir);
        let manifest = manifest::load(dir)?;
        let name = manifest::project_name(&manifest);
        let home = Home::from_env()?;
        let store = open_store(&home)?;
        let (manifest, lock, left_out) = complete(manifest, &home, &store)?;
        let tools = tools();
        Ok(Project { manifest, name, home, store, lock, left_out, lenient: true, tools, read })
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
            home: &self.home,
            store: &self.store,
            lock: &self.lock,
            scan,
            tools: &self.tools,
            offline,
            ui,
        }
    }

    /// Claims the project's name for this directory and takes its lock; waits for whoever holds it. Then reads
    /// manifest and lock file again: they may have changed meanwhile.
    pub fn guard(&mut self, ui: &Ui) -> Result<ProjectGuard> {
        loop {
            let guard = take(&self.home, &self.name, ui)?;
            let read = Texts::read(&self.manifest.dir);
            // An image in a directory fills in settings, too, and may be another one by now.
            let local = |vm: &Vm| matches!(vm.image, ImageSource::OciPath { .. });
            if read != self.read || self.manifest.vms.iter().any(local) {
                let (manifest, lock, left_out) =
                    complete(manifest::load(&self.manifest.dir)?, &self.home, &self.store)?;
                if !self.lenient {
                    verdict(left_out, ())?;
                    self.left_out.clear();
                } else {
                    self.left_out = left_out;
                }
                (self.manifest, self.lock) = (manifest, lock);
                self.read = read;
            }
            let name = manifest::project_name(&self.manifest);
            if name == self.name {
                let claimed = self.home.project(&self.name).join("project.json");
                claim(&claimed, &self.name, &self.manifest.dir)?;
                return Ok(guard);
            }
            // It was given another name, which has a lock of its own.
            self.name = name;
        }
    }
}

/// A manifest with its lock, and with what only this host and the lock know filled in; and the VMs that are left out.
fn complete(mut manifest: Manifest, home: &Home, store: &Store) -> Result<(Manifest, Lock, Vec<LeftOut>)> {
    let lock = Lock::load(&manifest.dir.join(LOCK_FILE))?;
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
pub fn take(home: &Home, name: &Name, ui: &Ui) -> Result<ProjectGuard> {
    let dir = home.project(name);
    create_private_dir(&dir)?;
    let on_wait = |who: &str| ui.note(&format!("waiting for {who}, which works on project {name}"));
    crate::store::lock_file(&dir.join("lock"), &on_wait).map(ProjectGuard)
}

/// Holds the project's lock until dropped.
pub struct ProjectGuard(#[expect(dead_code, reason = "held for its Drop")] FileLock);

#[derive(Serialize, Deserialize)]
struct Claim {
    directory: PathBuf,
}

/// The directory that a project's state belongs to.
pub fn claimed_by(project_dir: &Path) -> Option<PathBuf> {
    let bytes = fs::read(project_dir.join("project.json")).ok()?;
    Some(serde_json::from_slice::<Claim>(&bytes).ok()?.directory)
}

fn claim(path: &Path, name: &Name, dir: &Path) -> Result<()> {
    match path.parent().and_then(claimed_by) {
        Some(owner) if owner == dir => return Ok(()),
        // A project that moved takes its name along.
        Some(owner) if owner.join(manifest::FILE_NAME).exists() => {
            return Err(Error::usage(
                "project.claimed",
                format!("the project name {name} belongs to {}", owner.display()),
            )
            .help("Give one of the two another name with `project \"name\"` in its firegopher.kdl."));
        }
        _ => {}
    }
    let text =
        serde_json::to_vec(&Claim { directory: dir.to_owned() }).map_err(|e| Error::bug(e.to_string()))?;
    fs::write(path, text).or_failed("state.create", || format!("cannot claim the project name {name}"))
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
