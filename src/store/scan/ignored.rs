//! Which entries a scan leaves out.

use crate::error::{Context, Result};
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// `.git` and the user's patterns.
pub(super) struct Ignored {
    /// None without patterns: most workloads need only the comparison with `.git`.
    patterns: Option<Gitignore>,
}

impl Ignored {
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        if patterns.is_empty() {
            return Ok(Ignored { patterns: None });
        }
        let mut builder = GitignoreBuilder::new("");
        // git takes `a[` as a pattern that matches nothing; whoever wrote it should know.
        builder.allow_unclosed_class(false);
        for pattern in std::iter::once(".git").chain(patterns.iter().map(String::as_str)) {
            builder
                .add_line(None, pattern)
                .or_usage("scan.pattern", || format!("{pattern:?} is not a gitignore pattern"))?;
        }
        let patterns =
            builder.build().or_usage("scan.pattern", || "the ignore patterns do not fit together")?;
        Ok(Ignored { patterns: Some(patterns) })
    }

    /// Whether the entry `name` at the relative `path` is left out, a directory with all that it holds.
    pub(super) fn leaves_out(&self, path: &str, name: &str, is_dir: bool) -> bool {
        match &self.patterns {
            None => name == ".git",
            Some(patterns) => patterns.matched(path, is_dir).is_ignore(),
        }
    }
}
