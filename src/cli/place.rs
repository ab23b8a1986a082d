//! Which manifest and which project a command is about: where it was started, `-C`, `-f` and `--project`.

use crate::error::{Error, Result};
use crate::home::Home;
use crate::manifest::{self, Location};
use crate::project::{self, Identity, Naming};
use crate::ui::Ui;
use clap_complete::ArgValueCandidates;
use std::path::PathBuf;

/// Where a command works.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory it was started in, or that of `-C`.
    pub(super) dir: PathBuf,
    /// The manifest of `-f`.
    pub(super) file: Option<PathBuf>,
}

/// For commands that work from state, without a manifest.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Wanted {
    /// This project, wherever its directory is or was; `ps --all` lists them.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(super::completions::projects))]
    project: Option<Naming>,
}

impl Place {
    /// The manifest. Says so if it is not in the directory where the command was started.
    pub(super) fn manifest(&self) -> Result<Location> {
        let found = self.quiet()?;
        if self.file.is_none() && found.dir() != self.dir {
            Ui::stderr().note(&format!("using {}", found.path().display()));
        }
        Ok(found)
    }

    /// The manifest, without a word.
    pub(super) fn quiet(&self) -> Result<Location> {
        match &self.file {
            Some(file) => Location::named(&self.dir.join(file)),
            None => Location::find(&self.dir),
        }
    }

    /// The project: that of `--project`, else by the manifest, or, when that is gone or broken, by who claimed the
    /// directory. Says so if it was moved or has another name.
    pub(super) fn project(&self, home: &Home, wanted: &Wanted) -> Result<Identity> {
        if let Some(name) = &wanted.project {
            return project::named(home, name);
        }
        let at = self.manifest()?;
        let error = match manifest::load_at(&at) {
            Ok(manifest) => {
                let found = project::identify(home, &manifest)?;
                found.news().iter().for_each(|news| Ui::stderr().note(news));
                return Ok(found);
            }
            Err(error) => error,
        };
        let here = at.dir().canonicalize().ok();
        here.and_then(|dir| project::claimed_at(home, &dir)).ok_or_else(|| with_hint(error, home))
    }
}

/// Whoever has no manifest here may mean a project elsewhere.
fn with_hint(error: Error, home: &Home) -> Error {
    if error.code() != "manifest.missing" || project::claims(home).is_empty() {
        return error;
    }
    let help = "`firegopher ps --all` lists the projects of this home; `--project NAME` names one of them";
    error.help(help)
}
