//! Errors as the user sees them: what failed, why, how to mend it.

use super::style::{Painter, Style};
use super::wrap;
use crate::error::{Error, Kind};
use crate::plan::render::escape;
use crate::terminal::Stream;
use std::process::ExitCode;

/// The error as lines for stderr.
pub fn render(error: &Error) -> String {
    render_for(error, Stream::Err.width(), Stream::Err.colours())
}

fn render_for(error: &Error, width: Option<usize>, colours: bool) -> String {
    if let Some(report) = error.report() {
        return report.trim_end().to_owned();
    }
    let painter = Painter { colours };
    let mut out = Vec::new();
    let mut part = |style: Style, head: &str, text: &str, indent: usize| {
        let text = format!("{head} {text}");
        for (at, line) in text.trim_end().lines().enumerate() {
            let line = escape(line);
            // What is indented, and follows, was laid out by somebody else.
            let line = match at > 0 && line.starts_with(' ') {
                true => line,
                false => wrap::line(&line, width, indent),
            };
            out.push(if at == 0 { painter.head(style, head, &line) } else { line });
        }
    };
    part(Style::Error, "error:", &error.to_string(), 7);
    let mut source = std::error::Error::source(error);
    let mut said = error.to_string();
    // A supervisor's error comes as one text.
    let mut full = said.contains("No space left on device");
    while let Some(cause) = source {
        let text = cause.to_string();
        full |= is_full(cause) || text.contains("No space left on device");
        // Some libraries repeat their cause in their own message.
        if !said.contains(&text) {
            part(Style::Dim, "  because:", &text, 4);
        }
        said = text;
        source = cause.source();
    }
    let full = full.then_some("free some space where firegopher keeps its home, and run it again");
    if let Some(help) = error.help_text().or(full) {
        part(Style::Help, "  help:", help, 4);
    }
    if error.kind() == Kind::Bug {
        part(Style::Dim, "  This is a bug", "in firegopher, please report it.", 4);
    }
    out.join("\n")
}

fn is_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    cause.downcast_ref::<std::io::Error>().is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded))
}

/// The process exit code of an error.
pub fn exit_code(error: &Error) -> ExitCode {
    ExitCode::from(error.kind().exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_wrapped_between_words_at_the_terminals_width() {
        let error = Error::host("x", "the port 127.0.0.1:8080 of VM web is held by VM api of the project shop in /srv/shop/with/a/long/path")
            .because(std::io::Error::other("Address already in use by somebody whose name is long, too"))
            .help("end that VM with `firegopher down -C /srv/shop`, or publish another host port: port HOST to=GUEST");
        for (width, name) in [(80, "an_error_at_80"), (120, "an_error_at_120")] {
            let text = render_for(&error, Some(width), false);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(name, text);
        }
        assert_eq!(render_for(&error, None, false).lines().count(), 3, "one a part where nobody looks");
        let coloured = render_for(&error, Some(80), true);
        assert!(coloured.starts_with("\u{1b}[1;31merror:\u{1b}[0m the port"), "{coloured:?}");
    }

    #[test]
    fn control_characters_of_an_error_are_escaped() {
        let error = Error::failed("x", "a\u{1b}[31mred").help("b\u{7}ell");
        assert!(!render_for(&error, Some(80), false).contains(['\u{1b}', '\u{7}']));
    }
}
