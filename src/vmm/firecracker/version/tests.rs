use super::*;
use fs_err as fs;
use std::os::unix::fs::PermissionsExt;

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[test]
fn versions_are_read_as_they_are_printed() {
    let v = Version { major: 1, minor: 16, patch: 1 };
    assert_eq!(parse_output("Firecracker", "Firecracker v1.16.1\n\n2026 [anonymous] exiting\n"), Some(v));
    assert_eq!(version("1.17.0-dev"), Version { major: 1, minor: 17, patch: 0 });
    assert_eq!(version("1.6.0-1-gabcdef"), OLDEST);
    for bad in ["", "1.6", "1.6.0.1", "one.two.three", "-1.2.3", "1.6.0x"] {
        assert_eq!(bad.parse::<Version>().unwrap_err().code(), "firecracker.version", "{bad}");
    }
    assert_eq!(parse_output("Jailer", "Jailer v1.16.1\n"), Some(v));
    assert_eq!(parse_output("Jailer", "Firecracker v1.16.1\n"), None);
    assert_eq!(parse_output("Firecracker", "cloud-hypervisor v38.0.0\n"), None);
}

#[test]
fn before_1_8_a_modular_kernel_is_refused_with_the_reason() {
    let refused = check(version("1.7.0"), &[Need::Acpi, Need::HugePages]).unwrap_err();
    assert_eq!(refused.code(), "firecracker.too-old");
    assert!(refused.to_string().contains("no ACPI"), "{refused}");
    assert!(!refused.to_string().contains("huge"), "{refused}");
    assert_eq!(refused.help_text(), Some("use Firecracker 1.8.0 or newer"));
    check(version("1.8.0"), &[Need::Acpi]).unwrap();
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let refused =
        check(version("1.6.0"), &[Need::Acpi, Need::FreePages, Need::TransparentHugePages]).unwrap_err();
    for part in ["ACPI", "guest frees", "transparent"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert_eq!(refused.help_text(), Some("use Firecracker 1.17.0 or newer"));
}

#[test]
fn a_version_from_before_1_6_is_refused_whatever_is_needed() {
    assert_eq!(check(version("1.5.1"), &[]).unwrap_err().code(), "firecracker.too-old");
    assert_eq!(check(version("0.25.2"), &[]).unwrap_err().code(), "firecracker.too-old");
    check(version("2.0.0"), &[Need::TransparentHugePages]).unwrap();
}

#[test]
fn what_is_no_firecracker_is_refused_by_name() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("firecracker");
    let code = || of(&path).unwrap_err().code();
    assert_eq!(code(), "firecracker.missing");
    let put = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    put(b"\x7fELF");
    assert_eq!(code(), "firecracker.missing");
    put(b"PK\x03\x04 and so on and so on");
    assert_eq!(code(), "firecracker.not-firecracker");
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0rest");
    assert!(of(&path).unwrap_err().to_string().contains("aarch64"));
    put(b"#!/bin/sh\necho cloud-hypervisor v38.0.0\n");
    assert_eq!(code(), "firecracker.not-firecracker");
    put(b"#!/bin/sh\necho Firecracker v1.9.1\necho\necho exiting\n");
    assert_eq!(of(&path).unwrap(), version("1.9.1"));
}

#[test]
fn a_jailer_of_another_release_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let [firecracker, jailer] = ["firecracker", "jailer"].map(|name| dir.path().join(name));
    let says = |path: &Path, text: &str| {
        fs::write(path, format!("#!/bin/sh\necho {text}\n")).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    says(&firecracker, "Firecracker v1.9.1");
    let both = || of_both([&firecracker, &jailer]);
    says(&jailer, "Jailer v1.9.1");
    assert_eq!(both().unwrap(), version("1.9.1"));
    says(&jailer, "Jailer v1.9.0");
    let refused = both().unwrap_err();
    assert_eq!(refused.code(), "vmm.jailer-version");
    assert!(refused.to_string().contains("1.9.1") && refused.to_string().contains("1.9.0"), "{refused}");
    says(&jailer, "Firecracker v1.9.1");
    assert_eq!(both().unwrap_err().code(), "firecracker.not-firecracker");
}

#[test]
fn the_real_ones_say_their_version() {
    let Some(binary) = crate::vmm::firecracker::testing::binary() else { return };
    let version = of_both([&binary, &binary.with_file_name("jailer")]).unwrap();
    println!("{version}");
    check(version, &[]).unwrap();
}

#[test]
fn each_thing_is_there_from_its_version_on_and_named_before() {
    let table = [
        (Need::HugePages, "1.7.0", "1.6.0", "huge pages"),
        (Need::Balloon, "1.7.0", "1.6.0", "no memory back"),
        (Need::Acpi, "1.8.0", "1.7.0", "ACPI"),
        (Need::FreePages, "1.14.0", "1.13.1", "guest frees"),
        (Need::TransparentHugePages, "1.17.0", "1.16.1", "transparent"),
    ];
    for (need, first, last_without, word) in table {
        check(version(first), &[need]).unwrap();
        check(version("1.99.0"), &[need]).unwrap();
        check(version("2.0.0"), &[need]).unwrap();
        let refused = check(version(last_without), &[need]).unwrap_err();
        assert!(refused.to_string().contains(word), "{need:?}: {refused}");
        let minor = first.rsplit_once('.').unwrap().0;
        assert_eq!(refused.help_text(), Some(&*format!("use Firecracker {minor}.0 or newer")));
    }
}

#[test]
fn what_the_manifest_declares_must_be_what_the_program_says() {
    check_declared(version("1.16.1"), None, "x").unwrap();
    check_declared(version("1.16.1"), Some(version("1.16.1")), "x").unwrap();
    let refused = check_declared(version("1.16.1"), Some(version("1.16.0")), "the archive").unwrap_err();
    assert_eq!(refused.code(), "vmm.firecracker-version");
    assert!(refused.help_text().unwrap().contains("version=\"1.16.1\""));
}
