//! Facts about ext4 images that others made: which are taken, and what is said of the rest.

use super::*;
use crate::image::{BaseSource, build_base};
use std::process::Output;

/// An image by mke2fs with these arguments; `None`, and why, where there is no mke2fs.
fn made(bench: &Bench, args: &[&str]) -> Option<PathBuf> {
    let mut mke2fs = tool("mke2fs")?;
    let image = bench.path("made.ext4");
    let _ = std::fs::remove_file(&image);
    let out = mke2fs.args(["-q", "-t", "ext4"]).args(args).arg(&image).arg("32M").output();
    let out = out.unwrap();
    if !out.status.success() {
        crate::testing::skip(format!("this mke2fs does not know {args:?}"));
        return None;
    }
    Some(image)
}

fn debugfs(image: &Path, request: &str) -> Output {
    let mut tool = tool("debugfs").expect("mke2fs and debugfs are one package");
    tool.args(["-w", "-R", request]).arg(image).output().unwrap()
}

#[track_caller]
fn refused(bench: &Bench, image: &Path, code: &str, said: &str) {
    let out = bench.make_dir("out");
    let error = build_base(BaseSource::Ext4(image), &out, &bench.scratch()).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(said), "{error}");
    assert!(error.help_text().is_some(), "{error}");
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

#[test]
fn an_image_of_todays_defaults_is_taken() {
    let bench = Bench::new();
    let Some(image) = made(&bench, &["-b", "4096"]) else { return };
    build_base(BaseSource::Ext4(&image), &bench.make_dir("out"), &bench.scratch()).unwrap();
}

#[test]
fn an_image_that_is_not_clean_is_refused() {
    let bench = Bench::new();
    for (request, said) in [
        ("feature needs_recovery", "mounted"),
        ("set_super_value state 0", "not unmounted cleanly"),
        ("set_super_value state 3", "errors"),
        ("set_super_value last_orphan 12", "not unmounted cleanly"),
    ] {
        let Some(image) = made(&bench, &["-b", "4096"]) else { return };
        debugfs(&image, request);
        refused(&bench, &image, "image.ext4-dirty", said);
    }
}

#[test]
fn features_that_are_not_read_are_named() {
    let bench = Bench::new();
    for (args, said) in [
        (["-b", "1024"].as_slice(), "blocks of 1024 bytes"),
        (&["-b", "4096", "-O", "inline_data"], "inline_data"),
        (&["-b", "4096", "-O", "meta_bg,^resize_inode,ea_inode"], "meta_bg and ea_inode"),
        (&["-b", "4096", "-O", "^extents,^64bit"], "ext2 or ext3"),
    ] {
        if let Some(image) = made(&bench, args) {
            refused(&bench, &image, "image.ext4-unreadable", said);
        }
    }
}

#[test]
fn an_image_that_is_cut_short_is_refused() {
    let bench = Bench::new();
    let Some(image) = made(&bench, &["-b", "4096"]) else { return };
    std::fs::File::options().write(true).open(&image).unwrap().set_len((32 << 20) - 1).unwrap();
    refused(&bench, &image, "image.ext4-truncated", "33554432 bytes, the file 33554431");
}

#[test]
fn what_is_no_ext4_is_refused() {
    let bench = Bench::new();
    for bytes in [vec![], vec![0; 1 << 20]] {
        let image = bench.write("x.ext4", bytes);
        refused(&bench, &image, "image.ext4-unreadable", "cannot read");
    }
}

#[test]
fn a_mounted_image_is_refused_and_taken_once_it_is_unmounted() {
    let bench = Bench::new();
    let Some(image) = made(&bench, &["-b", "4096"]) else { return };
    let at = bench.make_dir("at");
    let mount = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output();
    if !mount.as_ref().is_ok_and(|out| out.status.success()) {
        crate::testing::skip(format!("no loop mounts: {mount:?}"));
        return;
    }
    std::fs::write(at.join("file"), "x").unwrap();
    nix::unistd::syncfs(std::fs::File::open(&at).unwrap()).unwrap();
    let error = build_base(BaseSource::Ext4(&image), &bench.make_dir("out"), &bench.scratch());
    // A child that another test has just forked may hold it for a moment.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !Command::new("umount").arg(&at).status().unwrap().success() {
        assert!(std::time::Instant::now() < end, "{} stays mounted", at.display());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(error.unwrap_err().code(), "image.ext4-dirty");
    build_base(BaseSource::Ext4(&image), &bench.path("out"), &bench.scratch()).unwrap();
}
