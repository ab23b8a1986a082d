//! Extracts the ELF kernel out of a bzImage: what Firecracker boots, and what QEMU boots fastest.

use crate::error::{Context, Error, Result};
use std::borrow::Cow;
use std::io::Read;

const ELF: &[u8] = b"\x7fELF";
/// The x86 boot protocol (Documentation/arch/x86/boot.rst).
const BOOT_FLAG: usize = 0x1fe;
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// More than any kernel: bounds a damaged or hostile payload.
const LARGEST: u64 = 1 << 30;
/// Blocks of the lz4 legacy format hold this much at most (lz4_Frame_format.md).
const LZ4_BLOCK: usize = 8 << 20;

/// The ELF kernel in `bytes`: an ELF file as it is, a bzImage's payload decompressed (gzip, xz, lzma, zstd, lz4).
///
/// # Errors
/// `kernel.format` for anything else, `kernel.damaged` for a payload that does not unpack to an ELF file.
pub fn extract(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if bytes.starts_with(ELF) {
        return Ok(Cow::Borrowed(bytes));
    }
    let kernel = decompress(payload(bytes)?)?;
    if !kernel.starts_with(ELF) {
        return Err(Error::failed("kernel.damaged", "the kernel's payload is no ELF file"));
    }
    Ok(Cow::Owned(kernel))
}

fn payload(bytes: &[u8]) -> Result<&[u8]> {
    let u32_at = |at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize).unwrap_or(0)
    };
    if bytes.get(BOOT_FLAG..BOOT_FLAG + 2) != Some(&[0x55, 0xaa])
        || bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS")
    {
        return Err(Error::failed(
            "kernel.format",
            "the kernel is neither an ELF vmlinux nor an x86 bzImage",
        )
        .help("give it as vmlinux, or as the vmlinuz of an x86_64 distribution"));
    }
    // 0 means 4, for the sake of very old loaders.
    let sectors = match bytes[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * SECTOR + u32_at(PAYLOAD_OFFSET);
    let length = u32_at(PAYLOAD_LENGTH);
    match start.checked_add(length).and_then(|end| bytes.get(start..end)) {
        Some(payload) if length > 4 => Ok(payload),
        _ => Err(Error::failed("kernel.damaged", "the bzImage's payload lies outside of it")),
    }
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    let say = |how: &'static str| move || format!("cannot decompress the kernel's {how} payload");
    let code = "kernel.damaged";
    match payload {
        [0x1f, 0x8b, ..] => read_all(flate2::bufread::GzDecoder::new(payload)).or_failed(code, say("gzip")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_all(liblzma::bufread::XzDecoder::new(payload)).or_failed(code, say("xz"))
        }
        [0x5d, 0, 0, ..] => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(u64::MAX).or_failed(code, say("lzma"))?;
            read_all(liblzma::bufread::XzDecoder::new_stream(payload, stream)).or_failed(code, say("lzma"))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(payload).and_then(|mut decoder| {
                // Kernels are compressed with windows of up to 128 MiB (scripts/Makefile.lib, zstd -22 --ultra).
                decoder.window_log_max(27)?;
                Ok(decoder.single_frame())
            });
            decoder.and_then(read_all).or_failed(code, say("zstd"))
        }
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4_legacy(rest),
        _ => Err(Error::failed(
            "kernel.format",
            "the kernel's payload is compressed in a way that is not read",
        )
        .help("gzip, xz, lzma, zstd and lz4 are read")),
    }
}

fn read_all(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The kernel appends the unpacked size after the stream: decoders of one stream do not see it.
    reader.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Blocks, each after its compressed length; then the unpacked size, which the kernel's build appends.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>> {
    let damaged =
        |why: &str| Error::failed("kernel.damaged", format!("the kernel's lz4 payload is damaged: {why}"));
    let (mut blocks, size) = payload.split_last_chunk::<4>().ok_or_else(|| damaged("too short"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size as u64 > LARGEST {
        return Err(damaged("absurd size"));
    }
    let mut kernel = vec![0; size];
    let mut filled = 0;
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or_else(|| damaged("a block is cut short"))?;
        let room = &mut kernel[filled..];
        let room = LZ4_BLOCK.min(room.len());
        let out = &mut kernel[filled..filled + room];
        filled += lz4_flex::block::decompress_into(block, out)
            .map_err(|e| damaged("a block does not unpack").because(e))?;
        blocks = &rest[length..];
    }
    if filled != size {
        return Err(damaged("it does not have the size it declares"));
    }
    Ok(kernel)
}
