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
    /// What is on the disk is older than `state`.
    unsaved: bool,
}

impl Recorder {
    pub fn new(state: State, dir: PathBuf, hub: Rc<Hub>) -> Self {
        Recorder { state, dir, hub, unsaved: false }
    }

    /// Changes the state and writes it. A state that cannot be written (full disk, no descriptors) must not end the
    /// VM: it is kept, and `retry` writes it.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.state);
        self.save();
    }

    /// Whether the state could not be written.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Writes a state that could not be written before.
    pub fn retry(&mut self) {
        if self.unsaved {
            self.save();
        }
    }

    fn save(&mut self) {
        let failed = self.state.save_in_place(&self.dir).err();
        let before = std::mem::replace(&mut self.unsaved, failed.is_some());
        match failed {
            // Told once, not for each change.
            Some(e) if !before => {
                let text = format!("{}: until it can be, `ps` shows an older one", super::journal::chain(&e));
                self.hub.warn_once(&text);
            }
            None if before => super::log_line("the VM's state is written again"),
            _ => {}
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
