//! The Firecracker tree: `firecracker` and `jailer` out of a release's archive, where they have longer names.

use crate::error::{Context, Error, Result};
use crate::image::archive_files;
use crate::vmm::firecracker;
use crate::vmm::firecracker::version::Version;
use fs_err as fs;
use std::path::Path;

/// What this host runs, as release archives call it.
const ARCH: &str = "x86_64";
const PROGRAMS: [&str; 2] = ["firecracker", "jailer"];

/// Writes `out/firecracker` and `out/jailer` from a release's archive (any compression); `out` exists. The programs
/// are `release-vX-ARCH/firecracker-vX-ARCH` and the jailer likewise, or have their plain names. The version that
/// is said by the program must be `declared`, if anything is.
///
/// # Errors
/// Usage if the archive lacks one of them or is of another architecture or version.
pub fn firecracker_tree(
    archive: &Path,
    shown: &str,
    declared: Option<Version>,
    scratch: &Path,
    out: &Path,
) -> Result<()> {
    let mut seen = Vec::new();
    archive_files(archive, scratch, |path| {
        let (program, arch) = program_of(path)?;
        seen.push((program, arch.to_owned()));
        (arch.is_empty() || arch == ARCH).then(|| out.join(program))
    })?;
    for program in PROGRAMS {
        if out.join(program).exists() {
            continue;
        }
        return Err(match seen.iter().find(|(name, _)| *name == program) {
            Some((_, arch)) => Error::usage(
                "vmm.firecracker-machine",
                format!("{shown} holds {program} for {arch}, this host is {ARCH}"),
            )
            .help(format!("take the {ARCH} archive of the release")),
            None => Error::usage("vmm.firecracker-missing", format!("{shown} holds no {program}"))
                .help("name the archive of a Firecracker release: firecracker-vX-x86_64.tgz"),
        });
    }
    for program in PROGRAMS {
        fs::set_permissions(out.join(program), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .or_failed("asset.write", || format!("cannot make {program} executable"))?;
    }
    let [firecracker, jailer] = PROGRAMS.map(|name| out.join(name));
    let said = firecracker::usable(&firecracker, &jailer)?;
    firecracker::version::check_declared(said, declared, shown)
}

/// Which program a member is, and the architecture in its name if that has one. `firecracker-v1.16.1-x86_64.debug`
/// and the like are none.
fn program_of(path: &str) -> Option<(&'static str, &str)> {
    let name = path.rsplit('/').next()?;
    PROGRAMS.into_iter().find_map(|program| {
        let rest = name.strip_prefix(program)?;
        if rest.is_empty() {
            return Some((program, ""));
        }
        // The version may itself hold dashes: `v1.17.0-dev`.
        let (version, arch) = rest.strip_prefix("-v")?.rsplit_once('-')?;
        let plain = arch.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        (version.parse::<Version>().is_ok() && plain).then_some((program, arch))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A release's archive in which shell scripts stand for programs.
    fn archive(dir: &Path, members: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join("release.tgz");
        let gzip =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gzip);
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        path
    }

    fn tree(members: &[(&str, &[u8])]) -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (archive(dir.path(), members), dir.path().join("out"));
        fs::create_dir(&out).unwrap();
        firecracker_tree(&path, "the release", Some("1.16.1".parse().unwrap()), dir.path(), &out)
    }

    #[test]
    fn members_are_known_by_their_names() {
        let of = |name| program_of(name);
        assert_eq!(of("release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64"), Some(("firecracker", "x86_64")));
        assert_eq!(of("release-v1.6.0-aarch64/jailer-v1.6.0-aarch64"), Some(("jailer", "aarch64")));
        assert_eq!(of("jailer-v1.17.0-dev-x86_64"), Some(("jailer", "x86_64")));
        assert_eq!(of("dir/firecracker"), Some(("firecracker", "")));
        for other in [
            "release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64.debug",
            "release-v1.16.1-x86_64/firecracker_spec-v1.16.1.yaml",
            "release-v1.16.1-x86_64/cpu-template-helper-v1.16.1-x86_64",
            "firecracker-docs/README",
            "firecrackers",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_release_for_this_host_is_refused_by_name() {
        let error = tree(&[("r/README", b"x")]).unwrap_err();
        assert_eq!(error.code(), "vmm.firecracker-missing");
        let error = tree(&[("r/firecracker-v1.16.1-x86_64", b"x")]).unwrap_err();
        assert!(error.to_string().contains("holds no jailer"), "{error}");
        let arm: [(&str, &[u8]); 2] =
            [("r/firecracker-v1.16.1-aarch64", b"x"), ("r/jailer-v1.16.1-aarch64", b"x")];
        let error = tree(&arm).unwrap_err();
        assert_eq!(error.code(), "vmm.firecracker-machine");
        assert!(error.to_string().contains("aarch64"), "{error}");
        let scripts: [(&str, &[u8]); 2] =
            [("r/firecracker-v1.16.1-x86_64", b"#!/bin/sh\n"), ("r/jailer-v1.16.1-x86_64", b"#!/bin/sh\n")];
        assert_eq!(tree(&scripts).unwrap_err().code(), "vmm.firecracker-format");
    }

    #[test]
    fn the_programs_of_a_release_are_taken_and_asked_for_their_version() {
        let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER").map(PathBuf::from) else {
            crate::testing::skip("no firecracker");
            return;
        };
        let [firecracker, jailer] = PROGRAMS.map(|name| fs::read(dir.join(name)).unwrap());
        let members: [(&str, &[u8]); 3] = [
            ("release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64.debug", b"not this"),
            ("release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64", &firecracker),
            ("release-v1.16.1-x86_64/jailer-v1.16.1-x86_64", &jailer),
        ];
        let version = firecracker::version::of(&dir.join("firecracker")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), &members);
        let make = |declared: &str| {
            let out = dir.path().join(declared);
            fs::create_dir(&out).unwrap();
            firecracker_tree(&path, "r.tgz", Some(declared.parse().unwrap()), dir.path(), &out).map(|()| out)
        };
        let out = make(&version.to_string()).unwrap();
        assert!(fs::read(out.join("firecracker")).unwrap() == firecracker, "the very bytes");
        assert!(fs::read(out.join("jailer")).unwrap() == jailer);
        let error = make("1.2.3").unwrap_err();
        assert_eq!(error.code(), "vmm.firecracker-version");
        assert!(error.to_string().contains("1.2.3"), "{error}");
    }
}
