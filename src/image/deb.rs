//! Reads Debian packages: an `ar` archive of a control and a data tar.

use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::Path;

const MAGIC: &[u8; 8] = b"!<arch>\n";
/// Name 16, mtime 12, uid 6, gid 6, mode 8, size 10, magic 2 (ar(5)).
const HEADER: usize = 60;

/// The uncompressed data tar of the package at `path`.
///
/// # Errors
/// `deb.damaged` for anything that is no Debian package, or one compressed in an unknown way.
pub fn data_tar(path: &Path) -> Result<Box<dyn Read + Send>> {
    member(path, "data.tar")
}

/// The uncompressed control tar of the package at `path`.
///
/// # Errors
/// As [`data_tar`].
pub fn control_tar(path: &Path) -> Result<Box<dyn Read + Send>> {
    member(path, "control.tar")
}

fn member(path: &Path, wanted: &str) -> Result<Box<dyn Read + Send>> {
    let say = || format!("cannot read the package {}", path.display());
    let damaged = |why: String| Error::failed("deb.damaged", format!("{}: {why}", say()));
    let mut file = fs::File::open(path).or_failed("deb.damaged", say)?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic).or_failed("deb.damaged", say)?;
    if &magic != MAGIC {
        return Err(damaged("it is no ar archive".into()));
    }
    loop {
        let mut header = [0; HEADER];
        match file.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(format!("it has no {wanted}")));
            }
            other => other.or_failed("deb.damaged", say)?,
        }
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
        let name = text(0..16);
        let size: u64 = text(48..58).parse().map_err(|_| damaged("a member's size is no number".into()))?;
        let name = name.trim_end_matches('/');
        if let Some(suffix) = name.strip_prefix(wanted) {
            let data = BufReader::with_capacity(1 << 18, file.take(size));
            return Ok(match suffix {
                "" => Box::new(data),
                ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(data)),
                ".xz" => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(data)),
                ".zst" => {
                    Box::new(zstd::stream::read::Decoder::with_buffer(data).or_failed("deb.damaged", say)?)
                }
                other => return Err(damaged(format!("{wanted}{other} is compressed in an unknown way"))),
            });
        }
        // Members begin at even offsets.
        let skip = i64::try_from(size + size % 2).map_err(|_| damaged("a member's size is absurd".into()))?;
        file.seek(SeekFrom::Current(skip)).or_failed("deb.damaged", say)?;
    }
}
