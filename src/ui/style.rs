//! The few colours that are used: the terminal's own ones, which its user chose for their background.

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Something new.
    Added,
    /// Something that is replaced.
    Changed,
    /// Something that goes.
    Removed,
    /// What is wrong.
    Error,
    /// What may be wrong.
    Warning,
    /// How to mend it.
    Help,
    /// What is less important.
    Dim,
}

/// Paints text, or leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Painter {
    /// Whether colours are wanted.
    pub colours: bool,
}

impl Painter {
    /// The text in the colour of what it is.
    pub fn paint(self, style: Style, text: &str) -> String {
        if !self.colours || text.is_empty() {
            return text.to_owned();
        }
        // SGR of ECMA-48: 1 bold, 2 faint, 31 to 36 colours.
        let code = match style {
            Style::Added => "1;32",
            Style::Changed => "1;33",
            Style::Removed | Style::Error => "1;31",
            Style::Warning => "33",
            Style::Help => "36",
            Style::Dim => "2",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// Paints the start of a text that begins with `head`.
    pub fn head(self, style: Style, head: &str, text: &str) -> String {
        match text.strip_prefix(head) {
            Some(rest) => self.paint(style, head) + rest,
            None => text.to_owned(),
        }
    }
}
