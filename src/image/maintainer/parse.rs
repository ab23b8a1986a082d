//! Reads the part of sh(1) that maintainer scripts are written in. What it does not know becomes
//! [`Command::Foreign`] or [`Part::Foreign`], to be named and never guessed at.

use std::rc::Rc;

/// Commands in the order in which they run.
pub(super) type List = Vec<Command>;

/// A command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Simple(Simple),
    /// `a && b || c`: whether each runs after success or failure. Flat, as a stranger's chain may be long.
    Chain(Box<Command>, Vec<(After, Command)>),
    Not(Box<Command>),
    Pipe(Vec<Command>),
    /// Conditions with what they lead to, and the rest.
    If(Vec<(List, List)>, List),
    For(String, Vec<Word>, List),
    Case(Word, Vec<(Vec<Word>, List)>),
    Function(String, Rc<List>),
    Group(List),
    /// In words: a loop without an end, a subshell, something in the background.
    Foreign(String),
}

/// What a command of a chain runs after.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum After {
    Success,
    Failure,
}

/// `NAME=value... word... >file`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Simple {
    pub assigns: Vec<(String, Word)>,
    pub words: Vec<Word>,
    /// Where its output goes, if to a file that is not /dev/null.
    pub output: Option<Word>,
    /// The text of `<<END`, as it stands there.
    pub input: Option<Word>,
}

/// A word, of parts that are joined.
pub(super) type Word = Vec<Part>;

/// A part of a word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// Text, and whether it is quoted: only what is not is a pattern.
    Text(String, bool),
    /// A variable: its name, what follows it in `${}`, and whether it is quoted.
    Variable(String, Option<(String, Word)>, bool),
    /// `$(commands)`, and whether it is quoted.
    Output(List, bool),
    /// Something that is not known here, as it stands there.
    Foreign(String),
}

