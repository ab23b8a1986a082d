//! Writes a tree as an ext4 image. `mkext4` stands behind a small trait: nothing else here knows it, except for
//! empty images and the reading of indexes.

use super::Role;
use super::content::Content;
use super::holes::{self, DataReader, Run};
use super::room;
use super::sink::CoalescingSink;
use super::tree::{Kind, Meta, NodeId, Tree};
use crate::error::{Context, Error, Result};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Options, ROOT, SparseSeg, SpecialKind};
use std::collections::HashMap;
use std::path::Path;

const BLOCK: u64 = 4096;
/// Blocks in a group: as many as one bitmap block has bits.
const GROUP: u64 = 32768;
/// jbd2 refuses to load a shorter journal (`JBD2_MIN_JOURNAL_BLOCKS`), read-only mounts included.
const JOURNAL: u64 = 1024;
/// A last group shorter than its own metadata could not be laid out.
const SHORTEST_GROUP: u64 = 4096;
/// Inodes 1 to 10 are reserved, 11 is lost+found.
const RESERVED_INODES: u64 = 11;

/// Turns a tree into an image file.
pub(crate) trait ImageWriter {
    /// Creates `out`, which must not exist; nothing of it is left after an error.
    fn write(&self, tree: &Tree, role: Role, out: &Path) -> Result<()>;
}

/// The writer of all images.
pub(crate) struct Ext4;

impl Role {
    /// Constant, so that equal trees are equal images on every machine. Images of one role never meet in a guest.
    fn uuid(self) -> [u8; 16] {
        let last = match self {
            Role::Base => 1,
            Role::Workload => 2,
            Role::Scratch => 3,
            Role::Volume => 4,
        };
        // A version 8 (free form) UUID: "firegopher" and the role.
        let mut uuid = *b"firego\x80p\x80her\0\0\0\0";
        uuid[15] = last;
        uuid
    }

    fn label(self) -> &'static str {
        match self {
            Role::Base => "firegopher-base",
            Role::Workload => "firegopher-work",
            Role::Scratch => "firegopher-tmp",
            Role::Volume => "firegopher-vol",
        }
    }
}

/// The options of an image of `size` bytes, with nothing reserved for root.
pub(crate) fn options(role: Role, size: u64) -> Options {
    let mut options = Options::new(size, role.uuid(), 0);
    options.label = Some(role.label().to_owned());
    options.reserved_percent = 0;
    options
}

/// Creates `out` for an image of `length` bytes, all holes.
pub(crate) fn create_file(out: &Path, length: u64) -> Result<fs::File> {
    let say = || format!("cannot create the image {}", out.display());
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(out);
    let file = file.or_failed("image.write", say)?;
    match file.set_len(length) {
        Ok(()) => Ok(file),
        Err(e) => {
            let _ = fs::remove_file(out);
            Err(write_error(out, e))
        }
    }
}

/// An error while writing an image, with a full disk told apart.
pub(crate) fn write_error(out: &Path, error: std::io::Error) -> Error {
    if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        return Error::failed("image.disk-full", format!("no space left for {}", out.display()))
            .help("free some space (`firegopher gc` reclaims unused artifacts) and try again")
            .because(error);
    }
    Error::failed("image.write", format!("cannot write the image {}", out.display())).because(error)
}

impl ImageWriter for Ext4 {
    fn write(&self, tree: &Tree, role: Role, out: &Path) -> Result<()> {
        let mut census = Census::default();
        census.take(tree);
        let mut spare = 0;
        // The estimate errs on the generous side; should it ever not, a larger image is as deterministic.
        let (layout, files) = loop {
            match declare(tree, role, &census, spare)? {
                Ok(done) => break done,
                Err(_) if spare < 8 => spare += 1,
                Err(e) => return Err(Error::bug("an image's size was underestimated").because(e)),
            }
        };
        let dir = out.parent().unwrap_or(Path::new("/"));
        room::check(dir, census.bytes(), &format!("the image {}", out.display()))?;
        let file = create_file(out, layout.image_len())?;
        let done = fill(&layout, &files, &file, out);
        if done.is_err() {
            let _ = fs::remove_file(out);
        }
        done
    }
}

