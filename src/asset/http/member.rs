//! Takes one file out of an archive.

use crate::digest::ObjectDigest;
use crate::error::Result;
use crate::store::Store;
use std::path::Path;

/// Publishes the regular file `member` of the tar (plain, gzip, xz, zstd) or zip at `archive`; links are followed
/// within the archive, and the owner's executable bit is kept.
///
/// # Errors
/// `archive.*`: for what cannot be read, is hostile or too big, and for a member that is not there or no file.
pub fn member(store: &Store, archive: &Path, member: &str) -> Result<ObjectDigest> {
    let scratch = store.temp_dir()?;
    let out = scratch.path().join("member");
    let executable = crate::image::extract_member(archive, member, &out, scratch.path())?;
    store.publish_file(&out, executable)
}
