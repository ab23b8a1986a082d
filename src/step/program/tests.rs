//! Facts about programs in images: what is told of them, and of what nothing is.

use super::*;
use crate::image::tests::Tar;
use crate::image::{BaseSource, WorkloadItem, WorkloadSource, build_base, build_workload};
use crate::manifest::parse;

const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// An ELF file of these parts (elf.h): header, program headers, loader, strings, dynamic section.
#[derive(Default, Clone)]
struct Parts<'a> {
    machine: u16,
    loader: Option<&'a str>,
    needed: &'a [&'a str],
    rpath: Option<&'a str>,
    runpath: Option<&'a str>,
    soname: Option<&'a str>,
}

fn elf(parts: &Parts<'_>) -> Vec<u8> {
    let machine = if parts.machine == 0 { 62 } else { parts.machine };
    let mut file = vec![0; 64 + 3 * 56];
    let loader = parts.loader.map(|loader| {
        let at = file.len();
        file.extend_from_slice(loader.as_bytes());
        file.push(0);
        (at, loader.len() + 1)
    });
    let strings = file.len();
    file.push(0);
    let mut dynamic: Vec<(u64, u64)> = Vec::new();
    let texts = parts.needed.iter().map(|name| (1, *name));
    let texts = texts.chain(parts.soname.map(|text| (14, text)));
    let texts = texts.chain(parts.rpath.map(|text| (15, text))).chain(parts.runpath.map(|text| (29, text)));
    for (tag, text) in texts {
        dynamic.push((tag, (file.len() - strings) as u64));
        file.extend_from_slice(text.as_bytes());
        file.push(0);
    }
    const BASE: u64 = 0x40_0000;
    dynamic.push((5, BASE + strings as u64));
    dynamic.push((0, 0));
    file.resize(file.len().next_multiple_of(8), 0);
    let at = file.len();
    for (tag, value) in &dynamic {
        file.extend_from_slice(&tag.to_le_bytes());
        file.extend_from_slice(&value.to_le_bytes());
    }
    let length = file.len() as u64;
    let mut headers = vec![(1_u32, 0, BASE, length)];
    headers.push((2, at as u64, BASE + at as u64, (dynamic.len() * 16) as u64));
    headers.extend(loader.map(|(at, length)| (3, at as u64, BASE + at as u64, length as u64)));
    for (n, (kind, at, address, length)) in headers.iter().enumerate() {
        let header = &mut file[64 + n * 56..];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&at.to_le_bytes());
        header[16..24].copy_from_slice(&address.to_le_bytes());
        header[32..40].copy_from_slice(&length.to_le_bytes());
    }
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..18].copy_from_slice(&3_u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    file
}

