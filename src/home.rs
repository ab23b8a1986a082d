//! Where firegopher keeps things on this host. Names every path once; `store` creates them.

use crate::error::{Context, Error, Result};
use crate::name::Name;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The root of all that firegopher keeps: `$FIREGOPHER_HOME`, else `/var/lib/firegopher` for root and
/// `$XDG_DATA_HOME/firegopher` (or `~/.local/share/firegopher`) otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// The home that the environment names; see [`Home`]. It need not exist.
    ///
    /// # Errors
    /// `home.unknown` if nothing names one; `store.foreign-home` and `store.open-home` if others own or may enter it.
    pub fn from_env() -> Result<Self> {
        let root = nix::unistd::geteuid().is_root();
        let home = Self::resolve(root, |name| std::env::var_os(name).filter(|value| !value.is_empty()))?;
        if home.root().is_dir() {
            guard(home.root())?;
        }
        Ok(home)
    }

    fn resolve(root: bool, var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let path = if let Some(home) = var("FIREGOPHER_HOME") {
            PathBuf::from(home)
        } else if root {
            PathBuf::from("/var/lib/firegopher")
        // The XDG base directory specification has relative paths ignored.
        } else if let Some(data) = var("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute()) {
            data.join("firegopher")
        } else if let Some(home) = var("HOME") {
            PathBuf::from(home).join(".local/share/firegopher")
        } else {
            return Err(Error::host(
                "home.unknown",
                "neither FIREGOPHER_HOME, XDG_DATA_HOME nor HOME is set",
            )
            .help("set FIREGOPHER_HOME to the directory where firegopher may keep its store"));
        };
        let path = std::path::absolute(&path)
            .or_host("home.unknown", || format!("{} cannot be made an absolute path", path.display()))?;
        Ok(Home(path))
    }

    /// Wraps an absolute path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Home(root.into())
    }
    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.0
    }
    /// The store: objects, actions, stat cache, temporary files. Its version stands in its path.
    pub fn store(&self) -> PathBuf {
        self.0.join("v1")
    }
    /// Private apt state: package lists and downloads. A cache.
    pub fn apt(&self) -> PathBuf {
        self.store().join("apt")
    }
    /// The states of all projects, each under its key.
    pub fn states(&self) -> PathBuf {
        self.0.join("state")
    }
    /// A project's VM states. What lies beside VMs there has a dot in its name, which no name of a VM has.
    pub fn project(&self, project: &Name) -> PathBuf {
        self.states().join(project)
    }
    /// One VM's state, jail, socket and logs.
    pub fn vm(&self, project: &Name, vm: &Name) -> PathBuf {
        self.project(project).join(vm)
    }
    /// A project's volumes.
    pub fn volumes(&self, project: &Name) -> PathBuf {
        self.0.join("volumes").join(project)
    }
}

/// Refuses a directory of another user, or one that others may enter: they could swap what we run as ourselves.
pub(crate) fn guard(dir: &Path) -> Result<()> {
    let meta =
        std::fs::metadata(dir).or_failed("store.io", || format!("cannot examine {}", dir.display()))?;
    let euid = nix::unistd::geteuid().as_raw();
    if meta.uid() != euid {
        let message =
            format!("{} belongs to uid {}, and firegopher runs as uid {euid}", dir.display(), meta.uid());
        return Err(Error::failed("store.foreign-home", message).help(
            "each user has a home of their own: set FIREGOPHER_HOME to a directory of yours, or unset it",
        ));
    }
    if meta.mode() & 0o077 != 0 {
        let message = format!("{} is open to other users (mode {:04o})", dir.display(), meta.mode() & 0o7777);
        return Err(Error::failed("store.open-home", message).help(format!(
            "if it is firegopher's alone, run `chmod 700 {}`; else set FIREGOPHER_HOME to a directory of its own",
            dir.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(root: bool, vars: &[(&str, &str)]) -> Result<Home> {
        Home::resolve(root, |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn the_most_specific_variable_names_the_home() {
        let all = [("FIREGOPHER_HOME", "/f"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(resolve(false, &all).unwrap(), Home::new("/f"));
        assert_eq!(resolve(true, &all).unwrap(), Home::new("/f"));
        assert_eq!(resolve(true, &all[1..]).unwrap(), Home::new("/var/lib/firegopher"));
        assert_eq!(resolve(false, &all[1..]).unwrap(), Home::new("/x/firegopher"));
        assert_eq!(resolve(false, &all[2..]).unwrap(), Home::new("/h/.local/share/firegopher"));
        assert_eq!(resolve(false, &[]).unwrap_err().code(), "home.unknown");
    }

    #[test]
    fn relative_homes_become_absolute_and_relative_xdg_is_ignored() {
        assert!(resolve(false, &[("FIREGOPHER_HOME", "here")]).unwrap().root().is_absolute());
        let relative = [("XDG_DATA_HOME", "x"), ("HOME", "/h")];
        assert_eq!(resolve(false, &relative).unwrap(), Home::new("/h/.local/share/firegopher"));
    }
}
