//! Follows a maintainer script over the image's tree, without running anything. What it cannot follow it names.

use super::alternatives::Alternatives;
use super::budget::{Budget, Notes};
use super::parse::{After, Command, List, Part, Simple, Word, parse};
use super::root::Root;
use std::collections::HashMap;
use std::rc::Rc;

/// A script that takes more steps does something else than installing.
const MOST_STEPS: u32 = 20_000;

/// As much work as one step stands for: characters compared, words moved.
const STEP: usize = 4096;

/// What a variable may hold.
const LONGEST: usize = 64 << 10;

/// Scripts call scripts.
const DEEPEST: u32 = 16;

/// Commands in commands, through all functions and scripts.
const MOST_NESTED: u32 = 128;

/// What test(1) is asked in one command.
const MOST_TESTED: usize = 64;

/// The bytes of a pattern.
const LONGEST_PATTERN: usize = 4096;

const TOO_MUCH: &str = "it makes too much text or too many files";
const TOO_LONG: &str = "it takes too many steps";

/// What is shared by all scripts of an image.
pub(super) struct Shared<'t> {
    pub root: Root<'t>,
    pub alternatives: Alternatives,
    /// Diversions: the path, where it goes, and whose file stays.
    pub diversions: Vec<(String, String, String)>,
}

/// A script that is being followed.
pub(super) struct Runner<'s, 't> {
    pub shared: &'s mut Shared<'t>,
    pub package: &'s str,
    /// Defaults of the package's questions (debconf); `None` where a script of its own decides.
    pub answers: Option<&'s HashMap<String, String>>,
    /// `None` for a value that cannot be told.
    vars: HashMap<String, Option<String>>,
    args: Vec<String>,
    functions: HashMap<String, Rc<List>>,
    /// What was not followed, in words.
    pub undone: Notes,
    steps: u32,
    depth: u32,
    nested: u32,
    /// Whether a failure ends the script (`set -e`).
    strict: bool,
}

/// How a command ended; `None` if that cannot be told.
pub(super) type Status = Option<bool>;

/// What comes after a command.
enum Flow {
    Next(Status),
    Break,
    Continue,
    Return(Status),
    Exit,
}

/// What cannot be told, in words.
pub(super) struct Unknown(pub String);

pub(super) type Known<T> = Result<T, Unknown>;

impl<'s, 't> Runner<'s, 't> {
    pub fn new(
        shared: &'s mut Shared<'t>,
        package: &'s str,
        answers: Option<&'s HashMap<String, String>>,
    ) -> Self {
        let vars = [
            ("DPKG_MAINTSCRIPT_PACKAGE", package),
            ("DPKG_MAINTSCRIPT_NAME", "postinst"),
            ("DPKG_MAINTSCRIPT_ARCH", "amd64"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("HOME", "/root"),
            ("PWD", "/"),
            ("IFS", " \t\n"),
        ];
        Runner {
            shared,
            package,
            answers,
            vars: vars.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).into(),
            args: Vec::new(),
            functions: HashMap::new(),
            undone: Notes::default(),
            steps: 0,
            depth: 0,
            nested: 0,
            strict: false,
        }
    }

    /// Follows a script with its arguments.
    pub fn follow(&mut self, text: &str, args: &[&str]) {
        self.root().budget = Budget::of_a_script();
        match script(text) {
            Ok(list) => {
                self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
                self.list(&list);
            }
            Err(why) => {
                self.undone.insert(why);
            }
        }
        self.is_over();
        let root = self.root();
        root.budget = Budget::unbounded();
        root.cwd.clear();
    }

    /// Whether a script has used up what it may, which is noted.
    fn is_over(&mut self) -> bool {
        let why = match self.root().budget.is_spent() {
            true => TOO_MUCH,
            false if self.steps > MOST_STEPS => TOO_LONG,
            false if self.nested > MOST_NESTED => "it is nested too deeply",
            false => return false,
        };
        self.undone.insert(why.to_owned());
        true
    }

    /// Counts what takes longer than a step; whether it may still be done.
    pub fn work(&mut self, amount: usize) -> bool {
        let steps = u32::try_from(amount / STEP).unwrap_or(u32::MAX);
        self.steps = self.steps.saturating_add(steps);
        self.steps <= MOST_STEPS
    }

    /// Takes so many bytes of what the script may use.
    fn take(&mut self, bytes: usize) -> Known<()> {
        if self.root().budget.take(bytes) { Ok(()) } else { Err(Unknown(TOO_MUCH.to_owned())) }
    }

