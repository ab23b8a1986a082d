//! Decompresses the payload of a bzImage, whatever its build chose.

use crate::error::{Context, Error, Result};
use std::io::Read;

/// More than any kernel: bounds a damaged or hostile payload.
const LARGEST: u64 = 1 << 30;
/// Blocks of the lz4 legacy format hold this much at most (lz4_Frame_format.md).
const LZ4_BLOCK: usize = 8 << 20;
/// Kernels are compressed with windows of up to 128 MiB (scripts/Makefile.lib, zstd -22 --ultra).
const ZSTD_WINDOW_LOG: u32 = 27;
const CODE: &str = "kernel.damaged";

/// The unpacked payload, which has the size that it declares.
pub(super) fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    if let [0x1f, 0x8b, ..] = payload {
        // gzip has the size in its own trailer.
        return read_all(flate2::bufread::GzDecoder::new(payload), "gzip", LARGEST);
    }
    // The others have it appended by the kernel's build.
    let Some((stream, size)) = payload.split_last_chunk::<4>() else {
        return Err(Error::failed(CODE, "the kernel's payload is empty"));
    };
    let size = u32::from_le_bytes(*size);
    let most = u64::from(size).min(LARGEST);
    let kernel = match stream {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_all(liblzma::bufread::XzDecoder::new(stream), "xz", most)
        }
        [0x5d, 0, 0, ..] => {
            let lzma = liblzma::stream::Stream::new_lzma_decoder(u64::MAX).or_failed(CODE, || "lzma")?;
            read_all(liblzma::bufread::XzDecoder::new_stream(stream, lzma), "lzma", most)
        }
        [b'B', b'Z', b'h', ..] => read_all(bzip2::bufread::MultiBzDecoder::new(stream), "bzip2", most),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stream).or_failed(CODE, || "zstd")?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).or_failed(CODE, || "zstd")?;
            read_all(decoder.single_frame(), "zstd", most)
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => read_all(lz4_flex::frame::FrameDecoder::new(stream), "lz4", most),
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(blocks, most as usize),
        [0x89, b'L', b'Z', b'O', ..] => Err(unknown("by lzo, which is not read")),
        _ => Err(unknown("in an unknown way")),
    }?;
    if kernel.len() as u64 == u64::from(size) { Ok(kernel) } else { Err(wrong_size()) }
}

fn unknown(how: &str) -> Error {
    Error::failed("kernel.format", format!("the kernel's payload is compressed {how}"))
        .help("gzip, xz, lzma, zstd, bzip2 and lz4 are read; a vmlinux needs no unpacking")
}

fn wrong_size() -> Error {
    Error::failed(CODE, "the kernel's payload does not have the size it declares")
        .help("the file is damaged: fetch or copy it again")
}

/// At most one byte more than `most`, which shows that there would be more.
fn read_all(reader: impl Read, how: &'static str, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(if most == LARGEST { 0 } else { most as usize });
    reader.take(most + 1).read_to_end(&mut bytes).map_err(|e| {
        Error::failed(CODE, format!("cannot decompress the kernel's {how} payload"))
            .help("the file is damaged or cut short: fetch or copy it again")
            .because(e)
    })?;
    if bytes.len() as u64 > most { Err(wrong_size()) } else { Ok(bytes) }
}

/// Blocks, each after its compressed length.
fn lz4_legacy(mut blocks: &[u8], size: usize) -> Result<Vec<u8>> {
    let damaged = |why: &str| Error::failed(CODE, format!("the kernel's lz4 payload is damaged: {why}"));
    let mut kernel = vec![0; size];
    let mut filled = 0;
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or_else(|| damaged("a block is cut short"))?;
        let room = LZ4_BLOCK.min(kernel.len() - filled);
        let out = &mut kernel[filled..filled + room];
        filled += lz4_flex::block::decompress_into(block, out)
            .map_err(|e| damaged("a block does not unpack").because(e))?;
        blocks = &rest[length..];
    }
    kernel.truncate(filled);
    Ok(kernel)
}