/// A file whose bytes are still to be written.
struct Pending<'a> {
    handle: InodeHandle,
    size: u64,
    /// How it is stored; nothing for a file without holes.
    runs: Option<&'a [Run]>,
    content: &'a Content,
    path: String,
}

type Sealed<'a> = (Layout, Vec<Pending<'a>>);

/// Declares every inode in sorted order. The inner error is mkext4's refusal of the size.
fn declare<'a>(
    tree: &'a Tree,
    role: Role,
    census: &'a Census,
    spare: u64,
) -> Result<Result<Sealed<'a>, mkext4::Error>> {
    let mut options = options(role, census.blocks(spare) * BLOCK);
    options.inodes = InodeCount::Exact(u32::try_from(census.inodes()).map_err(|_| {
        Error::failed("image.too-many-files", "more files than an ext4 file system can hold")
    })?);
    options.journal_blocks = Some(JOURNAL as u32);
    let refused = |path: &str, e: mkext4::Error| {
        Error::failed("image.not-representable", format!("ext4 cannot hold /{path}")).because(e)
    };
    let mut builder = FsBuilder::new(options).map_err(|e| refused("", e))?;
    let root = &tree.node(Tree::ROOT).meta;
    builder.set_meta(ROOT, meta(root)).map_err(|e| refused("", e))?;
    set_xattrs(&mut builder, ROOT, root).map_err(|e| refused("", e))?;
    let mut handles: HashMap<NodeId, InodeHandle> = HashMap::with_capacity(tree.slots());
    handles.insert(Tree::ROOT, ROOT);
    let mut files = Vec::new();
    tree.walk(|dir, name, id, path| {
        let parent = handles[&dir];
        let node = tree.node(id);
        let mut add = || -> mkext4::Result<()> {
            if let Some(first) = handles.get(&id) {
                return builder.hardlink(parent, name, *first);
            }
            let meta = meta(&node.meta);
            let handle = match &node.kind {
                Kind::Dir(_) => builder.mkdir(parent, name, meta)?,
                Kind::File { size, .. } => match census.sparse.get(&id) {
                    Some(runs) => builder.file_sparse(parent, name, meta, &segments(runs))?,
                    None => builder.file(parent, name, meta, *size)?,
                },
                Kind::Symlink(target) => builder.symlink(parent, name, target, meta)?,
                Kind::Char { major, minor } => {
                    builder.mknod(parent, name, meta, SpecialKind::Char { major: *major, minor: *minor })?
                }
                Kind::Block { major, minor } => {
                    builder.mknod(parent, name, meta, SpecialKind::Block { major: *major, minor: *minor })?
                }
                Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo)?,
            };
            if let Kind::File { size, content } = &node.kind
                && *size > 0
            {
                let runs = census.sparse.get(&id).map(Vec::as_slice);
                files.push(Pending { handle, size: *size, runs, content, path: path.to_owned() });
            }
            set_xattrs(&mut builder, handle, &node.meta)?;
            handles.insert(id, handle);
            Ok(())
        };
        add().map_err(|e| refused(path, e))
    })?;
    Ok(builder.seal().map(|layout| (layout, files)))
}

fn segments(runs: &[Run]) -> Vec<SparseSeg> {
    let segment =
        |run: &Run| if run.hole { SparseSeg::Hole(run.length) } else { SparseSeg::Data(run.length) };
    runs.iter().map(segment).collect()
}

fn meta(meta: &Meta) -> mkext4::Meta {
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, meta.mtime)
}

