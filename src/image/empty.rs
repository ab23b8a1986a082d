//! Creates empty file systems: a boot's scratch layer, a volume.

use super::Role;
use super::sink::CoalescingSink;
use super::writer::{create_file, options, write_error};
use crate::error::{Error, Result};
use fs_err as fs;
use mkext4::FsBuilder;
use std::path::Path;

/// The smallest image that holds a journal: 2,048 blocks, and a journal of a quarter at most.
const SMALLEST: u64 = 17 << 20;

/// Creates an empty, sparse, journaled ext4 image of `size` bytes (rounded down to whole blocks), with an inode for
/// every 16 KiB.
///
/// # Errors
/// `image.size` below 17 MiB, `image.write` if `path` exists or cannot be written, `image.disk-full`.
pub fn create_empty(path: &Path, size: u64, role: Role) -> Result<()> {
    if size < SMALLEST {
        return Err(Error::usage("image.size", format!("{size} bytes are too few for a file system"))
            .help("give it at least 17MiB"));
    }
    let size = size - size % 4096;
    let bad = |e: mkext4::Error| {
        Error::usage("image.size", format!("cannot lay out a file system of {size} bytes")).because(e)
    };
    let layout = FsBuilder::new(options(role, size)).map_err(bad)?.seal().map_err(bad)?;
    let file = create_file(path, layout.image_len())?;
    let mut sink = CoalescingSink::new(&file);
    let wrong = |e: mkext4::Error| match e {
        mkext4::Error::Io(e) => write_error(path, e),
        e => Error::bug("an empty image could not be written").because(e),
    };
    let done = (|| {
        layout.writer(&mut sink).map_err(wrong)?.finish().map_err(wrong)?;
        sink.finish().map_err(|e| write_error(path, e))
    })();
    if done.is_err() {
        let _ = fs::remove_file(path);
    }
    done
}
