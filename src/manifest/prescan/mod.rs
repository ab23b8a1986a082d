//! Reads a manifest's text before the kdl parser does, and hands on only what that parser handles well.
//!
//! The parser's recursion is deep in places that a manifest can reach: nested blocks (it overflows its
//! stack between 1,000 and 3,000 levels), every `*` in a comment, every stray character at the top level;
//! and `/-` inside `/-` doubles its work at each level. So the grammar of KDL 2 is recognised here first,
//! with bounded depth. What is wrong is reported in our words; comments and `/-` parts are blanked out with
//! spaces of equal length, so that every offset in the cleaned text is an offset in the original.

mod lex;

use super::diagnostic::Problem;

/// Blocks inside blocks, at most: the deepest setting is at level 3.
pub(super) const DEPTH_MAX: usize = 32;

/// After this many syntax problems the rest is likely noise.
const PROBLEMS_MAX: usize = 10;

/// Ends the scan: the problem that ended it has been recorded.
#[derive(Debug)]
struct Abort;

type Step<T = ()> = Result<T, Abort>;

/// The text with comments and `/-` parts blanked, or what is wrong with it.
pub(super) fn prescan(text: &str) -> Result<String, Vec<Problem>> {
    let mut scan = Scan { text, pos: 0, clean: text.as_bytes().to_vec(), problems: vec![] };
    if text.starts_with('\u{FEFF}') {
        scan.blank(0, 3);
        scan.pos = 3;
    }
    // An abort has left its problem in the list.
    let _ = scan.forbidden_characters().and_then(|()| scan.nodes(&mut vec![]));
    if scan.problems.is_empty() {
        Ok(String::from_utf8(scan.clean).expect("invariant: only whole characters were overwritten"))
    } else {
        Err(scan.problems)
    }
}

struct Scan<'a> {
    text: &'a str,
    /// Always at a character boundary.
    pos: usize,
    clean: Vec<u8>,
    problems: Vec<Problem>,
}

