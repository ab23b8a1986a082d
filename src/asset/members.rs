//! Walks the files inside Debian packages, with names as the guest would see them but without a leading '/'.

use crate::error::{Context, Error, Result};
use std::io::Read;
use std::path::Path;

/// A file or link inside a package.
pub(super) struct Member<'a> {
    /// `usr/lib/x` for `./usr/lib/x`.
    pub path: String,
    /// The link's target, for symbolic links.
    pub target: Option<String>,
    /// In bytes, as declared.
    pub size: u64,
    reader: &'a mut dyn Read,
}

/// No file that is taken out of a package comes near this.
const MAX_FILE: u64 = 1 << 30;

impl Member<'_> {
    /// The file's whole contents.
    pub(super) fn read(&mut self) -> std::io::Result<Vec<u8>> {
        if self.size > MAX_FILE {
            return Err(std::io::Error::other(format!("{} claims {} bytes", self.path, self.size)));
        }
        let mut bytes = Vec::with_capacity(self.size as usize);
        self.reader.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Calls `visit` for each regular file and symbolic link of a package. Non-UTF-8 names are passed over: nothing
/// that is looked for has one.
pub(super) fn for_each(
    deb: &Path,
    mut visit: impl FnMut(&mut Member<'_>) -> std::io::Result<()>,
) -> Result<()> {
    let failed = || format!("cannot read the package {}", deb.display());
    let mut archive = tar::Archive::new(crate::image::deb::data_tar(deb)?);
    for entry in archive.entries().or_failed("asset.deb", failed)? {
        let mut entry = entry.or_failed("asset.deb", failed)?;
        let kind = entry.header().entry_type();
        let target = if kind.is_symlink() {
            let link = entry.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
            let Ok(link) = String::from_utf8(link) else { continue };
            Some(link)
        } else if kind.is_file() {
            None
        } else {
            continue;
        };
        let Ok(path) = String::from_utf8(entry.path_bytes().into_owned()) else { continue };
        let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
        if path.split('/').any(|part| part == "..") {
            return Err(Error::failed(
                "asset.deb",
                format!("the package {} holds the path {path:?}", deb.display()),
            ));
        }
        let size = entry.size();
        visit(&mut Member { path, target, size, reader: &mut entry }).or_failed("asset.deb", failed)?;
    }
    Ok(())
}