fn dynamic<'a>(needed: &'a [&'a str]) -> Parts<'a> {
    Parts { loader: Some(GLIBC), needed, ..Parts::default() }
}

fn program(tar: Tar, name: &str, bytes: &[u8]) -> Tar {
    tar.raw(name.as_bytes(), b'0', 0o755, (0, 0), b"", bytes.len() as u64, bytes)
}

fn base() -> Tar {
    let library = elf(&Parts::default());
    let mut tar =
        Tar::default().symlink("bin", "usr/bin").symlink("lib64", "usr/lib64").symlink("lib", "usr/lib");
    tar = program(tar, "usr/bin/sh", &elf(&dynamic(&["libc.so.6"])));
    tar = program(tar, "usr/bin/env", &elf(&dynamic(&["libc.so.6"])));
    tar = program(tar, "usr/bin/python3.11", &elf(&dynamic(&["libc.so.6"])));
    tar = tar.symlink("usr/bin/python3", "python3.11");
    tar = program(tar, "usr/lib64/ld-linux-x86-64.so.2", &library);
    program(tar, "usr/lib/x86_64-linux-gnu/libc.so.6", &library)
}

/// A manifest's VM on a base image, with a workload layer over it.
struct World {
    dir: tempfile::TempDir,
    layered: bool,
}

impl World {
    fn new(base: Tar) -> World {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("base.tar");
        std::fs::write(&tar, base.end()).unwrap();
        build_base(BaseSource::Tar(&tar), dir.path(), dir.path()).unwrap();
        World { dir, layered: false }
    }

    fn over(mut self, workload: Tar) -> World {
        let tar = self.dir.path().join("workload.tar");
        std::fs::write(&tar, workload.end()).unwrap();
        let item = WorkloadItem { source: WorkloadSource::Archive(&tar), to: "/", owner: (0, 0) };
        let index = self.dir.path().join(crate::image::BASE_INDEX);
        build_workload(&[item], &index, self.dir.path(), self.dir.path()).unwrap();
        self.layered = true;
        self
    }

    /// What is told of a VM with these settings; empty for nothing.
    fn told(&self, settings: &str) -> String {
        let text = format!("vm \"a\" {{ {settings} }}");
        let manifest = parse(&text, "test", Path::new("/"));
        let manifest = manifest.unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
        let base = self.dir.path().join(BASE_IMAGE);
        let workload = self.dir.path().join(crate::image::WORKLOAD_IMAGE);
        let images: &[&Path] = if self.layered { &[&base, &workload] } else { &[&base] };
        let stacked = Stacked::open(images).unwrap();
        let fault = Look::new(&manifest.vms[0], &stacked).unwrap().fault().unwrap();
        fault.map_or(String::new(), |Fault { code, why, help }| format!("{code}: {why}. {help}"))
    }

    #[track_caller]
    fn fails(&self, settings: &str, words: &[&str]) {
        let told = self.told(settings);
        for word in words {
            assert!(told.contains(word), "{settings}: {word:?} is not in {told:?}");
        }
    }

    #[track_caller]
    fn passes(&self, settings: &str) {
        assert_eq!(self.told(settings), "", "{settings}");
    }
}

#[test]
fn a_program_that_is_there_passes_by_path_name_and_link() {
    let world = World::new(base());
    for run in ["sh", "/bin/sh", "python3", "./bin/sh", "usr/bin/../bin/sh"] {
        world.passes(&format!("run {run:?}"));
    }
    world.passes("workdir \"/usr\"; run \"bin/sh\"");
    world.passes("env { PATH \"/usr/lib::/usr/bin\" }; run \"python3.11\"");
}

#[test]
fn a_program_that_is_not_there_is_told_with_what_is_near() {
    let world = World::new(base());
    world.fails("run \"python\"", &["program.missing", "PATH", "\"python3\", \"python3.11\""]);
    world.fails("run \"pyton3\"", &["there is \"python3\""]);
    world.fails("run \"/usr/bin/bash\"", &["program.missing: there is no such file"]);
    world.fails("run \"./server\"; workdir \"/srv\"", &["there is no /srv/./server", "`workdir`"]);
    world.fails("env { PATH \"/usr/lib\" }; run \"sh\"", &["PATH (/usr/lib)"]);
    world.fails("run \"/usr/lib\"", &["/usr/lib is a directory"]);
}

#[test]
fn of_what_cannot_be_known_nothing_is_said() {
    let world = World::new(base());
    for settings in [
        // Mounted over, through a link too.
        "volume \"v\" at=\"/opt/app\" size=\"32MiB\"; run \"/opt/app/server\"",
        "volume \"v\" at=\"/lib/app\" size=\"32MiB\"; run \"/usr/lib/app/server\"",
        "run \"/run/made/later\"",
        "run \"/proc/self/exe\"",
        "secret \"PATH\" env=\"PATH\"; run \"whatever\"",
        // PATH leads there before it ends.
        "volume \"v\" at=\"/opt/bin\" size=\"32MiB\"; env { PATH \"/opt/bin:/usr/bin\" }; run \"no-such\"",
    ] {
        world.passes(settings);
    }
}

#[test]
fn what_no_kernel_executes_is_told_before_the_boot() {
    let mut tar = base();
    for (name, bytes) in [
        ("app/empty", b"".as_slice()),
        ("app/text", b"echo hello\n"),
        ("app/windows", b"MZ\x90\0"),
        ("app/dos", b"#!/bin/sh\r\necho\r\n"),
        ("app/dos-env", b"#!/usr/bin/env python3\r\n"),
        ("app/ruby", b"#!/usr/bin/ruby -w\n"),
        ("app/env-ruby", b"#!/usr/bin/env ruby\n"),
        ("app/nested", b"#!/app/ruby\n"),
        ("usr/bin/tool", b"echo hello\n"),
        ("usr/bin/by-tool", b"#!/usr/bin/tool\n"),
        ("app/env-text", b"#!/usr/bin/env tool\n"),
        ("app/env-by-text", b"#!/usr/bin/env by-tool\n"),
        ("app/sh", b"#! /bin/sh -e\n"),
        ("app/env", b"#!/usr/bin/env python3\n"),
        ("app/env-s", b"#!/usr/bin/env -S whatever -x\n"),
        ("app/relative", b"#!bin/sh\n"),
    ] {
        tar = program(tar, name, bytes);
    }
    tar = tar.file("app/plain", b"#!/bin/sh\n");
    tar = program(tar, "app/arm", &elf(&Parts { machine: 183, ..Parts::default() }));
    let i386 = elf(&Parts { machine: 3, ..Parts::default() });
    let world = World::new(program(tar, "app/i386", &i386));
    let fails = |name: &str, words: &[&str]| world.fails(&format!("run \"/app/{name}\""), words);
    fails("empty", &["program.format", "/app/empty is empty"]);
    fails("text", &["program.format", "neither a program", "#!/bin/sh"]);
    fails("windows", &["program for Windows"]);
    fails("dos", &["program.carriage-return", "\"/bin/sh\\r\"", "Unix line ends"]);
    fails("dos-env", &["program.carriage-return", "\"python3\\r\""]);
    fails("ruby", &["program.interpreter", "/usr/bin/ruby, is not in the image"]);
    fails("env-ruby", &["program.missing", "\"ruby\"", "PATH"]);
    fails("nested", &["/usr/bin/ruby, is not in the image"]);
    fails("plain", &["program.not-executable", "chmod +x"]);
    fails("arm", &["program.machine", "aarch64", "x86_64"]);
    // What no kernel executes, `env` gives to /bin/sh.
    for name in ["sh", "env", "env-s", "env-text", "env-by-text", "relative", "i386"] {
        world.passes(&format!("run \"/app/{name}\""));
    }
}

#[test]
fn a_missing_loader_is_told_by_its_libc() {
    let musl = elf(&Parts { loader: Some(MUSL), needed: &["libc.musl-x86_64.so.1"], ..Parts::default() });
    let debian = World::new(program(base(), "app/server", &musl));
    debian.fails("run \"/app/server\"", &["program.interpreter", MUSL, "package `musl`"]);
    let alpine = program(Tar::default(), "lib/ld-musl-x86_64.so.1", &elf(&Parts::default()));
    let alpine = program(alpine, "bin/good", &musl);
    let alpine = World::new(program(alpine, "bin/bad", &elf(&dynamic(&["libc.so.6"]))));
    alpine.fails("run \"bad\"", &["program.interpreter", GLIBC, "built for glibc"]);
    alpine.passes("run \"good\"");
}

#[test]
fn libraries_are_found_where_loaders_find_them_and_missed_nowhere_else() {
    let library = |needed: &[&str]| elf(&Parts { needed, ..Parts::default() });
    let mut tar = base();
    tar = program(tar, "app/plain", &elf(&dynamic(&["libc.so.6", "ld-linux-x86-64.so.2"])));
    tar = program(tar, "app/missing", &elf(&dynamic(&["libpq.so.5"])));
    tar = program(tar, "app/deep", &elf(&dynamic(&["libone.so"])));
    tar = program(tar, "usr/lib/libone.so", &library(&["libtwo.so"]));
    let runpath = Parts { runpath: Some("$ORIGIN/../own:/nowhere"), ..dynamic(&["libown.so"]) };
    tar = program(tar, "app/bin/origin", &elf(&runpath));
    tar = tar.symlink("usr/bin/linked", "/app/bin/origin");
    tar = program(tar, "app/own/libown.so", &library(&["libbeside.so"]));
    tar = program(tar, "app/own/libbeside.so", &library(&[]));
    let rpath = Parts { rpath: Some("${ORIGIN}/../other"), ..dynamic(&["libelsewhere.so"]) };
    tar = program(tar, "app/bin/rpath", &elf(&rpath));
    tar = program(tar, "app/other/libelsewhere.so", &library(&[]));
    let platform = Parts { runpath: Some("/opt/$LIB"), ..dynamic(&["libsome.so"]) };
    tar = program(tar, "app/platform", &elf(&platform));
    tar = program(tar, "app/conf", &elf(&dynamic(&["libconf.so"])));
    tar = tar.file("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n");
    tar = tar.file("etc/ld.so.conf.d/app.conf", b"# ours\n/opt/libs\n");
    tar = program(tar, "opt/libs/libconf.so", &library(&[]));
    // A library that calls itself otherwise than its file.
    tar = program(tar, "app/called", &elf(&dynamic(&["libreal.so.1", "libalias.so"])));
    let real = elf(&Parts { soname: Some("libalias.so"), ..Parts::default() });
    tar = program(tar, "usr/lib/libreal.so.1", &real);
    // One for another machine is passed over.
    tar = program(tar, "app/foreign", &elf(&dynamic(&["libarm.so"])));
    tar = program(tar, "usr/lib/libarm.so", &elf(&Parts { machine: 183, ..Parts::default() }));
    // A loader looks into its own directory, too, and of one elsewhere nobody knows where besides.
    const NIX: &str = "/nix/store/0a-glibc-2.40/lib/ld-linux-x86-64.so.2";
    tar = program(tar, &NIX[1..], &library(&[]));
    tar = program(tar, "nix/store/0a-glibc-2.40/lib/libnix.so.6", &library(&[]));
    tar = program(tar, "app/nix", &elf(&Parts { loader: Some(NIX), ..dynamic(&["libnix.so.6"]) }));
    tar = program(tar, "app/nix-more", &elf(&Parts { loader: Some(NIX), ..dynamic(&["libpq.so.5"]) }));
    tar = tar.symlink("opt/glibc/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2");
    tar = program(tar, "opt/glibc/libnear.so", &library(&[]));
    let linked = |needed| elf(&Parts { loader: Some("/opt/glibc/ld-linux-x86-64.so.2"), ..dynamic(needed) });
    tar = program(tar, "app/near", &linked(&["libnear.so", "libc.so.6"]));
    tar = program(tar, "app/not-near", &linked(&["libnear.so", "libpq.so.5"]));
    tar = tar.symlink("opt/linked/ld-linux-x86-64.so.2", NIX);
    let away = Parts { loader: Some("/opt/linked/ld-linux-x86-64.so.2"), ..dynamic(&["libpq.so.5"]) };
    tar = program(tar, "app/away", &elf(&away));
    let world = World::new(tar);
    for name in
        ["plain", "bin/origin", "bin/rpath", "platform", "conf", "called", "nix", "nix-more", "near", "away"]
    {
        world.passes(&format!("run \"/app/{name}\""));
    }
    // A program is where its links lead, whatever it was called by.
    world.passes("run \"linked\"");
    world.fails("run \"/app/missing\"", &["program.library", "libpq.so.5", "apt-file search"]);
    world.fails("run \"/app/not-near\"", &["program.library", "libpq.so.5"]);
    world.fails("run \"/app/deep\"", &["libtwo.so (for /lib/libone.so)"]);
    world.fails("run \"/app/foreign\"", &["libarm.so"]);
    world.passes("env { LD_LIBRARY_PATH \"/app\" }; run \"/app/plain\"");
    world.passes("env { LD_PRELOAD \"/x.so\" }; run \"/app/missing\"");
    world.passes("secret \"LD_LIBRARY_PATH\" env=\"X\"; run \"/app/missing\"");
    world.passes("volume \"v\" at=\"/usr/local/lib\" size=\"32MiB\"; run \"/app/missing\"");
}

#[test]
fn a_workload_hides_and_completes_what_is_below_it() {
    let mut tar = base();
    tar = program(tar, "app/below", &elf(&dynamic(&["libabove.so"])));
    tar = program(tar, "app/replaced", b"");
    let mut over = Tar::default();
    over = program(over, "usr/lib/x86_64-linux-gnu/libabove.so", &elf(&Parts::default()));
    over = program(over, "app/replaced", &elf(&dynamic(&["libc.so.6"])));
    over = program(over, "app/above", b"#!/usr/bin/python3\n");
    let world = World::new(tar).over(over);
    for name in ["below", "replaced", "above"] {
        world.passes(&format!("run \"/app/{name}\""));
    }
    world.fails("run \"/app/abov\"", &["there is \"above\""]);
}

#[test]
fn damaged_programs_are_survived() {
    let good = elf(&Parts { runpath: Some("/x"), ..dynamic(&["libc.so.6"]) });
    let mut tar = base();
    let mut state = 7_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for n in 0..60 {
        let mut bytes = good.clone();
        for _ in 0..6 {
            let at = 4 + next() % (bytes.len() - 4);
            bytes[at] = next() as u8;
        }
        bytes.truncate(4 + next() % bytes.len());
        tar = program(tar, &format!("app/{n}"), &bytes);
    }
    let world = World::new(tar);
    for n in 0..60 {
        let _ = world.told(&format!("run \"/app/{n}\""));
    }
}
