//! Requests to a running Firecracker. It may have been taken over by its guest, so answers are bounded in size
//! and time, and nothing in them is trusted to be printable.

mod exchange;
mod types;

pub use types::{Action, BalloonUpdate, DriveUpdate, InstanceInfo, MachineUpdate, NetworkUpdate, RunState};

use super::version::Version;
use crate::error::{Context, Error, Result};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take. Firecracker answers in well under a millisecond, also while its guest is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// Firecracker's API. Each request is a connection of its own.
#[derive(Debug)]
pub struct Api {
    socket: OwnedFd,
    /// For messages.
    name: PathBuf,
    patience: Duration,
}

impl Api {
    /// The API at this socket. Its directories must not be under the VM's control; the socket itself may be:
    /// a link in its place is refused.
    ///
    /// # Errors
    /// `firecracker.api-dead` if there is no socket.
    pub fn open(path: &Path) -> Result<Api> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // O_PATH ignores the access mode, but the standard library wants one.
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(path)
            .map_err(|e| dead(path, e))?;
        Api::from_fd(file.into(), path)
    }

    /// The API at a socket opened with O_PATH, called `name` in messages.
    ///
    /// # Errors
    /// `firecracker.api-dead` if it is no socket.
    pub fn from_fd(socket: OwnedFd, name: &Path) -> Result<Api> {
        let file = std::fs::File::from(socket);
        let kind = file.metadata().map_err(|e| dead(name, e))?.file_type();
        if !kind.is_socket() {
            return Err(dead(name, "it is no socket"));
        }
        Ok(Api { socket: file.into(), name: name.to_owned(), patience: PATIENCE })
    }

    /// Waits this long for an answer instead of five seconds.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Api {
        self.patience = patience;
        self
    }

    /// Who it is and whether its guest runs.
    pub async fn info(&self) -> Result<InstanceInfo> {
        self.get("/").await
    }

    /// Which version it says it is.
    pub async fn version(&self) -> Result<Version> {
        #[derive(Deserialize)]
        struct Answer {
            firecracker_version: String,
        }
        let answer: Answer = self.get("/version").await?;
        answer.firecracker_version.parse()
    }

    /// Stops the guest's CPUs.
    pub async fn pause(&self) -> Result<()> {
        self.send("PATCH", "/vm", &types::Vm { state: "Paused" }).await
    }

    /// Lets the guest's CPUs go on.
    pub async fn resume(&self) -> Result<()> {
        self.send("PATCH", "/vm", &types::Vm { state: "Resumed" }).await
    }

    /// Does something once.
    pub async fn action(&self, action: Action) -> Result<()> {
        self.send("PUT", "/actions", &types::ActionInfo { action_type: action }).await
    }

    /// Changes a drive's image or limits. A new image of another size is seen by the guest.
    pub async fn update_drive(&self, update: &DriveUpdate) -> Result<()> {
        self.send("PATCH", &format!("/drives/{}", id(&update.drive_id)?), update).await
    }

    /// Changes a network device's limits.
    pub async fn update_network(&self, update: &NetworkUpdate) -> Result<()> {
        self.send("PATCH", &format!("/network-interfaces/{}", id(&update.iface_id)?), update).await
    }

    /// Changes how much memory the balloon takes.
    pub async fn update_balloon(&self, update: &BalloonUpdate) -> Result<()> {
        self.send("PATCH", "/balloon", update).await
    }

    /// Changes CPUs and memory, which is possible only before the guest starts.
    pub async fn update_machine(&self, update: &MachineUpdate) -> Result<()> {
        self.send("PATCH", "/machine-config", update).await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.request("GET", path, None).await?;
        serde_json::from_slice(&bytes)
            .or_failed("firecracker.api", || format!("cannot understand Firecracker's answer to GET {path}"))
    }

    async fn send(&self, method: &'static str, path: &str, body: &impl Serialize) -> Result<()> {
        let body = serde_json::to_vec(body).expect("invariant: strings and numbers always serialise");
        self.request(method, path, Some(body)).await.map(drop)
    }

    async fn request(&self, method: &'static str, path: &str, body: Option<Vec<u8>>) -> Result<Vec<u8>> {
        // Through /proc a socket is reached whatever its path's length and whoever can rename it.
        let socket = PathBuf::from(format!("/proc/self/fd/{}", self.socket.as_raw_fd()));
        match tokio::time::timeout(self.patience, exchange::exchange(&socket, method, path, body)).await {
            Err(_) => Err(Error::failed(
                "firecracker.api-timeout",
                format!("Firecracker did not answer {method} {path} within {:?}", self.patience),
            )),
            Ok(Err(e)) if e.is_about_the_socket() => Err(dead(&self.name, e)),
            Ok(Err(e)) => Err(Error::failed(
                "firecracker.api",
                format!("cannot understand Firecracker's answer to {method} {path}"),
            )
            .because(e)),
            Ok(Ok(answer)) if answer.ok => Ok(answer.body),
            Ok(Ok(answer)) => Err(Error::failed(
                "firecracker.api-fault",
                format!("Firecracker refused {method} {path}: {}", types::fault(&answer.body)),
            )),
        }
    }
}

/// An id as part of a request's path.
fn id(id: &str) -> Result<&str> {
    let safe = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if safe { Ok(id) } else { Err(Error::bug(format!("{id:?} is no id of a device"))) }
}

fn dead(name: &Path, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::failed(
        "firecracker.api-dead",
        format!("nothing answers at Firecracker's API socket {}", name.display()),
    )
    .because(cause)
    .help("its process has ended, or was started without an API socket")
}

#[cfg(test)]
mod tests;
