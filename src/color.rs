//! Whether output is coloured: `--color`, and what the environment and the terminal say where that leaves it open.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::sync::OnceLock;

/// What `--color` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum When {
    /// On terminals, unless the environment says otherwise.
    #[default]
    Auto,
    /// Always, in files and pipes too.
    Always,
    /// Never.
    Never,
}

static CHOSEN: OnceLock<When> = OnceLock::new();

/// Settles it for this process; the first call counts.
pub fn choose(when: When) {
    // A second choice comes from tests that share a process.
    let _ = CHOSEN.set(when);
}

/// Whether what goes to `stream` is coloured.
pub fn on(stream: &impl IsTerminal) -> bool {
    decide(CHOSEN.get().copied().unwrap_or_default(), stream.is_terminal(), |name| std::env::var_os(name))
}

/// Whether `stream` is a terminal on which a line can be drawn anew: progress bars need one.
pub fn moves(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !is_dumb(std::env::var_os("TERM").as_deref())
}

fn decide(when: When, terminal: bool, var: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| var(name).filter(|value| !value.is_empty());
    match when {
        When::Always => true,
        When::Never => false,
        // https://no-color.org, https://bixense.com/clicolors
        When::Auto if set("NO_COLOR").is_some() => false,
        When::Auto if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        When::Auto if set("CLICOLOR").is_some_and(|value| value == "0") => false,
        When::Auto => terminal && !is_dumb(var("TERM").as_deref()),
    }
}

/// A terminal that obeys no escape sequences, or of which nothing is known.
fn is_dumb(term: Option<&OsStr>) -> bool {
    term.is_none_or(|term| term.is_empty() || term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(when: When, terminal: bool, vars: &[(&str, &str)]) -> bool {
        decide(when, terminal, |name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_terminal() {
        let xterm = ("TERM", "xterm-256color");
        assert!(decided(When::Auto, true, &[xterm]));
        assert!(!decided(When::Auto, false, &[xterm]));
        for quiet in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
            let vars: Vec<_> = [quiet, xterm].into();
            assert!(!decided(When::Auto, true, &vars), "{quiet:?}");
            assert!(decided(When::Always, false, &vars), "{quiet:?}");
        }
        assert!(!decided(When::Auto, true, &[]), "a terminal of which nothing is known");
        assert!(decided(When::Auto, true, &[xterm, ("NO_COLOR", "")]), "set to nothing is not set");
        assert!(decided(When::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!decided(When::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!decided(When::Auto, true, &[xterm, ("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(!decided(When::Never, true, &[xterm, ("CLICOLOR_FORCE", "1")]));
    }
}
