//! What apt prints, as recorded and reworded.

use super::*;

#[test]
fn uri_lines_give_name_version_and_architecture_whatever_the_hash() {
    let with = |hash: &str| {
        format!(
            "'http://example.org/debian/pool/main/a/attr/libattr1_2.5.1-4_amd64.deb' libattr1_1%3a2.5.1-4_amd64.deb 22164 {hash}"
        )
    };
    let expected = Chosen { package: "libattr1".into(), version: "1:2.5.1-4".into(), arch: "amd64".into() };
    for hash in ["MD5Sum:52fea1b13209029d52405624225a473e", "SHA256:00", ""] {
        assert_eq!(uri_line(&with(hash)), Some(expected.clone()), "{hash}");
    }
    let local = "'file:/srv/my%20archive/./tool_1+b1_all.deb' tool_1+b1_all.deb 10 SHA512:00";
    assert_eq!(
        uri_line(local).map(|c| (c.package, c.version, c.arch)),
        Some(("tool".into(), "1+b1".into(), "all".into()))
    );
}

#[test]
fn other_lines_of_apt_are_no_uris() {
    for line in [
        "",
        "'",
        "Reading package lists...",
        "Need to get 41.6 MB of archives.",
        "'http://example.org/x.deb'",
        "'http://example.org/x' x 1",
        "'u' a_b.deb 1",
        "'u' a_b_c_d.deb 1",
        "'u' a_%zz_all.deb 1",
        "'u' a_%c3_all.deb 1",
    ] {
        assert_eq!(uri_line(line), None, "{line:?}");
    }
}

const SHOWN: &str = "\
Package: dash
Version: 0.5.12-2
Essential: yes
Architecture: amd64
Depends: debianutils (>= 5.6-0.1), sh | posix-shell
Pre-Depends: libc6 (>= 2.36)
Description: small shell
 Filename: not/this/one
Filename: pool/main/d/dash/dash_0.5.12-2_amd64.deb
Size: 97220
SHA256: 33EA40061DA2F1A861EC46212B2B6A34F0776A049B1F0ABF2FBCE8CB994258EC

Package: half
Version: 1
Architecture: all
Filename: pool/main/h/half_1_all.deb
Size: 1

Package: flat
Version: 2
Architecture: all
Filename: ./flat_2_all.deb
Size: 7
SHA256: 33ea40061da2f1a861ec46212b2b6a34f0776a049b1f0abf2fbce8cb994258ec
";

#[test]
fn records_are_complete_or_left_out() {
    let records = records(SHOWN);
    let get = |name: &str, version: &str, arch: &str| {
        records.get(&Chosen { package: name.into(), version: version.into(), arch: arch.into() })
    };
    let dash = get("dash", "0.5.12-2", "amd64").unwrap();
    assert_eq!(dash.deb.pool, "pool/main/d/dash/dash_0.5.12-2_amd64.deb");
    assert_eq!((dash.deb.size, &dash.deb.sha256[..8]), (97220, "33ea4006"));
    let names: Vec<&str> = dependency_names(&dash.depends).collect();
    assert_eq!(names, ["libc6", "debianutils", "sh", "posix-shell"]);
    assert!(get("half", "1", "all").is_none(), "without a SHA-256 nothing can be pinned");
    assert_eq!(get("flat", "2", "all").unwrap().deb.pool, "flat_2_all.deb");
}

#[test]
fn pool_paths_name_no_base() {
    assert_eq!(pool_path("pool/updates/main/x/y.deb"), "pool/updates/main/x/y.deb");
    assert_eq!(pool_path("mirror/debian/pool/main/x/y.deb"), "pool/main/x/y.deb");
    assert_eq!(pool_path("carpool/y.deb"), "carpool/y.deb");
    assert_eq!(pool_path("/y.deb"), "y.deb");
}

#[test]
fn progress_lines_give_a_percentage() {
    assert_eq!(download_percent("dlstatus:46:39.5675:Retrieving file 46 of 104"), Some(39.5675));
    for line in [
        "pmstatus:dash:20.0:Unpacking",
        "dlstatus:1",
        "dlstatus:1:x:y",
        "dlstatus:1:-3:y",
        "dlstatus:1:NaN:y",
        "",
    ] {
        assert_eq!(download_percent(line), None, "{line}");
    }
}

#[test]
fn distributions_are_read_as_os_release_writes_them() {
    let origin = |text: &str| os_release(text).map(|o| format!("{o}"));
    assert_eq!(
        origin("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n").as_deref(),
        Some("debian bookworm")
    );
    assert_eq!(origin("ID='mint'\nVERSION_ID=\"21.3\"\n").as_deref(), Some("mint 21.3"));
    assert_eq!(origin("ID=debian\n").as_deref(), Some("debian rolling"));
    assert_eq!(origin("ID_LIKE=debian\nVERSION_CODENAME=\n"), None);
}
