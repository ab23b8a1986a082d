//! A project on this host: its manifest, name, lock and store, opened together and guarded by one lock.

use crate::asset::{self, Apt, oci};
use crate::digest::{ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::listing::Listing;
use crate::lock::{AssetId, Lock, OciPin, Pinned};
use crate::manifest::model::{
    Firecracker, FirecrackerFrom, ImageSource, KernelSource, Manifest, Vm, VmmSource, Workload, WorkloadFrom,
};
use crate::manifest::{self};
use crate::name::Name;
use crate::plan::{
    Graph, Host, Need, ObservedVm, Plan, Running, Scan, ScannedSource, Situation, StoreView, Tools,
    fill_defaults, needs,
};
use crate::step::{self, Work, resolve, tools};
use crate::store::scan::{ScanOptions, scan_dir, scan_file};
use crate::store::{Action, FileLock, Last, Store, create_private_dir};
use crate::supervise::{self, Observed, Status};
use crate::ui::Ui;
use crate::vmm::spec::firecracker_programs;
use crate::vmm::{firecracker, probe};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

mod vmms;

pub use crate::lock::FILE_NAME as LOCK_FILE;

/// An opened project.
pub struct Project {
    /// The checked manifest.
    pub manifest: Manifest,
    /// Its name on this host.
    pub name: Name,
    /// Paths.
    pub home: Home,
    /// Objects and records.
    pub store: Store,
    /// The pins as on disk.
    pub lock: Lock,
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
        Texts([manifest::FILE_NAME, LOCK_FILE].map(|name| fs::read(dir.join(name)).ok()))
    }
}

impl Project {
    /// Opens the project in `dir`: its manifest, its lock, the store.
    pub fn open(dir: &Path) -> Result<Project> {
        let read = Texts::read(dir);
        let manifest = manifest::load(dir)?;
        let name = manifest::project_name(&manifest);
        let home = Home::from_env()?;
        let store = open_store(&home)?;
        let (manifest, lock) = complete(manifest, &home, &store)?;
        Ok(Project { manifest, name, home, store, lock, tools: tools(), read })
    }

    /// Hashes everything on this host that the manifest names.
    pub fn scan(&self, ui: &Ui) -> Result<Scan> {
        let mut scan = Scan::default();
        for vm in &self.manifest.vms {
            if let KernelSource::Path(path) = &vm.kernel {
                self.scan_plain(&mut scan, path)?;
            }
            match &vm.image {
                ImageSource::Path { path, keep_modes } => {
                    self.scan_base(&mut scan, path, *keep_modes, ui)?;
                }
                ImageSource::OciPath { path, tag } => {
                    let id = Scan::image_id(path, tag.as_deref());
                    if let Some(pin) = local_image(&self.manifest.dir, &vm.image)? {
                        scan.images.insert(id, pin);
                    }
                }
                ImageSource::Debian(_) | ImageSource::Url(_) | ImageSource::Oci(_) => {}
            }
            if !matches!(vm.vmm, VmmSource::Firecracker(_)) {
                vm.tuning.check_qemu(vm.name.as_str())?;
            }
            match &vm.vmm {
                VmmSource::QemuPath(path) => self.scan_plain(&mut scan, path)?,
                VmmSource::Firecracker(Firecracker {
                    from: FirecrackerFrom::Dir(dir),
                    version: declared,
                }) => {
                    let [firecracker, jailer] = firecracker_programs(dir);
                    for program in [&firecracker, &jailer] {
                        self.scan_plain(&mut scan, program)?;
                    }
                    let program = self.canonical(&firecracker)?;
                    firecracker::inspect(&program, &self.canonical(&jailer)?)?;
                    let version = step::scanned_version(&self.store, &scan, dir)?;
                    firecracker::version::check_declared(
                        version,
                        *declared,
                        &firecracker.display().to_string(),
                    )?;
                    firecracker::version::check(version, &step::firecracker_needs(vm))?;
                }
                VmmSource::Firecracker(_)
                | VmmSource::Auto
                | VmmSource::Qemu
                | VmmSource::AutoFirecracker(_) => {}
            }
            if let Some(file) = &vm.tuning.cpu_file {
                self.scan_plain(&mut scan, &file.path)?;
                step::cpu_changes(&scan, &file.path)?;
            }
            for workload in &vm.workloads {
                self.scan_workload(&mut scan, workload, ui)?;
            }
        }
        Ok(scan)
    }

