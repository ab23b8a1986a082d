//! The seam between supervision and what it supervises: a started VMM, and how its effects are undone.

use super::journal::{Effect, Journal};
use super::pause::Drives;
use super::process::Process;
use super::spec::SuperviseSpec;
use crate::error::Result;
use crate::manifest::model::Port;
use crate::vmm::firecracker::Keyboard;
use crate::vmm::{Control, Serial, Watch};
use firegopher_protocol::Network;
use std::future::Future;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

/// A VMM that was started and not yet heard of.
pub(super) struct Machine {
    /// Its identity.
    pub process: Process,
    /// Kills exactly this VMM.
    pub pidfd: OwnedFd,
    /// The guest's control channel.
    pub control: Control,
    /// The guest's console, if the VMM offers one.
    pub console: Option<Serial>,
    /// For a guest that does not listen any more.
    pub keyboard: Option<Keyboard>,
    /// How the guest fares, and how to let it go on when it was stopped.
    pub watch: Watch,
    /// Where its drives are.
    pub drives: Drives,
    /// What the launch cost, step by step.
    pub timings: Vec<(&'static str, Duration)>,
    /// What the host could not do, for the user.
    pub warnings: Vec<String>,
    /// Ends when the VMM's process has ended and is reaped; says how.
    pub ended: Pin<Box<dyn Future<Output = VmmEnd>>>,
}

/// How a VMM ended.
pub(super) struct VmmEnd {
    /// For the user.
    pub words: String,
    /// It died, and its log holds what it said of that.
    pub logged: bool,
    /// What mends the cause, if that is known.
    pub help: Option<String>,
}

/// Tasks that are aborted when this is dropped.
pub(super) type Proxies = tokio::task::JoinSet<()>;

/// Starts VMMs and undoes what that did to the host.
pub(super) trait Platform {
    /// Leases what lasts for all boots of a VM: its uid.
    fn lease(&self, spec: &mut SuperviseSpec, journal: &mut Journal) -> Result<()>;
    /// Connects the published ports to the guest, until the returned guard is dropped.
    fn publish(&self, spec: &SuperviseSpec, ports: Vec<(TcpListener, Port)>) -> Result<Proxies>;
    /// eth0's settings for the guest.
    fn network(&self, spec: &SuperviseSpec) -> Option<Network>;
    /// Forgets an ephemeral VM: what outlives others' ends, such as its address.
    fn forget(&self, spec: &SuperviseSpec);
    /// Journals and does every effect of one boot, its scratch disk among them, then starts the VMM. Called within a
    /// tokio runtime.
    /// On an error the caller undoes the journal.
    fn launch(&self, spec: &SuperviseSpec, journal: &mut Journal) -> Result<Machine>;
    /// Undoes one effect. Must succeed when the effect never happened or was undone before.
    fn undo(&self, effect: &Effect) -> Result<()>;
}