/// The commands of a script; `Err` says where it cannot be read.
pub(super) fn parse(text: &str) -> Result<List, String> {
    let mut parser = Parser { text: text.chars().collect(), at: 0, heredocs: 0, depth: 0 };
    let list = parser.list(&[])?;
    match parser.peek() {
        None => Ok(list),
        Some(c) => Err(parser.wrong(&format!("{c:?} stands alone"))),
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
    /// How many here-documents were taken out of the text.
    heredocs: u32,
    depth: u32,
}

/// Scripts are strangers' text: nesting is bounded.
const DEEPEST: u32 = 60;

/// Each is cut out of the text, which moves all that follows.
const MOST_HEREDOCS: u32 = 100;

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn ahead(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(n, c)| self.text.get(self.at + n) == Some(&c))
    }

    fn take(&mut self, text: &str) -> bool {
        let there = self.ahead(text);
        if there {
            self.at += text.chars().count();
        }
        there
    }

    fn wrong(&self, what: &str) -> String {
        let line = self.text[..self.at.min(self.text.len())].iter().filter(|c| **c == '\n').count() + 1;
        format!("line {line}: {what}")
    }

    /// Blanks, escaped newlines and comments.
    fn blanks(&mut self) {
        loop {
            if self.take("\\\n") {
                continue;
            }
            match self.peek() {
                Some(' ' | '\t' | '\r') => self.at += 1,
                Some('#') if self.at == 0 || " \t\n;&|()".contains(self.text[self.at - 1]) => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// Blanks, newlines and semicolons that end nothing.
    fn gaps(&mut self) {
        loop {
            self.blanks();
            match self.peek() {
                Some('\n') => self.newline(),
                _ => return,
            }
        }
    }

    fn newline(&mut self) {
        self.at += 1;
    }

    /// Whether one of these reserved words is next, which is not taken.
    fn reserved(&self, words: &[&str]) -> bool {
        words.iter().any(|word| {
            let after = self.text.get(self.at + word.chars().count());
            self.ahead(word)
                && (!word.ends_with(char::is_alphanumeric)
                    || after.is_none_or(|c| !c.is_alphanumeric() && !"_-./=".contains(*c)))
        })
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        self.gaps();
        if self.reserved(&[word]) && self.take(word) {
            Ok(())
        } else {
            Err(self.wrong(&format!("{word:?} is missing")))
        }
    }

    fn list(&mut self, ends: &[&str]) -> Result<List, String> {
        self.deeper()?;
        let mut list = List::new();
        loop {
            self.gaps();
            if self.peek().is_none() || self.reserved(ends) {
                break;
            }
            let command = self.and_or()?;
            self.blanks();
            let command = match self.peek() {
                Some('&') if !self.ahead("&&") => {
                    self.at += 1;
                    Command::Foreign("something in the background".to_owned())
                }
                _ => command,
            };
            list.push(command);
            self.blanks();
            if self.peek() == Some(';') && !self.ahead(";;") {
                self.at += 1;
            } else if !matches!(self.peek(), None | Some('\n')) && !self.reserved(ends) {
                return Err(self.wrong("a command goes on in an unknown way"));
            }
        }
        self.depth -= 1;
        Ok(list)
    }

    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(self.wrong("it is nested too deeply")) } else { Ok(()) }
    }

    fn and_or(&mut self) -> Result<Command, String> {
        let first = self.pipeline()?;
        let mut more = Vec::new();
        loop {
            self.blanks();
            let after = match (self.ahead("&&"), self.ahead("||")) {
                (true, _) => After::Success,
                (_, true) => After::Failure,
                _ => break,
            };
            self.at += 2;
            self.gaps();
            more.push((after, self.pipeline()?));
        }
        Ok(if more.is_empty() { first } else { Command::Chain(Box::new(first), more) })
    }

    fn pipeline(&mut self) -> Result<Command, String> {
        self.blanks();
        if self.peek() == Some('!') && self.text.get(self.at + 1).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
            self.deeper()?;
            let command = self.pipeline()?;
            self.depth -= 1;
            return Ok(Command::Not(Box::new(command)));
        }
        let mut all = vec![self.command()?];
        loop {
            self.blanks();
            if self.peek() != Some('|') || self.ahead("||") {
                break;
            }
            self.at += 1;
            self.gaps();
            all.push(self.command()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Command::Pipe(all) })
    }

    fn command(&mut self) -> Result<Command, String> {
        self.blanks();
        let command = if self.word_is("if") {
            self.conditions()?
        } else if self.word_is("for") {
            self.loop_over()?
        } else if self.word_is("case") {
            self.case()?
        } else if self.reserved(&["while", "until"]) {
            self.at += 5;
            self.list(&["do"])?;
            self.expect("do")?;
            self.list(&["done"])?;
            self.expect("done")?;
            Command::Foreign("a loop that has no list of words".to_owned())
        } else if self.peek() == Some('{') && self.text.get(self.at + 1).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
            let list = self.list(&["}"])?;
            self.expect("}")?;
            Command::Group(list)
        } else if self.peek() == Some('(') {
            self.at += 1;
            self.list(&[")"])?;
            self.expect(")")?;
            Command::Foreign("a subshell".to_owned())
        } else {
            return self.simple();
        };
        // What a compound says, or hears, is no matter of ours.
        let mut io = Simple::default();
        while self.redirect(&mut io)? {}
        Ok(match (io.output, io.input) {
            (None, None) => command,
            _ => Command::Foreign("a group of commands with a file".to_owned()),
        })
    }

    fn word_is(&mut self, word: &str) -> bool {
        self.reserved(&[word]) && self.take(word)
    }

    fn conditions(&mut self) -> Result<Command, String> {
        let mut branches = Vec::new();
        loop {
            let condition = self.list(&["then"])?;
            self.expect("then")?;
            let body = self.list(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            if !self.word_is("elif") {
                break;
            }
        }
        let rest = if self.word_is("else") { self.list(&["fi"])? } else { List::new() };
        self.expect("fi")?;
        Ok(Command::If(branches, rest))
    }

    fn loop_over(&mut self) -> Result<Command, String> {
        self.blanks();
        let name = self.name();
        self.gaps();
        let mut words = Vec::new();
        if self.word_is("in") {
            loop {
                self.blanks();
                match self.peek() {
                    None | Some('\n' | ';') => break,
                    _ => words.push(self.word()?),
                }
            }
        } else {
            words.push(vec![Part::Variable("@".to_owned(), None, true)]);
        }
        self.gaps();
        if self.peek() == Some(';') {
            self.at += 1;
        }
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(Command::For(name, words, body))
    }

    fn case(&mut self) -> Result<Command, String> {
        self.blanks();
        let subject = self.word()?;
        self.expect("in")?;
        let mut arms = Vec::new();
        loop {
            self.gaps();
            if self.word_is("esac") {
                return Ok(Command::Case(subject, arms));
            }
            self.take("(");
            let mut patterns = Vec::new();
            loop {
                self.blanks();
                patterns.push(self.word()?);
                self.blanks();
                if !self.take("|") {
                    break;
                }
            }
            if !self.take(")") {
                return Err(self.wrong("a pattern of `case` has no end"));
            }
            let body = self.list(&[";;", "esac"])?;
            self.take(";;");
            arms.push((patterns, body));
        }
    }

    fn name(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        self.text[start..self.at].iter().collect()
    }

    fn simple(&mut self) -> Result<Command, String> {
        let mut simple = Simple::default();
        loop {
            self.blanks();
            if self.redirect(&mut simple)? {
                continue;
            }
            match self.peek() {
                None | Some('\n' | ';' | '&' | '|' | ')') => break,
                Some('(') => {
                    let [word] = simple.words.as_slice() else { return Err(self.wrong("'(' in a command")) };
                    let [Part::Text(name, false)] = word.as_slice() else {
                        return Err(self.wrong("'(' in a command"));
                    };
                    let name = name.clone();
                    self.at += 1;
                    self.expect(")")?;
                    self.gaps();
                    // A function may have a process of its own, which nobody sees.
                    let (begin, end) = if self.peek() == Some('(') { ("(", ")") } else { ("{", "}") };
                    self.expect(begin)?;
                    let body = self.list(&[end])?;
                    self.expect(end)?;
                    return Ok(Command::Function(name, Rc::new(body)));
                }
                Some(_) => {}
            }
            let start = self.at;
            let name = self.name();
            if !name.is_empty() && simple.words.is_empty() && self.peek() == Some('=') {
                self.at += 1;
                let value = match self.peek() {
                    None | Some(' ' | '\t' | '\n' | ';' | '&' | '|' | ')') => Word::new(),
                    _ => self.word()?,
                };
                simple.assigns.push((name, value));
                continue;
            }
            self.at = start;
            simple.words.push(self.word()?);
        }
        if simple == Simple::default() {
            return Err(self.wrong("a command is missing"));
        }
        Ok(Command::Simple(simple))
    }

    /// Takes a redirection if one is next.
    fn redirect(&mut self, simple: &mut Simple) -> Result<bool, String> {
        self.blanks();
        let start = self.at;
        let mut number = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            number.push(c);
            self.at += 1;
        }
        let output = match self.peek() {
            Some('>') => true,
            Some('<') => false,
            _ => {
                self.at = start;
                return Ok(false);
            }
        };
        self.at += 1;
        if !output && self.take("<") {
            let tabs = self.take("-");
            self.blanks();
            let start = self.at;
            let end = self.word()?;
            let literal = self.text[start..self.at].iter().any(|c| "'\"\\".contains(*c));
            let end: String = end
                .iter()
                .map(|part| if let Part::Text(text, _) = part { text.as_str() } else { "" })
                .collect();
            simple.input = Some(self.heredoc(&end, tabs, literal)?);
            return Ok(true);
        }
        let append = output && self.take(">");
        if self.take("&") {
            while self.peek().is_some_and(|c| c.is_ascii_digit() || c == '-') {
                self.at += 1;
            }
            return Ok(true);
        }
        self.take("|");
        self.blanks();
        let target = self.word()?;
        let nowhere = matches!(target.as_slice(), [Part::Text(path, _)] if path.starts_with("/dev/"));
        if nowhere || number == "2" {
            return Ok(true);
        }
        match output && !append {
            true => simple.output = Some(target),
            false => {
                simple.output = Some(vec![Part::Foreign("a file that is read or appended to".to_owned())])
            }
        }
        Ok(true)
    }

    /// Cuts the text of a here-document out of what follows the line.
    fn heredoc(&mut self, end: &str, tabs: bool, literal: bool) -> Result<Word, String> {
        self.heredocs += 1;
        if self.heredocs > MOST_HEREDOCS {
            return Err(self.wrong("it has too many here-documents"));
        }
        let rest = self.text[self.at..].iter().position(|c| *c == '\n').map(|n| self.at + n + 1);
        let Some(start) = rest else { return Err(self.wrong("a here-document has no text")) };
        let (mut at, mut body) = (start, String::new());
        loop {
            if at >= self.text.len() {
                return Err(self.wrong("a here-document has no end"));
            }
            let stop = self.text[at..].iter().position(|c| *c == '\n').map_or(self.text.len(), |n| at + n);
            let line: String = self.text[at..stop].iter().collect();
            let line = if tabs { line.trim_start_matches('\t') } else { &line };
            at = (stop + 1).min(self.text.len() + 1);
            if line == end {
                break;
            }
            body.push_str(line);
            body.push('\n');
        }
        self.text.drain(start..at.min(self.text.len()));
        if literal || !body.contains(['$', '`', '\\']) {
            return Ok(vec![Part::Text(body, true)]);
        }
        let mut inner =
            Parser { text: body.chars().collect(), at: 0, heredocs: self.heredocs, depth: self.depth };
        let mut parts = Word::new();
        inner.quoted(&mut parts, None)?;
        Ok(parts)
    }

    fn word(&mut self) -> Result<Word, String> {
        let mut parts = Word::new();
        let start = self.at;
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\n' | '\r' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\'' => {
                    self.at += 1;
                    let end = self.text[self.at..].iter().position(|c| *c == '\'');
                    let Some(end) = end else { return Err(self.wrong("a quote has no end")) };
                    let text: String = self.text[self.at..self.at + end].iter().collect();
                    self.at += end + 1;
                    push(&mut parts, &text, true);
                }
                '"' => {
                    self.at += 1;
                    push(&mut parts, "", true);
                    self.quoted(&mut parts, Some('"'))?;
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => self.at += 1,
                        Some(c) => {
                            push(&mut parts, &c.to_string(), true);
                            self.at += 1;
                        }
                        None => {}
                    }
                }
                '$' | '`' => self.expansion(&mut parts, false)?,
                c => {
                    push(&mut parts, &c.to_string(), false);
                    self.at += 1;
                }
            }
        }
        if self.at == start { Err(self.wrong("a word is missing")) } else { Ok(parts) }
    }

    /// The inside of double quotes, or of a here-document, which has no end of its own.
    fn quoted(&mut self, parts: &mut Word, end: Option<char>) -> Result<(), String> {
        loop {
            match self.peek() {
                None if end.is_none() => return Ok(()),
                None => return Err(self.wrong("a quote has no end")),
                c if c == end && end.is_some() => {
                    self.at += 1;
                    return Ok(());
                }
                Some('$' | '`') => self.expansion(parts, true)?,
                Some('\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => {}
                        Some(c @ ('$' | '`' | '"' | '\\')) => push(parts, &c.to_string(), true),
                        Some(c) => push(parts, &format!("\\{c}"), true),
                        None => {}
                    }
                    self.at += 1;
                }
                Some(c) => {
                    push(parts, &c.to_string(), true);
                    self.at += 1;
                }
            }
        }
    }

    /// `$name`, `${name...}`, `$(commands)` or `` `commands` ``.
    fn expansion(&mut self, parts: &mut Word, quoted: bool) -> Result<(), String> {
        self.deeper()?;
        self.expand(parts, quoted)?;
        self.depth -= 1;
        Ok(())
    }

    fn expand(&mut self, parts: &mut Word, quoted: bool) -> Result<(), String> {
        if self.take("`") {
            let start = self.at;
            let end = self.text[start..].iter().position(|c| *c == '`');
            let Some(end) = end else { return Err(self.wrong("a backquote has no end")) };
            let text: String = self.text[start..start + end].iter().collect();
            self.at += end + 1;
            parts.push(match parse(&text) {
                Ok(list) => Part::Output(list, quoted),
                Err(_) => Part::Foreign(text),
            });
            return Ok(());
        }
        self.at += 1;
        if self.take("((") {
            let start = self.at;
            while self.peek().is_some() && !self.ahead("))") {
                self.at += 1;
            }
            parts.push(Part::Foreign(self.text[start..self.at].iter().collect()));
            self.take("))");
            return Ok(());
        }
        if self.take("(") {
            let list = self.list(&[")"])?;
            self.expect(")")?;
            parts.push(Part::Output(list, quoted));
            return Ok(());
        }
        if self.take("{") {
            let start = self.at;
            let mut name = self.name();
            if name.is_empty() && self.peek().is_some_and(|c| "@*#?$!".contains(c)) {
                name.push(self.text[self.at]);
                self.at += 1;
            }
            let mut operator = String::new();
            while let Some(c) = self.peek().filter(|c| ":-+=?#%".contains(*c)) {
                operator.push(c);
                self.at += 1;
            }
            let mut rest = Word::new();
            while self.peek().is_some_and(|c| c != '}') {
                match self.peek() {
                    Some('$' | '`') => self.expansion(&mut rest, quoted)?,
                    Some('"') => {
                        self.at += 1;
                        self.quoted(&mut rest, Some('"'))?;
                    }
                    Some(c) => {
                        push(&mut rest, &c.to_string(), false);
                        self.at += 1;
                    }
                    None => {}
                }
            }
            if !self.take("}") {
                return Err(self.wrong("${ has no end"));
            }
            let known = ["", ":-", "-", ":+", "+", ":=", "=", "#", "##", "%", "%%", ":?", "?"];
            if name.is_empty() || !known.contains(&operator.as_str()) {
                parts.push(Part::Foreign(self.text[start..self.at].iter().collect()));
            } else {
                let operation = (!operator.is_empty()).then_some((operator, rest));
                parts.push(Part::Variable(name, operation, quoted));
            }
            return Ok(());
        }
        let mut name = match self.peek() {
            Some(c) if c.is_ascii_digit() || "@*#?$!".contains(c) => {
                self.at += 1;
                c.to_string()
            }
            _ => self.name(),
        };
        if name.is_empty() {
            name.push('$');
            push(parts, &name, quoted);
        } else {
            parts.push(Part::Variable(name, None, quoted));
        }
        Ok(())
    }
}

