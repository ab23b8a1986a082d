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
    image[0x248..0x24c].copy_from_slice(&100u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image.extend([0xee; 300]);
    image
}

fn elf() -> Vec<u8> {
    let noise = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 27) as u8);
    b"\x7fELF".iter().copied().chain(noise).chain(std::iter::repeat_n(0, 9 << 20)).collect()
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

#[test]
fn an_elf_kernel_is_taken_as_it_is() {
    assert!(matches!(vmlinux::extract(b"\x7fELF...").unwrap(), Cow::Borrowed(b"\x7fELF...")));
}

#[test]
fn every_payload_of_a_bzimage_is_extracted() {
    let kernel = elf();
    let size = Some(kernel.len() as u32);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&kernel).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&kernel).unwrap();
    for (name, payload, size) in [
        ("gzip", gzip.finish().unwrap(), None),
        ("xz", xz.finish().unwrap(), size),
        ("zstd", zstd::encode_all(&kernel[..], 1).unwrap(), size),
        ("lz4", lz4_legacy(&kernel), size),
    ] {
        assert!(*vmlinux::extract(&bz_image(payload, size)).unwrap() == kernel[..], "{name}");
    }
}

#[test]
fn damaged_kernels_are_refused() {
    let code = |bytes: &[u8]| vmlinux::extract(bytes).unwrap_err().code();
    assert_eq!(code(b""), "kernel.format");
    assert_eq!(code(&[0; 4096]), "kernel.format");
    assert_eq!(code(&bz_image(b"what is this".to_vec(), None)), "kernel.format");
    let kernel = elf();
    let size = kernel.len() as u32;
    let lz4 = lz4_legacy(&kernel);
    assert_eq!(code(&bz_image(lz4.clone(), Some(size - 1))), "kernel.damaged");
    assert_eq!(code(&bz_image(lz4.clone(), Some(size + 1))), "kernel.damaged");
    assert_eq!(code(&bz_image(lz4.clone(), Some(u32::MAX))), "kernel.damaged");
    assert_eq!(code(&bz_image(lz4[..lz4.len() / 2].to_vec(), Some(size))), "kernel.damaged");
    assert_eq!(code(&bz_image(zstd::encode_all(&b"no elf"[..], 1).unwrap(), Some(6))), "kernel.damaged");
    let mut cut = bz_image(lz4, Some(size));
    cut.truncate(5000);
    assert_eq!(code(&cut), "kernel.damaged");
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
