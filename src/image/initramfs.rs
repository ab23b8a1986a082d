//! Writes the initramfs: init and the kernel modules it loads, as a gzipped newc cpio.

use crate::error::{Context, Error, Result};
use flate2::{Compression, GzBuilder};
use fs_err as fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const DIRECTORY: u32 = 0o040755;
const EXECUTABLE: u32 = 0o100755;
const REGULAR: u32 = 0o100644;
const CONSOLE: u32 = 0o020600;

/// Writes `/init`, `/dev/console` and `/modules/NN-NAME.ko` in the given order; a number that a module's file name
/// already has is replaced. Deterministic: times are 0, inodes are counted.
///
/// # Errors
/// `initramfs.write` and `initramfs.module`.
pub fn write_initramfs(init: &[u8], modules: &[PathBuf], out: &Path) -> Result<()> {
    let say = || format!("cannot write the initramfs {}", out.display());
    let file = fs::File::create(out).or_failed("initramfs.write", say)?;
    // The default gzip header names no file, no time and no host.
    let gzip = GzBuilder::new().write(io::BufWriter::new(file), Compression::best());
    let mut cpio = Cpio { out: gzip, inode: 0 };
    for dir in ["dev", "proc", "sys", "modules"] {
        cpio.entry(dir, DIRECTORY, 2, (0, 0), b"").or_failed("initramfs.write", say)?;
    }
    // Kernels open it for init's first output, before anything is mounted.
    cpio.entry("dev/console", CONSOLE, 1, (5, 1), b"").or_failed("initramfs.write", say)?;
    cpio.entry("init", EXECUTABLE, 1, (0, 0), init).or_failed("initramfs.write", say)?;
    let width = modules.len().to_string().len().max(2);
    for (index, path) in modules.iter().enumerate() {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::failed(
                "initramfs.module",
                format!("the kernel module {} has no plain name", path.display()),
            )
        })?;
        let bare = match name.split_once('-') {
            Some((number, rest)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => rest,
            _ => name,
        };
        let bytes = fs::read(path)
            .or_failed("initramfs.module", || format!("cannot read the kernel module {}", path.display()))?;
        let member = format!("modules/{:0width$}-{bare}", index + 1);
        cpio.entry(&member, REGULAR, 1, (0, 0), &bytes).or_failed("initramfs.write", say)?;
    }
    cpio.finish().and_then(|gzip| gzip.finish()?.flush()).or_failed("initramfs.write", say)
}

/// newc (Documentation/driver-api/early-userspace/buffer-format.rst): 13 fields of 8 hexadecimal digits after the
/// magic; name and data each padded to four bytes.
struct Cpio<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        self.record(self.inode, name, mode, links, device, data)
    }

    fn record(
        &mut self,
        inode: u32,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| io::Error::other("a member exceeds 4 GiB"))?;
        let length = name.len() as u32 + 1;
        let (major, minor) = device;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, length, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(110 + length)?;
        self.out.write_all(data)?;
        self.pad(size)
    }

    fn pad(&mut self, written: u32) -> io::Result<()> {
        self.out.write_all(&[0; 3][..(4 - written as usize % 4) % 4])
    }

    fn finish(mut self) -> io::Result<W> {
        self.record(0, "TRAILER!!!", 0, 1, (0, 0), b"")?;
        Ok(self.out)
    }
}
