//! What the lock lacks: which pins a manifest needs, and how they get into `firegopher.lock`.

use super::{Project, fill, offline_error, verdict};
use crate::asset::{self, Apt};
use crate::error::{Error, Result};
use crate::lock::{AssetId, Lock, Pinned};
use crate::plan::{Graph, Need, needs};
use crate::step::resolve;
use crate::ui::Ui;
use std::path::PathBuf;
use std::sync::Mutex;

impl Project {
    /// Pins what the manifest needs and the lock lacks; returns whether anything was added. Uses the network.
    /// `trust` lets a download without a digest in the manifest be pinned to whatever comes.
    pub fn pin_missing(&mut self, ui: &Ui, locked: bool, offline: bool, trust: bool) -> Result<bool> {
        let graph = super::graph_of_any_host(&self.manifest);
        let lock_file = self.lock_name();
        let mut missing = needs_of(&graph);
        missing.retain(|need| need.pinned(&self.lock).is_none());
        let Some(first) = missing.first() else { return Ok(false) };
        self.check_outdated(&missing)?;
        if locked {
            let names: Vec<String> = missing
                .iter()
                .map(|need| match self.lock.pinned(&need.id) {
                    Some(_) => format!("{} with the digest of the manifest", need.id),
                    None => need.id.to_string(),
                })
                .collect();
            return Err(Error::usage("lock.missing", format!("{lock_file} lacks: {}", names.join("; ")))
                .help("Run `firegopher lock` without --locked and check the file in."));
        }
        if offline {
            return Err(offline_error(&format!("{lock_file} lacks {}", first.id)));
        }
        if !trust {
            check_blind(&missing, &lock_file)?;
        }
        match self.pin(&missing, ui) {
            Err(error) if self.lenient => {
                self.leave_out_unpinned(error)?;
                self.fill_again()?;
            }
            other => other?,
        }
        Ok(true)
    }

    /// Says of each image of packages what is left undone when their scripts do not run. Its packages are in the store.
    pub fn tell_undone(&self, ui: &Ui) -> Result<()> {
        let graph = super::graph_of_any_host(&self.manifest);
        for need in needs_of(&graph) {
            let (AssetId::Image(set), Some(pins)) = (&need.id, self.lock.get(&need.id)) else { continue };
            if set.scripts || !asset::have_debs(&self.store, pins) {
                continue;
            }
            let debs: Vec<PathBuf> = pins.iter().map(|pin| self.store.object_path(&pin.blake3)).collect();
            let temp = self.store.temp_dir()?;
            if let Some(undone) = crate::image::left_undone(&debs, temp.path())? {
                ui.warning(&format!("{}: {undone}", need.id));
            }
        }
        Ok(())
    }

    /// Refuses what `pin_missing` refuses whatever it is allowed to do, but for trust.
    ///
    /// # Errors
    /// `lock.outdated` and `lock.no-digest`.
    pub fn check_pins(&self) -> Result<()> {
        let graph = super::graph_of_any_host(&self.manifest);
        let mut missing = needs_of(&graph);
        missing.retain(|need| need.pinned(&self.lock).is_none());
        self.check_outdated(&missing)?;
        check_blind(&missing, &self.lock_name())
    }

    fn check_outdated(&self, missing: &[Need<'_>]) -> Result<()> {
        let outdated = missing.iter().filter(|need| self.lock.is_outdated(&need.id));
        let outdated: Vec<String> = outdated.map(|need| need.id.to_string()).collect();
        if !outdated.is_empty() {
            let names = outdated.join("; ");
            return Err(Error::usage("lock.outdated", format!("{} has no blake3 for: {names}", self.lock_name()))
                .help("An older firegopher wrote it. Run `firegopher update`, which pins these anew, and check the file in."));
        }
        Ok(())
    }

    /// Resolves assets anew and writes each pin when it is found. Uses the network.
    ///
    /// # Errors
    /// The first of those that cannot be resolved. The others are pinned all the same.
    pub fn pin(&mut self, wanted: &[Need<'_>], ui: &Ui) -> Result<()> {
        let lock_file = self.lock_name();
        for need in wanted {
            let trust = if need.is_blind() { ", trusting what comes: check its sha256" } else { "" };
            ui.note(&format!("pinning {} in {lock_file}{trust}", need.id));
        }
        let (debian, others): (Vec<&Need<'_>>, Vec<_>) = wanted.iter().partition(|n| n.id.is_debian());
        let debian: Vec<AssetId> = debian.into_iter().map(|need| need.id.clone()).collect();
        let pinning = Pinning {
            path: self.manifest.location().lock_path(),
            state: Mutex::new((self.lock.clone(), Vec::new(), 0)),
        };
        let apt = Apt::new(&self.home).in_project(&self.manifest.dir);
        asset::resolve_each(&self.store, &apt, &debian, ui, &|ids, pins| {
            pinning.found(ids, pins.map(Pinned::from));
        });
        resolve(&others, &self.store, ui, &|ids, pinned| pinning.found(ids, pinned));
        let (lock, errors, kept) =
            pinning.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if errors.is_empty() || kept > 0 {
            lock.save(&self.manifest.location().lock_path())?;
            self.lock = lock;
        }
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return self.fill_again() };
        ui.clear();
        if kept > 0 {
            ui.note(&format!("{lock_file} has {kept} of {} pins; the rest failed", wanted.len()));
        }
        // One of them ends the command; each of the others would be what ends the next one.
        errors.for_each(|error| ui.warning(&error.to_string()));
        Err(first)
    }
}

impl Project {
    /// Fills in what new pins say.
    fn fill_again(&mut self) -> Result<()> {
        let left_out = fill(&mut self.manifest, &self.lock, &self.store)?;
        if !self.lenient {
            return verdict(left_out, ());
        }
        self.left_out.extend(left_out);
        Ok(())
    }
}

/// Refuses downloads of which nothing says what their bytes shall be.
fn check_blind(missing: &[Need<'_>], lock_file: &str) -> Result<()> {
    if let Some(need) = missing.iter().find(|need| need.is_blind()) {
        return Err(Error::usage(
            "lock.no-digest",
            format!("{} has no `sha256` in the manifest and no pin in {lock_file}", need.id),
        )
        .help(
            "Write sha256=\"…\" as its publisher names it behind the url, or run `firegopher lock`, which \
                 downloads it once and pins what comes.",
        ));
    }
    Ok(())
}

/// A lock that is written whenever a pin is found: a command that is killed loses none.
struct Pinning {
    path: PathBuf,
    /// The lock, what went wrong, and how many pins were found.
    state: Mutex<(Lock, Vec<Error>, usize)>,
}

impl Pinning {
    fn found(&self, ids: &[AssetId], pinned: Result<Pinned>) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (lock, errors, kept) = &mut *state;
        let keep = || {
            let pinned = pinned?;
            for id in ids {
                lock.set(id.clone(), pinned.clone())?;
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
