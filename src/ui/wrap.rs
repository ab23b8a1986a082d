//! Text in lines no longer than the terminal is wide, broken between words only.

use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm, wrap};

/// Breaks a line between words; what follows the first break is indented by `indent` columns. A word that is longer than
/// the line, such as a path, stays whole. Without a width nothing is broken.
pub fn line(text: &str, width: Option<usize>, indent: usize) -> String {
    let Some(width) = width else { return text.to_owned() };
    let blanks = " ".repeat(indent);
    let options = Options::new(width)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .subsequent_indent(&blanks);
    wrap(text, options).join("\n")
}

/// Several lines, each by itself. What is indented was laid out by somebody else, such as a guest's console.
pub fn lines(text: &str, width: Option<usize>, indent: usize) -> String {
    let wrapped = text.lines().map(|text| match text.starts_with(' ') {
        true => text.to_owned(),
        false => line(text, width, indent),
    });
    wrapped.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_only() {
        let text = "warning: the-first-word-with-hyphens /a/path/that/is/longer/than/a/line and more of it";
        let wrapped = line(text, Some(24), 2);
        assert_eq!(
            wrapped,
            "warning:\n  the-first-word-with-hyphens\n  /a/path/that/is/longer/than/a/line\n  and more of it"
        );
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&wrapped), words(text));
        assert_eq!(line(text, None, 2), text);
    }

    #[test]
    fn what_is_laid_out_already_is_left_alone() {
        assert_eq!(lines("one two three\n  four five six", Some(8), 1), "one two\n three\n  four five six");
    }
}
