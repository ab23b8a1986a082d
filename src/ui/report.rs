//! Errors as the user sees them: what failed, why, how to mend it.

use crate::error::{Error, Kind};
use crate::plan::render::escape;
use std::fmt::Write;
use std::process::ExitCode;

/// The error as lines for stderr.
pub fn render(error: &Error) -> String {
    if let Some(report) = error.report() {
        return report.trim_end().to_owned();
    }
    let mut out = format!("error: {error}\n");
    let mut source = std::error::Error::source(error);
    let mut said = error.to_string();
    // A supervisor's error comes as one text.
    let mut full = said.contains("No space left on device");
    while let Some(cause) = source {
        let text = cause.to_string();
        full |= is_full(cause) || text.contains("No space left on device");
        // Some libraries repeat their cause in their own message.
        if !said.contains(&text) {
            let _ = writeln!(out, "  because: {text}");
        }
        said = text;
        source = cause.source();
    }
    let full = full.then_some("free some space where firegopher keeps its home, and run it again");
    if let Some(help) = error.help_text().or(full) {
        let _ = writeln!(out, "  help: {help}");
    }
    if error.kind() == Kind::Bug {
        out.push_str("  This is a bug in firegopher, please report it.\n");
    }
    out.trim_end().lines().map(escape).collect::<Vec<_>>().join("\n")
}

fn is_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    cause.downcast_ref::<std::io::Error>().is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded))
}

/// The process exit code of an error.
pub fn exit_code(error: &Error) -> ExitCode {
    ExitCode::from(error.kind().exit_code())
}
