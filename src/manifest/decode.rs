//! The accumulating decoder's tools: checks nodes against the tables and takes values out of them,
//! recording every problem instead of stopping at the first.

use super::diagnostic::{Problem, listed, nearest};
use super::habits;
use super::table::{Block, DEBIAN, IMAGE, Kind, LATER, Node, TOP, VM, WORKLOAD, find};
use kdl::{KdlDocument, KdlEntry, KdlIdentifier, KdlNode, KdlValue};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// A node of the text together with what the tables say about it.
#[derive(Clone, Copy)]
pub(super) struct Setting<'t> {
    pub node: &'t KdlNode,
    pub def: &'static Node,
}

/// A text with its place.
#[derive(Debug, Clone)]
pub(super) struct Spanned<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// Holds the text, the project's directory and the problems found so far.
pub(super) struct Decoder<'a> {
    pub text: &'a str,
    /// Canonical.
    pub dir: &'a Path,
    problems: RefCell<Vec<Problem>>,
    /// Whether files and directories that are named have to be there.
    pub existing: bool,
    /// First addresses of downloads, with the digest that stands behind them.
    pub digests: RefCell<Vec<(String, Spanned<String>)>>,
}

pub(super) fn name_span(node: &KdlNode) -> Range<usize> {
    range(node.name().span())
}

fn range(span: miette::SourceSpan) -> Range<usize> {
    span.offset()..span.offset() + span.len()
}

