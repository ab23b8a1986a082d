//! What is read out of ELF files: needed libraries and kernel module information.

use elf::ElfBytes;
use elf::abi::{DT_NEEDED, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;

/// The DT_NEEDED names of a dynamic x86-64 object; `None` if it is no such file.
pub(super) fn needed(bytes: &[u8]) -> Option<Vec<String>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
    if file.ehdr.e_machine != EM_X86_64 {
        return None;
    }
    let common = file.find_common_data().ok()?;
    let (Some(dynamic), Some(strings)) = (common.dynamic, common.dynsyms_strs) else {
        return Some(Vec::new());
    };
    let needed = dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED);
    needed.map(|entry| strings.get(entry.d_val() as usize).ok().map(str::to_owned)).collect()
}

/// Whether this is an x86-64 file whose segments, of which there are some, are all there.
pub(super) fn loadable(bytes: &[u8]) -> bool {
    let Ok(file) = ElfBytes::<LittleEndian>::minimal_parse(bytes) else { return false };
    let Some(segments) = file.segments() else { return false };
    let end = |offset: u64, size: u64| offset.checked_add(size).is_some_and(|end| end <= bytes.len() as u64);
    let mut loads = segments.iter().filter(|s| s.p_type == PT_LOAD).peekable();
    file.ehdr.e_machine == EM_X86_64
        && loads.peek().is_some()
        && loads.all(|segment| end(segment.p_offset, segment.p_filesz))
}

/// What a kernel module wants loaded before it, by module name with '_' for '-'.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModuleInfo {
    /// Symbols of these are used: without them the module does not load.
    pub depends: Vec<String>,
    /// `softdep=pre:`: asked for at run time; may be aliases.
    pub soft: Vec<String>,
}

/// Reads a module's `.modinfo`; `None` if it is no ELF file with one.
pub(super) fn module_info(bytes: &[u8]) -> Option<ModuleInfo> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
    let header = file.section_header_by_name(".modinfo").ok()??;
    let (data, _) = file.section_data(&header).ok()?;
    let mut info = ModuleInfo::default();
    for field in data.split(|&b| b == 0).filter_map(|field| std::str::from_utf8(field).ok()) {
        if let Some(list) = field.strip_prefix("depends=") {
            info.depends.extend(list.split(',').filter(|n| !n.is_empty()).map(module_name));
        } else if let Some(pre) = field.strip_prefix("softdep=pre:") {
            let names = pre.split_whitespace().take_while(|word| *word != "post:");
            info.soft.extend(names.map(module_name));
        }
    }
    Some(info)
}

/// The kernel takes '-' and '_' in module names for the same.
pub(super) fn module_name(name: &str) -> String {
    name.replace('-', "_")
}
