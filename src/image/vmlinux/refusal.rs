//! Says what a file is that cannot be booted, and what to do about it.

use crate::error::{Error, Result};
use elf::ElfBytes;
use elf::abi::PT_INTERP;
use elf::endian::LittleEndian;

const HELP: &str = "give it as vmlinux, or as the vmlinuz of an x86_64 distribution";
/// e_machine of elf.h.
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const MACHINES: &[(u16, &str)] = &[
    (8, "MIPS"),
    (20, "32-bit PowerPC"),
    (21, "PowerPC"),
    (22, "S/390"),
    (40, "32-bit ARM"),
    (183, "arm64"),
    (243, "RISC-V"),
    (258, "LoongArch"),
];
/// Of a file that is compressed as a whole: how it begins, by what, and what unpacks it.
const WHOLE: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"\x02\x21\x4c\x18", "lz4", "unlz4"),
    (b"\x5d\0\0", "lzma", "unlzma"),
    (b"\x89LZO", "lzo", "lzop -d"),
];
/// Of other things that are taken for kernels: where something stands, what, and what it is.
const OTHERS: &[(usize, &[u8], &str)] = &[
    (4, b"zimg", "an EFI zboot image, which other architectures use"),
    (0x38, b"ARM\x64", "a kernel for arm64"),
    (0x38, b"RSC\x05", "a kernel for RISC-V"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"!<arch>\n", "an ar archive, as Debian packages are"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"070701", "a cpio archive, as an initramfs is"),
    (0, b"<", "a page of HTML or XML, as servers send in place of a file"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file"),
    (0, b"MZ", "an EFI program without the x86 boot header"),
];

/// Refuses an ELF file of another architecture or word size, and what is no kernel for it.
pub(super) fn check_elf(bytes: &[u8]) -> Result<()> {
    // EI_CLASS, EI_DATA, e_type, e_machine of elf.h.
    let (Some(class), Some(data), Some(kind), Some(machine)) =
        (bytes.get(4), bytes.get(5), bytes.get(16..18), bytes.get(18..20))
    else {
        return Err(Error::failed("kernel.damaged", "the ELF file ends within its header").help(HELP));
    };
    let number = |b: &[u8]| match data {
        2 => u16::from_be_bytes([b[0], b[1]]),
        _ => u16::from_le_bytes([b[0], b[1]]),
    };
    match (number(machine), class) {
        (EM_X86_64, 2) => {}
        (EM_386 | EM_X86_64, _) => return Err(bits32("it")),
        (other, _) => {
            let name = MACHINES.iter().find(|(number, _)| *number == other);
            let name = name.map_or_else(|| format!("the machine {other}"), |(_, name)| (*name).to_owned());
            return Err(architecture(format!("it is a kernel for {name}")));
        }
    }
    // A relocatable object (ET_REL), such as a module, is linked to nothing.
    match number(kind) {
        2 | 3 if is_program(bytes) => {
            Err(Error::failed("kernel.format", "it is a program that runs under Linux, no kernel").help(HELP))
        }
        2 | 3 => Ok(()),
        1 => {
            Err(Error::failed("kernel.format", "it is an object file or kernel module, no kernel").help(HELP))
        }
        _ => Err(Error::failed("kernel.format", "it is an ELF file, but no program").help(HELP)),
    }
}

/// Whether a file asks for the loader of dynamic libraries, as no kernel does.
fn is_program(bytes: &[u8]) -> bool {
    let segments = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok().and_then(|file| file.segments());
    segments.is_some_and(|segments| segments.iter().any(|segment| segment.p_type == PT_INTERP))
}

/// The error for a kernel of the right family and the wrong size.
pub(super) fn bits32(what: &str) -> Error {
    architecture(format!("{what} is a 32-bit kernel"))
}

fn architecture(what: String) -> Error {
    Error::failed("kernel.architecture", what).help("guests are x86_64: use a kernel for it")
}

/// The error for bytes that are neither an ELF file nor a bzImage.
pub(super) fn of(bytes: &[u8]) -> Error {
    if let Some((_, how, tool)) = WHOLE.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return Error::failed("kernel.compressed", format!("it is compressed as a whole by {how}")).help(
            format!("unpack it with `{tool}` if it is a vmlinux; a bzImage unpacks itself and needs nothing"),
        );
    }
    let found = OTHERS.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)));
    let what = match found {
        Some((_, _, what)) => format!("it is {what}, not a kernel"),
        None if bytes.is_empty() => "it is empty".to_owned(),
        None => "it is neither an ELF vmlinux nor an x86 bzImage".to_owned(),
    };
    Error::failed("kernel.format", what).help(HELP)
}
