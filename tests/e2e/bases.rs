//! Base images given by path: a directory, a tar of it and an ext4 image, each booted.

use crate::harness::{Project, guests};
use std::path::{Path, PathBuf};

/// The warm store's image with busybox.
fn base_image(project: &Project) -> PathBuf {
    let built = project.ok(&["build", "--json"]).json();
    let steps = built["steps"].as_array().unwrap();
    let image = steps.iter().find(|step| step["kind"] == "image").unwrap();
    Path::new(image["path"].as_str().unwrap()).join("base.ext4")
}

/// The busybox in an image's `/usr/bin`.
fn busybox_of(image: &Path) -> Vec<u8> {
    let files = mkext4::reader::Fs::open(std::fs::File::open(image).unwrap()).unwrap();
    let number = files.resolve("/usr/bin/busybox").unwrap();
    files.read_file(number).unwrap()
}

/// A static busybox, out of the image of `project`.
pub fn busybox(project: &Project) -> Vec<u8> {
    busybox_of(&base_image(project))
}

#[test]
fn a_directory_a_tar_and_an_ext4_image_boot() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-static\" }; run \"true\" }");
    let base = base_image(&project);
    project.write("rootfs/etc/note", "from a directory\n");
    project.write("rootfs/bin/busybox", "");
    std::fs::create_dir(project.path().join("rootfs/empty")).unwrap();
    let busybox = project.path().join("rootfs/bin/busybox");
    std::fs::write(&busybox, busybox_of(&base)).unwrap();
    std::fs::set_permissions(&busybox, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let manifest = |image: &str, file: &str| {
        format!("vm \"a\" {{ image {{ path {image} }}; run \"/bin/busybox\" \"cat\" \"{file}\" }}")
    };
    project.manifest(&manifest("\"rootfs\"", "/etc/note"));
    assert_eq!(project.ok(&["run"]).stdout, "from a directory\n");

    let tar = std::fs::File::create(project.path().join("rootfs.tar")).unwrap();
    let mut tar = tar::Builder::new(tar);
    project.write("rootfs/etc/note", "from a tar\n");
    tar.append_dir_all(".", project.path().join("rootfs")).unwrap();
    tar.finish().unwrap();
    project.manifest(&manifest("\"rootfs.tar\"", "/etc/note"));
    assert_eq!(project.ok(&["run"]).stdout, "from a tar\n");

    std::fs::copy(&base, project.path().join("rootfs.ext4")).unwrap();
    project.manifest(&manifest("\"rootfs.ext4\"", "/etc/debian_version"));
    assert!(project.ok(&["run"]).stdout.starts_with(|c: char| c.is_ascii_digit()));

    project.manifest(&manifest("\"rootfs.tar\" keep=\"modes\"", "/etc/note"));
    project.run(&["build"]).expect(64).says("`keep=\"modes\"` is for directories, and rootfs.tar is none");
}
