//! Shows a plan: text for people, JSON with a version, dot and mermaid for drawing.

use super::{Action, Plan, PlannedStep, Reason};
use crate::name::Name;
use serde::Serialize;
use std::fmt::Write;

/// The version of the JSON form; raised when a field changes its meaning or goes away.
pub const FORMAT_VERSION: u32 = 1;

impl Action {
    /// The word in plans.
    pub fn label(self) -> &'static str {
        match self {
            Action::Reuse => "reuse",
            Action::Run => "run",
            Action::Unknown => "?",
            Action::Keep => "keep",
            Action::Create => "create",
            Action::Replace => "replace",
            Action::Remove => "remove",
        }
    }
}

/// The plan as text. Paths and values come from the project, so control characters are escaped.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for step in &plan.steps {
        let line = format!("{:<8}{:<13} {}", step.action.label(), step.kind.label(), step.subject);
        let _ = writeln!(out, "{}", escape(line.trim_end()));
        for reason in &step.reasons {
            let _ = writeln!(out, "          {}", escape(&reason_text(reason)));
        }
        if !step.unless.is_empty() {
            let _ = writeln!(out, "          unless {}", escape(&unless(plan, step)));
        }
    }
    let _ = writeln!(out, "{}", summary(plan));
    out
}

/// What spares a VM its replacement: `unpack app gives the same output`.
pub fn unless(plan: &Plan, step: &PlannedStep) -> String {
    let names: Vec<String> =
        step.unless.iter().map(|&id| format!("{} {}", plan.steps[id].kind, plan.steps[id].subject)).collect();
    match names.as_slice() {
        [one] => format!("{one} gives the same output"),
        [most @ .., last] => format!("{} and {last} give the same outputs", most.join(", ")),
        [] => String::new(),
    }
}

/// One sentence: what would be done.
pub fn summary(plan: &Plan) -> String {
    let count = |action: Action| plan.steps.iter().filter(|s| s.action == action).count();
    if !plan.has_changes() {
        return format!("Nothing changes: all {} steps are up to date.", plan.steps.len());
    }
    let parts: Vec<String> = [
        (Action::Run, "to run"),
        (Action::Unknown, "decided on the way"),
        (Action::Create, "to create"),
        (Action::Replace, "to replace"),
        (Action::Remove, "to remove"),
        (Action::Reuse, "reused"),
        (Action::Keep, "kept"),
    ]
    .into_iter()
    .filter_map(|(action, words)| match count(action) {
        0 => None,
        n => Some(format!("{n} {words}")),
    })
    .collect();
    format!("{} steps: {}.", plan.steps.len(), parts.join(", "))
}

/// A reason in one line; digests are shortened.
pub fn reason_text(reason: &Reason) -> String {
    match (&reason.old, &reason.new) {
        (None, None) => reason.what.clone(),
        (Some(old), Some(new)) => format!("{} {} → {}", reason.what, short(old), short(new)),
        (None, Some(new)) => format!("{} {} (new)", reason.what, short(new)),
        (Some(old), None) => format!("{} {} (gone)", reason.what, short(old)),
    }
}

/// Shortens every digest in a value.
fn short(value: &str) -> String {
    let words: Vec<String> = value
        .split(' ')
        .map(|word| match word.parse::<crate::digest::ObjectDigest>() {
            Ok(digest) => digest.short(),
            // As `update` shows those of others.
            Err(_) if word.starts_with("sha256:") || word.starts_with("sha512:") => {
                word.get(..19).unwrap_or(word).to_owned()
            }
            Err(_) => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// Makes control characters visible, so that a file name cannot drive the terminal.
pub fn escape(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// Why a VM of the plan cannot be started.
#[derive(Debug, Serialize)]
pub struct Refusal<'a> {
    /// The VM; none if it is the lock that lacks something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<&'a Name>,
    /// Stable and dotted.
    pub code: &'a str,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<&'a str>,
}

/// The plan as JSON, with what `up` would refuse.
pub fn json(plan: &Plan, refusals: &[Refusal<'_>]) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        format_version: u32,
        changes: bool,
        #[serde(flatten)]
        plan: &'a Plan,
        refusals: &'a [Refusal<'a>],
    }
    let document = Document { format_version: FORMAT_VERSION, changes: plan.has_changes(), plan, refusals };
    serde_json::to_string_pretty(&document).expect("invariant: a plan has only string keys")
}

/// How to draw a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum GraphFormat {
    /// Graphviz.
    Dot,
    /// Mermaid flowchart.
    Mermaid,
}

/// The plan as a drawing: an arrow from each step to those that need it.
pub fn graph(plan: &Plan, format: GraphFormat) -> String {
    let label = |step: &PlannedStep| {
        format!("{} {}\\n{}", step.kind.label(), quote(&step.subject), step.action.label())
    };
    let mut out = String::new();
    match format {
        GraphFormat::Dot => {
            out.push_str("digraph plan {\n  rankdir=LR\n  node [shape=box]\n");
            for step in &plan.steps {
                let style = if step.action.is_change() { ", style=bold" } else { "" };
                let _ = writeln!(out, "  s{} [label=\"{}\"{style}]", step.id, label(step));
            }
            for (from, to) in edges(plan) {
                let _ = writeln!(out, "  s{from} -> s{to}");
            }
            out.push_str("}\n");
        }
        GraphFormat::Mermaid => {
            out.push_str("flowchart LR\n");
            for step in &plan.steps {
                let _ = writeln!(out, "  s{}[\"{}\"]", step.id, label(step).replace("\\n", "<br>"));
            }
            for (from, to) in edges(plan) {
                let _ = writeln!(out, "  s{from} --> s{to}");
            }
        }
    }
    out
}

fn edges(plan: &Plan) -> impl Iterator<Item = (usize, usize)> + '_ {
    plan.steps.iter().flat_map(|step| step.needs.iter().map(move |&from| (from, step.id)))
}

fn quote(text: &str) -> String {
    escape(text).replace('\\', "/").replace('"', "'")
}
