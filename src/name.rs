//! Validated names of projects, VMs and volumes, and the short ids derived from them.

use crate::digest::FieldHasher;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest project, VM or volume name, in bytes.
pub const NAME_MAX: usize = 24;

/// A name of `[a-z0-9-]{1,24}`: safe in paths, host names and unit names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks and wraps a name; the error says what is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, String> {
        let name = name.into();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(format!("a name has 1 to {NAME_MAX} characters, this one has {}", name.len()));
        }
        if let Some(bad) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(format!("a name holds only a-z, 0-9 and '-', not {bad:?}"));
        }
        if name.starts_with('-') || name.ends_with('-') {
            return Err("a name neither starts nor ends with '-'".to_owned());
        }
        Ok(Name(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        Name::new(s)
    }
}
impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Honours a width: names stand in columns.
        f.pad(&self.0)
    }
}
impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}
impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// Twelve hexadecimal digits that name one VM of one project on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId(String);

impl VmId {
    /// The id of `vm` in `project`.
    pub fn derive(project: &Name, vm: &Name) -> Self {
        let hash = FieldHasher::new("firegopher vm id v1").field(project).field(vm).finish();
        VmId(hash.to_hex()[..12].to_owned())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tap device's name: `fg-` and the id, 15 bytes (IFNAMSIZ is 16 with the NUL, linux/if.h).
    pub fn tap_name(&self) -> String {
        format!("fg-{}", self.0)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// FieldHasher takes bytes; names are text.
impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(Name::new("web-1").is_ok());
        for bad in ["", "Web", "a_b", "-a", "a-", "a/b", &"x".repeat(25)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tap_names_fit_the_kernel() {
        let name = |s| Name::new(s).unwrap();
        assert!(VmId::derive(&name("p"), &name("v")).tap_name().len() <= 15);
    }
}
