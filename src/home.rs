//! Where firegopher keeps things on this host. Names every path once; `store` creates and guards them.

use crate::name::Name;
use std::path::{Path, PathBuf};

/// The root of all that firegopher keeps: `$FIREGOPHER_HOME`, else `/var/lib/firegopher` for root and
/// `$XDG_DATA_HOME/firegopher` (or `~/.local/share/firegopher`) otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
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
    /// A project's VM states.
    pub fn project(&self, project: &Name) -> PathBuf {
        self.0.join("state").join(project)
    }
    /// One VM's state, jail, socket and logs.
    pub fn vm(&self, project: &Name, vm: &Name) -> PathBuf {
        self.project(project).join(vm)
    }
    /// A project's volumes.
    pub fn volumes(&self, project: &Name) -> PathBuf {
        self.0.join("volumes").join(project)
    }
    /// uid leases, under flock.
    pub fn leases(&self) -> PathBuf {
        self.0.join("leases.json")
    }
}
