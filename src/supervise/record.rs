//! Keeps a VM's state on disk in step with what happens.

use super::clock::Stamp;
use super::hub::Hub;
use super::outcome::Phase;
use super::state::State;
use std::path::PathBuf;
use std::rc::Rc;

/// The state and where it is written.
pub(super) struct Recorder {
    /// The state as last written.
    pub state: State,
    dir: PathBuf,
    hub: Rc<Hub>,
}

impl Recorder {
    pub fn new(state: State, dir: PathBuf, hub: Rc<Hub>) -> Self {
        Recorder { state, dir, hub }
    }

    /// Changes the state and writes it. A state that cannot be written (full disk) must not end the VM.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        if let Err(e) = self.state.save(&self.dir) {
            self.hub.warn_once(&super::journal::chain(&e));
        }
    }

    /// Notes when an event of the current boot happened; the next `update` writes it.
    pub fn stamp(&mut self, event: &str) {
        self.state.events.insert(event.to_owned(), Stamp::now());
    }

    /// Tells clients of a phase.
    pub fn phase(&self, phase: Phase) {
        self.hub.phase(phase);
    }
}