impl<'a> Decoder<'a> {
    pub fn new(text: &'a str, dir: &'a Path) -> Self {
        Decoder { text, dir, problems: RefCell::default(), existing: false, digests: RefCell::default() }
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Records a problem; `None` so that a getter can end with it.
    pub fn report<T>(&self, problem: Problem) -> Option<T> {
        self.problems.borrow_mut().push(problem);
        None
    }

    pub fn entry_span(&self, entry: &KdlEntry) -> Range<usize> {
        let span = range(entry.span());
        let text = &self.text[span.clone()];
        span.start..span.start + text.trim_end().len()
    }

    /// The settings of a block in their order; what is unknown, early or doubled is reported and left out.
    pub fn settings<'t>(
        &self,
        parent: &str,
        doc: &'t KdlDocument,
        table: &'static [Node],
    ) -> Vec<Setting<'t>> {
        let mut first: HashMap<&str, Range<usize>> = HashMap::new();
        let mut settings = vec![];
        for node in doc.nodes() {
            let Some(def) = self.known(parent, node, table) else { continue };
            if let (Some(before), false) = (first.get(def.name), def.many) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-node",
                        name_span(node),
                        "set again",
                        format!("`{}` is set twice", def.name),
                    )
                    .also(before.clone(), "first set here")
                    .help("keep one of them"),
                );
                continue;
            }
            first.entry(def.name).or_insert_with(|| name_span(node));
            self.check_shape(node, def);
            settings.push(Setting { node, def });
        }
        settings
    }

    fn known(&self, parent: &str, node: &KdlNode, table: &'static [Node]) -> Option<&'static Node> {
        let name = node.name().value();
        if let Some(def) = find(table, name) {
            return Some(def);
        }
        let place = if parent.is_empty() { "at the top level".to_owned() } else { format!("in `{parent}`") };
        if let Some(later) = LATER.iter().find(|l| l.parent == parent && l.name == name) {
            return self.report(not_yet(name_span(node), &format!("`{name}`"), later.instead));
        }
        let problem = Problem::new(
            "manifest.unknown-node",
            name_span(node),
            "unknown",
            format!("there is no setting `{name}` {place}"),
        );
        let elsewhere = [("", TOP), ("vm", VM), ("workload", WORKLOAD), ("image", IMAGE), ("debian", DEBIAN)]
            .into_iter()
            .find(|(p, nodes)| *p != parent && find(nodes, name).is_some());
        if let Some(help) = habits::instead(parent, node) {
            return self.report(problem.help(help));
        }
        let help = match (nearest(name, table.iter().map(|n| n.name)), elsewhere) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, Some(("", _))) => format!("`{name}` belongs at the top level, outside of every block"),
            (None, Some((owner, _))) => format!("`{name}` belongs in the block of `{owner}`"),
            (None, None) => format!("{place} there may be {}", listed(table.iter().map(|n| n.name))),
        };
        self.report(problem.help(help))
    }

    fn check_shape(&self, node: &KdlNode, def: &'static Node) {
        if let Some(ty) = node.ty() {
            self.type_annotation(ty);
        }
        let mut args = 0;
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for entry in node.entries() {
            if let Some(ty) = entry.ty() {
                self.type_annotation(ty);
            }
            let Some(key) = entry.name() else {
                args += 1;
                if args == def.args.1.saturating_add(1) {
                    self.too_many_arguments(node, entry, def);
                }
                continue;
            };
            self.check_property(node, entry, key, def);
            let span = self.entry_span(entry);
            if let Some(before) = seen.insert(key.value(), span.clone()) {
                self.report::<()>(
                    Problem::new(
                        "manifest.duplicate-property",
                        span,
                        "set again",
                        format!("`{}` of `{}` is set twice", key.value(), def.name),
                    )
                    .also(before, "first set here")
                    .help("keep one of them"),
                );
            }
        }
        let early_block = def.name == "egress" && node.children().is_some();
        if args < def.args.0 && !early_block {
            let quotes = match def.kind {
                Kind::Number | Kind::Truth => ", without quotes",
                Kind::NumberOrText => "",
                Kind::Text if def.arg.starts_with('"') => "",
                Kind::Text | Kind::TextOrNumber => ", in quotes",
            };
            self.report::<()>(
                Problem::new(
                    "manifest.missing-argument",
                    name_span(node),
                    format!("needs {}", def.arg),
                    format!("`{}` needs {}", def.name, def.arg),
                )
                .help(format!("write {} behind it{quotes}. {}", def.arg, def.about)),
            );
        }
        if let (Block::None, Some(_)) = (&def.block, node.children()) {
            let problem = Problem::new(
                "manifest.unexpected-block",
                name_span(node),
                "has a block",
                format!("`{}` takes no block", def.name),
            );
            self.report::<()>(if early_block {
                not_yet(name_span(node), "an `egress` block", "write `egress \"none\"`")
            } else {
                problem.help("remove the block behind it")
            });
        }
    }

    fn too_many_arguments(&self, node: &KdlNode, entry: &KdlEntry, def: &Node) {
        let value = source_of(self.text, self.entry_span(entry));
        let problem = Problem::new(
            "manifest.unexpected-argument",
            self.entry_span(entry),
            "one too many",
            match def.args.1 {
                0 => format!("`{}` takes no argument", def.name),
                1 => format!("`{}` takes one argument: {}", def.name, def.arg),
                n => format!("`{}` takes at most {n} arguments", def.name),
            },
        );
        let help = match &def.block {
            Block::Names(form) => format!("its block holds {form}"),
            _ if def.many && def.name != "vm" => {
                format!("write a second `{}` for it, or remove {value}", def.name)
            }
            _ if node.entries().len() > 1 && !def.props.is_empty() => {
                format!("remove {value}; its properties are {}", listed(def.props.iter().map(|p| p.name)))
            }
            _ => format!("remove {value}"),
        };
        self.report::<()>(problem.help(help));
    }

    fn check_property(&self, node: &KdlNode, entry: &KdlEntry, key: &KdlIdentifier, def: &'static Node) {
        let Some(prop) = def.props.iter().find(|p| p.name == key.value()) else {
            let problem = Problem::new(
                "manifest.unknown-property",
                range(key.span()),
                "unknown",
                format!("`{}` has no property `{}`", def.name, key.value()),
            );
            let in_block = match def.block {
                Block::Nodes(nodes) => find(nodes, key.value()).is_some(),
                Block::Names(_) => true,
                Block::None => false,
            };
            let help = match nearest(key.value(), def.props.iter().map(|p| p.name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if in_block => format!(
                    "it belongs into the block: `{{ {} {} }}`",
                    key.value(),
                    value_text(entry.value())
                ),
                None if def.name == "debian" && key.value() == "scripts" => {
                    "only an image's scripts can run; remove it".to_owned()
                }
                None if def.props.is_empty() => "it takes none; remove it".to_owned(),
                None => format!("its properties are {}", listed(def.props.iter().map(|p| p.name))),
            };
            self.report::<()>(problem.help(help));
            return;
        };
        let good = match prop.kind {
            Kind::Text => entry.value().is_string(),
            Kind::Number => entry.value().is_integer(),
            Kind::TextOrNumber | Kind::NumberOrText => {
                entry.value().is_string() || entry.value().is_integer()
            }
            Kind::Truth => entry.value().is_bool(),
        };
        if !good {
            let subject = format!("`{}` of `{}`", prop.name, node.name().value());
            self.wrong_type::<()>(
                entry,
                &subject,
                match prop.kind {
                    Kind::Number => "a number",
                    Kind::Truth => "a truth value",
                    Kind::Text | Kind::TextOrNumber | Kind::NumberOrText => "a text",
                },
            );
        }
    }

    fn type_annotation(&self, ty: &KdlIdentifier) {
        self.report::<()>(
            Problem::new(
                "manifest.type-annotation",
                range(ty.span()),
                "remove it",
                "manifests have no type annotations",
            )
            .help(format!("remove `({})`", ty.value())),
        );
    }

    /// Reports a value of the wrong type.
    pub fn wrong_type<T>(&self, entry: &KdlEntry, subject: &str, wanted: &str) -> Option<T> {
        let wanted = match entry.value() {
            KdlValue::Float(_) if wanted == "a number" => "a whole number",
            _ => wanted,
        };
        let found = match entry.value() {
            KdlValue::String(_) => "a text",
            KdlValue::Integer(_) | KdlValue::Float(_) => "a number",
            KdlValue::Bool(_) => "a truth value",
            KdlValue::Null => "#null",
        };
        let problem = Problem::new(
            "manifest.wrong-type",
            self.entry_span(entry),
            format!("{found}, not {wanted}"),
            format!("{subject} is {wanted}, not {found}"),
        );
        let plain = match entry.value() {
            _ if wanted == "a truth value" => None,
            KdlValue::String(s) => s.parse::<i64>().ok().map(|n| n.to_string()),
            KdlValue::Float(_) if wanted == "a whole number" => None,
            KdlValue::Integer(_) | KdlValue::Float(_) | KdlValue::Bool(_) => {
                let text = source_of(self.text, self.entry_span(entry));
                let text = text.rsplit('=').next().unwrap_or(text).trim_start_matches('#').trim();
                Some(format!("\"{text}\""))
            }
            KdlValue::Null => None,
        };
        self.report(match plain {
            Some(plain) => problem.help(format!("write {plain}")),
            None => problem.help(match wanted {
                "a number" => "write a number, without quotes",
                "a whole number" => "write it without a fraction",
                "a truth value" => "write #true or #false",
                _ => "write a text in quotes",
            }),
        })
    }
}

