//! What the manifest names on this host, hashed and checked.

use super::sensitive::Remember;
use super::{Project, local_image, sensitive};
use crate::error::{Error, Result};
use crate::lock::AssetId;
use crate::manifest;
use crate::manifest::model::{
    Firecracker, FirecrackerFrom, ImageSource, KernelSource, VmmSource, Workload, WorkloadFrom,
};
use crate::packages::PackageSet;
use crate::plan::{Scan, ScannedSource};
use crate::step;
use crate::store::scan::{IgnoreFiles, ScanOptions, scan_dir, scan_file};
use crate::ui::Ui;
use crate::vmm::firecracker;
use crate::vmm::spec::firecracker_programs;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The code for a path that leads nowhere.
const NOT_THERE: &str = "manifest.no-such-file";

impl Project {
    /// Hashes everything on this host that the manifest names.
    ///
    /// # Errors
    /// Usage with a report of everything that is not there; else the first thing that cannot be read or used.
    pub fn scan(&self, ui: &Ui) -> Result<Scan> {
        self.scan_all(ui).map_err(|error| match error.code() {
            NOT_THERE => manifest::missing_files(&self.manifest.location()).unwrap_or(error),
            _ => error,
        })
    }

    fn scan_all(&self, ui: &Ui) -> Result<Scan> {
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
                    if let Some(image) = local_image(&self.store, &self.manifest.dir, &vm.image)? {
                        scan.images.insert(id, image);
                    }
                }
                ImageSource::Debian(set) => self.find_keyrings(set)?,
                ImageSource::Url(_) | ImageSource::Oci(_) => {}
            }
            if !matches!(vm.vmm, VmmSource::Firecracker(_)) {
                vm.tuning.check_qemu(vm.name.as_str())?;
            }
            match &vm.vmm {
                VmmSource::QemuPath(path) => {
                    self.scan_plain(&mut scan, path)?;
                    step::check_qemu(&self.store, &scan, path)?;
                }
                VmmSource::Firecracker(Firecracker {
                    from: FirecrackerFrom::Dir(dir),
                    version: declared,
                }) => {
                    if self.manifest.dir.join(dir).is_file() {
                        let text =
                            format!("{} is a file, not a directory with Firecracker in it", dir.display());
                        return Err(Error::usage("manifest.path", text)
                            .help("name the directory that holds `firecracker` and `jailer`"));
                    }
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
        self.warn_of_secrets(&scan, ui);
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
            Error::usage(NOT_THERE, format!("cannot open {}, which the manifest names", path.display()))
                .because(e)
        })
    }

    /// Keyrings of sources whose packages are still to be looked up: later they may be needed no more.
    fn find_keyrings(&self, set: &PackageSet) -> Result<()> {
        match self.lock.get(&AssetId::Image(set.clone())) {
            Some(_) => Ok(()),
            None => set.sources.iter().try_for_each(|s| self.canonical(Path::new(&s.keyring)).map(drop)),
        }
    }

    fn scan_base(&self, scan: &mut Scan, path: &Path, keep_modes: bool, ui: &Ui) -> Result<()> {
        let Entry::Vacant(entry) = scan.sources.entry(Scan::base_id(path, keep_modes)) else { return Ok(()) };
        let full = self.canonical(path)?;
        let source = if full.is_dir() {
            self.directory(full, &ScanOptions { keep_modes, ..ScanOptions::default() }, ui)?
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
            let top =
                workload.ignore_from.as_deref().map(|from| self.pattern_file(from, &path)).transpose()?;
            let never = self.never_in(&path);
            let options = ScanOptions {
                ignore: &workload.ignore,
                files: top.as_ref().map(|(name, top)| IgnoreFiles { name, top }),
                never: &never,
                keep_modes: workload.keep_modes,
            };
            self.directory(path, &options, ui)?
        } else {
            self.file(&path)?
        };
        scan.sources.insert(id, source);
        Ok(())
    }

    /// The name of pattern files and the directory of the outermost one, for a workload in `dir`.
    fn pattern_file(&self, from: &Path, dir: &Path) -> Result<(OsString, PathBuf)> {
        // The file's own directory, and not where a link leads: git reads patterns where they lie.
        let file = self.manifest.dir.join(from);
        let (Some(name), Some(top)) = (file.file_name(), file.parent()) else {
            return Err(Error::usage("manifest.path", format!("{} is no pattern file", from.display())));
        };
        let there = self.canonical(from)?;
        let top = top.canonicalize().unwrap_or_else(|_| top.to_owned());
        if !there.is_file() {
            let text = format!("{} is not a file of patterns", from.display());
            return Err(Error::usage("manifest.path", text).help("`ignore from=\".gitignore\"` names one"));
        }
        if !dir.starts_with(&top) {
            let text = format!("{} says nothing about {}", from.display(), dir.display());
            return Err(Error::usage("manifest.path", text)
                .help("name a pattern file in the workload's directory, or in one above it"));
        }
        Ok((name.to_owned(), top))
    }

    /// What is never part of a workload in `dir`: the project's own files, and this home.
    fn never_in(&self, dir: &Path) -> Vec<String> {
        let at = self.manifest.location();
        let mut own = vec![at.path(), at.lock_path()];
        own.extend(self.home.root().canonicalize());
        let within = |path: PathBuf| Some(path.strip_prefix(dir).ok()?.to_str()?.to_owned());
        own.into_iter().filter_map(within).filter(|path| !path.is_empty()).collect()
    }

    /// Warns about files of workloads that look like secrets; once for each, if this command has the project's lock.
    fn warn_of_secrets(&self, scan: &Scan, ui: &Ui) {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for workload in self.manifest.vms.iter().flat_map(|vm| &vm.workloads) {
            let source = scan.sources.get(&Scan::workload_id(workload));
            let Some(ScannedSource::Dir { path, listing, digest }) = source else { continue };
            if seen.insert((path, digest)) {
                let shown = workload.source.to_string();
                let shown = shown.trim_end_matches('/');
                found
                    .extend(sensitive::find(listing, path).into_iter().map(|path| format!("{shown}/{path}")));
            }
        }
        let remember = match (self.guarded, self.partial || !self.left_out.is_empty()) {
            (false, _) => Remember::Nothing,
            (true, true) => Remember::More,
            (true, false) => Remember::All,
        };
        let new = sensitive::news(&self.home.project(&self.name), found, remember);
        if !new.is_empty() {
            ui.warning(&sensitive::warning(&new));
        }
    }
}
