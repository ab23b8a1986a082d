//! Step keys: a hash over a named input vector. The vector itself is kept, so that a changed key can be
//! explained as the inputs that differ.

use super::input::Listed;
use super::{InputName, Reason, Role, StepKind};
use crate::digest::{FieldHasher, StepKey};

/// One named input of a step: a parameter, a parent's output digest or a tool's digest. The name is the text of an
/// [`InputName`].
pub type Input = (String, String);

/// A step's whole input vector, in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(pub Vec<Input>);

impl Inputs {
    /// Adds an input.
    pub fn push(&mut self, name: impl Into<InputName>, value: impl ToString) {
        self.0.push((name.into().to_string(), value.to_string()));
    }

    /// The key of a step of this kind with these inputs.
    pub fn key(&self, kind: StepKind) -> StepKey {
        digest_of_inputs(kind, &self.0)
    }

    /// What differs from an earlier vector, except for outputs of the steps `unknown`, which are not known yet.
    pub fn changes_since(&self, old: &[Input], unknown: &[StepKind]) -> Vec<Change> {
        let hidden = |name: &InputName| matches!(name, InputName::Output(kind) if unknown.contains(kind));
        let (old, new) = (numbered(old), numbered(&self.0));
        let mut changes = Vec::new();
        let mut change = |name: &InputName, old: Option<&str>, new: Option<&str>| {
            let role = match name {
                InputName::Output(_) => Role::Follows,
                _ => Role::Cause,
            };
            let reason =
                Reason { role, what: name.shown(), old: old.map(str::to_owned), new: new.map(str::to_owned) };
            changes.push(Change { name: Some(name.clone()), reason });
        };
        for (id, value) in new.iter().filter(|((name, _), _)| !hidden(name)) {
            let before = old.iter().find(|(other, _)| other == id).map(|(_, value)| *value);
            if before != Some(*value) {
                change(&id.0, before, Some(value));
            }
        }
        for (id, value) in old.iter().filter(|((name, _), _)| !hidden(name)) {
            if !new.iter().any(|(other, _)| other == id) {
                change(&id.0, Some(value), None);
            }
        }
        changes.extend(reordered(&old, &new).into_iter().map(|reason| Change { name: None, reason }));
        if changes.is_empty() && unknown.is_empty() && old != new {
            let reason = Reason::cause("the order of its inputs changed");
            changes.push(Change { name: None, reason });
        }
        changes
    }
}

/// One difference of two input vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The input; `None` if it is their order.
    pub name: Option<InputName>,
    /// For people.
    pub reason: Reason,
}

/// Each input with the number of earlier ones of the same name: the same source may be placed twice.
fn numbered(inputs: &[Input]) -> Vec<((InputName, usize), &str)> {
    let mut all: Vec<((InputName, usize), &str)> = Vec::with_capacity(inputs.len());
    for (name, value) in inputs {
        let name = InputName::parse(name);
        let earlier = all.iter().filter(|((other, _), _)| *other == name).count();
        all.push(((name, earlier), value));
    }
    all
}

/// The lists whose common items stand in another order.
fn reordered(old: &[((InputName, usize), &str)], new: &[((InputName, usize), &str)]) -> Vec<Reason> {
    let listed = |inputs: &[((InputName, usize), &str)]| -> Vec<(Listed, usize)> {
        inputs.iter().filter_map(|((name, n), _)| Some((name.listed()?, *n))).collect()
    };
    let (old, new) = (listed(old), listed(new));
    let mut lists: Vec<&str> = new.iter().map(|(item, _)| item.list).collect();
    lists.sort_unstable();
    lists.dedup();
    let order = |of: &[(Listed, usize)], other: &[(Listed, usize)], list: &str| -> Vec<String> {
        let common = of.iter().filter(|item| item.0.list == list && other.contains(item));
        common.map(|(item, _)| item.item.clone()).collect()
    };
    let changed = |list: &str| {
        let (before, now) = (order(&old, &new, list), order(&new, &old, list));
        (before != now).then(|| Reason {
            role: Role::Cause,
            what: format!("order of {list} changed:"),
            old: Some(before.join(", ")),
            new: Some(now.join(", ")),
        })
    };
    lists.into_iter().filter_map(changed).collect()
}

/// The key of a step of this kind with this input vector.
pub fn digest_of_inputs(kind: StepKind, inputs: &[Input]) -> StepKey {
    let mut hasher = FieldHasher::new("firegopher step v1");
    hasher.field(kind.label()).field(kind.version().to_le_bytes());
    for (name, value) in inputs {
        hasher.field(name).field(value);
    }
    hasher.finish().into()
}
