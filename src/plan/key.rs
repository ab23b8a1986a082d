//! Step keys: a hash over a named input vector. The vector itself is kept, so that a changed key can be
//! explained as the inputs that differ.

use super::{Reason, StepKind};
use crate::digest::{FieldHasher, StepKey};

/// One named input of a step: a parameter, a parent's output digest or a tool's digest.
pub type Input = (String, String);

/// A step's whole input vector, in a fixed order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs(pub Vec<Input>);

impl Inputs {
    /// Adds an input.
    pub fn push(&mut self, name: impl Into<String>, value: impl ToString) {
        self.0.push((name.into(), value.to_string()));
    }

    /// The key of a step of this kind with these inputs.
    pub fn key(&self, kind: StepKind) -> StepKey {
        digest_of_inputs(kind, &self.0)
    }

    /// What differs from an earlier vector.
    pub fn changes_since(&self, old: &[Input]) -> Vec<Reason> {
        let find = |list: &[Input], name: &str| list.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let mut reasons = Vec::new();
        for (name, value) in &self.0 {
            let before = find(old, name);
            if before.as_ref() != Some(value) {
                reasons.push(Reason { what: name.clone(), old: before, new: Some(value.clone()) });
            }
        }
        for (name, value) in old {
            if find(&self.0, name).is_none() {
                reasons.push(Reason { what: name.clone(), old: Some(value.clone()), new: None });
            }
        }
        reasons
    }
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
