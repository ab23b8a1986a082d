//! What a file says of itself to whoever would execute it: an ELF's header and dynamic section, a script's first line.

use super::stacked::Contents;
use mkext4::Result;

/// As much of a file as the kernel looks at (BINPRM_BUF_SIZE of linux/binfmts.h).
const HEAD: usize = 256;
/// Program headers and dynamic entries beyond these are no program's.
const MOST_HEADERS: u64 = 128;
const MOST_DYNAMIC: usize = 64 << 10;
/// PATH_MAX.
const LONGEST: usize = 4096;

// elf.h
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// What kind of program a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Nothing at all.
    Empty,
    /// An ELF file for x86-64.
    Elf(Elf),
    /// An ELF file for this other machine.
    Foreign(&'static str),
    /// An object file or a core dump.
    NoProgram,
    /// A script: what is behind its `#!`, and the rest of the line.
    Script {
        /// As the kernel would execute it.
        interpreter: String,
        /// The one argument that the kernel makes of the rest of the line.
        argument: Option<String>,
    },
    /// A program for Windows or DOS.
    Windows,
    /// Something that no kernel executes by itself.
    Other,
    /// It cannot be told.
    Unknown,
}

/// An ELF file for x86-64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elf {
    /// The loader that it wants.
    pub interpreter: Option<String>,
    /// The libraries that it names.
    pub needed: Vec<String>,
    /// Where these are looked for: for it and for what it loads.
    pub rpath: Option<String>,
    /// The same for it alone.
    pub runpath: Option<String>,
    /// Its own name as a library.
    pub soname: Option<String>,
}

impl Program {
    /// Looks at a file.
    ///
    /// # Errors
    /// The image's.
    pub fn of(file: &Contents<'_>) -> Result<Program> {
        let head = file.read(0, HEAD)?;
        Ok(match head.as_slice() {
            [] => Program::Empty,
            [b'#', b'!', line @ ..] => script(line, head.len() == HEAD),
            [0x7f, b'E', b'L', b'F', ..] => elf(file, &head)?,
            [b'M', b'Z', ..] => Program::Windows,
            _ => Program::Other,
        })
    }
}