    fn scan_plain(&self, scan: &mut Scan, path: &Path) -> Result<()> {
        if let Entry::Vacant(entry) = scan.sources.entry(Scan::file_id(path)) {
            entry.insert(self.file(path)?);
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<ScannedSource> {
        let path = self.canonical(path)?;
        let file = scan_file(&self.store, &path)?;
        Ok(ScannedSource::File { path, digest: file.digest, executable: file.executable })
    }

    fn canonical(&self, path: &Path) -> Result<PathBuf> {
        let full = self.manifest.dir.join(path);
        full.canonicalize().map_err(|e| {
            Error::usage("manifest.path", format!("cannot open {}, which the manifest names", path.display()))
                .because(e)
                .help("Paths are relative to the manifest's directory.")
        })
    }

    fn scan_base(&self, scan: &mut Scan, path: &Path, keep_modes: bool, ui: &Ui) -> Result<()> {
        let Entry::Vacant(entry) = scan.sources.entry(Scan::base_id(path, keep_modes)) else { return Ok(()) };
        let full = self.canonical(path)?;
        let source = if full.is_dir() {
            self.directory(full, &ScanOptions { ignore: &[], keep_modes }, ui)?
        } else if keep_modes {
            return Err(Error::usage(
                "manifest.unused-property",
                format!("`keep=\"modes\"` is for directories, and {} is none", path.display()),
            )
            .help("Remove it: archives and images keep their own modes."));
        } else {
            self.file(path)?
        };
        entry.insert(source);
        Ok(())
    }

    fn directory(&self, path: PathBuf, options: &ScanOptions<'_>, ui: &Ui) -> Result<ScannedSource> {
        let scanned = scan_dir(&self.store, &path, options)?;
        scanned.warnings.iter().for_each(|w| ui.warning(w));
        let digest = scanned.listing.digest();
        Ok(ScannedSource::Dir { path, listing: scanned.listing, digest })
    }

    fn scan_workload(&self, scan: &mut Scan, workload: &Workload, ui: &Ui) -> Result<()> {
        let id = Scan::workload_id(workload);
        let WorkloadFrom::Path(path) = &workload.source else { return Ok(()) };
        if scan.sources.contains_key(&id) {
            return Ok(());
        }
        let path = self.canonical(path)?;
        let source = if path.is_dir() {
            let options = ScanOptions { ignore: &workload.ignore, keep_modes: workload.keep_modes };
            self.directory(path, &options, ui)?
        } else {
            self.file(&path)?
        };
        scan.sources.insert(id, source);
        Ok(())
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
        let observed: Vec<ObservedVm> =
            observed.iter().filter(|o| !o.state.ephemeral).map(observed_vm).collect();
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

    /// Pins what the manifest needs and the lock lacks; returns whether anything was added. Uses the network.
    /// `trust` lets a download without a digest in the manifest be pinned to whatever comes.
    pub fn pin_missing(&mut self, ui: &Ui, locked: bool, offline: bool, trust: bool) -> Result<bool> {
        let graph = Graph::of(&self.manifest);
        let mut missing = needs_of(&graph);
        missing.retain(|need| need.pinned(&self.lock).is_none());
        let Some(first) = missing.first() else { return Ok(false) };
        if locked {
            let names: Vec<String> = missing
                .iter()
                .map(|need| match self.lock.pinned(&need.id) {
                    Some(_) => format!("{} with the digest of the manifest", need.id),
                    None => need.id.to_string(),
                })
                .collect();
            return Err(Error::usage("lock.missing", format!("{LOCK_FILE} lacks: {}", names.join("; ")))
                .help("Run `firegopher lock` without --locked and check the file in."));
        }
        if offline {
            return Err(offline_error(&format!("{LOCK_FILE} lacks {}", first.id)));
        }
        if let (false, Some(need)) = (trust, missing.iter().find(|need| need.is_blind())) {
            return Err(Error::usage(
                "lock.no-digest",
                format!("{} has no `sha256` in the manifest and no pin in {LOCK_FILE}", need.id),
            )
            .help(
                "Write sha256=\"…\" as its publisher names it behind the url, or run `firegopher lock`, which \
                 downloads it once and pins what comes.",
            ));
        }
        self.pin(&missing, ui)?;
        Ok(true)
    }

    /// Resolves assets anew and writes each pin when it is found. Uses the network.
    ///
    /// # Errors
    /// The first of those that cannot be resolved. The others are pinned all the same.
    pub fn pin(&mut self, wanted: &[Need<'_>], ui: &Ui) -> Result<()> {
        for need in wanted {
            let trust = if need.is_blind() { ", trusting what comes: check its sha256" } else { "" };
            ui.note(&format!("pinning {} in {LOCK_FILE}{trust}", need.id));
        }
        let (debian, others): (Vec<&Need<'_>>, Vec<_>) = wanted.iter().partition(|n| n.id.is_debian());
        let pinning = Pinning {
            path: self.manifest.dir.join(LOCK_FILE),
            state: Mutex::new((self.lock.clone(), Vec::new(), 0)),
        };
        if !debian.is_empty() {
            let assets: Vec<AssetId> = debian.into_iter().map(|need| need.id.clone()).collect();
            let apt = Apt::new(&self.home).in_project(&self.manifest.dir);
            let resolved = asset::resolve_all(&self.store, &apt, &assets, ui);
            pinning.found(
                resolved.map(|pins| assets.into_iter().zip(pins.into_iter().map(Pinned::from)).collect()),
            );
        }
        resolve(&others, &self.store, ui, &|ids, pinned| {
            pinning.found(pinned.map(|pinned| ids.iter().cloned().map(|id| (id, pinned.clone())).collect()));
        });
        let (lock, errors, kept) =
            pinning.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if errors.is_empty() || kept > 0 {
            lock.save(&self.manifest.dir.join(LOCK_FILE))?;
            self.lock = lock;
        }
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return fill(&mut self.manifest, &self.lock) };
        ui.clear();
        if kept > 0 {
            ui.note(&format!("{LOCK_FILE} has {kept} of {} pins; the rest failed", wanted.len()));
        }
        // One of them ends the command; each of the others would be what ends the next one.
        errors.for_each(|error| ui.warning(&error.to_string()));
        Err(first)
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
                (self.manifest, self.lock) =
                    complete(manifest::load(&self.manifest.dir)?, &self.home, &self.store)?;
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

/// A lock that is written whenever a pin is found: a command that is killed loses none.
struct Pinning {
    path: PathBuf,
    /// The lock, what went wrong, and how many pins were found.
    state: Mutex<(Lock, Vec<Error>, usize)>,
}

impl Pinning {
    fn found(&self, pins: Result<Vec<(AssetId, Pinned)>>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (lock, errors, kept) = &mut *state;
        let keep = || {
            for (id, pinned) in pins? {
                lock.set(id, pinned)?;
                *kept += 1;
            }
            lock.save(&self.path).map(|_| ())
        };
        errors.extend(keep().err());
    }
}

/// The assets that a graph needs pins for, each once.
pub fn needs_of(graph: &Graph) -> Vec<Need<'_>> {
    let mut all: Vec<Need<'_>> = Vec::new();
    for need in graph.nodes.iter().flat_map(|node| needs(&node.task)) {
        if !all.iter().any(|other| other.id == need.id) {
            all.push(need);
        }
    }
    all
}

/// A manifest with its lock, and with what only this host and the lock know filled in.
fn complete(mut manifest: Manifest, home: &Home, store: &Store) -> Result<(Manifest, Lock)> {
    let lock = Lock::load(&manifest.dir.join(LOCK_FILE))?;
    let (root, dir) = (nix::unistd::geteuid().is_root(), manifest.dir.clone());
    let hardware = || probe::kvm().is_usable();
    vmms::decide(&mut manifest, root, hardware, |source| step::proof::auto(store, &lock, home, &dir, source));
    fill(&mut manifest, &lock)?;
    Ok((manifest, lock))
}

/// Fills in what container images say of running them.
fn fill(manifest: &mut Manifest, lock: &Lock) -> Result<()> {
    let dir = manifest.dir.clone();
    fill_defaults(manifest, lock, |image| local_image(&dir, image))
}

/// What a container image on this host holds; `None` for other sources.
fn local_image(dir: &Path, image: &ImageSource) -> Result<Option<OciPin>> {
    match image {
        ImageSource::OciPath { path, tag } => oci::inspect(&dir.join(path), tag.as_deref()).map(Some),
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

fn observed_vm(observed: &Observed) -> ObservedVm {
    let state = &observed.state;
    let running = match (observed.alive, state.status) {
        (true, Status::Starting | Status::Running | Status::Restarting) => Running::Yes,
        (_, Status::Exited | Status::Failed) => {
            let how = state.outcome().map(|o| o.describe()).unwrap_or_default();
            Running::Ended(how.lines().next().unwrap_or_default().to_owned())
        }
        (true, Status::Unknown) => Running::Yes,
        (false, _) => Running::Lost,
    };
    ObservedVm { name: state.vm.clone(), boot_key: state.boot_key, running }
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
