//! CPU features added or removed: by name, or by the numbers in a file.

use crate::error::{Context, Error, Result};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// A CPU template file: what `cpu-config` names. Read here so that what is wrong with it is said before a boot, in
/// words that name the file; Firecracker reads the same JSON again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuChanges {
    /// Capabilities of KVM by number, removed with a leading `!`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<Capability>,
    /// Changes to CPUID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidLeaf>,
    /// Changes to model specific registers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// Far more than any template: one has some hundred short entries.
pub const MAX_CPU_BYTES: u64 = 1 << 20;

impl CpuChanges {
    /// Reads a template. `shown` names it.
    ///
    /// # Errors
    /// `cpu-template.invalid`, with line and column; `cpu-template.empty` if it changes nothing.
    pub fn parse(bytes: &[u8], shown: &str) -> Result<CpuChanges> {
        let help = "it holds `kvm_capabilities`, `cpuid_modifiers` and `msr_modifiers`, as Firecracker's documentation \
                    on CPU templates says";
        if bytes.len() as u64 > MAX_CPU_BYTES {
            let text = format!("{shown} is no CPU template: it is larger than {} MiB", MAX_CPU_BYTES >> 20);
            return Err(Error::usage("cpu-template.invalid", text).help(help));
        }
        let changes: CpuChanges = serde_json::from_slice(bytes)
            .or_usage("cpu-template.invalid", || format!("{shown} is no CPU template"))
            .map_err(|e| e.help(help))?;
        if changes == CpuChanges::default() {
            let text = format!("the CPU template {shown} changes nothing");
            return Err(Error::usage("cpu-template.empty", text).help(help));
        }
        Ok(changes)
    }

    /// The file's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("invariant: strings, numbers and lists always serialise")
    }
}

/// Changes to one CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidLeaf {
    /// Which one.
    pub leaf: Number,
    /// Its part.
    pub subleaf: Number,
    /// KVM_CPUID_FLAG_… (linux/kvm.h).
    pub flags: u32,
    /// What changes.
    pub modifiers: Vec<CpuidRegister>,
}

/// Changes to one register of a CPUID leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidRegister {
    /// Which one.
    pub register: Register,
    /// What becomes of its bits.
    pub bitmap: Bitmap<32>,
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
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Which one.
    pub addr: Number,
    /// What becomes of its bits.
    pub bitmap: Bitmap<64>,
}

/// The number of a capability, such as `121`; `!121` takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability(String);

/// A number of 32 bits such as `0x10a` or `0b11`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Number(String);

/// Up to `BITS` of `0` (cleared), `1` (set) and `x` (as it is), with `0b` before and `_` anywhere in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bitmap<const BITS: usize>(String);

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix('!').unwrap_or(&text).parse::<u32>() {
            Ok(_) => Ok(Capability(text)),
            Err(_) => Err(D::Error::custom(format!("{text:?} is no capability: write \"121\" or \"!121\""))),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = [("0x", 16), ("0b", 2)];
        let digits = digits.iter().find_map(|(prefix, base)| Some((text.strip_prefix(prefix)?, *base)));
        match digits.map(|(digits, base)| u32::from_str_radix(digits, base)) {
            Some(Ok(_)) => Ok(Number(text)),
            _ => Err(D::Error::custom(format!("{text:?} is no number of 32 bits such as \"0x10a\""))),
        }
    }
}

impl<'de, const BITS: usize> Deserialize<'de> for Bitmap<BITS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bits = text.strip_prefix("0b").unwrap_or(&text);
        let count = bits.bytes().filter(|b| *b != b'_').count();
        if count <= BITS && bits.bytes().all(|b| b"01x_".contains(&b)) {
            return Ok(Bitmap(text));
        }
        let wanted = format!("at most {BITS} of 0, 1 and x behind \"0b\"");
        Err(D::Error::custom(format!("{text:?} is no bitmap: {wanted}")))
    }
}

/// A set of CPU features by name; deprecated there in favour of files.
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
        "kvm_capabilities": ["121", "!56"],
        "cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1,
            "modifiers": [{"register": "ebx", "bitmap": "0bxxxx_0000_xxxx_1111"}]}],
        "msr_modifiers": [{"addr": "0x10a", "bitmap": "x"}]
    }"#;

    #[test]
    fn a_template_is_read_and_written_as_firecracker_reads_it() {
        let changes = CpuChanges::parse(GOOD.as_bytes(), "x").unwrap();
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(GOOD).unwrap(), serde_json::from_slice(&changes.to_json()).unwrap());
        assert_eq!(before, after);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (from, to, words) in [
            ("\"121\"", "\"many\"", "\"many\" is no capability"),
            ("\"0x7\"", "\"7\"", "\"7\" is no number"),
            ("\"0x10a\"", "\"0x1ffffffff\"", "is no number of 32 bits"),
            ("xxxx_1111", "xxxx_1121", "is no bitmap: at most 32"),
            ("0bxxxx_0000", "0bxxxxxxxxxxxxxxxxxxxxxxxxx_0000", "is no bitmap: at most 32"),
            ("\"ebx\"", "\"rbx\"", "unknown variant `rbx`"),
            ("\"flags\": 1,", "", "missing field `flags`"),
            ("msr_modifiers", "reg_modifiers", "unknown field `reg_modifiers`"),
            ("            \"modifiers\"", "            \"modifiers\"]", "expected"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let text = GOOD.replace(from, to);
            let error = CpuChanges::parse(text.as_bytes(), "cpu.json").unwrap_err();
            assert_eq!(error.code(), "cpu-template.invalid");
            let told = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(told.starts_with("cpu.json is no CPU template: ") && told.contains(words), "{told}");
            assert!(told.contains(" at line "), "{told}");
        }
        assert_eq!(CpuChanges::parse(b"{}", "x").unwrap_err().code(), "cpu-template.empty");
        let vast = vec![b' '; MAX_CPU_BYTES as usize + 1];
        assert_eq!(CpuChanges::parse(&vast, "x").unwrap_err().code(), "cpu-template.invalid");
    }
}