/// As fs/binfmt_script.c reads it. `cut` says that the file goes on behind the bytes that are looked at.
fn script(line: &[u8], cut: bool) -> Program {
    let end = line.iter().position(|byte| *byte == b'\n');
    if end.is_none() && cut {
        return Program::Unknown;
    }
    let line = &line[..end.unwrap_or(line.len())];
    let Ok(line) = std::str::from_utf8(line) else { return Program::Unknown };
    let line = line.trim_matches([' ', '\t']);
    let (interpreter, argument) = match line.split_once([' ', '\t']) {
        Some((interpreter, rest)) => (interpreter, Some(rest.trim_start_matches([' ', '\t']).to_owned())),
        None => (line, None),
    };
    match interpreter.is_empty() || line.contains('\0') {
        true => Program::Other,
        false => Program::Script { interpreter: interpreter.to_owned(), argument },
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

fn elf(file: &Contents<'_>, head: &[u8]) -> Result<Program> {
    let (Some([class, order]), Some(raw)) = (number(head, 4), number::<4>(head, 16)) else {
        return Ok(Program::Unknown);
    };
    let half_of = |at: usize| match order {
        2 => u16::from_be_bytes([raw[at], raw[at + 1]]),
        _ => u16::from_le_bytes([raw[at], raw[at + 1]]),
    };
    let (kind, machine) = (half_of(0), half_of(2));
    match (class, order, machine) {
        (2, 1, EM_X86_64) => {}
        // The guest's kernel may be able to.
        (_, _, EM_386 | EM_X86_64) => return Ok(Program::Unknown),
        _ => return Ok(foreign(machine, class, order).map_or(Program::Unknown, Program::Foreign)),
    }
    // ET_EXEC and ET_DYN are programs; ET_REL and ET_CORE are not.
    match kind {
        2 | 3 => {}
        1 | 4 => return Ok(Program::NoProgram),
        _ => return Ok(Program::Unknown),
    }
    Ok(dynamic(file, head)?.map_or(Program::Unknown, Program::Elf))
}

fn foreign(machine: u16, class: u8, order: u8) -> Option<&'static str> {
    Some(match (machine, class, order) {
        (183, ..) => "aarch64 (ARM, 64 bits)",
        (40, ..) => "ARM (32 bits)",
        (243, 2, _) => "riscv64",
        (243, ..) => "riscv32",
        (21, _, 1) => "ppc64le",
        (20 | 21, ..) => "PowerPC",
        (22, ..) => "s390x",
        (8, ..) => "MIPS",
        (258, ..) => "loongarch64",
        (2 | 18 | 43, ..) => "SPARC",
        _ => return None,
    })
}

/// The loader and the dynamic section of a 64-bit file; `None` if its headers are not to be followed.
fn dynamic(file: &Contents<'_>, head: &[u8]) -> Result<Option<Elf>> {
    let mut elf = Elf::default();
    let (Some(offset), Some(size), Some(count)) = (long(head, 32), half(head, 54), half(head, 56)) else {
        return Ok(None);
    };
    if size < 56 || u64::from(count) > MOST_HEADERS {
        return Ok(None);
    }
    let table = file.read(offset, usize::from(size) * usize::from(count))?;
    let mut loads = Vec::new();
    let mut section = None;
    for header in table.chunks_exact(usize::from(size)) {
        let (Some(kind), Some(at), Some(address), Some(length)) =
            (word(header, 0), long(header, 8), long(header, 16), long(header, 32))
        else {
            return Ok(None);
        };
        match kind {
            PT_LOAD => loads.push((address, at, length)),
            PT_DYNAMIC => section = Some((at, length)),
            PT_INTERP => elf.interpreter = Some(text(file, at, length.min(LONGEST as u64) as usize)?),
            _ => {}
        }
    }
    let Some((at, length)) = section else { return Ok(Some(elf)) };
    let entries = file.read(at, usize::try_from(length).unwrap_or(MOST_DYNAMIC).min(MOST_DYNAMIC))?;
    let entries: Vec<(u64, u64)> = entries
        .chunks_exact(16)
        .filter_map(|entry| Some((long(entry, 0)?, long(entry, 8)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let place = |address: u64| {
        let load = loads
            .iter()
            .find(|(start, _, length)| (*start..start.saturating_add(*length)).contains(&address));
        load.map(|(start, at, _)| at + (address - start))
    };
    let strings = entries.iter().find(|(tag, _)| *tag == DT_STRTAB).and_then(|(_, address)| place(*address));
    let Some(strings) = strings else { return Ok(Some(elf)) };
    for (tag, value) in &entries {
        if !matches!(*tag, DT_NEEDED | DT_SONAME | DT_RPATH | DT_RUNPATH) {
            continue;
        }
        let text = text(file, strings.saturating_add(*value), LONGEST)?;
        match *tag {
            DT_NEEDED => elf.needed.push(text),
            DT_SONAME => elf.soname = Some(text),
            DT_RPATH => elf.rpath = Some(text),
            _ => elf.runpath = Some(text),
        }
    }
    Ok(Some(elf))
}

/// A text that ends with a NUL.
fn text(file: &Contents<'_>, at: u64, most: usize) -> Result<String> {
    let bytes = file.read(at, most)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_are_read_as_the_kernel_reads_them() {
        let read = |line: &str| match script(line.as_bytes(), false) {
            Program::Script { interpreter, argument } => {
                argument.map_or(interpreter.clone(), |argument| format!("{interpreter}|{argument}"))
            }
            other => format!("{other:?}"),
        };
        assert_eq!(read("/bin/sh\necho"), "/bin/sh");
        assert_eq!(read(" \t/bin/sh -e -u \n"), "/bin/sh|-e -u");
        assert_eq!(read("/usr/bin/env\tpython3"), "/usr/bin/env|python3");
        assert_eq!(read("/bin/sh\r\n"), "/bin/sh\r");
        assert_eq!(read("  \n/bin/sh"), "Other");
        assert_eq!(script(b"/bin/long", true), Program::Unknown);
    }
}
