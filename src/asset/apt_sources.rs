//! What apt's sources are: those that a manifest names, with their keys and nobody else's, or the host's.

use super::apt::Apt;
use super::release;
use crate::digest::FieldHasher;
use crate::error::{Context, Error, Result};
use crate::lock::Origin;
use crate::packages::PackageSource;
use fs_err as fs;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A keyring holds some keys, an archive's list of packages is another thing.
const KEYRING_MAX: u64 = 16 << 20;

/// Sources in place of the host's.
#[derive(Debug, Clone)]
pub(super) struct Foreign {
    sources: Vec<PackageSource>,
    /// Where paths of keyrings start.
    project: PathBuf,
}

impl Foreign {
    pub(super) fn new(sources: &[PackageSource], project: &Path) -> Foreign {
        Foreign { sources: sources.to_vec(), project: project.to_owned() }
    }

    /// The name of their directory: the same for all projects that name the same sources and keys. Keyrings are
    /// compared by bytes, so that no project's list is verified with another's key.
    pub(super) fn name(&self) -> String {
        let mut hasher = FieldHasher::new("firegopher apt sources v1");
        for (at, source) in self.sources.iter().enumerate() {
            hasher.field(stanza(source, "KEYRING"));
            // What cannot be read is reported as soon as it is needed.
            hasher.field(self.keyring(at).unwrap_or_default());
        }
        hasher.finish().to_hex()[..16].to_owned()
    }

    /// Copies the keyrings into `dir`, where only we write; gives the text of its sources file.
    ///
    /// # Errors
    /// Usage if a keyring is missing or none.
    pub(super) fn prepare(&self, dir: &Path) -> Result<String> {
        let mut text = String::new();
        for (at, source) in self.sources.iter().enumerate() {
            let bytes = self.keyring(at)?;
            // apt tells the two forms apart by their ending.
            let ending = if bytes.starts_with(b"-----BEGIN PGP") { "asc" } else { "gpg" };
            let path = dir.join(format!("keyring-{at}.{ending}"));
            if fs::read(&path).ok().as_deref() != Some(bytes.as_slice()) {
                fs::write(&path, &bytes)
                    .or_failed("asset.apt-dir", || format!("cannot prepare {}", dir.display()))?;
            }
            // Spaces in a path would make it a list of fingerprints (sources.list(5)).
            let Some(path) = path.to_str().filter(|path| !path.contains(char::is_whitespace)) else {
                return Err(Error::host(
                    "asset.apt-dir",
                    format!("apt takes no keyring below {}, whose path holds white space", dir.display()),
                )
                .help("set FIREGOPHER_HOME to a directory without"));
            };
            text.push_str(&stanza(source, path));
        }
        Ok(text)
    }

    /// Whether they can be read.
    pub(super) fn check_keyrings(&self) -> Result<()> {
        (0..self.sources.len()).try_for_each(|at| self.keyring(at).map(drop))
    }

    fn keyring(&self, at: usize) -> Result<Vec<u8>> {
        let source = &self.sources[at];
        let path = self.project.join(&source.keyring);
        let subject = || format!("cannot read the keyring {} of {}", source.keyring, source.url);
        let hint = "`keyring` is the file with the public keys of whoever signs the source, such as \
                    /usr/share/keyrings/ubuntu-archive-keyring.gpg; paths start at the manifest";
        let meta = fs::metadata(&path)
            .map_err(|e| Error::usage("asset.keyring", subject()).because(e).help(hint))?;
        if !meta.is_file() || meta.len() == 0 || meta.len() > KEYRING_MAX {
            return Err(Error::usage("asset.keyring", format!("{}: it is no keyring", subject())).help(hint));
        }
        fs::read(&path).map_err(|e| Error::usage("asset.keyring", subject()).because(e).help(hint))
    }

    /// The distribution and suite of the first source, by its Release file in `lists`.
    pub(super) fn origin(&self, lists: &Path) -> Result<Origin> {
        let first = self.sources.first().ok_or_else(|| Error::bug("foreign sources without a source"))?;
        release::origin(lists, first)
    }

    /// Changes whenever the sources or their keys do: both are what `dir` is named by.
    pub(super) fn fingerprint(&self, dir: &Path) -> String {
        dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Such as the files of /etc/apt/sources.list.d hold. No value can end its line: `PackageSource::check` has seen it.
fn stanza(source: &PackageSource, keyring: &str) -> String {
    let PackageSource { url, suite, components, .. } = source;
    let components = match components.as_slice() {
        [] => String::new(),
        some => format!("Components: {}\n", some.join(" ")),
    };
    format!(
        "Types: deb\nURIs: {url}\nSuites: {suite}\n{components}Architectures: amd64\nSigned-By: {keyring}\n\n"
    )
}

/// Changes whenever the host's sources or apt's configuration do: what apt says its configuration is, and names,
/// sizes and times of the files that hold sources and preferences, wherever that configuration has them.
pub(super) fn host_fingerprint(apt: &Apt) -> String {
    let mut text = String::new();
    if let Ok(said) = apt.run("apt-config", &["dump"]) {
        let _ = writeln!(text, "configuration {}", blake3::hash(said.stdout.as_bytes()).to_hex());
    }
    const ASKED: [&str; 8] = [
        "list",
        "Dir::Etc::sourcelist/f",
        "lists",
        "Dir::Etc::sourceparts/d",
        "preferences",
        "Dir::Etc::preferences/f",
        "more",
        "Dir::Etc::preferencesparts/d",
    ];
    let args: Vec<&str> = ["shell"].into_iter().chain(ASKED).collect();
    let said = apt.run("apt-config", &args).map(|said| said.stdout).unwrap_or_default();
    let mut files: Vec<PathBuf> = said.lines().filter_map(shell_value).map(PathBuf::from).collect();
    if files.is_empty() {
        files = ["/etc/apt/sources.list", "/etc/apt/sources.list.d", "/etc/apt/preferences.d"]
            .map(PathBuf::from)
            .to_vec();
    }
    let inside: Vec<PathBuf> = files
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|e| e.path())
        .collect();
    files.extend(inside);
    files.sort();
    let describe = |path: &PathBuf| {
        let meta = fs::metadata(path).ok()?;
        let mtime = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(format!("{} {} {}\n", path.display(), meta.len(), mtime.as_nanos()))
    };
    text.extend(files.iter().filter_map(describe));
    text
}

/// The value of a line `name='value'`, as `apt-config shell` prints it.
fn shell_value(line: &str) -> Option<&str> {
    line.split_once("='")?.1.strip_suffix('\'').filter(|value| !value.is_empty())
}
