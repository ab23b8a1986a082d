//! Whole trees as text, so that an image can be compared with what another tool unpacked.

use mkext4::reader::Fs;
use mkext4::spec::inode::{FileType, Inode};
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// One line for each path below the root: what it is, whose, its times, attributes, contents and other names.
pub(crate) type Lines = BTreeMap<String, String>;

/// What an ext4 image holds, after `e2fsck -fn` found nothing.
pub(crate) fn of_image(path: &Path) -> Lines {
    super::check(path);
    let fs = Fs::open(std::fs::File::open(path).unwrap()).unwrap();
    let mut lines = Lines::new();
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut pending = vec![(2, String::new())];
    while let Some((number, path)) = pending.pop() {
        let inode = fs.inode(number).unwrap();
        let first = names.entry(number).or_insert_with(|| path.clone());
        if path < *first {
            *first = path.clone();
        }
        lines.insert(path.clone(), format!("{number}"));
        if inode.file_type() == FileType::Dir {
            for entry in fs.read_dir(number).unwrap() {
                let name = String::from_utf8(entry.name).unwrap();
                let own = matches!(name.as_str(), "." | "..") || (path.is_empty() && name == "lost+found");
                if !own {
                    pending.push((entry.inode, join(&path, &name)));
                }
            }
        }
    }
    for line in lines.values_mut() {
        let number: u32 = line.parse().unwrap();
        let inode = fs.inode(number).unwrap();
        let xattrs = fs.xattrs(number).unwrap();
        let xattrs = xattrs
            .into_iter()
            .map(|x| (String::from_utf8(x.full_name().unwrap()).unwrap(), x.value))
            .collect();
        let what = match inode.file_type() {
            FileType::Dir => "dir".to_owned(),
            FileType::Symlink => {
                format!("-> {}", String::from_utf8_lossy(&fs.symlink_target(number).unwrap()))
            }
            FileType::Regular => file(&super::bytes_of(&fs, number)),
            _ => {
                format!("special {:?}", inode.dev_numbers().filter(|_| is_device(&inode)).unwrap_or_default())
            }
        };
        let time = Inode::timestamp(inode.mtime, inode.mtime_extra);
        let owner = (inode.mode.into(), inode.uid, inode.gid);
        let links = if inode.file_type() == FileType::Dir { 1 } else { inode.links_count.into() };
        *line = render(owner, time, links, &names[&number], xattrs, &what);
    }
    lines
}

/// What a directory of the host's holds. Wants root, to read all of it.
pub(crate) fn of_dir(root: &Path) -> Lines {
    let mut all = Vec::new();
    let mut names: HashMap<u64, String> = HashMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let meta = std::fs::symlink_metadata(entry.path()).unwrap();
        let first = names.entry(meta.ino()).or_insert_with(|| path.clone());
        if path < *first {
            *first = path.clone();
        }
        all.push((path, entry.path().to_owned(), meta));
    }
    let line = |(path, host, meta): (String, std::path::PathBuf, std::fs::Metadata)| {
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&host).unwrap().display())
        } else if kind.is_file() {
            file(&std::fs::read(&host).unwrap())
        } else if kind.is_char_device() || kind.is_block_device() {
            let device = meta.rdev();
            format!(
                "special {:?}",
                (nix::sys::stat::major(device) as u32, nix::sys::stat::minor(device) as u32)
            )
        } else {
            format!("special {:?}", (0, 0))
        };
        let links = if kind.is_dir() { 1 } else { meta.nlink() };
        let owner = (meta.mode(), meta.uid(), meta.gid());
        let time = (meta.mtime(), meta.mtime_nsec() as u32);
        (path, render(owner, time, links, &names[&meta.ino()], xattrs(&host), &what))
    };
    all.into_iter().map(line).collect()
}

/// The differences, for people.
pub(crate) fn differences(ours: &Lines, theirs: &Lines) -> Vec<String> {
    let mut found = Vec::new();
    for path in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b {
            found.push(format!(
                "/{path}\n  ours:   {}\n  theirs: {}",
                a.map_or("-", |a| a),
                b.map_or("-", |b| b)
            ));
        }
    }
    found
}

fn is_device(inode: &Inode) -> bool {
    matches!(u32::from(inode.mode) & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn file(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), &blake3::hash(bytes).to_hex()[..16])
}

fn render(
    (mode, uid, gid): (u32, u32, u32),
    (seconds, nanos): (i64, u32),
    links: u64,
    first: &str,
    mut xattrs: Vec<(String, Vec<u8>)>,
    what: &str,
) -> String {
    xattrs.sort();
    format!("{mode:o} {uid}:{gid} {seconds}.{nanos:09} {links} names, first /{first} {xattrs:?} {what}")
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: both pointers are valid for the lengths given, and the path ends with a NUL.
    let got = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    assert!(got >= 0, "{path:?}: {}", std::io::Error::last_os_error());
    names.truncate(got as usize);
    let each = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    each.map(|name| {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0u8; 64 << 10];
        // SAFETY: as above.
        let got = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        assert!(got >= 0, "{path:?}: {}", std::io::Error::last_os_error());
        value.truncate(got as usize);
        (String::from_utf8(name.to_vec()).unwrap(), value)
    })
    .collect()
}

/// Sets an attribute, for tests that run as root.
pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: the pointers are valid for the lengths given, and both strings end with a NUL.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
