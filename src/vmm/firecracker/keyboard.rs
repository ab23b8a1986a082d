//! What is asked of a running VMM through the API socket in its jail: Ctrl-Alt-Del on the guest's keyboard, and its
//! metrics.

use super::api::{Action, Api};
use super::stage::API_SOCKET;
use crate::error::{Context, Result};
use crate::syscall::open_beneath;
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// An API thread that is alive answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to one VMM's API.
#[derive(Debug)]
pub struct Keyboard {
    /// The jail's root. What is in it may be anything.
    pub(super) root: OwnedFd,
}

impl Keyboard {
    /// Asks the guest's kernel to restart, which ends the VM. Fails if the API does not take it within seconds.
    pub async fn ctrl_alt_del(&self) -> Result<()> {
        let api = self.api()?.with_patience(PATIENCE);
        api.action(Action::SendCtrlAltDel).await
    }

    /// Has the metrics written out. Fails if the API does not take it within seconds.
    pub async fn flush_metrics(&self) -> Result<()> {
        let api = self.api()?.with_patience(PATIENCE);
        api.action(Action::FlushMetrics).await
    }

    /// Another way to the same VMM.
    pub fn share(&self) -> Option<Keyboard> {
        Some(Keyboard { root: self.root.try_clone().ok()? })
    }

    /// The one of the VMM whose jail was made beneath `base`; `None` if there is none.
    ///
    /// # Errors
    /// The jail cannot be opened.
    pub fn find(base: &Path) -> Result<Option<Keyboard>> {
        // PROGRAM/ID/root: all above the last is root's alone.
        let only = |dir: &Path| std::fs::read_dir(dir).ok()?.flatten().next().map(|entry| entry.path());
        let Some(dir) = only(base).and_then(|program| only(&program)) else { return Ok(None) };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match nix::fcntl::open(&dir.join("root"), flags, nix::sys::stat::Mode::empty()) {
            Ok(root) => Ok(Some(Keyboard { root })),
            // The jail of another VMM.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => Ok(None),
            failed => {
                let text = || format!("cannot open the jail in {}", base.display());
                failed.map(|root| Some(Keyboard { root })).or_failed("jail.open", text)
            }
        }
    }

    /// Never through a link: the VMM may have put one there.
    fn api(&self) -> Result<Api> {
        let socket = open_beneath(&self.root, API_SOCKET, OFlag::O_PATH)
            .or_failed("firecracker.api-dead", || "the API's socket is gone from the jail")?;
        Api::from_fd(socket, Path::new(API_SOCKET))
    }
}