fn set_xattrs(builder: &mut FsBuilder, handle: InodeHandle, meta: &Meta) -> mkext4::Result<()> {
    meta.xattrs.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

fn fill(layout: &Layout, files: &[Pending<'_>], file: &fs::File, out: &Path) -> Result<()> {
    let wrong = |e: mkext4::Error| match e {
        mkext4::Error::Io(e) => write_error(out, e),
        e => Error::bug(format!("cannot write the image {}", out.display())).because(e),
    };
    std::thread::scope(|scope| {
        let mut sink = CoalescingSink::beside(file, scope);
        let mut writer = layout.writer(&mut sink).map_err(wrong)?;
        for pending in files {
            let mismatch = |cause| pending.content.mismatch(&pending.path, cause);
            let reader = pending.content.open(pending.size).map_err(|e| mismatch(Some(e)))?;
            let whole = [Run { length: pending.size, hole: false }];
            let runs = pending.runs.unwrap_or(&whole);
            let mut reader = DataReader::new(reader, runs);
            // Nothing is to be filled of a file that is one hole, but it is read to the end like the others.
            let filled = match runs.iter().all(|run| run.hole) {
                true => Ok(()),
                false => writer.fill(pending.handle, &mut reader),
            };
            match filled {
                Ok(()) => reader.finish().map_err(mismatch)?,
                // Either side may have failed: the writer passes on only the text of a reader's error.
                Err(e) => return Err(reader.fault().map_or_else(|| wrong(e), mismatch)),
            }
        }
        writer.finish().map_err(wrong)?;
        sink.finish().map_err(|e| write_error(out, e))
    })
}

/// What a tree will need, counted before the layout.
#[derive(Default)]
struct Census {
    inodes: u64,
    blocks: u64,
    /// How the files that have holes are stored.
    sparse: HashMap<NodeId, Vec<Run>>,
}

impl Census {
    fn take(&mut self, tree: &Tree) {
        let mut seen = vec![false; tree.slots()];
        self.count(tree, Tree::ROOT);
        let done: Result<(), std::convert::Infallible> = tree.walk(|_, _, id, _| {
            if !std::mem::replace(&mut seen[id.0 as usize], true) {
                self.count(tree, id);
            }
            Ok(())
        });
        match done {
            Ok(()) => {}
        }
    }

    fn count(&mut self, tree: &Tree, id: NodeId) {
        let node = tree.node(id);
        self.inodes += 1;
        if !node.meta.xattrs.is_empty() {
            self.blocks += 1;
        }
        self.blocks += match &node.kind {
            // A leaf block holds at least its bytes less one longest record; index blocks are few.
            Kind::Dir(children) => {
                let bytes: u64 =
                    children.keys().map(|name| (name.len() as u64 + 8).next_multiple_of(4)).sum();
                let leaves = (bytes + 24).div_ceil(BLOCK - 12 - 264);
                if leaves <= 1 { 2 } else { leaves + 2 + leaves / 400 }
            }
            // One extent covers 128 MiB at most; 340 extents fit a tree block.
            Kind::File { size, content } => match holes::of(content, *size) {
                Some(runs) => {
                    let data = || runs.iter().filter(|run| !run.hole).map(|run| run.length);
                    let (bytes, extents) = (data().sum::<u64>(), data().count() as u64);
                    self.sparse.insert(id, runs);
                    bytes.div_ceil(BLOCK) + extents.div_ceil(64) + bytes.div_ceil(GROUP * BLOCK) / 2 + 2
                }
                None => size.div_ceil(BLOCK) + size.div_ceil(GROUP * BLOCK) / 2,
            },
            Kind::Symlink(_) => 1,
            _ => 0,
        };
    }

    fn inodes(&self) -> u64 {
        self.inodes + RESERVED_INODES
    }

    /// What the image occupies at most, holes left out: contents and inodes of 256 bytes.
    fn bytes(&self) -> u64 {
        (self.blocks + self.inodes().div_ceil(16)) * BLOCK
    }

    /// The blocks of the whole image; `spare` enlarges it step by step.
    fn blocks(&self, spare: u64) -> u64 {
        let inodes = self.inodes();
        let content = self.blocks + JOURNAL + 64 + spare * (1024 + self.blocks / 8);
        // At least as many groups as the inodes need: a group's inode bitmap is one block too.
        let mut groups = inodes.div_ceil(GROUP).max(1);
        loop {
            let table = inodes.div_ceil(groups).div_ceil(16);
            let descriptors = 1 + (groups * 32).div_ceil(BLOCK);
            let total = content + groups * (2 + table + descriptors) + 1;
            // The journal may be a quarter of the file system at most.
            let mut total = total.max(4 * JOURNAL);
            if inodes > GROUP {
                total = total.max(inodes.div_ceil(GROUP) * GROUP);
            }
            let rest = total % GROUP;
            if rest != 0 && rest < SHORTEST_GROUP {
                total += SHORTEST_GROUP - rest;
            }
            let needed = total.div_ceil(GROUP);
            if needed <= groups {
                return total;
            }
            groups = needed;
        }
    }
}
