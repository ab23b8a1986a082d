//! Finds the note by which QEMU enters an ELF kernel.

use elf::ElfStream;
use elf::abi::PT_NOTE;
use elf::endian::AnyEndian;
use elf::note::Note;
use fs_err as fs;
use std::path::Path;

/// XEN_ELFNOTE_PHYS32_ENTRY of the owner "Xen" (xen/interface/elfnote.h): the 32-bit entry point of PVH guests.
const PHYS32_ENTRY: u64 = 18;
/// Far more than a kernel's notes.
const LONGEST_NOTES: u64 = 1 << 20;

/// Whether the vmlinux at `path` says where a PVH guest is entered; `None` if that cannot be told. Reads its headers
/// and notes alone.
pub fn has_pvh_entry(path: &Path) -> Option<bool> {
    let mut file = ElfStream::<AnyEndian, _>::open_stream(fs::File::open(path).ok()?).ok()?;
    let notes = file.segments().iter().filter(|s| s.p_type == PT_NOTE && s.p_filesz <= LONGEST_NOTES);
    let notes: Vec<_> = notes.copied().collect();
    let is_entry = |note: Note<'_>| match note {
        Note::Unknown(note) => note.n_type == PHYS32_ENTRY && note.name_str().is_ok_and(|name| name == "Xen"),
        _ => false,
    };
    for segment in &notes {
        if file.segment_data_as_notes(segment).ok()?.any(is_entry) {
            return Some(true);
        }
    }
    Some(false)
}
