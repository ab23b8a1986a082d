//! Begins what a first boot will wait for while manifest, workloads and plan are still being looked at: the exec of a
//! supervisor, and the project's network namespace. What turns out not to be needed ends with this.

use crate::error::Result;
use crate::net::netns::Netns;
use crate::project::Project;
use crate::supervise::{self, Waiting};
use std::cell::RefCell;
use std::thread::JoinHandle;

/// What was begun.
#[derive(Default)]
pub(super) struct Early {
    waiting: RefCell<Option<Waiting>>,
    netns: RefCell<Option<JoinHandle<Result<Netns>>>>,
}

impl Early {
    /// For `run`, which always boots.
    pub(super) fn begin(project: &Project) -> Early {
        Early::new(!runs(project))
    }

    /// For `up`: where something runs, most often nothing has to be booted.
    pub(super) fn begin_unless_running(project: &Project) -> Early {
        if runs(project) { Early::default() } else { Early::new(true) }
    }

    /// Must be called after signals are blocked: the thread inherits that.
    fn new(with_namespace: bool) -> Early {
        let wanted = with_namespace && nix::unistd::geteuid().is_root();
        let thread = || std::thread::Builder::new().name("namespace".to_owned()).spawn(Netns::create).ok();
        // What cannot be begun early is tried again when it is needed, and tells its error there.
        let netns = RefCell::new(wanted.then(thread).flatten());
        Early { waiting: RefCell::new(Waiting::start().ok()), netns }
    }

    /// A supervisor; `another` will be needed after it.
    pub(super) fn supervisor(&self, another: bool) -> Result<Waiting> {
        let waiting = self.waiting.take().map_or_else(Waiting::start, Ok)?;
        if another {
            self.waiting.replace(Waiting::start().ok());
        }
        Ok(waiting)
    }

    /// The project's namespace: of a VM that runs, else a new one. It lives as long as somebody holds it.
    pub(super) fn namespace(&self, project: &Project) -> Result<Netns> {
        // Only under the project's lock is this certain.
        if let Some(netns) = supervise::project_netns(&project.home, &project.name)? {
            return Ok(netns);
        }
        match self.netns.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Netns::create(),
        }
    }
}

/// Whether a VM of the project runs, as far as can be told without its lock.
fn runs(project: &Project) -> bool {
    project.observed().is_ok_and(|all| all.iter().any(|observed| observed.alive))
}
