//! Kernels given as files: the real one re-wrapped as other distributions do, and judged before it boots.

use crate::harness::{Project, guests, skip};
use crate::web::{Reply, Server};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The warm store's kernel tree: `vmlinux`, `config`.
fn kernel_tree(project: &Project) -> PathBuf {
    let built = project.ok(&["build", "--json"]).json();
    let steps = built["steps"].as_array().unwrap();
    let fetch = steps.iter().find(|step| step["kind"] == "fetch-kernel").unwrap();
    PathBuf::from(fetch["path"].as_str().unwrap())
}

/// A bzImage around a payload (Documentation/arch/x86/boot.rst), `size` appended as the kernel's build does.
fn bz_image(mut payload: Vec<u8>, size: Option<u32>) -> Vec<u8> {
    payload.extend(size.iter().flat_map(|size| size.to_le_bytes()));
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    out
}

fn lz4_frame(bytes: &[u8]) -> Vec<u8> {
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(bytes).unwrap();
    lz4.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    // As scripts/xz_wrap.sh: branches filtered, CRC32.
    let mut filters = liblzma::stream::Filters::new();
    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    filters.x86().lzma2(options.dict_size(32 << 20));
    let stream =
        liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
    let mut xz = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    xz.write_all(bytes).unwrap();
    xz.finish().unwrap()
}

#[test]
fn the_real_kernel_in_any_wrapping_gives_the_same_vmlinux() {
    let Some(_turn) = guests(1) else { return };
    let project = Project::new("vm \"a\" { image { debian \"busybox-static\" }; run \"true\" }");
    let vmlinux = std::fs::read(kernel_tree(&project).join("vmlinux")).unwrap();
    let size = Some(vmlinux.len() as u32);
    let wrapped = [
        ("gzip", bz_image(gzip(&vmlinux), None)),
        ("xz", bz_image(xz(&vmlinux), size)),
        ("zstd", bz_image(zstd::encode_all(&vmlinux[..], 1).unwrap(), size)),
        ("lz4", bz_image(lz4_frame(&vmlinux), size)),
        ("lz4-legacy", bz_image(lz4_legacy(&vmlinux), size)),
        ("none", vmlinux.clone()),
    ];
    for (name, bytes) in wrapped {
        project.write("kernel", bytes);
        let out = project.path().join(name);
        firegopher::asset::kernel_from_path(&project.path().join("kernel"), &out).unwrap();
        assert!(std::fs::read(out.join("vmlinux")).unwrap() == vmlinux, "{name}");
        let info = firegopher::asset::kernel::KernelInfo::load(&out).unwrap();
        assert!(info.release.starts_with(|c: char| c.is_ascii_digit()), "{name}: {info:?}");
        assert!(!out.join("config").exists(), "{name}: this kernel has no IKCONFIG");
    }
}

#[test]
fn a_kernel_given_as_a_bz_image_runs_up_to_the_want_of_its_drivers() {
    let Some(_turn) = guests(1) else { return };
    let image = "image { debian \"busybox-static\" }; run \"true\"";
    let project = Project::new(&format!("vm \"a\" {{ {image} }}"));
    let vmlinux = std::fs::read(kernel_tree(&project).join("vmlinux")).unwrap();
    project.write("bzImage", bz_image(gzip(&vmlinux), None));
    // Its drivers are modules, which a file brings none of: it boots, and init then waits for the channel.
    project.manifest(&format!(
        "vm \"a\" {{ {image}; kernel {{ path \"bzImage\" }}; vmm \"qemu\"; boot-timeout \"10s\" }}"
    ));
    let output = project.run(&["up"]).expect(1);
    output.says("a failed: the guest did not report within 10 s");
    let console = project.ok(&["logs", "--console", "a"]).stdout;
    assert!(console.contains("PCI: Fatal: No config space access"), "the kernel ran: {console}");
    assert!(!console.contains("Kernel panic"), "it found its init: {console}");
}

/// Names a vmlinux with all of its drivers built in, such as Firecracker's own CI boots: no package is one.
const BARE: &str = "FIREGOPHER_TEST_VMLINUX";

