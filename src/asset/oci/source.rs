//! Files of a local image: of a directory, or of a tar without unpacking it.

use super::image::{invalid, is_of};
use crate::error::{Context, Error, Result};
use crate::image::archive::{Located, locate};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where an image's files are read from.
pub(super) struct Source {
    /// As the user gave it.
    pub path: PathBuf,
    /// None for a directory.
    members: Option<HashMap<String, Located>>,
}

/// One file, opened.
pub(super) struct Opened<'a> {
    pub size: u64,
    pub reader: Box<dyn Read + 'a>,
}

impl Source {
    /// Opens a directory or a tar. A compressed one is unpacked to a nameless file in `scratch_dir`.
    pub fn open(path: &Path, scratch_dir: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|e| {
            let error = Error::usage("oci.read", format!("cannot read the image {}", path.display()));
            error.help("name an OCI layout directory, an OCI archive or what `docker save` wrote").because(e)
        })?;
        let members = if meta.is_dir() { None } else { Some(locate(path, scratch_dir)?) };
        Ok(Source { path: path.to_owned(), members })
    }

    /// Whether it is an archive, whose names cannot lead out of it.
    pub fn is_archive(&self) -> bool {
        self.members.is_some()
    }

    /// What errors call the image.
    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// The error for a part that is not there.
    pub fn lacks(&self, what: &str) -> Error {
        invalid(&self.shown(), &format!("it lacks {what}"))
            .help("it was copied or saved in part: make or copy the image again, with all of its blobs")
    }

    /// Opens a file of the image, if it is there.
    pub fn file(&self, name: &str) -> Result<Option<Opened<'_>>> {
        let Some(members) = &self.members else {
            let path = self.path.join(name);
            let failed = || format!("cannot read {}", path.display());
            // O_NONBLOCK: a pipe in the place of a blob must not stop the command.
            let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e).or_failed("oci.read", failed),
            };
            let meta = file.metadata().or_failed("oci.read", failed)?;
            if !meta.is_file() {
                return Err(Error::failed("oci.read", format!("{}: it is no regular file", failed())));
            }
            return Ok(Some(Opened { size: meta.len(), reader: Box::new(file) }));
        };
        let Some(found) = members.get(name) else { return Ok(None) };
        let reader =
            found.open().or_failed("oci.read", || format!("cannot read {name} of {}", self.shown()))?;
        Ok(Some(Opened { size: found.size, reader: Box::new(reader) }))
    }

    /// A document of at most `max` bytes, if it is there.
    pub fn document(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(Opened { size, reader }) = self.file(name)? else { return Ok(None) };
        if size > max {
            return Err(invalid(&self.shown(), &format!("{name} has {size} bytes, and {max} are the most")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        let read = reader.take(max + 1).read_to_end(&mut bytes);
        read.or_failed("oci.read", || format!("cannot read {name} of {}", self.shown()))?;
        Ok(Some(bytes))
    }

    /// A document of a layout by its digest, checked.
    pub fn blob(&self, digest: &str, size: u64, max: u64) -> Result<Vec<u8>> {
        let missing = || self.lacks(&format!("the blob {digest}"));
        let bytes = self.document(&blob_path(digest), max)?.ok_or_else(missing)?;
        if bytes.len() as u64 != size || !is_of(digest, &bytes) {
            return Err(invalid(
                &self.shown(),
                &format!("the blob {digest} has other bytes than it must have"),
            )
            .help("make or copy the image again"));
        }
        Ok(bytes)
    }
}

/// Where a layout keeps a blob; `digest` has been checked to be plain hexadecimal.
pub(super) fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}
