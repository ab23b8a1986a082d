//! The configuration that a kernel built with IKCONFIG carries in itself.

use memchr::memmem;
use std::io::Read;

/// Around the gzipped configuration (kernel/configs.c).
const START: &[u8] = b"IKCFG_ST";
/// Far more than any configuration: bounds a hostile one.
const LARGEST: u64 = 8 << 20;

/// The configuration in a vmlinux, if it has one that can be read.
pub(super) fn of(vmlinux: &[u8]) -> Option<String> {
    // The markers' text may also stand elsewhere, in a string of a program embedded in the kernel.
    memmem::find_iter(vmlinux, START).find_map(|at| {
        let packed = &vmlinux[at + START.len()..];
        if !packed.starts_with(&[0x1f, 0x8b]) {
            return None;
        }
        let mut text = String::new();
        flate2::bufread::GzDecoder::new(packed).take(LARGEST).read_to_string(&mut text).ok()?;
        text.contains("CONFIG_").then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(text).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn an_embedded_configuration_is_found_behind_what_only_looks_like_one() {
        let text = "CONFIG_ACPI=y\n# CONFIG_PCI is not set\n";
        let mut vmlinux = b"\x7fELF\0IKCFG_ST is a marker\0".to_vec();
        vmlinux.extend_from_slice(b"IKCFG_ST");
        vmlinux.extend(gzip(text.as_bytes()));
        vmlinux.extend_from_slice(b"IKCFG_ED more");
        assert_eq!(of(&vmlinux).as_deref(), Some(text));
    }

    #[test]
    fn a_damaged_configuration_is_none() {
        let mut packed = b"IKCFG_ST".to_vec();
        packed.extend(gzip(b"CONFIG_ACPI=y\n"));
        packed.truncate(packed.len() - 9);
        assert_eq!(of(&packed), None);
        assert_eq!(of(b"IKCFG_ST"), None);
        assert_eq!(of(b""), None);
    }
}
