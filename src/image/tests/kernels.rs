//! Facts about what boots: extracted kernels and the initramfs.

use super::*;
use crate::image::{vmlinux, write_initramfs};
use std::borrow::Cow;
use std::io::{Read as _, Write as _};

/// A bzImage around a payload, laid out as the boot protocol says; the unpacked size follows where the kernel's
/// build appends it.
fn bz_image(mut payload: Vec<u8>, append: Option<u32>) -> Vec<u8> {
    payload.extend(append.iter().flat_map(|size| size.to_le_bytes()));
    let mut image = vec![0; (3 + 1) * 512 + 100];
    image[0x1f1] = 3;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image.extend([0xee; 300]);
    image
}

/// The first 20 bytes of an ELF file.
fn elf_head(class: u8, kind: u8, machine: u8) -> Vec<u8> {
    let mut head = b"\x7fELF".to_vec();
    head.extend([class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, kind, 0, machine, 0]);
    head
}

fn elf() -> Vec<u8> {
    let noise = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 27) as u8);
    elf_head(2, 2, 62).into_iter().chain(noise).chain(std::iter::repeat_n(0, 9 << 20)).collect()
}

/// An ELF file of one segment of a type, with these contents.
fn elf_with(segment: u32, contents: &[u8]) -> Vec<u8> {
    let mut elf = elf_head(2, 2, 62);
    elf.resize(64 + 56, 0);
    elf[20] = 1;
    // e_phoff, e_ehsize, e_phentsize, e_phnum; then p_type, p_offset, p_filesz, p_align (elf.h).
    elf[32] = 64;
    (elf[52], elf[54], elf[56]) = (64, 56, 1);
    elf[64..68].copy_from_slice(&segment.to_le_bytes());
    elf[72] = 64 + 56;
    elf[96..104].copy_from_slice(&(contents.len() as u64).to_le_bytes());
    elf[112] = 4;
    elf.extend(contents);
    elf
}

fn note(owner: &[u8; 4], kind: u32) -> Vec<u8> {
    let numbers = [4, 4, kind].map(u32::to_le_bytes).concat();
    [&numbers[..], owner, b"\0\0\x10\0"].concat()
}

#[test]
fn a_pvh_entry_point_is_a_note_of_xens() {
    let bench = Bench::new();
    let has = |bytes: Vec<u8>| vmlinux::has_pvh_entry(&bench.write("vmlinux", bytes));
    const PT_NOTE: u32 = 4;
    assert_eq!(has(elf_with(PT_NOTE, &note(b"Xen\0", 18))), Some(true));
    assert_eq!(has(elf_with(PT_NOTE, &[note(b"GNU\0", 18), note(b"Xen\0", 18)].concat())), Some(true));
    assert_eq!(has(elf_with(PT_NOTE, &note(b"GNU\0", 18))), Some(false));
    assert_eq!(has(elf_with(PT_NOTE, &note(b"Xen\0", 1))), Some(false));
    assert_eq!(has(elf_with(1, &note(b"Xen\0", 18))), Some(false), "only segments of notes count");
    assert_eq!(has(elf_head(2, 2, 62)), None);
    assert_eq!(vmlinux::has_pvh_entry(&bench.path("absent")), None);
}

fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    out
}

/// The payload in every compression, with the size that is appended to it.
fn payloads(kernel: &[u8]) -> Vec<(&'static str, Vec<u8>, Option<u32>)> {
    let size = Some(kernel.len() as u32);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(kernel).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(kernel).unwrap();
    let options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
    let mut lzma = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    lzma.write_all(kernel).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(kernel).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(kernel).unwrap();
    vec![
        ("gzip", gzip.finish().unwrap(), None),
        ("xz", xz.finish().unwrap(), size),
        ("lzma", lzma.finish().unwrap(), size),
        ("bzip2", bzip2.finish().unwrap(), size),
        ("zstd", zstd::encode_all(kernel, 1).unwrap(), size),
        ("lz4", lz4.finish().unwrap(), size),
        ("lz4-legacy", lz4_legacy(kernel), size),
    ]
}

#[test]
fn an_elf_kernel_is_taken_as_it_is() {
    assert!(matches!(vmlinux::extract(&elf()).unwrap(), Cow::Borrowed(_)));
}

#[test]
fn every_payload_of_a_bzimage_is_extracted() {
    let kernel = elf();
    for (name, payload, size) in payloads(&kernel) {
        assert!(*vmlinux::extract(&bz_image(payload, size)).unwrap() == kernel[..], "{name}");
    }
}

#[test]
fn a_payload_that_is_cut_short_or_lies_about_its_size_is_damaged() {
    let kernel = elf();
    for (name, payload, size) in payloads(&kernel) {
        let damaged = |payload: &[u8], size: Option<u32>| {
            let error = vmlinux::extract(&bz_image(payload.to_vec(), size)).unwrap_err();
            assert_eq!(error.code(), "kernel.damaged", "{name}: {error}");
            assert!(error.help_text().is_some() || name == "lz4-legacy", "{name}: {error}");
        };
        damaged(&payload[..payload.len() / 2], size);
        if let Some(size) = size {
            for wrong in [0, 1, size - 1, size + 1, 1 << 30, u32::MAX] {
                damaged(&payload, Some(wrong));
            }
        }
    }
}