fn push(parts: &mut Word, text: &str, quoted: bool) {
    match parts.last_mut() {
        Some(Part::Text(before, same)) if *same == quoted => before.push_str(text),
        _ => parts.push(Part::Text(text.to_owned(), quoted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scripts_are_made_of_is_read() {
        for text in [
            "#!/bin/sh\nset -e\n# a comment\ncase \"$1\" in\n  configure|triggered) : ;;\n  *) echo 'no' >&2; exit 1\n  ;;\nesac\nexit 0\n",
            "if [ \"$1\" = x ] || ! test -e /y && true; then a; elif b; then c\nelse d; fi >/dev/null 2>&1\n",
            "f () {\n local x=1\n}\nf2() { :; }\nfor a in b \"c d\" $e; do echo $a; done\nfor a; do :; done\n",
            "while read x; do :; done < file\n(cd /x && y)\nsleep 1 &\n",
            "x=$(a | b `c`) y= \\\n z \"${a:-b $c}\" ${a##*-} $((1 + 2))\n",
            "cat > \"$x\" <<-EOF\n\ttext ${y}\n\tEOF\ncat <<'EOF' >z\n$x\nEOF\n",
        ] {
            parse(text).unwrap_or_else(|why| panic!("{why}: {text}"));
        }
    }

    #[test]
    fn here_documents_and_redirections_are_taken_from_their_command() {
        let list = parse("cat > /x <<EOF\na b\nEOF\nnext 2>/dev/null >>y\n").unwrap();
        let Command::Simple(cat) = &list[0] else { panic!("{list:?}") };
        assert_eq!(cat.words.len(), 1);
        assert_eq!(cat.input, Some(vec![Part::Text("a b\n".into(), true)]));
        assert_eq!(cat.output, Some(vec![Part::Text("/x".into(), false)]));
        let Command::Simple(next) = &list[1] else { panic!("{list:?}") };
        assert!(matches!(next.output.as_deref(), Some([Part::Foreign(_)])), "{next:?}");
    }

    #[test]
    fn what_is_no_script_is_said_with_its_line() {
        for (text, line) in
            [("a\n(b\n", "line 3"), ("if a; then b\n", "line 2"), ("echo 'x", "line 1"), ("fi )", "line 1")]
        {
            let why = parse(text).unwrap_err();
            assert!(why.starts_with(line), "{text}: {why}");
        }
        for nested in ["$(", "${a:-", "! ", "if ", "\"$(", "{ ", "(", "${a:-\"${b:-"] {
            assert!(parse(&nested.repeat(50_000)).is_err(), "{nested}");
        }
        // A long chain is not a deep one.
        drop(parse(&format!("{}c", "a && b || ".repeat(50_000))).unwrap());
    }
}
