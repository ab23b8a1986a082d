//! A plan as a page: one line a VM with its reasons, and what else runs in numbers.

use super::style::{Painter, Style};
use super::{human, wrap};
use crate::plan::render::{escape, reason_text, summary, unless};
use crate::plan::{Action, Plan, PlannedStep, Reason, Role, StepKind};
use std::fmt::Write;

/// Of more reasons than this the rest is counted.
const REASONS_SHOWN: usize = 8;

/// How a page looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether colours are wanted.
    pub colours: bool,
    /// The columns that there are; without them no line is broken.
    pub width: Option<usize>,
}

/// The page. Paths and values come from the project, so control characters are escaped.
pub fn page(plan: &Plan, look: Look) -> String {
    if !plan.has_changes() {
        return summary(plan) + "\n";
    }
    let painter = Painter { colours: look.colours };
    let mut out = String::new();
    for boot in plan.steps.iter().filter(|step| step.kind == StepKind::Boot && step.action.is_change()) {
        let (style, sign, verb) = match boot.action {
            Action::Create => (Style::Added, '+', "boots"),
            Action::Remove => (Style::Removed, '-', "stops"),
            _ => (Style::Changed, '~', "restarts"),
        };
        let head = format!("{sign} {} {verb}", boot.subject);
        let causes = causes(plan, boot);
        let mut text = head.clone();
        if !causes.is_empty() {
            let _ = write!(text, ": {}", causes.join(", "));
        }
        if !boot.unless.is_empty() {
            let _ = write!(text, " (unless {})", unless(plan, boot));
        }
        let text = wrap::line(&escape(&text), look.width, 4);
        let _ = writeln!(out, "{}", painter.head(style, &head, &text));
    }
    let rest = wrap::line(&escape(&steps(plan)), look.width, 4);
    let _ = writeln!(out, "\n{}", painter.paint(Style::Dim, &rest));
    out
}