#[test]
fn a_bare_vmlinux_by_url_boots_to_its_workload() {
    let Some(file) = std::env::var_os(BARE) else {
        return skip(format!("{BARE} names no vmlinux with its drivers built in"));
    };
    let Some(_turn) = guests(1) else { return };
    let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{file:?}: {e}"));
    assert!(bytes.starts_with(b"\x7fELF"), "{file:?} is no bare vmlinux");
    let server = Server::start(move |request| Reply::ok(bytes.as_slice()).ranged(request));
    let project = Project::new(&format!(
        r##"vm "a" {{
            kernel {{ url "{}" }}
            image {{ debian "busybox-static" }}
            vmm "qemu"
            volume "data" at="/data" size="32MiB"
            run "/bin/busybox" "sh" "-c" #"""
                b=/bin/busybox
                $b uname -r
                $b cat /proc/modules 2>/dev/null
                $b mount | $b grep -E ' on (/|/data) ' | $b cut -d ' ' -f 3,5
                $b ls /sys/class/net
                exit 7
            """#
        }}"##,
        server.url("/vmlinux")
    ));
    project.ok(&["lock"]).says("trusting what comes");
    let tree = kernel_tree(&project);
    let info = firegopher::asset::kernel::KernelInfo::load(&tree).unwrap();
    assert_eq!(std::fs::read_dir(tree.join("modules")).unwrap().count(), 0, "a file brings none");
    let run = project.run(&["run", "--locked"]).expect(7);
    assert_eq!(run.stdout, format!("{}\n/ overlay\n/data ext4\neth0\nlo\n", info.release));
}

/// The real kernel with the configuration in it, as `CONFIG_IKCONFIG` puts it there.
fn telling(tree: &Path) -> Vec<u8> {
    let mut vmlinux = std::fs::read(tree.join("vmlinux")).unwrap();
    let config = std::fs::read(tree.join("config")).unwrap();
    vmlinux.extend_from_slice(b"IKCFG_ST");
    vmlinux.extend(gzip(&config));
    vmlinux.extend_from_slice(b"IKCFG_ED");
    let size = Some(vmlinux.len() as u32);
    bz_image(lz4_frame(&vmlinux), size)
}

#[test]
fn a_kernel_by_url_is_pinned_and_becomes_the_same_tree_as_a_file() {
    let Some(_turn) = guests(1) else { return };
    let image = "image { debian \"busybox-static\" }; run \"true\"";
    let project = Project::new(&format!("vm \"a\" {{ {image} }}"));
    let vmlinux = std::fs::read(kernel_tree(&project).join("vmlinux")).unwrap();
    let kernel = bz_image(gzip(&vmlinux), None);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in [("release/boot/vmlinuz", &kernel[..]), ("release/README", b"read me")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, bytes).unwrap();
    }
    let archive = gzip(&archive.into_inner().unwrap());
    let served = kernel.clone();
    let server = Server::start(move |request| match request.target.as_str() {
        "/bzImage" => Reply::ok(served.as_slice()).ranged(request),
        "/release.tar.gz" => Reply::ok(archive.as_slice()).ranged(request),
        _ => Reply::status(404),
    });
    project.write("bzImage", &kernel);
    project.manifest(&format!("vm \"a\" {{ {image}; kernel {{ path \"bzImage\" }} }}"));
    let by_path = kernel_tree(&project);
    let by_url = |source: &str| {
        project.manifest(&format!("vm \"a\" {{ {image}; kernel {{ url {source} }} }}"));
        project.run(&["build"]).expect(64).says("has no `sha256`");
        project.ok(&["lock"]);
        assert!(project.read("firegopher.lock").contains("[[asset]]\nkind = \"kernel\"\nurl = "));
        project.ok(&["plan", "--verbose"]).prints("fetch kernel");
        let built = project.ok(&["build", "--locked", "--json"]).json();
        let fetch = built["steps"].as_array().unwrap().iter().find(|step| step["kind"] == "fetch-kernel");
        PathBuf::from(fetch.unwrap()["path"].as_str().unwrap())
    };
    let (file, member) = (
        by_url(&format!("\"{}\"", server.url("/bzImage"))),
        by_url(&format!("\"{}\" member=\"release/boot/vmlinuz\"", server.url("/release.tar.gz"))),
    );
    assert_eq!((&file, &member), (&by_path, &by_path), "the same bytes are the same tree");
    assert!(std::fs::read(file.join("vmlinux")).unwrap() == vmlinux);
    assert_eq!(server.seen().len(), 2);
    project.manifest(&format!(
        "vm \"a\" {{ {image}; kernel {{ url \"{}\" member=\"release/README\" }} }}",
        server.url("/release.tar.gz")
    ));
    project.ok(&["lock"]);
    let error = project.run(&["build", "--locked"]).expect(1);
    error.says("/release.tar.gz");
}

#[test]
fn a_kernel_by_url_that_tells_its_configuration_is_judged_before_it_boots() {
    let Some(_turn) = guests(1) else { return };
    let image = "image { debian \"busybox-static\" }; run \"true\"";
    let project = Project::new(&format!("vm \"a\" {{ {image} }}"));
    let kernel = telling(&kernel_tree(&project));
    let server = Server::start(move |request| Reply::ok(kernel.as_slice()).ranged(request));
    let url = server.url("/vmlinuz");
    project.manifest(&format!("vm \"a\" {{ {image}; kernel {{ url \"{url}\"; }} }}"));
    project.ok(&["lock"]);
    let output = project.run(&["build", "--locked"]).expect(64);
    output.says(&format!("VM a: the kernel {url} cannot boot under QEMU: it lacks CONFIG_VIRTIO_MMIO"));
}

#[test]
fn a_kernel_that_tells_its_configuration_is_judged_before_it_boots() {
    let Some(_turn) = guests(1) else { return };
    let image = "image { debian \"busybox-static\" }; run \"true\"";
    let project = Project::new(&format!("vm \"a\" {{ {image} }}"));
    project.write("bzImage", telling(&kernel_tree(&project)));
    project.manifest(&format!("vm \"a\" {{ {image}; kernel {{ path \"bzImage\" }} }}"));
    for command in [["build"].as_slice(), &["up"]] {
        let output = project.run(command).expect(64);
        let output = output
            .says(
                "VM a: the kernel bzImage cannot boot under QEMU: it lacks CONFIG_VIRTIO_MMIO (every device",
            )
            .says("CONFIG_OVERLAY_FS (a writable root over the sealed images, a module that is not there)");
        assert!(!output.stderr.contains("CONFIG_EXT4_FS"), "it is built in: {output:?}");
    }
    assert_eq!(project.ps("a"), None, "nothing was booted");
}