#[test]
fn what_is_no_kernel_is_told_by_what_it_is() {
    let refused = |bytes: &[u8], code: &str, message: &str| {
        let error = vmlinux::extract(bytes).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.help_text().is_some(), "{error}");
    };
    refused(b"", "kernel.format", "empty");
    refused(&[0; 4096], "kernel.format", "neither an ELF vmlinux nor an x86 bzImage");
    refused(b"<!DOCTYPE html>", "kernel.format", "HTML");
    refused(b"!<arch>\ndebian-binary", "kernel.format", "Debian packages");
    refused(b"MZ\0\0zimg\0\0", "kernel.format", "EFI zboot");
    refused(&elf_head(2, 2, 183), "kernel.architecture", "arm64");
    refused(&elf_head(2, 2, 200), "kernel.architecture", "the machine 200");
    refused(&elf_head(1, 2, 3), "kernel.architecture", "32-bit");
    refused(&elf_head(2, 1, 62), "kernel.format", "module");
    refused(&elf_with(3, b"/lib64/ld-linux-x86-64.so.2\0"), "kernel.format", "program that runs under Linux");
    refused(&elf_head(2, 2, 62)[..17], "kernel.damaged", "header");
    let mut arm64 = vec![0; 64];
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    refused(&arm64, "kernel.format", "arm64");
    for (name, packed, _) in payloads(&elf()) {
        refused(&packed, "kernel.compressed", name.split('-').next().unwrap());
    }

    let bz = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = bz_image(zstd::encode_all(&elf()[..], 1).unwrap(), Some(elf().len() as u32));
        change(&mut image);
        image
    };
    vmlinux::extract(&bz(&|_| {})).unwrap();
    refused(&bz(&|image| image[0x236] = 0), "kernel.architecture", "32-bit");
    refused(&bz(&|image| image[0x206] = 7), "kernel.format", "boot protocol 2.07");
    refused(&bz(&|image| image.truncate(5000)), "kernel.damaged", "outside");
    refused(&bz(&|image| image[0x24c..0x250].fill(0xff)), "kernel.damaged", "outside");
    let wrap = |payload: &[u8], size| bz_image(payload.to_vec(), size);
    refused(&wrap(b"what is this", None), "kernel.format", "unknown way");
    refused(&wrap(b"\x89LZO\0\r\n\x1a\n123", None), "kernel.format", "lzo");
    let arm = elf_head(2, 2, 183);
    refused(&wrap(&zstd::encode_all(&arm[..], 1).unwrap(), Some(20)), "kernel.architecture", "arm64");
    let error = vmlinux::extract(&wrap(&zstd::encode_all(&b"no elf"[..], 1).unwrap(), Some(6))).unwrap_err();
    assert_eq!(error.code(), "kernel.damaged");
}

#[test]
fn the_initramfs_lists_init_and_modules_in_order() {
    let bench = Bench::new();
    let modules = [bench.write("a/07-zeta.ko", "zeta"), bench.write("b/alpha-beta.ko", "alpha")];
    let (one, two) = (bench.path("one"), bench.path("two"));
    write_initramfs(b"#!init", &modules, &one).unwrap();
    write_initramfs(b"#!init", &modules, &two).unwrap();
    let bytes = std::fs::read(&one).unwrap();
    assert_eq!(bytes, std::fs::read(&two).unwrap());
    // Flags, time and host of a gzip header (RFC 1952): none.
    assert_eq!(bytes[3..8], [0; 5]);
    let mut cpio = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut cpio).unwrap();
    assert_eq!(
        members(&cpio),
        [
            ("dev".to_owned(), 0o040755, vec![]),
            ("proc".to_owned(), 0o040755, vec![]),
            ("sys".to_owned(), 0o040755, vec![]),
            ("modules".to_owned(), 0o040755, vec![]),
            ("dev/console".to_owned(), 0o020600, vec![]),
            ("init".to_owned(), 0o100755, b"#!init".to_vec()),
            ("modules/01-zeta.ko".to_owned(), 0o100644, b"zeta".to_vec()),
            ("modules/02-alpha-beta.ko".to_owned(), 0o100644, b"alpha".to_vec()),
        ]
    );
}

fn members(mut cpio: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let start = cpio.len();
    loop {
        assert_eq!(cpio[..6], *b"070701");
        let field = |n: usize| {
            u32::from_str_radix(std::str::from_utf8(&cpio[6 + 8 * n..14 + 8 * n]).unwrap(), 16).unwrap()
        };
        let (mode, time, size, length) = (field(1), field(5), field(6) as usize, field(11) as usize);
        assert_eq!(time, 0);
        let name = String::from_utf8(cpio[110..110 + length - 1].to_vec()).unwrap();
        let data = (110 + length).next_multiple_of(4);
        if name == "TRAILER!!!" {
            return found;
        }
        found.push((name, mode, cpio[data..data + size].to_vec()));
        cpio = &cpio[(data + size).next_multiple_of(4)..];
        assert_eq!((start - cpio.len()) % 4, 0);
    }
}
