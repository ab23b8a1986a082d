//! Judges an ext4 image of the user's by its superblock, before anything else of it is read.

use crate::error::{Context, Error, Result};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use std::os::unix::fs::FileTypeExt as _;

const CODE: &str = "image.ext4-unreadable";
/// Where the superblock is, and offsets in it (Documentation/filesystems/ext4/super.rst).
const AT: u64 = 1024;
const BLOCKS_LOW: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const MAGIC: usize = 0x38;
const STATE: usize = 0x3a;
const INCOMPAT: usize = 0x60;
const LAST_ORPHAN: usize = 0xe8;
const BLOCKS_HIGH: usize = 0x150;
/// EXT4_VALID_FS and EXT4_ERROR_FS of s_state.
const CLEAN: u16 = 1;
const ERRORS: u16 = 2;
/// Incompatible features: the journal is to be replayed; files are mapped by extents; there are 2^32 blocks or more.
const RECOVER: u32 = 0x4;
const EXTENTS: u32 = 0x40;
const BIT64: u32 = 0x80;
/// Those that are read here; guests' kernels have known all of them since 4.4: file types, RECOVER (refused by
/// itself), extents, 64bit, flex_bg, metadata_csum_seed.
const KNOWN: u32 = 0x2 | RECOVER | EXTENTS | BIT64 | 0x200 | 0x2000;
/// The others, by the names that tune2fs and mke2fs use.
const NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x100, "mmp"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
];
const REMAKE: &str =
    "make it with `mke2fs -t ext4 -b 4096`, or give the root file system as a tar or directory";

/// Refuses what a guest could not mount read-only as its root, or what is not read here.
///
/// # Errors
/// `image.ext4-unreadable` for no ext4 or one with other features, `image.ext4-dirty` for one that is mounted, was
/// not unmounted or has errors, `image.ext4-truncated` for one that its file does not hold.
pub(super) fn check(file: &fs::File) -> Result<()> {
    let shown = file.path().display();
    let say = || format!("cannot read {shown} as an ext4 file system");
    let meta = file.metadata().or_failed(CODE, say)?;
    if meta.file_type().is_block_device() {
        return Err(Error::failed(CODE, format!("{shown} is a device")).help("copy it to a file first"));
    }
    let mut block = [0; 1024];
    if meta.len() < AT + block.len() as u64 {
        return Err(Error::failed(CODE, say()).help("it is shorter than a file system's head"));
    }
    file.read_exact_at(&mut block, AT).or_failed(CODE, say)?;
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if u16_at(MAGIC) != 0xef53 {
        return Err(Error::failed(CODE, say()).help("it does not begin as one"));
    }

    let (state, incompat) = (u16_at(STATE), u32_at(INCOMPAT));
    let dirty = |what: &str, help: &str| {
        Err(Error::failed("image.ext4-dirty", format!("{shown} {what}")).help(help.to_owned()))
    };
    if incompat & RECOVER != 0 {
        return dirty(
            "is mounted, or was not unmounted cleanly",
            "unmount it; if it is not mounted, replay its journal with `e2fsck -p`",
        );
    }
    if state & ERRORS != 0 {
        return dirty("has errors on record", "check and mend it with `e2fsck -f`");
    }
    if state & CLEAN == 0 || u32_at(LAST_ORPHAN) != 0 {
        return dirty("was not unmounted cleanly", "check it with `e2fsck -p`");
    }

    let unknown = incompat & !KNOWN;
    if unknown != 0 {
        let names: Vec<String> = (0..32)
            .map(|bit| 1_u32 << bit)
            .filter(|bit| unknown & bit != 0)
            .map(|bit| match NAMES.iter().find(|(known, _)| *known == bit) {
                Some((_, name)) => (*name).to_owned(),
                None => format!("{bit:#x}"),
            })
            .collect();
        return Err(Error::failed(
            CODE,
            format!("{shown} has the feature {}, which is not read", names.join(" and ")),
        )
        .help(REMAKE));
    }
    if incompat & EXTENTS == 0 {
        return Err(Error::failed(CODE, format!("{shown} is ext2 or ext3, without extents")).help(REMAKE));
    }
    let block_size = 1024_u64.checked_shl(u32_at(LOG_BLOCK_SIZE)).filter(|size| *size <= 65536);
    if block_size != Some(4096) {
        let size = block_size.map_or_else(|| "an absurd size".to_owned(), |size| format!("{size} bytes"));
        // mke2fs takes blocks of 1 KiB for file systems below 512 MiB, unless told otherwise.
        return Err(
            Error::failed(CODE, format!("{shown} has blocks of {size}; 4096 bytes are read")).help(REMAKE)
        );
    }
    let high = if incompat & BIT64 != 0 { u64::from(u32_at(BLOCKS_HIGH)) << 32 } else { 0 };
    let needed = (u64::from(u32_at(BLOCKS_LOW)) | high).saturating_mul(4096);
    if needed > meta.len() {
        return Err(Error::failed(
            "image.ext4-truncated",
            format!("{shown} is cut short: its file system has {needed} bytes, the file {}", meta.len()),
        )
        .help("fetch or copy it again"));
    }
    Ok(())
}
