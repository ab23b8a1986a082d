//! Characters and tokens of KDL 2: white space, comments, strings, numbers, keywords.

use super::{Abort, Problem, Scan, Step};
use std::ops::Range;

/// KDL's newlines, apart from CRLF, which is two of them in a row here.
pub(super) fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{B}' | '\u{C}' | '\u{2028}' | '\u{2029}')
}

/// KDL's white space without newlines.
pub(super) fn is_space(c: char) -> bool {
    matches!(
        c,
        '\t' | ' ' | '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}'
    )
}

/// Code points that KDL allows nowhere.
pub(super) fn is_forbidden(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{E}'..='\u{1F}' | '\u{7F}' | '\u{200E}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

fn is_word(c: char) -> bool {
    !is_newline(c)
        && !is_space(c)
        && !matches!(c, '\\' | '/' | '(' | ')' | '{' | '}' | '[' | ']' | ';' | '"' | '#' | '=')
}

/// The KDL 2 spelling of a bare word that was a keyword in KDL 1.
pub(super) fn keyword_of_kdl1(word: &str) -> Option<&str> {
    matches!(word, "true" | "false" | "null" | "inf" | "-inf" | "nan").then_some(word)
}

pub(super) fn kdl1_keyword(word: &str, span: Range<usize>) -> Problem {
    Problem::new(
        "manifest.kdl1",
        span,
        format!("write `#{word}`"),
        format!("`{word}` is KDL 1; manifests are KDL 2"),
    )
    .help(format!("write `#{word}` for the value, or `\"{word}\"` for the text"))
}

/// A line of a string between `"""` and `"""`.
struct Line {
    /// Where it starts in the manifest.
    at: usize,
    text: String,
}

impl Scan<'_> {
    /// White space, comments and newlines between nodes.
    pub(super) fn line_space(&mut self) -> Step {
        loop {
            let before = self.pos;
            self.node_space()?;
            if self.at("//") {
                self.line_comment();
            } else if self.peek().is_some_and(is_newline) {
                self.bump();
            }
            if self.pos == before {
                return Ok(());
            }
        }
    }

    /// White space, block comments and continued lines inside a node.
    pub(super) fn node_space(&mut self) -> Step {
        loop {
            match self.peek() {
                Some(c) if is_space(c) => self.bump(),
                Some('/') if self.at("/*") => self.block_comment()?,
                Some('\\') => {
                    let at = self.pos;
                    self.bump();
                    while self.peek().is_some_and(is_space) || self.at("/*") {
                        if self.at("/*") { self.block_comment()? } else { self.bump() }
                    }
                    if self.at("//") {
                        self.line_comment();
                    }
                    match self.peek() {
                        None => return Ok(()),
                        Some(c) if is_newline(c) => self.newline(),
                        Some(_) => {
                            self.record(
                                Problem::new(
                                    "manifest.syntax",
                                    at..at + 1,
                                    "not at the end of its line",
                                    "a `\\` continues a line only at its end",
                                )
                                .help("put text with backslashes into quotes"),
                            )?;
                            self.skip_line();
                        }
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// What ends a node: a newline, `;` or a comment up to the end of the line.
    pub(super) fn terminator(&mut self) -> Step {
        if self.at("//") {
            self.line_comment();
        } else if self.peek() == Some(';') {
            self.bump();
        } else {
            self.newline();
        }
        Ok(())
    }

    fn newline(&mut self) {
        if self.at("\r\n") {
            self.pos += 2;
        } else {
            self.bump();
        }
    }

    pub(super) fn skip_line(&mut self) {
        while self.peek().is_some_and(|c| !is_newline(c)) {
            self.bump();
        }
    }

    fn line_comment(&mut self) {
        let start = self.pos;
        self.skip_line();
        self.blank(start, self.pos);
    }

    fn block_comment(&mut self) -> Step {
        let start = self.pos;
        let mut level = 0usize;
        loop {
            if self.at("/*") {
                level += 1;
                self.pos += 2;
            } else if self.at("*/") {
                level -= 1;
                self.pos += 2;
                if level == 0 {
                    self.blank(start, self.pos);
                    return Ok(());
                }
            } else if self.peek().is_some() {
                self.bump();
            } else {
                self.problems.push(
                    Problem::new(
                        "manifest.unclosed-comment",
                        start..start + 2,
                        "opened here",
                        "a comment is never closed",
                    )
                    .help("add the missing `*/`; comments nest, so each `/*` needs its own"),
                );
                return Err(Abort);
            }
        }
    }

    pub(super) fn starts_string(&self) -> bool {
        match self.peek() {
            Some('"') => true,
            Some('#') => self.rest().trim_start_matches('#').starts_with('"'),
            Some(c) => is_word(c) && !self.starts_number(),
            None => false,
        }
    }

    fn starts_number(&self) -> bool {
        let unsigned = self.rest().strip_prefix(['+', '-']).unwrap_or(self.rest());
        let undotted = unsigned.strip_prefix('.').unwrap_or(unsigned);
        undotted.starts_with(|c: char| c.is_ascii_digit())
    }

    /// A string where only a name can stand. False if a problem was recorded.
    pub(super) fn name(&mut self, what: &str) -> Step<bool> {
        if self.starts_string() {
            return self.string(true);
        }
        let at = self.pos;
        let len = self.token_len();
        let found = &self.text[at..at + len];
        let found = if found.is_empty() { "the end of the line" } else { found };
        let problem = Problem::new(
            "manifest.syntax",
            at..at + len,
            "not a name",
            format!("{what} cannot start like this: {found}"),
        )
        .help("a name is a word such as `port`, or any text in quotes");
        self.record(problem)?;
        Ok(false)
    }

    /// Bytes of what looks like one token, for a label.
    fn token_len(&self) -> usize {
        let rest = self.rest();
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        match rest.chars().next() {
            Some(c) if word == 0 && !is_newline(c) => c.len_utf8(),
            _ => word,
        }
    }

    /// Any value. False if a problem was recorded.
    pub(super) fn value(&mut self, what: &str) -> Step<bool> {
        let at = self.pos;
        if self.starts_string() {
            if !self.string(false)? {
                return Ok(false);
            }
            if let Some(word) = keyword_of_kdl1(&self.text[at..self.pos]) {
                self.record(kdl1_keyword(word, at..self.pos))?;
                return Ok(false);
            }
            return Ok(true);
        }
        if self.peek() == Some('#') {
            self.bump();
            self.pos += self.word_len();
            let word = &self.text[at..self.pos];
            if matches!(word, "#true" | "#false" | "#null" | "#nan" | "#inf" | "#-inf") {
                return Ok(true);
            }
            let problem = Problem::new("manifest.syntax", at..self.pos, "unknown", format!("`{word}` is not a KDL keyword"))
                .help("the keywords are #true, #false, #null, #inf, #-inf and #nan; `#` in a text needs quotes, and a comment starts with `//`");
            self.record(problem)?;
            return Ok(false);
        }
        if self.starts_number() {
            self.pos += self.word_len();
            let word = &self.text[at..self.pos];
            if is_number(word) {
                return Ok(true);
            }
            let problem = Problem::new(
                "manifest.syntax",
                at..self.pos,
                "not a number",
                format!("`{word}` is not a number"),
            )
            .help(format!("write \"{word}\" in quotes if it is meant as text"));
            self.record(problem)?;
            return Ok(false);
        }
        let len = self.token_len();
        let found =
            self.peek().filter(|c| !is_newline(*c)).map_or("nothing".to_owned(), |c| format!("{c:?}"));
        let mut problem = Problem::new(
            "manifest.syntax",
            at..at + len,
            "no value",
            format!("{what} is expected here, not {found}"),
        );
        problem = problem.help("write a text in quotes, a number, #true or #false");
        if self.peek().is_some_and(|c| matches!(c, '/' | '[' | ']' | '\\')) {
            problem = problem.help("put paths and other text with `/`, `\\`, `[` or `]` into quotes");
        }
        self.record(problem)?;
        Ok(false)
    }

    fn word_len(&self) -> usize {
        let rest = self.rest();
        rest.find(|c| !is_word(c)).unwrap_or(rest.len())
    }

    /// A bare word, a quoted or a raw string. False if a problem was recorded.
    pub(super) fn string(&mut self, name: bool) -> Step<bool> {
        let at = self.pos;
        match self.peek() {
            Some('"') if self.at("\"\"\"") => self.multi_line(0),
            Some('"') => self.quoted(),
            Some('#') => {
                let hashes = self.rest().bytes().take_while(|b| *b == b'#').count();
                self.pos += hashes;
                if self.at("\"\"\"") { self.multi_line(hashes) } else { self.raw(at, hashes) }
            }
            _ => {
                self.pos += self.word_len();
                let word = &self.text[at..self.pos];
                if word == "r" && (self.at("\"") || self.at("#")) {
                    let hashes =
                        "#".repeat(self.rest().bytes().take_while(|b| *b == b'#').count().clamp(1, 3));
                    self.record(
                        Problem::new(
                            "manifest.kdl1",
                            at..at + 1,
                            "KDL 1 raw string",
                            "`r\"...\"` is KDL 1; manifests are KDL 2",
                        )
                        .help(format!("write {hashes}\"...\"{hashes}")),
                    )?;
                    return Ok(false);
                }
                if let (true, Some(word)) = (name, keyword_of_kdl1(word)) {
                    self.record(kdl1_keyword(word, at..at + word.len()))?;
                    return Ok(false);
                }
                Ok(true)
            }
        }
    }

    fn unclosed(&mut self, at: usize, closing: &str) -> Abort {
        let end = at + self.text[at..].find(is_newline).unwrap_or(self.text.len() - at);
        self.problems.push(
            Problem::new("manifest.unclosed-string", at..end, "opened here", "a string is never closed")
                .help(format!("add the closing {closing}")),
        );
        Abort
    }

    fn quoted(&mut self) -> Step<bool> {
        let at = self.pos;
        self.bump();
        let mut good = true;
        loop {
            match self.peek() {
                Some('"') => {
                    self.bump();
                    return Ok(good);
                }
                Some('\\') => good &= self.escape()?,
                Some(c) if !is_newline(c) => self.bump(),
                _ => {
                    let problem = Problem::new("manifest.unclosed-string", at..self.pos, "opened here", "a string is not closed on its line")
                        .help("add the closing quote; a text of several lines stands between `\"\"\"` and `\"\"\"`, each on a line's end or a line of its own");
                    self.record(problem)?;
                    return Ok(false);
                }
            }
        }
    }

    /// An escape in a quoted string. False if a problem was recorded.
    fn escape(&mut self) -> Step<bool> {
        let at = self.pos;
        self.bump();
        match self.peek() {
            Some('\\' | '"' | 'b' | 'f' | 'n' | 'r' | 't' | 's') => {
                self.bump();
                return Ok(true);
            }
            Some(c) if is_space(c) || is_newline(c) => {
                while self.peek().is_some_and(|c| is_space(c) || is_newline(c)) {
                    self.bump();
                }
                return Ok(true);
            }
            Some('u') if self.at("u{") => {
                let digits = self.rest()[2..].bytes().take_while(u8::is_ascii_hexdigit).count();
                let code = u32::from_str_radix(&self.rest()[2..2 + digits.min(6)], 16).ok();
                if digits <= 6
                    && self.rest()[2 + digits..].starts_with('}')
                    && code.is_some_and(|c| char::from_u32(c).is_some())
                {
                    self.pos += digits + 3;
                    return Ok(true);
                }
            }
            _ => {}
        }
        let len = self.peek().filter(|c| !is_newline(*c)).map_or(0, char::len_utf8);
        let help = match self.peek() {
            Some('/') => "KDL 2 has no `\\/`: write `/`",
            Some('u') => {
                "a character by number is \\u{1F600}: one to six hexadecimal digits of a Unicode character"
            }
            _ => {
                "the escapes are \\\\ \\\" \\n \\r \\t \\s \\b \\f and \\u{...}; a backslash itself is \\\\, or write #\"...\"#"
            }
        };
        let problem = Problem::new(
            "manifest.bad-escape",
            at..at + 1 + len,
            "not an escape",
            "an unknown escape in a string",
        )
        .help(help);
        self.record(problem)?;
        Ok(false)
    }

    fn raw(&mut self, at: usize, hashes: usize) -> Step<bool> {
        let closing = format!("\"{}", "#".repeat(hashes));
        let body = self.pos + 1;
        let line_end = self.text[body..].find(is_newline).map_or(self.text.len(), |n| body + n);
        let Some(end) = self.text[body..line_end].find(&closing) else {
            return Err(self.unclosed(at, &closing));
        };
        // The parser takes `#"""#` for a broken multi-line string.
        self.pos = body + end + closing.len();
        Ok(true)
    }

    /// A string between `"""` and `"""`, raw if it has hashes: every line starts like the last one.
    fn multi_line(&mut self, hashes: usize) -> Step<bool> {
        let at = self.pos;
        let closing = format!("\"\"\"{}", "#".repeat(hashes));
        self.pos += 3;
        if !self.peek().is_some_and(is_newline) {
            let problem = Problem::new(
                "manifest.syntax",
                at..at + 3,
                "text follows",
                "after `\"\"\"` the text starts on the next line",
            )
            .help("break the line behind the quotes, or use single ones");
            self.record(problem)?;
            return Ok(false);
        }
        self.newline();
        let mut good = true;
        // The lines as they are compared: white space that a backslash joins is gone, other escapes stand as written.
        let mut lines = vec![Line { at: self.pos, text: String::new() }];
        while !self.at(&closing) {
            let line = lines.last_mut().expect("invariant: lines are only added");
            let before = self.pos;
            match self.peek() {
                None => return Err(self.unclosed(at, &closing)),
                Some('\\') if hashes == 0 => {
                    good &= self.escape()?;
                    if !self.text[before + 1..].starts_with(|c| is_space(c) || is_newline(c)) {
                        line.text += &self.text[before..self.pos];
                    }
                }
                Some(c) if is_newline(c) => {
                    self.newline();
                    lines.push(Line { at: self.pos, text: String::new() });
                }
                Some(c) => {
                    self.bump();
                    line.text.push(c);
                }
            }
        }
        let end = self.pos;
        self.pos += closing.len();
        let indent = lines.pop().map_or_else(String::new, |line| line.text);
        if !indent.chars().all(is_space) {
            let problem = Problem::new(
                "manifest.syntax",
                end..self.pos,
                "not alone",
                "the closing `\"\"\"` stands on a line of its own",
            )
            .help("break the line before it; only white space may stand in front of it");
            self.record(problem)?;
            return Ok(false);
        }
        for Line { at, text } in lines {
            if !text.starts_with(&indent) && !text.chars().all(is_space) {
                let stop = at + self.text[at..].find(is_newline).unwrap_or(self.text.len() - at);
                let problem = Problem::new(
                    "manifest.syntax",
                    at..stop,
                    "indented otherwise",
                    "a line of the text is indented less than its closing `\"\"\"`",
                )
                .help(
                    "every line starts with exactly the white space that stands before the closing `\"\"\"`",
                );
                self.record(problem)?;
                return Ok(false);
            }
        }
        Ok(good)
    }
}

/// A number of KDL 2; 36 digits in a row are more than any setting needs and less than the parser's i128.
fn is_number(word: &str) -> bool {
    fn run(s: &str, digit: impl Fn(u8) -> bool) -> Option<&str> {
        let n = s.bytes().take_while(|b| digit(*b) || *b == b'_').count();
        (n > 0 && n <= 36 && digit(s.as_bytes()[0])).then(|| &s[n..])
    }
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let radix = |prefix: [&str; 2], digit: fn(&u8) -> bool, most: usize| {
        let digits = prefix.iter().find_map(|p| unsigned.strip_prefix(p))?;
        Some(digits.len() <= most && run(digits, |b| digit(&b)) == Some(""))
    };
    if let Some(good) = radix(["0x", "0X"], u8::is_ascii_hexdigit, 30)
        .or_else(|| radix(["0o", "0O"], |b| (b'0'..=b'7').contains(b), 36))
        .or_else(|| radix(["0b", "0B"], |b| matches!(b, b'0' | b'1'), 36))
    {
        return good;
    }
    let decimal = |b: u8| b.is_ascii_digit();
    let Some(mut rest) = run(unsigned, decimal) else { return false };
    if let Some(fraction) = rest.strip_prefix('.') {
        let Some(after) = run(fraction, decimal) else { return false };
        rest = after;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let Some(after) = run(exponent.strip_prefix(['+', '-']).unwrap_or(exponent), decimal) else {
            return false;
        };
        rest = after;
    }
    rest.is_empty()
}
