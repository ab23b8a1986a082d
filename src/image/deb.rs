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

/// The clauses of a field like `Depends`, each as the names of its alternatives, without versions and architectures
/// (deb-control(5)).
pub fn clauses(control: &str, field: &str) -> Vec<Vec<String>> {
    let mut text = String::new();
    let mut within = false;
    for line in control.lines() {
        match line.strip_prefix([' ', '\t']) {
            Some(more) if within => text.push_str(more),
            Some(_) => {}
            None => {
                within = line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(field));
                if within {
                    text.push_str(&line[field.len() + 1..]);
                }
            }
        }
    }
    let name =
        |alternative: &str| alternative.trim().split([' ', '(', ':']).next().unwrap_or_default().to_owned();
    let all = text.split(',').map(|clause| clause.split('|').map(name).filter(|n| !n.is_empty()).collect());
    all.filter(|names: &Vec<String>| !names.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_needs_is_read_from_its_control_file() {
        let control = "Package: a\nDepends: libc6 (>= 2.36), perl:any | perl-base (= 5),\n mawk|awk\n\
                       Description: x\n Depends: nothing\nProvides: b (= 1), c\n";
        let names = |clauses: Vec<Vec<String>>| clauses.iter().map(|c| c.join("|")).collect::<Vec<_>>();
        assert_eq!(names(clauses(control, "Depends")), ["libc6", "perl|perl-base", "mawk|awk"]);
        assert_eq!(names(clauses(control, "Provides")), ["b", "c"]);
        assert_eq!(names(clauses(control, "Pre-Depends")), [""; 0]);
    }
}