    pub fn root(&mut self) -> &mut Root<'t> {
        &mut self.shared.root
    }

    fn list(&mut self, list: &List) -> Flow {
        let mut status = Some(true);
        for command in list {
            match self.command(command, false) {
                Flow::Next(next) => status = next,
                other => return other,
            }
        }
        Flow::Next(status)
    }

    /// Follows a command; `asked` if its status decides something.
    fn command(&mut self, command: &Command, asked: bool) -> Flow {
        self.steps = self.steps.saturating_add(1);
        self.nested += 1;
        let flow = if self.is_over() { Flow::Exit } else { self.any(command, asked) };
        self.nested -= 1;
        flow
    }

    fn any(&mut self, command: &Command, asked: bool) -> Flow {
        match command {
            Command::Simple(simple) => self.statement(simple, asked),
            Command::Chain(first, more) => self.chain(first, more, asked),
            Command::Not(inner) => match self.command(inner, true) {
                Flow::Next(status) => Flow::Next(status.map(|status| !status)),
                other => other,
            },
            Command::Pipe(all) => {
                if let [from, Command::Simple(grep)] = all.as_slice()
                    && let Some(found) = self.searched(from, grep)
                {
                    return Flow::Next(Some(found));
                }
                if !all.iter().all(is_reader) {
                    self.undone.insert(words_of(command));
                }
                Flow::Next(None)
            }
            Command::If(branches, rest) => self.conditional(branches, rest),
            Command::For(name, words, body) => self.each(name, words, body),
            Command::Case(subject, arms) => self.case(subject, arms),
            Command::Function(name, body) => {
                self.functions.insert(name.clone(), Rc::clone(body));
                Flow::Next(Some(true))
            }
            Command::Group(list) => self.list(list),
            Command::Foreign(what) => {
                self.undone.insert(what.clone());
                Flow::Next(None)
            }
        }
    }

    fn chain(&mut self, first: &Command, more: &[(After, Command)], asked: bool) -> Flow {
        let mut status = match self.command(first, true) {
            Flow::Next(status) => status,
            other => return other,
        };
        for (at, (after, command)) in more.iter().enumerate() {
            let wanted = *after == After::Success;
            if status.is_none() && !self.work(weight(command)) {
                return Flow::Exit;
            }
            match status {
                Some(status) if status != wanted => continue,
                // Whether it runs cannot be told. What only speaks, or fails on purpose, is no loss.
                None if is_harmless(command) => {
                    status = Some(true);
                    continue;
                }
                None => {
                    self.undone.insert(words_of(if more.len() == 1 { first } else { command }));
                    return after_unknown(more[at..].iter().any(|(_, command)| moves(command)));
                }
                Some(_) => {}
            }
            match self.command(command, asked || at + 1 < more.len()) {
                Flow::Next(next) => status = next,
                other => return other,
            }
        }
        // A chain whose first part fails does not end a script.
        Flow::Next(status)
    }

    fn conditional(&mut self, branches: &[(List, List)], rest: &List) -> Flow {
        for (at, (condition, body)) in branches.iter().enumerate() {
            let before = self.undone.clone();
            match self.condition(condition) {
                Ok(Some(true)) => return self.list(body),
                Ok(Some(false)) => {}
                Ok(None) => {
                    let lists = || branches[at..].iter().map(|(_, body)| body).chain([rest]);
                    if !self.work(lists().flatten().map(weight).sum()) {
                        return Flow::Exit;
                    }
                    let harmless = |list: &List| list.iter().all(is_harmless);
                    if branches[at..].iter().all(|(_, body)| harmless(body)) && harmless(rest) {
                        self.undone = before;
                    } else {
                        let what = condition.last().map(words_of).unwrap_or_default();
                        self.undone.insert(what);
                    }
                    return after_unknown(lists().flatten().any(moves));
                }
                Err(flow) => return flow,
            }
        }
        self.list(rest)
    }

    fn condition(&mut self, list: &List) -> Result<Status, Flow> {
        let mut status = Some(true);
        for command in list {
            match self.command(command, true) {
                Flow::Next(next) => status = next,
                other => return Err(other),
            }
        }
        Ok(status)
    }

    fn each(&mut self, name: &str, words: &[Word], body: &List) -> Flow {
        let words = match self.words(words) {
            Ok(words) => words,
            Err(Unknown(why)) => {
                if !self.work(body.iter().map(weight).sum()) {
                    return Flow::Exit;
                }
                if !body.iter().all(is_harmless) {
                    self.undone.insert(why);
                }
                return after_unknown(body.iter().any(moves));
            }
        };
        for word in words {
            self.vars.insert(name.to_owned(), Some(word));
            match self.list(body) {
                Flow::Next(_) | Flow::Continue => {}
                Flow::Break => break,
                other => return other,
            }
        }
        Flow::Next(Some(true))
    }

    fn case(&mut self, subject: &Word, arms: &[(Vec<Word>, List)]) -> Flow {
        let mut bodies = arms.iter().flat_map(|(_, body)| body);
        let Ok(subject) = self.joined(subject) else {
            if !self.work(bodies.clone().map(weight).sum()) {
                return Flow::Exit;
            }
            if !arms.iter().all(|(_, body)| body.iter().all(is_harmless)) {
                self.undone.insert("case".to_owned());
            }
            return after_unknown(bodies.any(moves));
        };
        for (patterns, body) in arms {
            for pattern in patterns {
                match self.pattern(pattern) {
                    Ok(pattern) if !self.work(pattern.len() * subject.len()) => return Flow::Exit,
                    Ok(pattern) if matches(&pattern, &subject) => return self.list(body),
                    Ok(_) => {}
                    // Which of the rest it is cannot be told.
                    Err(Unknown(why)) => {
                        self.undone.insert(why);
                        return after_unknown(bodies.any(moves));
                    }
                }
            }
        }
        Flow::Next(Some(true))
    }

    fn statement(&mut self, simple: &Simple, asked: bool) -> Flow {
        if simple.words.is_empty() {
            for (name, value) in &simple.assigns {
                let value = self.joined(value).ok();
                self.vars.insert(name.clone(), value);
            }
            if let Some(output) = &simple.output {
                return self.redirected(output, String::new());
            }
            return Flow::Next(Some(true));
        }
        let words = match self.words(&simple.words) {
            Ok(words) if !words.is_empty() => words,
            Ok(_) => return Flow::Next(Some(true)),
            Err(Unknown(_)) if name_of(simple).is_some_and(|name| is_silent(&name) || reads(&name)) => {
                return Flow::Next(None);
            }
            Err(_) if name_of(simple).is_some_and(|name| name == "cd") => {
                self.undone.insert(words_of_simple(simple));
                return Flow::Exit;
            }
            Err(_) => return self.unfollowed(&words_of_simple(simple), asked),
        };
        let flow = self.invoke(&words, simple, asked);
        if let Flow::Next(Some(false)) = flow
            && self.strict
            && !asked
        {
            self.undone.insert(format!("{} (it ends there)", words.join(" ")));
            return Flow::Exit;
        }
        flow
    }

    fn unfollowed(&mut self, what: &str, asked: bool) -> Flow {
        // Whoever asks tells.
        if !asked {
            self.undone.insert(what.to_owned());
        }
        Flow::Next(None)
    }

    fn invoke(&mut self, words: &[String], simple: &Simple, asked: bool) -> Flow {
        // In a loop: a stranger may write thousands of them.
        let leads = |words: &[String]| match words {
            [name, next, ..] => matches!(name.as_str(), "command" | "exec") && !next.starts_with('-'),
            _ => false,
        };
        let mut words = words;
        while leads(words) && !self.functions.contains_key(&words[0]) {
            words = &words[1..];
        }
        let (name, args) = (words[0].as_str(), &words[1..]);
        // Programs of the system, wherever they are called.
        let base = name.rsplit('/').next().unwrap_or(name);
        let name = if is_silent(base) || base == "glib-compile-schemas" { base } else { name };
        if let Some(body) = self.functions.get(name).cloned() {
            let before = std::mem::replace(&mut self.args, args.to_vec());
            self.depth += 1;
            let flow = match self.depth > DEEPEST {
                true => self.unfollowed("functions that call each other", false),
                false => self.list(&body),
            };
            self.depth -= 1;
            self.args = before;
            return match flow {
                Flow::Return(status) => Flow::Next(status),
                other => other,
            };
        }
        match name {
            "exit" => return Flow::Exit,
            "return" => return Flow::Return(Some(args.first().is_none_or(|code| code == "0"))),
            "break" => return Flow::Break,
            "continue" => return Flow::Continue,
            "set" => {
                self.strict |= args.iter().any(|arg| arg.starts_with('-') && arg.contains('e'));
                self.strict &= !args.iter().any(|arg| arg.starts_with('+') && arg.contains('e'));
                if args.first().is_some_and(|arg| arg == "--") {
                    self.args = args[1..].to_vec();
                }
                return Flow::Next(Some(true));
            }
            "shift" => {
                if !self.args.is_empty() && self.work(self.args.len()) {
                    self.args.remove(0);
                }
                return Flow::Next(Some(true));
            }
            "export" | "local" | "readonly" | "declare" => {
                for arg in args {
                    if let Some((name, value)) = arg.split_once('=') {
                        let value = (value.len() <= LONGEST).then(|| value.to_owned());
                        self.vars.insert(name.to_owned(), value);
                    }
                }
                return Flow::Next(Some(true));
            }
            "unset" => {
                for name in args {
                    self.vars.remove(name);
                }
                return Flow::Next(Some(true));
            }
            "." | "source" => return self.source(args),
            "cd" => return self.cd(args, asked),
            "test" => return Flow::Next(self.test(args)),
            "[" => return Flow::Next(self.test(&args[..args.len().saturating_sub(1)])),
            "db_get" => {
                let answer =
                    self.answers.map(|answers| answers.get(args.first().map_or("", |name| name)).cloned());
                self.vars.insert("RET".to_owned(), answer.map(Option::unwrap_or_default));
                return Flow::Next(Some(true));
            }
            "echo" | "printf" | "cat" if simple.output.is_some() => {
                let text = match (name, &simple.input) {
                    ("echo", _) if !args.first().is_some_and(|arg| arg.starts_with('-')) => {
                        Ok(args.join(" ") + "\n")
                    }
                    ("cat", Some(input)) if args.is_empty() => self.joined(input),
                    ("cat", None) => {
                        let texts: Option<Vec<String>> =
                            args.iter().map(|path| self.root().text(path)).collect();
                        texts.map(|texts| texts.concat()).ok_or_else(|| Unknown(String::new()))
                    }
                    _ => Err(Unknown(String::new())),
                };
                let (Ok(text), Some(output)) = (text, &simple.output) else {
                    return self.unfollowed(&words.join(" "), false);
                };
                return self.redirected(output, text);
            }
            _ => {}
        }
        if simple.output.is_some() {
            return self.unfollowed(&words.join(" "), false);
        }
        if is_silent(name) {
            // Nothing is running, and everything is new.
            let asks = matches!(name, "invoke-rc.d" | "systemctl" | "deb-systemd-invoke")
                && args.iter().any(|arg| matches!(arg.as_str(), "status" | "is-active" | "is-enabled"));
            return Flow::Next(Some(!asks && name != "false"));
        }
        if let Some(status) = self.effect(name, args) {
            return match status {
                Ok(status) => Flow::Next(status),
                Err(Unknown(what)) => self.unfollowed(&what, asked),
            };
        }
        if name == "grep"
            && let Some(found) = self.searched_file(args)
        {
            return Flow::Next(Some(found));
        }
        if let ("ls", [path] | [_, path]) = (name, args)
            && args.len() == 1 + args.iter().filter(|arg| arg.starts_with('-')).count()
        {
            return Flow::Next(Some(self.root().exists(path)));
        }
        if reads(name) {
            return Flow::Next(None);
        }
        if makes_bytecode(name, args.iter().cloned()) {
            return Flow::Next(Some(true));
        }
        self.program(words, asked)
    }

    /// Relative paths begin there from now on. Where that is no directory they cannot be told.
    fn cd(&mut self, args: &[String], asked: bool) -> Flow {
        let to = match args {
            [] => Some("/root"),
            [to] if !to.is_empty() && !to.starts_with('-') => Some(to.as_str()),
            _ => None,
        };
        let path = to.map(|to| match to.starts_with('/') {
            true => to.to_owned(),
            false => format!("{}/{to}", self.root().cwd),
        });
        // As shells have it: ".." takes away the name before it, be that a link's.
        let path = path.map(|path| {
            let mut parts: Vec<&str> = Vec::new();
            for part in path.split('/') {
                match part {
                    "" | "." => {}
                    ".." => _ = parts.pop(),
                    part => parts.push(part),
                }
            }
            format!("/{}", parts.join("/"))
        });
        match path {
            Some(path) if self.root().is_dir(&path) => {
                self.vars.insert("PWD".to_owned(), Some(path.clone()));
                self.root().cwd = path;
                Flow::Next(Some(true))
            }
            Some(_) if asked => Flow::Next(Some(false)),
            _ => {
                self.undone.insert(format!("cd {}", args.join(" ")));
                Flow::Exit
            }
        }
    }

    /// A program of the image that is a script, too.
    fn program(&mut self, words: &[String], asked: bool) -> Flow {
        let name = &words[0];
        let path = match name.contains('/') {
            true => Some(name.clone()),
            false => self.which(name),
        };
        let text = path.and_then(|path| self.root().text(&path));
        let list = text.filter(|_| self.depth < DEEPEST).and_then(|text| script(&text).ok());
        let Some(list) = list else { return self.unfollowed(&words.join(" "), asked) };
        let held = self.vars.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len));
        let held = held.sum();
        if self.take(held).is_err() {
            return Flow::Exit;
        }
        let cwd = self.root().cwd.clone();
        self.depth += 1;
        let args = std::mem::replace(&mut self.args, words[1..].to_vec());
        let vars = self.vars.clone();
        let functions = std::mem::take(&mut self.functions);
        let strict = std::mem::replace(&mut self.strict, false);
        self.list(&list);
        (self.args, self.vars, self.functions, self.strict) = (args, vars, functions, strict);
        self.root().cwd = cwd;
        self.depth -= 1;
        Flow::Next(Some(true))
    }

    fn source(&mut self, args: &[String]) -> Flow {
        let Some(path) = args.first() else { return Flow::Next(Some(false)) };
        if path.ends_with("/debconf/confmodule") || path.ends_with("/lsb/init-functions")
            // What it defines is known here.
            || path.ends_with("/php-maintscript-helper")
        {
            return Flow::Next(Some(true));
        }
        let text = self.root().text(path);
        let list = text.filter(|_| self.depth < DEEPEST).and_then(|text| parse(&text).ok());
        let Some(list) = list else { return self.unfollowed(&format!(". {path}"), false) };
        self.depth += 1;
        let flow = self.list(&list);
        self.depth -= 1;
        match flow {
            Flow::Return(status) => Flow::Next(status),
            other => other,
        }
    }

    fn redirected(&mut self, output: &Word, text: String) -> Flow {
        match self.joined(output) {
            Ok(path) if self.root().write(&path, &text) => Flow::Next(Some(true)),
            Ok(path) => self.unfollowed(&format!("writing {path}"), false),
            Err(Unknown(what)) => self.unfollowed(&what, false),
        }
    }

    /// Where a program is, of those in the directories of PATH.
    pub fn which(&mut self, name: &str) -> Option<String> {
        let dirs = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
        dirs.iter().map(|dir| format!("{dir}/{name}")).find(|path| self.shared.root.is_file(path))
    }

    /// The words of a command: variables that are not quoted come apart.
    pub(super) fn words(&mut self, words: &[Word]) -> Known<Vec<String>> {
        let mut all = Vec::new();
        for word in words {
            // What is quoted begins with a text, which is empty here.
            if let [Part::Text(before, true), Part::Variable(name, None, true)] = word.as_slice()
                && before.is_empty()
                && name == "@"
            {
                self.take(self.args.iter().map(|arg| arg.len() + size_of::<String>()).sum())?;
                all.extend(self.args.clone());
                continue;
            }
            // Text, and whether it came out of something that is not quoted.
            let mut parts: Vec<(String, bool)> = Vec::new();
            let mut quoted = false;
            let mut glob = false;
            for part in word {
                quoted |=
                    matches!(part, Part::Text(_, true) | Part::Variable(_, _, true) | Part::Output(_, true));
                glob |=
                    matches!(part, Part::Text(text, false) if text.contains(['*', '?', '[']) && text != "[");
                let apart = matches!(part, Part::Variable(_, _, false) | Part::Output(_, false));
                parts.push((self.part(part)?, apart));
            }
            let mut current = String::new();
            let mut any = quoted;
            for (text, apart) in parts {
                if !apart {
                    any |= !text.is_empty();
                    current.push_str(&text);
                    continue;
                }
                let mut pieces = text.split_whitespace().peekable();
                if text.starts_with(char::is_whitespace) && !current.is_empty() {
                    all.push(std::mem::take(&mut current));
                }
                while let Some(piece) = pieces.next() {
                    self.take(size_of::<String>())?;
                    any = true;
                    current.push_str(piece);
                    if pieces.peek().is_some() || text.ends_with(char::is_whitespace) {
                        all.push(std::mem::take(&mut current));
                        any = false;
                    }
                }
            }
            self.take(size_of::<String>())?;
            if glob {
                all.extend(self.glob(&current)?);
            } else if any || !current.is_empty() {
                all.push(current);
            }
        }
        Ok(all)
    }

    /// The files that a pattern names, which is itself if there are none. Only its last name may be a pattern.
    fn glob(&mut self, pattern: &str) -> Known<Vec<String>> {
        let (dir, last) = pattern.rsplit_once('/').map_or((None, pattern), |(dir, last)| (Some(dir), last));
        if dir.is_some_and(|dir| dir.contains(['*', '?', '['])) {
            return Ok(vec![pattern.to_owned()]);
        }
        let names = self.root().names(match dir {
            None => ".",
            Some("") => "/",
            Some(dir) => dir,
        });
        let all: usize = names.iter().map(|name| name.len() + 1).sum();
        if last.len() > LONGEST_PATTERN || !self.work(all.saturating_mul(last.len())) {
            return Err(Unknown(TOO_LONG.to_owned()));
        }
        self.take(names.len().saturating_mul(dir.map_or(0, str::len)))?;
        let found: Vec<String> = names
            .into_iter()
            .filter(|name| !name.starts_with('.') && matches(last, name))
            .map(|name| dir.map_or_else(|| name.clone(), |dir| format!("{dir}/{name}")))
            .collect();
        Ok(if found.is_empty() { vec![pattern.to_owned()] } else { found })
    }

    /// A word as one, as in an assignment.
    fn joined(&mut self, word: &Word) -> Known<String> {
        let mut text = String::new();
        for part in word {
            text.push_str(&self.part(part)?);
            if text.len() > LONGEST {
                return Err(Unknown("a text that grows and grows".to_owned()));
            }
        }
        Ok(text)
    }

    /// A word as a pattern: what is quoted means itself.
    fn pattern(&mut self, word: &Word) -> Known<String> {
        let mut pattern = String::new();
        for part in word {
            let quoted = matches!(part, Part::Text(_, true) | Part::Variable(_, _, true));
            for c in self.part(part)?.chars() {
                if quoted && "*?[\\".contains(c) {
                    pattern.push('\\');
                }
                pattern.push(c);
            }
            if pattern.len() > LONGEST_PATTERN {
                return Err(Unknown("a pattern that is too long".to_owned()));
            }
        }
        Ok(pattern)
    }

    fn part(&mut self, part: &Part) -> Known<String> {
        let text = self.expanded(part)?;
        self.take(text.len())?;
        Ok(text)
    }

    fn expanded(&mut self, part: &Part) -> Known<String> {
        match part {
            Part::Text(text, _) => Ok(text.clone()),
            Part::Foreign(what) => Err(Unknown(what.clone())),
            Part::Output(list, _) => self.output(list),
            Part::Variable(name, operation, _) => {
                let value = self.variable(name);
                let Some((operator, word)) = operation else {
                    return value.map(Option::unwrap_or_default);
                };
                let value = value?;
                self.take(value.as_ref().map_or(0, String::len))?;
                let empty =
                    value.as_deref().is_none_or(|value| value.is_empty() && operator.starts_with(':'));
                match operator.trim_start_matches(':') {
                    "-" | "=" if empty => self.joined(word),
                    "-" | "=" | "?" => Ok(value.unwrap_or_default()),
                    "+" if empty => Ok(String::new()),
                    "+" => self.joined(word),
                    cut => {
                        let pattern = self.pattern(word)?;
                        let value = value.unwrap_or_default();
                        // Each place of the value may be compared with the whole pattern.
                        let places = value.len().saturating_mul(value.len());
                        match self.work(places.saturating_mul(pattern.len() + 1)) {
                            true => Ok(cut_off(&value, cut, &pattern)),
                            false => Err(Unknown(TOO_LONG.to_owned())),
                        }
                    }
                }
            }
        }
    }

    fn variable(&self, name: &str) -> Known<Option<String>> {
        match name {
            "@" | "*" => Ok(Some(self.args.join(" "))),
            "#" => Ok(Some(self.args.len().to_string())),
            "0" => Ok(Some("postinst".to_owned())),
            "?" | "$" | "!" => Err(Unknown(format!("${name}"))),
            _ if name.bytes().all(|b| b.is_ascii_digit()) => {
                let at: usize = name.parse().unwrap_or(usize::MAX);
                Ok(self.args.get(at.wrapping_sub(1)).cloned())
            }
            _ => match self.vars.get(name) {
                Some(None) => Err(Unknown(format!("${name}"))),
                Some(value) => Ok(value.clone()),
                None => Ok(None),
            },
        }
    }

    /// What commands print, of the few that are known.
    pub(super) fn output(&mut self, list: &[Command]) -> Known<String> {
        let unknown = || Unknown(list.first().map(words_of).unwrap_or_default());
        let [Command::Simple(simple)] = list else { return Err(unknown()) };
        let words = self.words(&simple.words)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["dpkg", "--print-architecture"] => Ok("amd64".to_owned()),
            ["echo", rest @ ..] if !rest.first().is_some_and(|arg| arg.starts_with('-')) => {
                Ok(rest.join(" "))
            }
            ["printf", "%s", rest @ ..] => Ok(rest.concat()),
            ["basename", path] => Ok(path.rsplit('/').next().unwrap_or_default().to_owned()),
            ["dirname", path] => Ok(path
                .rsplit_once('/')
                .map_or(".", |(dir, _)| if dir.is_empty() { "/" } else { dir })
                .to_owned()),
            ["which", name] | ["command", "-v", name] => Ok(self.which(name).unwrap_or_default()),
            ["getent", kind @ ("passwd" | "group"), name] => {
                Ok(self.root().entry(*kind == "group", name).unwrap_or_default())
            }
            ["id", "-u", user] => self.root().uid(user).map(|id| id.to_string()).ok_or_else(unknown),
            ["id", "-g", user] => self.root().group_of(user).map(|id| id.to_string()).ok_or_else(unknown),
            ["id", "-u"] => Ok("0".to_owned()),
            ["id", "-Gn", user] => {
                let groups = self.root().groups_of(user);
                if groups.is_empty() { Err(unknown()) } else { Ok(groups.join(" ")) }
            }
            ["uname", "-s"] | ["uname"] => Ok("Linux".to_owned()),
            ["phpquery", "-M", "-v", version] => {
                let names = self.root().names(&format!("/etc/php/{version}/mods-available"));
                let names: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".ini")).collect();
                Ok(names.join(" "))
            }
            ["update-alternatives", "--query", name] => {
                let value = self.shared.alternatives.value(name).ok_or_else(unknown)?;
                Ok(format!("Name: {name}\nStatus: auto\nBest: {value}\nValue: {value}"))
            }
            // None has any before a script gives it some.
            ["getcap", path] if self.root().exists(path) => Ok(String::new()),
            ["readlink", path] => Ok(self.root().link_at(path).unwrap_or_default()),
            ["dpkg-divert" | "dpkg-statoverride", "--list", ..] => Ok(String::new()),
            ["cat", path] => {
                self.root().text(path).map(|text| text.trim_end_matches('\n').to_owned()).ok_or_else(unknown)
            }
            _ => Err(unknown()),
        }
    }

    /// test(1).
    fn test(&mut self, args: &[String]) -> Status {
        // Each `!` and `-o` goes deeper.
        if args.len() > MOST_TESTED {
            return None;
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.expression(&args)
    }

    fn expression(&mut self, args: &[&str]) -> Status {
        // From the weakest: `a -o b`, `a -a b`, `! a`.
        if args.len() > 3 {
            for (operator, decides) in [("-o", true), ("-a", false)] {
                if let Some(at) = args.iter().skip(1).position(|arg| *arg == operator).map(|at| at + 1)
                    && at + 1 < args.len()
                {
                    let (left, right) = (self.expression(&args[..at]), self.expression(&args[at + 1..]));
                    return match (left, right) {
                        (Some(one), _) | (_, Some(one)) if one == decides => Some(decides),
                        (Some(_), Some(_)) => Some(!decides),
                        _ => None,
                    };
                }
            }
        }
        match args {
            [] => Some(false),
            [one] => Some(!one.is_empty()),
            ["!", rest @ ..] => self.expression(rest).map(|status| !status),
            ["(", rest @ .., ")"] => self.expression(rest),
            [operator, path] => {
                let root = self.root();
                match *operator {
                    "-z" => Some(path.is_empty()),
                    "-n" => Some(!path.is_empty()),
                    "-e" | "-r" | "-w" => Some(root.exists(path)),
                    "-f" => Some(root.is_file(path)),
                    "-d" => Some(root.is_dir(path)),
                    "-L" | "-h" => Some(root.link_at(path).is_some()),
                    "-s" => Some(root.is_full(path)),
                    "-x" => {
                        let id = root.at(path);
                        Some(id.is_some_and(|id| root.tree.node(id).meta.mode & 0o111 != 0))
                    }
                    "-t" | "-S" | "-b" | "-c" | "-p" => Some(false),
                    _ => None,
                }
            }
            [left, operator, right] => {
                let numbers = left.parse::<i64>().ok().zip(right.parse::<i64>().ok());
                let compare = |with: fn(&i64, &i64) -> bool| numbers.map(|(left, right)| with(&left, &right));
                match *operator {
                    "=" | "==" => Some(left == right),
                    "!=" => Some(left != right),
                    "-eq" => compare(i64::eq),
                    "-ne" => compare(i64::ne),
                    "-gt" => compare(i64::gt),
                    "-ge" => compare(i64::ge),
                    "-lt" => compare(i64::lt),
                    "-le" => compare(i64::le),
                    "-a" => Some(!left.is_empty() && !right.is_empty()),
                    "-o" => Some(!left.is_empty() || !right.is_empty()),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// A script for sh or bash, parsed.
fn script(text: &str) -> Result<List, String> {
    let first = text.lines().next().unwrap_or_default();
    let shell = first.strip_prefix("#!").map(str::trim).unwrap_or_default();
    let program = shell.split_whitespace().next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    match program {
        "sh" | "bash" | "dash" => parse(text).map_err(|why| format!("it cannot be read ({why})")),
        "" if !first.starts_with("#!") => parse(text).map_err(|why| format!("it cannot be read ({why})")),
        _ => Err(format!("it is a script for {program}")),
    }
}

/// What changes nothing in an image that is not running: messages, services, caches that are made again when they lack.
fn is_silent(name: &str) -> bool {
    const SILENT: &[&str] = &[
        ":",
        "true",
        "false",
        "echo",
        "printf",
        "umask",
        "trap",
        "wait",
        "sleep",
        "sync",
        "logger",
        "type",
        "update-rc.d",
        "invoke-rc.d",
        "service",
        "deb-systemd-invoke",
        "deb-systemd-helper",
        "systemctl",
        "udevadm",
        "dpkg-maintscript-helper",
        "dpkg-trigger",
        "ucfr",
        "py3compile",
        "py3clean",
        "pycompile",
        "pyclean",
        "mandb",
        "install-docs",
        "install-info",
        "update-menus",
        "ldconfig",
        "update-ca-certificates",
        "rmdir",
        "kill",
        "systemd-sysusers",
        "ischroot",
        "pwck",
        "grpck",
        "gio-querymodules",
        "fc-cache",
        "gtk-update-icon-cache",
        "update-icon-caches",
        "update-mime",
        "systemd-tmpfiles",
        "update-mime-database",
        "update-desktop-database",
    ];
    SILENT.contains(&name) || (name.starts_with("db_") && name != "db_get")
}

/// What only reads, and tells.
fn reads(name: &str) -> bool {
    const READERS: &[&str] = &[
        "grep",
        "egrep",
        "fgrep",
        "awk",
        "cut",
        "sort",
        "uniq",
        "head",
        "tail",
        "tr",
        "wc",
        "ls",
        "md5sum",
        "sha256sum",
        "readlink",
        "basename",
        "dirname",
        "stat",
        "id",
        "ss",
        "dpkg-query",
        "diff",
        "cmp",
        "ps",
        "pidof",
        "pgrep",
        "uname",
        "expr",
        "date",
        "hostname",
        "cat",
        "test",
        "[",
        "which",
        "file",
        "ischroot",
        "systemd-detect-virt",
    ];
    READERS.contains(&name)
}

/// Python makes bytecode again where it lacks, or does without.
fn makes_bytecode(program: &str, mut words: impl Iterator<Item = String>) -> bool {
    let base = program.rsplit('/').next().unwrap_or(program);
    base.starts_with("python3")
        && words.any(|word| {
            let word = word.trim_end_matches(".py");
            ["py_compile", "compileall"].iter().any(|name| word.ends_with(name))
        })
}

fn literals(simple: &Simple) -> impl Iterator<Item = String> {
    simple.words.iter().filter_map(|word| match word.as_slice() {
        [Part::Text(text, _)] => Some(text.clone()),
        _ => None,
    })
}

fn name_of(simple: &Simple) -> Option<String> {
    match simple.words.first()?.as_slice() {
        [Part::Text(name, _)] => Some(name.clone()),
        _ => None,
    }
}

fn is_reader(command: &Command) -> bool {
    match command {
        Command::Simple(simple) => {
            simple.output.is_none() && name_of(simple).is_some_and(|name| reads(&name) || is_silent(&name))
        }
        _ => false,
    }
}

/// Whether a command changes nothing, whether it runs or not.
fn is_harmless(command: &Command) -> bool {
    match command {
        Command::Simple(simple) => match name_of(simple) {
            Some(name) => {
                simple.output.is_none()
                    && (is_silent(&name)
                        || reads(&name)
                        || makes_bytecode(&name, literals(simple))
                        || matches!(name.as_str(), "exit" | "return" | "db_get"))
            }
            None => false,
        },
        Command::Chain(first, more) => {
            is_harmless(first) && more.iter().all(|(_, command)| is_harmless(command))
        }
        Command::Not(inner) => is_harmless(inner),
        Command::Pipe(all) => all.iter().all(is_reader),
        Command::If(branches, rest) => {
            let all = |list: &List| list.iter().all(is_harmless);
            branches.iter().all(|(condition, body)| all(condition) && all(body)) && all(rest)
        }
        Command::Group(list) => list.iter().all(is_harmless),
        Command::Case(_, arms) => arms.iter().all(|(_, list)| list.iter().all(is_harmless)),
        Command::For(_, _, list) => list.iter().all(is_harmless),
        Command::Function(..) => true,
        Command::Foreign(_) => false,
    }
}

/// A command as a person knows it again: its first words.
fn words_of(command: &Command) -> String {
    match command {
        Command::Simple(simple) => words_of_simple(simple),
        Command::Chain(first, _) | Command::Not(first) => words_of(first),
        Command::Pipe(all) => all.first().map(words_of).unwrap_or_default(),
        Command::If(branches, _) => {
            branches.first().and_then(|(condition, _)| condition.first()).map(words_of).unwrap_or_default()
        }
        Command::For(..) => "a loop".to_owned(),
        Command::Case(subject, _) => format!("case {}", as_written(subject)),
        Command::Function(name, _) => name.clone(),
        Command::Group(list) => list.first().map(words_of).unwrap_or_default(),
        Command::Foreign(what) => what.clone(),
    }
}

fn words_of_simple(simple: &Simple) -> String {
    let words: Vec<String> = simple.words.iter().take(4).map(as_written).collect();
    words.join(" ")
}

fn as_written(word: &Word) -> String {
    word.iter()
        .map(|part| match part {
            Part::Text(text, _) => text.clone(),
            Part::Variable(name, _, _) => format!("${name}"),
            Part::Output(..) => "$(...)".to_owned(),
            Part::Foreign(text) => format!("$({text})"),
        })
        .collect()
}

/// What follows a command of which cannot be told whether it ran: if it would go to another directory, no path can be
/// told any more.
fn after_unknown(moves: bool) -> Flow {
    if moves { Flow::Exit } else { Flow::Next(None) }
}

/// Whether relative paths mean something else after a command.
fn moves(command: &Command) -> bool {
    match command {
        Command::Simple(simple) => name_of(simple).is_some_and(|name| name == "cd"),
        Command::Chain(first, more) => moves(first) || more.iter().any(|(_, command)| moves(command)),
        Command::Not(inner) => moves(inner),
        Command::If(branches, rest) => {
            branches.iter().flat_map(|(condition, body)| condition.iter().chain(body)).any(moves)
                || rest.iter().any(moves)
        }
        Command::Group(list) | Command::For(_, _, list) => list.iter().any(moves),
        Command::Case(_, arms) => arms.iter().flat_map(|(_, list)| list).any(moves),
        Command::Pipe(_) | Command::Function(..) | Command::Foreign(_) => false,
    }
}

/// The work of looking at a command and all in it.
fn weight(command: &Command) -> usize {
    const ONE: usize = 64;
    let all = |list: &[Command]| list.iter().map(weight).sum::<usize>();
    ONE + match command {
        Command::Simple(simple) => simple.words.len() * ONE,
        Command::Chain(first, more) => {
            weight(first) + more.iter().map(|(_, command)| weight(command)).sum::<usize>()
        }
        Command::Not(inner) => weight(inner),
        Command::Pipe(list) | Command::Group(list) | Command::For(_, _, list) => all(list),
        Command::If(branches, rest) => {
            branches.iter().map(|(condition, body)| all(condition) + all(body)).sum::<usize>() + all(rest)
        }
        Command::Case(_, arms) => arms.iter().map(|(_, list)| all(list)).sum(),
        Command::Function(..) | Command::Foreign(_) => 0,
    }
}

/// Whether a text is what a pattern of the shell means.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Where to go on after the last star, which takes one more each time.
    let (mut p, mut t, mut star) = (0, 0, None);
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some('?') if t < text.len() => Some(1),
            Some('[') => text.get(t).and_then(|c| class(&pattern[p..], *c)),
            Some('\\') if pattern.get(p + 1).is_some() && pattern.get(p + 1) == text.get(t) => Some(2),
            Some(c) if text.get(t) == Some(c) => Some(1),
            Some(_) => None,
        };
        match (step, star) {
            (Some(step), _) => (p, t) = (p + step, t + 1),
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// The length of a class that a character is in.
fn class(pattern: &[char], c: char) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|c| *c == ']')? + 2;
    let inside = &pattern[1..end];
    let (not, inside) = match inside.first() {
        Some('!' | '^') => (true, &inside[1..]),
        _ => (false, inside),
    };
    let mut found = false;
    let mut at = 0;
    while at < inside.len() {
        if inside.get(at + 1) == Some(&'-') && at + 2 < inside.len() {
            found |= (inside[at]..=inside[at + 2]).contains(&c);
            at += 3;
        } else {
            found |= inside[at] == c;
            at += 1;
        }
    }
    (found != not).then_some(end + 1)
}

/// `${value#pattern}` and the like.
fn cut_off(value: &str, operator: &str, pattern: &str) -> String {
    let mut places: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    let prefix = operator.starts_with('#');
    // The shortest first, unless the longest is meant.
    if (operator.len() == 2) == prefix {
        places.reverse();
    }
    let found = places.into_iter().find(|at| {
        let part = if prefix { &value[..*at] } else { &value[*at..] };
        matches(pattern, part)
    });
    match found {
        Some(at) if prefix => value[at..].to_owned(),
        Some(at) => value[..at].to_owned(),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_the_shells() {
        for (pattern, yes, no) in [
            ("*", "", "\0"),
            ("a*c", "abbc", "abb"),
            ("*\".conf", "x\".conf", "x.conf"),
            ("[a-c]?", "bx", "dx"),
            ("[!a]", "b", "a"),
            ("\\*", "*", "x"),
            ("*a*b*", "xaxbx", "xbxax"),
        ] {
            assert!(matches(pattern, yes), "{pattern}");
            assert!(no == "\0" || !matches(pattern, no), "{pattern}");
        }
        assert_eq!(cut_off("postgresql-15", "##", "*-"), "15");
        assert_eq!(cut_off("a.b.c", "%", ".*"), "a.b");
        assert_eq!(cut_off("a.b.c", "%%", ".*"), "a");
        assert_eq!(cut_off("a.b.c", "#", "*."), "b.c");
        // A hostile one takes no time.
        assert!(!matches(&"*a".repeat(200), &"a".repeat(150)));
    }
}