/// Why a VM boots, restarts or stops: whatever is a cause of its own, of all its steps.
fn causes(plan: &Plan, boot: &PlannedStep) -> Vec<String> {
    let vm = &boot.vms[0];
    // A VM that has never run has no past to be compared with.
    let all = match boot.action {
        Action::Remove | Action::Create if boot.reasons.is_empty() => return Vec::new(),
        Action::Remove => vec![boot],
        _ => plan.steps.iter().filter(|step| step.vms.contains(vm)).collect(),
    };
    let mut texts: Vec<String> = Vec::new();
    // What a boot itself says, such as how the VM ended, comes first.
    let (own, others): (Vec<&PlannedStep>, Vec<_>) = all.into_iter().partition(|step| step.id == boot.id);
    for step in own.into_iter().chain(others) {
        for reason in step.reasons.iter().filter(|reason| reason.role == Role::Cause) {
            let text = cause(step, reason);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
    }
    if texts.is_empty() && boot.action == Action::Replace && boot.unless.is_empty() {
        texts.push("what it is made of".to_owned());
    }
    if texts.len() > REASONS_SHOWN {
        let more = texts.len() - REASONS_SHOWN;
        texts.truncate(REASONS_SHOWN);
        texts.push(format!("and {more} more"));
    }
    texts
}

/// A cause for somebody who wants no digests.
fn cause(step: &PlannedStep, reason: &Reason) -> String {
    let bare = |value: &Option<String>| value.as_deref().map(without_digests);
    match (bare(&reason.old), bare(&reason.new)) {
        (None, None) if step.kind.is_pure() && reason.what.starts_with("not in ") => {
            format!("{} is {}", step.subject, reason.what)
        }
        (None, None) if step.kind.is_pure() && reason.what.starts_with("its ") => {
            format!("{} {}: {}", step.kind, step.subject, reason.what)
        }
        (Some(old), Some(new)) if old == new => reason.what.clone(),
        (Some(old), Some(new)) => {
            let (old, new) = without_common_end(&old, &new);
            reason_text(&Reason { old: Some(old), new: Some(new), ..reason.clone() })
        }
        (None, Some(new)) if new.is_empty() => format!("{} (new)", reason.what),
        (Some(old), None) if old.is_empty() => format!("{} (gone)", reason.what),
        (old, new) => reason_text(&Reason { old, new, ..reason.clone() }),
    }
}

/// A value without its digests and the size of the bytes that they name.
fn without_digests(value: &str) -> String {
    let words: Vec<&str> = value.split(' ').collect();
    let is_digest = |word: &str| {
        let hex = word.rsplit(':').next().unwrap_or(word);
        let digits = hex.len() >= 8 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        digits && (word.starts_with("b3:") || word.starts_with("sha256:") || hex.len() == 64)
    };
    let mut kept = Vec::new();
    let mut named_bytes = false;
    for (at, word) in words.iter().enumerate() {
        let size = named_bytes && words.get(at + 1) == Some(&"bytes");
        let unit = named_bytes && *word == "bytes";
        if is_digest(word) {
            named_bytes = true;
        } else if !size && !unit {
            kept.push(*word);
        }
    }
    kept.join(" ")
}

/// Two values without the words that both end with.
fn without_common_end(old: &str, new: &str) -> (String, String) {
    let (mut a, mut b): (Vec<&str>, Vec<&str>) = (old.split(' ').collect(), new.split(' ').collect());
    while a.len() > 1 && b.len() > 1 && a.last() == b.last() {
        a.pop();
        b.pop();
    }
    (a.join(" "), b.join(" "))
}

/// What else happens: `Builds 2 steps (image, unpack); 9 steps unchanged.`
fn steps(plan: &Plan) -> String {
    let builds: Vec<&PlannedStep> =
        plan.steps.iter().filter(|s| matches!(s.action, Action::Run | Action::Unknown)).collect();
    let unchanged = plan.steps.iter().filter(|s| matches!(s.action, Action::Reuse | Action::Keep)).count();
    let mut parts = Vec::new();
    let mut unpinned: Vec<&str> = builds
        .iter()
        .filter(|step| step.reasons.iter().any(|reason| reason.what.starts_with("not in ")))
        .map(|step| step.subject.as_str())
        .collect();
    unpinned.sort_unstable();
    unpinned.dedup();
    if let Some(count) = Some(unpinned.len()).filter(|count| *count > 0) {
        let assets = human::count_of(count as u64, "asset");
        parts.push(format!("pins {assets} in {}", crate::lock::FILE_NAME));
    }
    if !builds.is_empty() {
        let mut kinds: Vec<(StepKind, usize)> = Vec::new();
        for step in &builds {
            match kinds.iter_mut().find(|(kind, _)| *kind == step.kind) {
                Some((_, count)) => *count += 1,
                None => kinds.push((step.kind, 1)),
            }
        }
        let kinds: Vec<String> = kinds
            .into_iter()
            .map(|(kind, count)| if count == 1 { kind.to_string() } else { format!("{count}×{kind}") })
            .collect();
        parts.push(format!("builds {} ({})", human::count_of(builds.len() as u64, "step"), kinds.join(", ")));
    }
    if unchanged > 0 {
        parts.push(format!("{} unchanged", human::count_of(unchanged as u64, "step")));
    }
    let mut text = parts.join("; ");
    if let Some(first) = text.get(..1) {
        text.replace_range(..1, &first.to_uppercase());
    }
    if text.is_empty() { String::new() } else { text + ". `--verbose` shows every step." }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_without_digests() {
        let hex = "ab".repeat(32);
        let pin = |version: &str| format!("{version} amd64 sha256:{hex} {hex} 123 bytes");
        assert_eq!(without_digests(&pin("1.0")), "1.0 amd64");
        assert_eq!(without_digests("b3:12345678 0644"), "0644");
        assert_eq!(without_digests("12 bytes"), "12 bytes");
        assert_eq!(without_common_end("1.0 amd64", "2.0 amd64"), ("1.0".to_owned(), "2.0".to_owned()));
        assert_eq!(without_common_end("a", "a"), ("a".to_owned(), "a".to_owned()));
    }
}
