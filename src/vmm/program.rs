//! Looks at a program before it is run, and says in words what exec(2) only numbers: another machine's format, an
//! interpreter or loader that is not there, a file that may not be executed, a file system without programs.

use elf::ElfStream;
use elf::abi::{EM_AARCH64, EM_X86_64, PT_INTERP};
use elf::endian::AnyEndian;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::fmt;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Interpreters are named by a path, and `#!` lines end within this (execve(2)).
const LONGEST: u64 = 4096;

/// Why a program cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is a directory, a device or the like.
    NotAFile,
    /// No execute bit.
    Mode,
    /// Its file system is mounted noexec.
    NoExec,
    /// It is neither an ELF program nor a script.
    Format,
    /// It is for another machine.
    Machine(String),
    /// A script whose interpreter is not there.
    NoInterpreter(PathBuf),
    /// A dynamic program whose loader is not there.
    NoLoader(PathBuf),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotAFile => f.write_str("it is not a file"),
            Fault::Mode => f.write_str("it is not executable: chmod 755 makes it so"),
            Fault::NoExec => f.write_str("it is on a file system that is mounted noexec"),
            Fault::Format => f.write_str("it is neither a program for Linux nor a script"),
            Fault::Machine(machine) => write!(f, "it is a program for {machine}, and this host is x86_64"),
            Fault::NoInterpreter(path) => {
                write!(f, "it is a script for {}, which this host does not have", path.display())?;
                match path.as_os_str().as_bytes().ends_with(b"\r") {
                    true => {
                        f.write_str(": its first line ends in a carriage return, as files from Windows do")
                    }
                    false => Ok(()),
                }
            }
            Fault::NoLoader(path) => {
                write!(f, "it is dynamically linked by {}, which this host does not have", path.display())
            }
        }
    }
}

/// The loader that a dynamically linked program asks for; `None` for a static one, a script, and what is no program.
pub fn loader(program: &Path) -> Option<PathBuf> {
    let mut file = fs_err::File::open(program).ok()?;
    let segments = ElfStream::<AnyEndian, _>::open_stream(&mut file).ok()?.segments().clone();
    let interp = segments.iter().find(|segment| segment.p_type == PT_INTERP)?;
    file.seek(std::io::SeekFrom::Start(interp.p_offset)).ok()?;
    let mut name = Vec::new();
    file.take(interp.p_filesz.min(LONGEST)).read_to_end(&mut name).ok()?;
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&name[..end])))
}

/// Why `program` could not be executed; `None` if nothing speaks against it, or it cannot be looked at.
pub fn fault(program: &Path) -> Option<Fault> {
    let meta = std::fs::metadata(program).ok()?;
    if !meta.is_file() {
        return Some(Fault::NotAFile);
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Some(Fault::Mode);
    }
    if statvfs(program).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC)) {
        return Some(Fault::NoExec);
    }
    let mut head = Vec::new();
    std::fs::File::open(program).ok()?.take(256).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default().trim_ascii_start();
        let word = line.split(|&b| b == b' ' || b == b'\t').next().unwrap_or_default();
        let interpreter = Path::new(std::ffi::OsStr::from_bytes(word));
        return (!interpreter.exists()).then(|| Fault::NoInterpreter(interpreter.to_owned()));
    }
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return Some(Fault::Format);
    }
    // e_machine (elf.h); e_ident[EI_DATA] is 2 for big-endian ones.
    let machine = match head[5] {
        2 => u16::from_be_bytes([head[18], head[19]]),
        _ => u16::from_le_bytes([head[18], head[19]]),
    };
    match machine {
        EM_X86_64 => {}
        EM_AARCH64 => return Some(Fault::Machine("aarch64".to_owned())),
        other => return Some(Fault::Machine(format!("machine {other}"))),
    }
    loader(program).filter(|loader| !loader.exists()).map(Fault::NoLoader)
}

/// What keeps other users than root and `program`'s owner from executing it: itself, or a directory above it.
pub fn closed_to_others(program: &Path) -> Option<PathBuf> {
    let program = program.canonicalize().ok()?;
    let closed =
        |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0);
    program.ancestors().find(|path| closed(path)).map(Path::to_owned)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fs_err as fs;

    /// A file that can be executed, as far as its mode goes.
    pub(crate) fn executable(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// An ELF program of one segment that names its loader (elf.h).
    pub(crate) fn dynamic(loader: &str, machine: u16) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0".to_vec();
        elf.extend(machine.to_le_bytes());
        elf.extend(1_u32.to_le_bytes()); // e_version
        elf.extend(0_u64.to_le_bytes()); // e_entry
        elf.extend(64_u64.to_le_bytes()); // e_phoff
        elf.extend(0_u64.to_le_bytes()); // e_shoff
        elf.extend(0_u32.to_le_bytes()); // e_flags
        for half in [64_u16, 56, 1, 64, 0, 0] {
            elf.extend(half.to_le_bytes());
        }
        elf.extend(PT_INTERP.to_le_bytes());
        elf.extend(4_u32.to_le_bytes());
        let length = loader.len() as u64 + 1;
        for field in [120, 0, 0, length, length, 1] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend(loader.as_bytes());
        elf.push(0);
        elf
    }

    #[test]
    fn what_exec_would_number_is_said_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let fault_of = |bytes: &[u8]| {
            executable(&path, bytes);
            fault(&path)
        };
        assert_eq!(fault_of(b"#!/bin/sh\n"), None);
        assert_eq!(fault_of(b"#! /nowhere/sh -e\n"), Some(Fault::NoInterpreter("/nowhere/sh".into())));
        let windows = fault_of(b"#!/bin/sh\r\n").unwrap();
        assert!(windows.to_string().contains("carriage return"), "{windows}");
        assert_eq!(
            fault_of(&dynamic("/lib64/ld-nowhere.so.1", EM_X86_64)),
            Some(Fault::NoLoader("/lib64/ld-nowhere.so.1".into()))
        );
        assert_eq!(fault_of(&dynamic("/proc/self/exe", EM_X86_64)), None);
        assert_eq!(fault_of(&dynamic("/x", EM_AARCH64)), Some(Fault::Machine("aarch64".to_owned())));
        assert_eq!(fault_of(b"hello"), Some(Fault::Format));
        assert_eq!(fault(dir.path()), Some(Fault::NotAFile));
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(fault(&path), Some(Fault::Mode));
        assert_eq!(fault(Path::new("/bin/sh")), None);
        assert!(loader(Path::new("/bin/sh")).is_some());
    }

    #[test]
    fn a_program_in_a_private_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        executable(&path, b"#!/bin/sh\n");
        let mode = |mode| fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).unwrap();
        mode(0o700);
        assert_eq!(closed_to_others(&path), Some(dir.path().canonicalize().unwrap()));
        assert_eq!(closed_to_others(Path::new("/bin/sh")), None);
    }
}
