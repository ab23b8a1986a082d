//! Presses Ctrl-Alt-Del on a guest's keyboard, through the API socket in its jail.

use super::api::{Action, Api};
use super::stage::API_SOCKET;
use crate::error::{Context, Result};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
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

    /// Never through a link: the VMM may have put one there.
    fn api(&self) -> Result<Api> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let socket = openat2(&self.root, API_SOCKET, how)
            .or_failed("firecracker.api-dead", || "the API's socket is gone from the jail")?;
        Api::from_fd(socket, Path::new(API_SOCKET))
    }
}