impl Scan<'_> {
    fn rest(&self) -> &str {
        &self.text[self.pos..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn at(&self, prefix: &str) -> bool {
        self.rest().starts_with(prefix)
    }

    fn bump(&mut self) {
        self.pos += self.peek().map_or(0, char::len_utf8);
    }

    fn blank(&mut self, from: usize, to: usize) {
        self.clean[from..to].fill(b' ');
    }

    fn record(&mut self, problem: Problem) -> Step {
        self.problems.push(problem);
        if self.problems.len() >= PROBLEMS_MAX { Err(Abort) } else { Ok(()) }
    }

    /// KDL allows these nowhere; direction marks could make a manifest read differently than it acts.
    fn forbidden_characters(&mut self) -> Step {
        let start = self.pos;
        let bad: Vec<(usize, char)> =
            self.text[start..].char_indices().filter(|(_, c)| lex::is_forbidden(*c)).take(3).collect();
        for (i, c) in bad {
            let at = start + i;
            let what = format!("U+{:04X}", u32::from(c));
            self.record(
                Problem::new(
                    "manifest.forbidden-character",
                    at..at + c.len_utf8(),
                    what.clone(),
                    format!("the character {what} is not allowed in a manifest"),
                )
                .help("control and text direction characters are refused everywhere; in a string, write an escape such as \\u{1B}"),
            )?;
        }
        if self.problems.is_empty() { Ok(()) } else { Err(Abort) }
    }

    /// The nodes of one level, up to its `}` or the end of the text. `open` holds the offsets of open `{`.
    fn nodes(&mut self, open: &mut Vec<usize>) -> Step {
        loop {
            self.line_space()?;
            match self.peek() {
                None => {
                    let Some(at) = open.last().copied() else { return Ok(()) };
                    if self.problems.is_empty() {
                        self.record(
                            Problem::new(
                                "manifest.unclosed-block",
                                at..at + 1,
                                "opened here",
                                "a block is never closed",
                            )
                            .help("add the missing `}`"),
                        )?;
                    }
                    return Err(Abort);
                }
                Some('}') if !open.is_empty() => return Ok(()),
                Some('}') => {
                    // After a syntax problem a brace may just have been skipped with its line.
                    if !self.problems.is_empty() {
                        return Err(Abort);
                    }
                    let at = self.pos;
                    self.bump();
                    self.record(
                        Problem::new(
                            "manifest.syntax",
                            at..at + 1,
                            "closes nothing",
                            "a `}` without its `{`",
                        )
                        .help("remove it, or add the `{` that it should close"),
                    )?;
                    return Err(Abort);
                }
                Some(_) => {
                    let start = self.pos;
                    let slashdash = self.at("/-");
                    if slashdash {
                        self.pos += 2;
                        self.line_space()?;
                    }
                    let count = self.problems.len();
                    self.node(open)?;
                    if self.problems.len() > count {
                        self.skip_line();
                    } else if slashdash {
                        self.check_version_marker(start);
                        self.blank(start, self.pos);
                    }
                }
            }
        }
    }

    /// `/- kdl-version 1` at the top announces a language that this is not.
    fn check_version_marker(&mut self, start: usize) {
        let end = start + self.text[start..self.pos].trim_end().len();
        let words: Vec<&str> = self.text[start + 2..end].split_whitespace().collect();
        if words == ["kdl-version", "1"] {
            self.problems.push(
                Problem::new("manifest.kdl1", start..end, "KDL 1", "this file says that it is KDL 1")
                    .help("manifests are KDL 2: write `/- kdl-version 2`, `#true` for `true`, and `#\"...\"#` for `r\"...\"`"),
            );
        }
    }

    /// One node and what ends it, unless that is a `}`. With a problem recorded, `pos` is anywhere in it.
    fn node(&mut self, open: &mut Vec<usize>) -> Step {
        match self.peek() {
            Some('{') => {
                let at = self.pos;
                return self.record(
                    Problem::new(
                        "manifest.syntax",
                        at..at + 1,
                        "whose block?",
                        "a block without a name before it",
                    )
                    .help("put the setting's name in front, on the same line as the `{`"),
                );
            }
            Some(';') => {
                let at = self.pos;
                self.bump();
                return self.record(
                    Problem::new(
                        "manifest.syntax",
                        at..at + 1,
                        "ends nothing",
                        "a `;` without a setting before it",
                    )
                    .help("remove it"),
                );
            }
            _ => {}
        }
        if !self.type_annotation()? || !self.name("a setting's name")? {
            return Ok(());
        }
        // Entries come before all blocks, also before those that `/-` takes out.
        let (mut block_seen, mut entries_over) = (false, false);
        loop {
            let before = self.pos;
            self.node_space()?;
            let spaced = self.pos > before;
            let Some(c) = self.peek() else { return Ok(()) };
            if lex::is_newline(c) || c == ';' || self.at("//") {
                self.terminator()?;
                return Ok(());
            }
            match c {
                '}' => return Ok(()),
                '{' => {
                    if block_seen {
                        let at = self.pos;
                        return self.record(
                            Problem::new(
                                "manifest.syntax",
                                at..at + 1,
                                "second block",
                                "a setting has only one block",
                            )
                            .help("join the two blocks"),
                        );
                    }
                    (block_seen, entries_over) = (true, true);
                    self.block(open)?;
                }
                '/' if self.at("/-") => {
                    let start = self.pos;
                    self.pos += 2;
                    self.line_space()?;
                    let count = self.problems.len();
                    if let Some('{') = self.peek() {
                        entries_over = true;
                        self.block(open)?;
                    } else if let (true, Some(c)) = (entries_over, self.peek()) {
                        return self.unexpected(c, true);
                    } else {
                        self.entry()?;
                    }
                    if self.problems.len() > count {
                        return Ok(());
                    }
                    self.blank(start, self.pos);
                }
                _ if !spaced || entries_over => return self.unexpected(c, entries_over),
                _ => {
                    if !self.entry()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn unexpected(&mut self, c: char, block_seen: bool) -> Step {
        let at = self.pos;
        let problem =
            Problem::new("manifest.syntax", at..at + c.len_utf8(), "unexpected", format!("unexpected {c:?}"));
        let help = match c {
            _ if block_seen && c != '=' => "start the next setting on a line of its own, or after `;`",
            '=' => {
                "a setting's name and its value are separated by a space; `=` belongs to what follows them: `port 8080 to=80`"
            }
            ')' => "a value has no parentheses around it",
            ',' | ':' | '[' | ']' => "values are separated by spaces alone",
            _ => "separate values by a space",
        };
        self.record(problem.help(help))
    }

    /// A block from its `{` to behind its `}`.
    fn block(&mut self, open: &mut Vec<usize>) -> Step {
        if open.len() == DEPTH_MAX {
            let at = self.pos;
            self.problems.push(
                Problem::new(
                    "manifest.too-deep",
                    at..at + 1,
                    format!("level {}", DEPTH_MAX + 1),
                    format!("blocks are nested more than {DEPTH_MAX} levels deep"),
                )
                .help("no setting needs more than 3 levels"),
            );
            return Err(Abort);
        }
        open.push(self.pos);
        self.bump();
        self.nodes(open)?;
        open.pop();
        self.bump(); // the `}` at which `nodes` stopped
        Ok(())
    }

    /// A value, or a property with its value. False if a problem was recorded.
    fn entry(&mut self) -> Step<bool> {
        let before = self.pos;
        if self.peek() == Some('(') || !self.starts_string() {
            return Ok(self.type_annotation()? && self.value("a value")? && self.ends_value()?);
        }
        if !self.string(false)? {
            return Ok(false);
        }
        let end = self.pos;
        self.node_space()?;
        if self.peek() != Some('=') {
            self.pos = end;
            if let Some(word) = lex::keyword_of_kdl1(&self.text[before..end]) {
                self.record(lex::kdl1_keyword(word, before..end))?;
                return Ok(false);
            }
            return self.ends_value();
        }
        self.bump();
        self.node_space()?;
        Ok(self.type_annotation()? && self.value("the property's value")? && self.ends_value()?)
    }

    /// A value must be followed by something that ends it.
    fn ends_value(&mut self) -> Step<bool> {
        let Some(c) = self.peek() else { return Ok(true) };
        let comment = self.at("//") || self.at("/*") || self.at("/-");
        // A backslash continues the line.
        if comment || lex::is_space(c) || lex::is_newline(c) || matches!(c, ';' | '{' | '}' | '\\') {
            return Ok(true);
        }
        self.unexpected(c, false)?;
        Ok(false)
    }

    /// `(type)`, if there is one. False if a problem was recorded.
    fn type_annotation(&mut self) -> Step<bool> {
        if self.peek() != Some('(') {
            return Ok(true);
        }
        let at = self.pos;
        self.bump();
        self.node_space()?;
        if !self.name("a type's name")? {
            return Ok(false);
        }
        self.node_space()?;
        if self.peek() != Some(')') {
            self.record(
                Problem::new("manifest.syntax", at..at + 1, "opened here", "a type without its `)`")
                    .help("manifests have no types: remove it"),
            )?;
            return Ok(false);
        }
        self.bump();
        self.node_space()?;
        Ok(true)
    }
}

#[cfg(test)]
mod cases_tests;
#[cfg(test)]
mod tests;
