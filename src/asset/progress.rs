//! How fetching tells what it does; the terminal's side of it is `ui`'s.

/// Hears about work that takes a while. Called from any thread.
pub trait Progress: Sync {
    /// A piece of work begins; `total` is in bytes, if known.
    fn start(&self, what: &str, total: Option<u64>);
    /// The current piece of work advanced by `n` bytes.
    fn advance(&self, n: u64);
    /// The current piece of work of this thread is over, well or not.
    fn end(&self) {}
    /// Something worth a line of its own, such as who is waited for.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _n: u64) {}
    fn note(&self, _text: &str) {}
}
