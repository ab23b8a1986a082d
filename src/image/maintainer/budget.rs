//! What a stranger's script may use up, and what of it is told.

use std::collections::BTreeSet;

/// The bytes that all words, files and other texts of a script may have together, what it reads included.
const MOST_TEXT: usize = 8 << 20;

/// The files, directories and links that a script may make, those that it replaces included.
const MOST_ENTRIES: u32 = 16_384;

/// More than these are no news.
const MOST_NOTES: usize = 100;

/// In characters.
const LONGEST_NOTE: usize = 512;

/// What is left. Once anything of it is spent nothing is granted any more.
#[derive(Debug)]
pub(super) struct Budget {
    text: usize,
    entries: u32,
    spent: bool,
}

impl Budget {
    pub fn of_a_script() -> Self {
        Budget { text: MOST_TEXT, entries: MOST_ENTRIES, spent: false }
    }

    /// For what no script does.
    pub fn unbounded() -> Self {
        Budget { text: usize::MAX, entries: u32::MAX, spent: false }
    }

    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// Takes so many bytes; whether they were left.
    pub fn take(&mut self, bytes: usize) -> bool {
        self.spent |= bytes > self.text;
        self.text = self.text.saturating_sub(bytes);
        !self.spent
    }

    /// Takes an entry of the tree; whether one was left.
    pub fn take_entry(&mut self) -> bool {
        self.spent |= self.entries == 0;
        self.entries = self.entries.saturating_sub(1);
        !self.spent
    }
}

/// What was not followed, in words.
#[derive(Debug, Default, Clone)]
pub(super) struct Notes(BTreeSet<String>);

impl Notes {
    pub fn insert(&mut self, what: String) {
        if self.0.len() < MOST_NOTES {
            self.0.insert(what.chars().take(LONGEST_NOTE).collect());
        }
    }

    pub fn into_set(self) -> BTreeSet<String> {
        self.0
    }
}
