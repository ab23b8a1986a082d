//! Extracts the ELF kernel out of a bzImage: what Firecracker boots, and what QEMU boots fastest.

mod payload;
mod pvh;
mod refusal;

pub use pvh::has_pvh_entry;

use crate::error::{Error, Result};
use std::borrow::Cow;

const ELF: &[u8] = b"\x7fELF";
/// The x86 boot protocol (Documentation/arch/x86/boot.rst).
const BOOT_FLAG: usize = 0x1fe;
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// From here on the header says where the payload is, from the second on whether the kernel is a 64-bit one.
const HAS_PAYLOAD: u16 = 0x208;
const HAS_XLOADFLAGS: u16 = 0x20c;
/// XLF_KERNEL_64: it has a 64-bit entry point.
const KERNEL_64: u16 = 1;

/// The ELF kernel in `bytes`: an ELF file as it is, a bzImage's payload decompressed (gzip, xz, lzma, zstd, bzip2,
/// lz4 in either of its formats).
///
/// # Errors
/// `kernel.architecture` for what is no x86-64 kernel, `kernel.compressed` for a kernel that is packed as a whole,
/// `kernel.format` for anything else, programs included, `kernel.damaged` for a payload that does not unpack to an ELF file.
pub fn extract(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if bytes.starts_with(ELF) {
        refusal::check_elf(bytes)?;
        return Ok(Cow::Borrowed(bytes));
    }
    let kernel = payload::decompress(payload(bytes)?)?;
    if !kernel.starts_with(ELF) {
        return Err(Error::failed("kernel.damaged", "the kernel's payload is no ELF file"));
    }
    refusal::check_elf(&kernel)?;
    Ok(Cow::Owned(kernel))
}

fn payload(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.get(BOOT_FLAG..BOOT_FLAG + 2) != Some(&[0x55, 0xaa])
        || bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS")
    {
        return Err(refusal::of(bytes));
    }
    let u16_at = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at: usize| {
        bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    let version = u16_at(VERSION);
    if version < HAS_PAYLOAD {
        return Err(Error::failed(
            "kernel.format",
            format!("the bzImage's boot protocol {}.{:02} is too old", version >> 8, version & 0xff),
        )
        .help("a kernel since Linux 2.6.26 says where its payload is"));
    }
    if version >= HAS_XLOADFLAGS && u16_at(XLOADFLAGS) & KERNEL_64 == 0 {
        return Err(refusal::bits32("the bzImage"));
    }
    // 0 means 4, for the sake of very old loaders.
    let sectors = match bytes[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = ((sectors + 1) * SECTOR).checked_add(u32_at(PAYLOAD_OFFSET));
    let length = u32_at(PAYLOAD_LENGTH);
    match start.and_then(|start| bytes.get(start..start.checked_add(length)?)) {
        Some(payload) if length > 8 => Ok(payload),
        _ => Err(Error::failed("kernel.damaged", "the bzImage's payload lies outside of it")
            .help("the file is cut short: fetch or copy it again")),
    }
}