/// A known name that this version cannot act on.
pub(super) fn not_yet(span: Range<usize>, what: &str, instead: &str) -> Problem {
    Problem::new("manifest.not-yet", span, "in a later version", format!("{what} is not available yet"))
        .help(instead.to_owned())
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or ")
}

fn source_of(text: &str, span: Range<usize>) -> &str {
    text.get(span).unwrap_or_default().trim()
}

fn value_text(value: &KdlValue) -> String {
    match value {
        KdlValue::String(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

impl<'t> Setting<'t> {
    pub fn name(&self) -> &'static str {
        self.def.name
    }

    pub fn span(&self) -> Range<usize> {
        name_span(self.node)
    }

    /// The arguments, no more than the tables allow.
    pub fn args(&self) -> impl Iterator<Item = &'t KdlEntry> + use<'t> {
        self.node.entries().iter().filter(|e| e.name().is_none()).take(self.def.args.1)
    }

    /// The entry of a property; the first, if it is doubled.
    pub fn prop(&self, name: &str) -> Option<&'t KdlEntry> {
        self.node.entries().iter().find(|e| e.name().is_some_and(|n| n.value() == name))
    }
}

impl Decoder<'_> {
    /// A text. Of a property, a wrong type has been reported with the node's shape.
    pub fn text_of(&self, subject: &str, entry: &KdlEntry) -> Option<Spanned<String>> {
        let Some(value) = entry.value().as_string() else {
            return if entry.name().is_some() { None } else { self.wrong_type(entry, subject, "a text") };
        };
        let span = self.entry_span(entry);
        if value.contains('\0') {
            return self.report(
                Problem::new(
                    "manifest.bad-value",
                    span,
                    "holds NUL",
                    format!("{subject} holds a NUL character"),
                )
                .help("remove it: neither paths nor arguments nor variables can hold one"),
            );
        }
        Some(Spanned { value: value.to_owned(), span })
    }

    /// The one text argument.
    pub fn text_arg(&self, setting: Setting<'_>) -> Option<Spanned<String>> {
        self.text_of(&format!("`{}`", setting.name()), setting.args().next()?)
    }

    /// The first argument of a setting that is `#true` or `#false`.
    pub fn truth_arg(&self, setting: Setting<'_>) -> Option<bool> {
        let entry = setting.args().next()?;
        match entry.value().as_bool() {
            Some(truth) => Some(truth),
            None => self.wrong_type(entry, &format!("`{}`", setting.name()), "a truth value"),
        }
    }

    /// The text of a property, if it is there.
    pub fn text_prop(&self, setting: Setting<'_>, name: &str) -> Option<Spanned<String>> {
        self.text_of(&format!("`{name}` of `{}`", setting.name()), setting.prop(name)?)
    }

    /// The text of a property that must be there.
    pub fn needed_prop(&self, setting: Setting<'_>, name: &str, example: &str) -> Option<Spanned<String>> {
        if setting.prop(name).is_none() {
            let prop = setting.def.props.iter().find(|p| p.name == name && p.needed);
            let about = prop.expect("invariant: callers name properties that the tables call needed").about;
            return self.report(
                Problem::new(
                    "manifest.missing-property",
                    setting.span(),
                    format!("needs `{name}`"),
                    format!("`{}` needs the property `{name}`", setting.name()),
                )
                .help(format!("for example `{example}`. {about}")),
            );
        }
        self.text_prop(setting, name)
    }

    /// A whole number in a range.
    pub fn number_of(&self, subject: &str, entry: &KdlEntry, low: u32, high: u32) -> Option<Spanned<u32>> {
        let Some(value) = entry.value().as_integer() else {
            return if entry.name().is_some() { None } else { self.wrong_type(entry, subject, "a number") };
        };
        let span = self.entry_span(entry);
        match u32::try_from(value).ok().filter(|n| (low..=high).contains(n)) {
            Some(value) => Some(Spanned { value, span }),
            None => self.report(
                Problem::new(
                    "manifest.out-of-range",
                    span,
                    format!("not in {low} to {high}"),
                    format!("{subject} is {value}"),
                )
                .help(format!("it must be from {low} to {high}")),
            ),
        }
    }

    /// One of some words.
    pub fn choice(
        &self,
        subject: &str,
        text: &Spanned<String>,
        words: &[&'static str],
    ) -> Option<&'static str> {
        if let Some(word) = words.iter().find(|w| **w == text.value) {
            return Some(word);
        }
        let problem = Problem::new(
            "manifest.unknown-value",
            text.span.clone(),
            "unknown",
            format!("{subject} cannot be {:?}", text.value),
        );
        self.report(problem.help(match nearest(&text.value, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("it is {}", quoted(words)),
        }))
    }

    /// Turns a failed conversion into a problem.
    pub fn checked<T>(&self, code: &'static str, span: &Range<usize>, result: Result<T, Wrong>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Wrong { message, label, help }) => {
                let mut problem = Problem::new(code, span.clone(), label, message);
                problem.help = help;
                self.report(problem)
            }
        }
    }
}

/// Why a text is not what it should be, without its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub message: String,
    pub label: String,
    pub help: Option<String>,
}

impl Wrong {
    pub fn new(label: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Wrong { message: message.into(), label: label.into(), help: Some(help.into()) }
    }
}
