//! Facts about what survives of a package that passes through dpkg, with its scripts.

use super::oracle::{Facts, assert_same, facts, lacking, unpack};
use super::ownership::{DIRECTORY, TYPE, mounted};
use super::*;
use crate::asset::scripts_tests::Workshop;
use crate::image::{BASE_IMAGE, BaseSource, build_base};

/// `cap_net_raw=ep` as the kernel stores it (linux/capability.h, revision 2).
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// What a package can hold, which is less than the corpus: dpkg takes neither PAX headers, with their attributes and
/// large ids, nor line breaks in names; and scripts run where there are 65536 ids and nobody makes devices.
fn data() -> Vec<u8> {
    let mut tar = Tar::default().dir("./").dir("./opt/").dir("./opt/corpus/");
    for id in [1, 999, 65_534, 65_535] {
        let (file, dir, link) = (
            format!("./opt/corpus/file-{id}"),
            format!("./opt/corpus/dir-{id}/"),
            format!("./opt/corpus/link-{id}"),
        );
        tar = tar.raw(file.as_bytes(), b'0', 0o640, (id, id / 2), b"", 1, b"o");
        tar = tar.raw(dir.as_bytes(), b'5', 0o750, (id / 3, id), b"", 0, b"");
        tar = tar.raw(link.as_bytes(), b'2', 0o777, (id, id), b"nowhere", 0, b"");
    }
    for mode in [0, 0o111, 0o1777, 0o2755, 0o4755, 0o7777] {
        let (file, dir) = (format!("./opt/corpus/file-{mode:04o}"), format!("./opt/corpus/dir-{mode:04o}/"));
        tar = tar.raw(file.as_bytes(), b'0', mode, (12, 34), b"", 1, b"m");
        tar = tar.raw(dir.as_bytes(), b'5', mode, (12, 34), b"", 0, b"");
        tar = tar.raw(format!("{dir}inside").as_bytes(), b'0', 0o600, (12, 34), b"", 1, b"i");
    }
    tar = tar.raw(b"./opt/corpus/m", b'0', 0o4755, (5, 6), b"", 6, b"shared");
    for name in ["./opt/corpus/a", "./opt/corpus/z", "./opt/corpus/dir-1/other"] {
        tar = tar.raw(name.as_bytes(), b'1', 0o4755, (5, 6), b"./opt/corpus/m", 0, b"");
    }
    tar = tar.raw(b"./opt/corpus/capable", b'0', 0o755, (0, 0), b"", 1, b"x");
    tar = tar.raw(b"./opt/corpus/pipe", b'6', 0o622, (0, 5), b"", 0, b"");
    tar.end()
}

/// Directories have the time at which dpkg put the last file into them, at most that of the newest package.
fn without_times_of_directories(mut facts: Facts) -> Facts {
    facts.values_mut().filter(|fact| fact.mode & TYPE == DIRECTORY).for_each(|fact| fact.time = (0, 0));
    facts
}

#[test]
fn a_package_installed_with_its_scripts_is_what_tar_unpacks_and_what_they_did() {
    if let Some(why) = lacking() {
        return crate::testing::skip(why);
    }
    let Some(workshop) = Workshop::new() else { return };
    let Some(mut debs) = Workshop::dpkgs_own(&["libcap2-bin"]) else { return };
    let bench = Bench::new();
    unpack(&bench.write("corpus.tar", data()), &bench.path("unpacked"));
    let mut wanted = facts(&bench.path("unpacked/opt/corpus"));
    assert!(wanted.len() > 30, "{}", wanted.len());
    let script = "#!/bin/sh\nset -e\nsetcap cap_net_raw=ep /opt/corpus/capable\n\
                  chown 77:88 /opt/corpus/file-1\nchmod 2711 /opt/corpus/file-1\n";
    let capable = wanted.get_mut("capable").unwrap();
    capable.xattrs.insert("security.capability".to_owned(), CAPABILITY.to_vec());
    let changed = wanted.get_mut("file-1").unwrap();
    (changed.uid, changed.gid, changed.mode) = (77, 88, 0o102_711);

    debs.push(workshop.package("fg-corpus", "Depends: libcap2-bin\n", script, data()));
    let (_temp, tar) =
        workshop.install(&workshop.home(), &debs).unwrap_or_else(|e| panic!("{e}: {:?}", e.help_text()));
    let out = bench.make_dir("out");
    build_base(BaseSource::Tar(&tar), &out, &bench.scratch()).unwrap();
    let found = mounted(&bench, &out.join(BASE_IMAGE));
    let found = facts(&found.path().join("opt/corpus"));
    assert_same(&without_times_of_directories(found), &without_times_of_directories(wanted));
}

#[test]
fn a_package_that_brings_a_device_or_an_id_beyond_65535_is_refused_by_name() {
    let Some(workshop) = Workshop::new() else { return };
    let Some(debs) = Workshop::dpkgs_own(&[]) else { return };
    let disk = Tar::default().dir("./").raw(b"./disk", b'4', 0o660, (0, 6), b"", 0, b"8:0").end();
    let high = Tar::default().dir("./").raw(b"./high", b'0', 0o644, (65_536, 0), b"", 1, b"x").end();
    for (name, data, why) in [("fg-disk", disk, "error creating device './disk'"), ("fg-high", high, "/high")]
    {
        let debs = [debs.clone(), vec![workshop.package(name, "", "", data)]].concat();
        let error = workshop.install(&workshop.home(), &debs).unwrap_err();
        assert_eq!(error.code(), "asset.scripts");
        assert!(error.to_string().contains(name) && error.to_string().contains(why), "{error}");
    }
}
