//! What standard output and standard error lead to: whether they are coloured, by `color`, and how wide they are.

use crate::color;

/// One of this process's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Stream {
    /// Whether what is written there is coloured.
    pub fn colours(self) -> bool {
        match self {
            Stream::Out => color::on(&std::io::stdout()),
            Stream::Err => color::on(&std::io::stderr()),
        }
    }

    /// Its columns if it is a terminal: to anything else lines are written whole.
    pub fn width(self) -> Option<usize> {
        let size = match self {
            Stream::Out => terminal_size::terminal_size_of(std::io::stdout()),
            Stream::Err => terminal_size::terminal_size_of(std::io::stderr()),
        };
        // Below that, words have no room; a size of 0 is one that nobody has set.
        size.map(|(width, _)| usize::from(width.0)).filter(|width| *width >= 20)
    }
}
