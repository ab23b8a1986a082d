//! Which file an `argv[0]` names, and why a file cannot be executed.

use nix::errno::Errno;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};

/// The files to try for `argv0`, in order. With a '/' it is a path; else each directory of `path` is meant, an empty
/// one being the working directory (execvp(3)).
pub fn candidates(argv0: &str, path: &str) -> Vec<String> {
    if argv0.is_empty() {
        return Vec::new();
    }
    if argv0.contains('/') {
        return vec![argv0.to_owned()];
    }
    path.split(':')
        .map(
            |dir| {
                if dir.is_empty() {
                    argv0.to_owned()
                } else {
                    format!("{}/{argv0}", dir.trim_end_matches('/'))
                }
            },
        )
        .collect()
}

/// Why `execve(file)` failed, in words that name the file to mend. Called as the workload's user, in its working
/// directory.
pub fn explain(file: &str, errno: Errno) -> String {
    let meta = fs::metadata(file);
    let reason = match (errno, &meta) {
        (Errno::ENOENT | Errno::ENOTDIR, Ok(_)) => match interpreter(file) {
            Some(interpreter) => format!("its interpreter {interpreter} is not in the image"),
            None => "its interpreter is not in the image".to_owned(),
        },
        (Errno::ENOENT | Errno::ENOTDIR, Err(_)) => "there is no such file".to_owned(),
        (Errno::EACCES, Ok(meta)) if meta.is_dir() => "it is a directory".to_owned(),
        (Errno::EACCES, Ok(meta)) if meta.permissions().mode() & 0o111 == 0 => {
            "it is not executable".to_owned()
        }
        (Errno::EACCES, Ok(_)) => match interpreter(file) {
            Some(interpreter)
                if fs::metadata(&interpreter).is_ok_and(|m| m.permissions().mode() & 0o111 == 0) =>
            {
                format!("its interpreter {interpreter} is not executable")
            }
            _ => "the user may not execute it".to_owned(),
        },
        (Errno::EACCES, Err(_)) => "the user may not enter one of its directories".to_owned(),
        (Errno::ENOEXEC, _) => "it is neither a program for this machine nor a script with '#!'".to_owned(),
        (Errno::E2BIG, _) => "its arguments and environment are too long".to_owned(),
        (other, _) => other.desc().to_owned(),
    };
    format!("cannot run {file:?}: {reason}")
}

/// What a script's '#!' line or an ELF's PT_INTERP names. A script's interpreter may lack one in turn.
fn interpreter(file: &str) -> Option<String> {
    let mut current = file.to_owned();
    // The kernel follows four levels (fs/exec.c, exec_binprm).
    for _ in 0..4 {
        let next = direct_interpreter(&current)?;
        if fs::metadata(&next).is_err() {
            return Some(next);
        }
        current = next;
    }
    Some(current)
}

fn direct_interpreter(file: &str) -> Option<String> {
    let mut file = File::open(file).ok()?;
    // BINPRM_BUF_SIZE: the kernel looks no further either.
    let mut head = Vec::with_capacity(256);
    file.by_ref().take(256).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let line = String::from_utf8_lossy(line);
        // A carriage return before the line's end is a name's last character to the kernel: shown as \r.
        return line
            .trim_matches([' ', '\t'])
            .split([' ', '\t'])
            .next()
            .filter(|s| !s.is_empty())
            .map(|s| s.replace('\r', "\\r"));
    }
    elf_interpreter(&file, &head)
}

/// PT_INTERP of a 64-bit little-endian ELF (elf.h: e_phoff at 32, e_phentsize at 54, e_phnum at 56).
fn elf_interpreter(file: &File, head: &[u8]) -> Option<String> {
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half = |at: usize| head.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
    let long = |bytes: &[u8], at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (offset, size, count) = (long(head, 32)?, half(54)?, half(56)?);
    for n in 0..u64::from(count.min(128)) {
        let mut header = [0; 56];
        file.read_exact_at(&mut header, offset.checked_add(n * u64::from(size))?).ok()?;
        if header[..4] == 3u32.to_le_bytes() {
            let length = long(&header, 32)?.min(4096) as usize;
            let mut name = vec![0; length];
            file.read_exact_at(&mut name, long(&header, 8)?).ok()?;
            return Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Noise, TempDir};
    use std::fs::Permissions;

    #[test]
    fn names_without_a_slash_are_looked_up_in_path_and_others_are_not() {
        assert_eq!(candidates("ls", "/bin:/usr/bin/::x"), ["/bin/ls", "/usr/bin/ls", "ls", "x/ls"]);
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert!(candidates("", "/bin").is_empty());
    }

    #[test]
    fn a_failure_names_what_to_mend() {
        let dir = TempDir::new();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let script = write("script", "#! /no/such/python3 -u\n", 0o755);
        assert!(explain(&script, Errno::ENOENT).contains("interpreter /no/such/python3 is not in the image"));
        let dos = write("dos", "#!/bin/sh\r\n", 0o755);
        assert!(explain(&dos, Errno::ENOENT).contains(r"/bin/sh\r"));
        let nested = write("nested", &format!("#!{script}\n"), 0o755);
        assert!(explain(&nested, Errno::ENOENT).contains("/no/such/python3"));
        assert!(explain("/no/such", Errno::ENOENT).contains("no such file"));
        assert!(explain(&write("plain", "x", 0o644), Errno::EACCES).contains("not executable"));
        assert!(explain(dir.path().to_str().unwrap(), Errno::EACCES).contains("directory"));
        assert!(explain(&write("text", "x", 0o755), Errno::ENOEXEC).contains("neither"));
    }

    #[test]
    fn the_loader_of_a_dynamic_program_is_found() {
        let found = direct_interpreter("/bin/ls");
        assert!(found.as_deref().is_some_and(|i| i.contains("ld-linux")), "{found:?}");
    }

    #[test]
    fn damaged_programs_are_survived() {
        let dir = TempDir::new();
        let path = dir.path().join("elf");
        let good = fs::read("/bin/ls").unwrap();
        let mut noise = Noise(7);
        for _ in 0..300 {
            let mut bytes = good[..1024].to_vec();
            for _ in 0..8 {
                let at = 6 + noise.below(250);
                bytes[at] = noise.next() as u8;
            }
            bytes.truncate(noise.below(1024));
            fs::write(&path, &bytes).unwrap();
            let _ = explain(path.to_str().unwrap(), Errno::ENOENT);
        }
    }
}
