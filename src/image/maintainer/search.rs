//! Searches of scripts: `... | grep -q PATTERN` and `grep -q PATTERN FILE`, where what is searched and what for can be
//! told.

use super::parse::{Command, Simple};
use super::run::Runner;

impl Runner<'_, '_> {
    /// Whether `... | grep -q PATTERN` finds it; `None` if that cannot be told.
    pub(super) fn searched(&mut self, from: &Command, grep: &Simple) -> Option<bool> {
        let words = self.words(&grep.words).ok()?;
        let [name, options @ .., pattern] = words.as_slice() else { return None };
        let search = Search::parse(options, pattern).filter(|_| name == "grep")?;
        let output = self.output(std::slice::from_ref(from)).ok()?;
        self.finds(&search, &output)
    }

    /// Whether `grep -q PATTERN FILE` finds it, by its arguments; `None` if that cannot be told.
    pub(super) fn searched_file(&mut self, args: &[String]) -> Option<bool> {
        let [options @ .., pattern, file] = args else { return None };
        let search = Search::parse(options, pattern)?;
        if !self.root().exists(file) {
            return Some(false);
        }
        let text = self.root().text(file)?;
        self.finds(&search, &text)
    }

    fn finds(&mut self, search: &Search, text: &str) -> Option<bool> {
        if !self.work(text.len().saturating_mul(search.text.len())) {
            return None;
        }
        let word = |c: char| c.is_alphanumeric() || c == '_';
        Some(text.lines().any(|line| match &search.pattern {
            Some(pattern) => pattern.is_in(line),
            None if search.whole_word => line.split(|c| !word(c)).any(|part| part == search.text),
            None => line.contains(search.text.as_str()),
        }))
    }
}

/// What grep(1) is to look for.
struct Search {
    text: String,
    /// Absent where the text means itself.
    pattern: Option<Pattern>,
    whole_word: bool,
}

impl Search {
    /// `None` for what is not known here.
    fn parse(options: &[String], text: &str) -> Option<Search> {
        let known = |option: &String| {
            matches!(option.as_str(), "-q" | "-qs" | "-sq" | "--quiet" | "-w" | "-qw" | "-wq" | "-F" | "-s")
        };
        let quiet = |option: &String| option == "--quiet" || option.contains('q');
        if text.is_empty() || !options.iter().all(known) || !options.iter().any(quiet) {
            return None;
        }
        let has = |c| options.iter().any(|option| !option.starts_with("--") && option.contains(c));
        let whole_word = has('w');
        let plain = has('F') || !text.contains(['*', '[', '\\', '^', '$', '.']);
        let pattern = match plain {
            true => None,
            false if whole_word => return None,
            false => Some(Pattern::parse(text)?),
        };
        Some(Search { text: text.to_owned(), pattern, whole_word })
    }
}

/// A basic regular expression (grep(1)) without groups, alternatives and counts.
struct Pattern {
    from_start: bool,
    to_end: bool,
    atoms: Vec<(Atom, Often)>,
}

enum Atom {
    Any,
    One(char),
    /// Ranges of characters, and whether they are those that do not match.
    Class(Vec<(char, char)>, bool),
}

#[derive(PartialEq)]
enum Often {
    Once,
    /// Any number of times, none too.
    Star,
}

impl Pattern {
    /// `None` for what is not known here.
    fn parse(text: &str) -> Option<Pattern> {
        let (from_start, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let mut pattern = Pattern { from_start, to_end: false, atoms: Vec::new() };
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let atom = match c {
                '$' if chars.peek().is_none() => {
                    pattern.to_end = true;
                    break;
                }
                '.' => Atom::Any,
                '*' if !pattern.atoms.is_empty() => return None,
                // Groups, counts and words are not known; what else is escaped means itself.
                '\\' => Atom::One(chars.next().filter(char::is_ascii_punctuation).filter(|c| {
                    !matches!(c, '(' | ')' | '{' | '}' | '|' | '+' | '?' | '<' | '>' | '`' | '\'')
                })?),
                '[' => {
                    let not = chars.next_if_eq(&'^').is_some();
                    let mut inside = Vec::new();
                    loop {
                        match chars.next()? {
                            ']' if !inside.is_empty() => break,
                            '[' if matches!(chars.peek(), Some(':' | '.' | '=')) => return None,
                            c => inside.push(c),
                        }
                    }
                    Atom::Class(ranges(&inside), not)
                }
                c => Atom::One(c),
            };
            let often = if chars.next_if_eq(&'*').is_some() { Often::Star } else { Often::Once };
            pattern.atoms.push((atom, often));
        }
        Some(pattern)
    }

    /// Whether it matches anywhere in a line. All places are kept at once, so that no pattern takes long.
    fn is_in(&self, line: &str) -> bool {
        let end = self.atoms.len();
        // Which atoms may come next.
        let mut at = vec![false; end + 1];
        at[0] = true;
        let skip = |at: &mut Vec<bool>| {
            for n in 0..end {
                if at[n] && self.atoms[n].1 == Often::Star {
                    at[n + 1] = true;
                }
            }
        };
        skip(&mut at);
        for c in line.chars() {
            if at[end] && !self.to_end {
                return true;
            }
            let mut next = vec![false; end + 1];
            next[0] = !self.from_start;
            for (n, (atom, often)) in self.atoms.iter().enumerate() {
                if at[n] && atom.takes(c) {
                    next[if *often == Often::Star { n } else { n + 1 }] = true;
                }
            }
            skip(&mut next);
            at = next;
        }
        at[end]
    }
}

impl Atom {
    fn takes(&self, c: char) -> bool {
        match self {
            Atom::Any => true,
            Atom::One(one) => *one == c,
            Atom::Class(ranges, not) => ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *not,
        }
    }
}

fn ranges(inside: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    let mut rest = inside;
    while let [first, after @ ..] = rest {
        (rest, _) = match after {
            ['-', last, more @ ..] => (more, ranges.push((*first, *last))),
            _ => (after, ranges.push((*first, *first))),
        };
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_greps() {
        for (pattern, line, found) in [
            ("^shadow:[^:]*:42", "shadow:*:42:", true),
            ("^shadow:[^:]*:42", "shadow:x:y:42:", false),
            ("^adm", "badm", false),
            ("adm$", "adm:", false),
            ("a.c*$", "xxabcc", true),
            ("a.c*$", "xxab", true),
            ("a.c*$", "xxa", false),
            ("^$", "", true),
            ("[a-c]-[]x]", "b-]", true),
            ("a\\.b", "axb", false),
            ("x*", "", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().is_in(line), found, "{pattern} {line}");
        }
        for unknown in ["\\(a\\)", "[[:digit:]]", "a\\+", "[a", "a**", "\\<a"] {
            assert!(Pattern::parse(unknown).is_none(), "{unknown}");
        }
        // A hostile one takes no time.
        assert!(!Pattern::parse(&("a*".repeat(2000) + "b$")).unwrap().is_in(&"a".repeat(2000)));
    }
}
