//! CPU features added or removed.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `cpu-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CpuConfig {
    /// A JSON file in the jail.
    Path(PathBuf),
    /// In place; from 1.13 on.
    Template {
        /// Capabilities by number, removed with a leading `!`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kvm_capabilities: Vec<String>,
        /// Changes to CPUID.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cpuid_modifiers: Vec<CpuidLeaf>,
        /// Changes to model specific registers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        msr_modifiers: Vec<MsrModifier>,
    },
}

/// Changes to one CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// A number such as `0x7`.
    pub leaf: String,
    /// A number such as `0x0`.
    pub subleaf: String,
    /// KVM_CPUID_FLAG_… (linux/kvm.h).
    pub flags: u32,
    /// What changes.
    pub modifiers: Vec<CpuidRegister>,
}

/// Changes to one register of a CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidRegister {
    /// Which one.
    pub register: Register,
    /// `0b` and 32 of `0` (clear), `1` (set) and `x` (as it is).
    pub bitmap: String,
}

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Changes to one model specific register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrModifier {
    /// A number such as `0x10a`.
    pub addr: String,
    /// `0b` and 64 of `0` (clear), `1` (set) and `x` (as it is).
    pub bitmap: String,
}

/// A set of CPU features by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of cloud instance types")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}
