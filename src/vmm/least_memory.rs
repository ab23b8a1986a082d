//! The least memory that a guest boots with, reckoned from the sizes of its kernel and its initramfs. How the figures
//! were measured stands in docs/vmm-memory.md.

use elf::ElfStream;
use elf::abi::PT_LOAD;
use elf::endian::AnyEndian;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What a kernel of a distribution takes while it starts, besides its own image: zones that it keeps back, hash tables,
/// buffers of its log, slabs, the first processes.
const STARTING: u64 = 49 << 19;
/// Of each CPU: its per-CPU area and its kernel threads.
const OF_CPU: u64 = 512 << 10;
/// One part in so many of all memory describes its pages: 64 bytes for each of 4096.
const PAGES: u64 = 64;
const MIB: u64 = 1 << 20;

/// Bytes, in whole mebibytes, that a guest with this ELF kernel, this initramfs (gzip) and so many CPUs needs to get as
/// far as its workload; `None` if their sizes cannot be told.
pub fn least(kernel: &Path, initramfs: &Path, cpus: u32) -> Option<u64> {
    Some(reckon(loaded(kernel)?, unpacking(initramfs)?, cpus))
}

fn reckon(kernel: u64, initramfs: u64, cpus: u32) -> u64 {
    let needed = kernel + initramfs + STARTING + u64::from(cpus) * OF_CPU;
    (needed + needed / (PAGES - 1)).div_ceil(MIB) * MIB
}

/// Bytes that an ELF kernel takes once it is loaded.
fn loaded(kernel: &Path) -> Option<u64> {
    let file = ElfStream::<AnyEndian, _>::open_stream(File::open(kernel).ok()?).ok()?;
    let segments = file.segments().iter().filter(|segment| segment.p_type == PT_LOAD);
    segments.map(|segment| segment.p_memsz).try_fold(0_u64, u64::checked_add)
}

/// Bytes that an archive of one gzip member takes until all in it is in use: its own while it is unpacked, and those of
/// what is in it, of which its last four bytes say how many (RFC 1952, ISIZE).
fn unpacking(initramfs: &Path) -> Option<u64> {
    let mut file = File::open(initramfs).ok()?;
    let packed = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::End(-4)).ok()?;
    let mut size = [0; 4];
    file.read_exact(&mut size).ok()?;
    // Modules are there twice while they are loaded: as files and where they run.
    Some(packed + 2 * u64::from(u32::from_le_bytes(size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_figures_are_those_that_were_measured() {
        // linux-image-6.1.0-56-cloud-amd64: with one CPU 74 MiB panicked and 76 booted, with four 76 and 78.
        let (kernel, initramfs) = (0x0182_6634 + 0x61_a000 + 0x3_4000 + 0xdb_2000, 870_020 + 2 * 2_393_136);
        let least = |cpus| reckon(kernel, initramfs, cpus) >> 20;
        assert_eq!((least(1), least(4)), (76, 78));
        // linux-image-6.1.0-56-amd64: 93 MiB panicked and 94 booted.
        assert_eq!(reckon(59_681_264, 1_460_625 + 2 * 4_866_520, 1) >> 20, 95);
    }

    #[test]
    fn the_sizes_of_real_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("x.gz");
        let mut gzip = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), Default::default());
        gzip.write_all(&vec![0; 100_000]).unwrap();
        gzip.finish().unwrap();
        let size = std::fs::metadata(&packed).unwrap().len();
        assert_eq!(unpacking(&packed), Some(size + 200_000));
        assert_eq!(loaded(&packed), None);
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, crate::vmm::firecracker::stub::Stub::PvhReset.elf()).unwrap();
        assert!(least(&kernel, &packed, 1).unwrap() > STARTING);
    }
}
