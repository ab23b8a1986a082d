//! Facts about whole images: built, checked with e2fsck and read back.

mod archives;
mod bases;
mod cases;
pub(crate) mod compare;
mod corpus;
mod foreign;
mod headers;
mod kernels;
mod layers;
mod members;
mod oci;
mod oracle;
mod ownership;
mod random;
mod scripts;
mod sparse;
mod ways;

use super::Layer;
use super::index::Index;
use super::tree::Meta;
use mkext4::reader::Fs;
use mkext4::spec::Inode;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A scratch directory with an empty base index in it.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { dir: tempfile::tempdir().unwrap() }
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
    pub fn scratch(&self) -> PathBuf {
        self.make_dir("scratch")
    }
    pub fn empty_index(&self) -> PathBuf {
        let path = self.path("index.json");
        let mut index = Index::default();
        index.insert("", super::index::Indexed::Dir(Meta::root(0o755)));
        index.save(&path).unwrap();
        path
    }
}

/// A layer that unpacks to what it should. One that is not compressed is its own proof: any digest will do.
pub(super) fn layer(path: PathBuf) -> Layer {
    use sha2::{Digest as _, Sha256};
    let bytes = match std::fs::metadata(&path).unwrap().len() {
        0..=0x0fff_ffff => std::fs::read(&path).unwrap(),
        _ => Vec::new(),
    };
    let mut tar = Vec::new();
    // Of a damaged layer something else is told.
    let _ = match bytes.get(..2) {
        Some(b"\x1f\x8b") => flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut tar),
        Some(b"\x28\xb5") => zstd::stream::read::Decoder::new(&bytes[..]).unwrap().read_to_end(&mut tar),
        _ => Ok(0),
    };
    let hex: String = Sha256::digest(&tar).iter().map(|byte| format!("{byte:02x}")).collect();
    Layer { path, blob: format!("sha256:{hex}"), diff_id: Some(format!("sha256:{hex}")) }
}

/// An image opened for reading, after e2fsck found nothing.
pub(super) struct Image {
    fs: Fs<std::fs::File>,
}

impl Image {
    pub fn open(path: &Path) -> Image {
        check(path);
        let fs = Fs::open(std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(fs.verify().unwrap(), []);
        Image { fs }
    }
    pub fn inode(&self, path: &str) -> Inode {
        self.fs.inode(self.number(path)).unwrap()
    }
    pub fn number(&self, path: &str) -> u32 {
        self.fs.resolve(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
    pub fn has(&self, path: &str) -> bool {
        self.fs.resolve(path).is_ok()
    }
    pub fn read(&self, path: &str) -> Vec<u8> {
        bytes_of(&self.fs, self.number(path))
    }
    pub fn target(&self, path: &str) -> String {
        String::from_utf8(self.fs.symlink_target(self.number(path)).unwrap()).unwrap()
    }
    /// type and mode, uid, gid
    pub fn owner(&self, path: &str) -> (u16, u32, u32) {
        let inode = self.inode(path);
        (inode.mode, inode.uid, inode.gid)
    }
    pub fn xattrs(&self, path: &str) -> Vec<(String, Vec<u8>)> {
        let list = self.fs.xattrs(self.number(path)).unwrap();
        list.into_iter().map(|x| (String::from_utf8(x.full_name().unwrap()).unwrap(), x.value)).collect()
    }
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = self.fs.read_dir(self.number(path)).unwrap();
        let mut names: Vec<_> = entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect();
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }
}

/// All bytes of a file. `read_file` takes one that is larger than its file system for damaged, and holes make that easy.
pub(super) fn bytes_of(fs: &Fs<std::fs::File>, number: u32) -> Vec<u8> {
    let inode = fs.inode(number).unwrap();
    let extents = fs.extents(number, &inode).unwrap();
    let mut bytes = vec![0; inode.size as usize];
    assert_eq!(fs.read_file_at(&inode, &extents, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

/// `e2fsck -fn` must find nothing to mend.
pub(super) fn check(path: &Path) {
    let Some(mut e2fsck) = tool("e2fsck") else { return };
    let out = e2fsck.arg("-fn").arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

pub(super) use crate::testing::programs::e2fsprogs as tool;

/// Makes tars byte by byte: what the `tar` crate would refuse to write is the point.
#[derive(Default)]
pub(crate) struct Tar(pub Vec<u8>);

impl Tar {
    /// A member with every field given; `size` is what the header declares.
    #[expect(clippy::too_many_arguments, reason = "a header has that many fields")]
    pub fn raw(
        mut self,
        name: &[u8],
        kind: u8,
        mode: u32,
        owner: (u64, u64),
        link: &[u8],
        size: u64,
        data: &[u8],
    ) -> Self {
        let mut header = [0u8; 512];
        header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        header[108..116].copy_from_slice(format!("{:07o}\0", owner.0).as_bytes());
        header[116..124].copy_from_slice(format!("{:07o}\0", owner.1).as_bytes());
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        if matches!(kind, b'3' | b'4') {
            // Devices are given as "MAJOR:MINOR" in `data`.
            let text = std::str::from_utf8(data).unwrap();
            let (major, minor) = text.split_once(':').unwrap();
            header[329..337].copy_from_slice(format!("{:07o}\0", major.parse::<u32>().unwrap()).as_bytes());
            header[337..345].copy_from_slice(format!("{:07o}\0", minor.parse::<u32>().unwrap()).as_bytes());
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        if !matches!(kind, b'3' | b'4') {
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(512), 0);
        }
        self
    }
    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(name.as_bytes(), b'0', 0o644, (0, 0), b"", data.len() as u64, data)
    }
    pub fn dir(self, name: &str) -> Self {
        self.raw(name.as_bytes(), b'5', 0o755, (0, 0), b"", 0, b"")
    }
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'2', 0o777, (0, 0), target.as_bytes(), 0, b"")
    }
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'1', 0o644, (0, 0), target.as_bytes(), 0, b"")
    }
    /// A PAX header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b"pax", b'x', 0o644, (0, 0), b"", data.len() as u64, &data)
    }
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
