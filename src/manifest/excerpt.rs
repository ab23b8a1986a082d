//! The lines of a manifest that a report shows: whole ones, without their neighbours, safe for a terminal.

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

/// Bytes of a line that are shown at most, where nothing says how wide the terminal is; only a made-up line is longer.
const LINE_MAX: usize = 400;

/// Columns that a report takes for line numbers and its frame.
const FRAME: usize = 10;

/// A text under its file's name.
#[derive(Debug)]
pub(super) struct Source {
    name: String,
    text: String,
    /// Bytes of a line that are shown, its place included.
    line_max: usize,
}

impl Source {
    pub fn new(name: &str, text: &str) -> Self {
        // What a terminal would act upon is replaced, byte for byte, so that spans stay right.
        let text = text
            .chars()
            .map(|c| match (c, c.len_utf8()) {
                ('\n' | '\r' | '\t', _) => c,
                (c, 1) if c.is_control() => '?',
                (c, 2) if c.is_control() => '\u{A4}',
                ('\u{200E}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}', _) => {
                    '\u{FFFD}'
                }
                _ => c,
            })
            .collect();
        Source { name: name.to_owned(), text, line_max: LINE_MAX }
    }

    /// The same for a report of so many columns: a longer line is cut around its place.
    pub fn fitted(&self, width: usize) -> Source {
        let line_max = width.saturating_sub(FRAME).min(LINE_MAX);
        Source { name: self.name.clone(), text: self.text.clone(), line_max }
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl SourceCode for Source {
    /// With context wanted, the place's own lines; without, the place itself.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        _after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let text = self.text.as_str();
        let (mut start, mut end) = (span.offset(), span.offset() + span.len());
        if text.get(start..end).is_none() {
            return Err(MietteError::OutOfBounds);
        }
        if before > 0 {
            let line = text[..start].rfind('\n').map_or(0, |n| n + 1);
            let line_end = text[end..].find('\n').map_or(text.len(), |n| end + n);
            if line_end - line > self.line_max {
                let around = self.line_max.saturating_sub(span.len()) / 2;
                start = text.ceil_char_boundary(line.max(start.saturating_sub(around)));
                end = text.floor_char_boundary(line_end.min(end + around));
            } else {
                (start, end) = (line, line_end);
            }
        }
        let line_start = text[..start].rfind('\n').map_or(0, |n| n + 1);
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            &text.as_bytes()[start..end],
            (start..end).into(),
            text[..start].bytes().filter(|b| *b == b'\n').count(),
            text[line_start..start].chars().count(),
            text[start..end].lines().count(),
        )))
    }
}
