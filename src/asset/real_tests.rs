//! Against the host's own apt, in private directories. Skipped, saying why, where there is no apt or no network.

use super::*;
use crate::home::Home;
use crate::lock::{AssetId, Origin, Pin};
use crate::store::Store;
use fs_err as fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// Prints what it hears and adds up the bytes.
#[derive(Default)]
struct Heard(Mutex<(Vec<String>, Option<u64>, u64)>);

impl Progress for Heard {
    fn start(&self, what: &str, total: Option<u64>) {
        let mut heard = self.0.lock().unwrap();
        heard.0.push(what.to_owned());
        heard.1 = total;
        heard.2 = 0;
    }
    fn advance(&self, n: u64) {
        self.0.lock().unwrap().2 += n;
    }
    fn note(&self, text: &str) {
        println!("note: {text}");
    }
}

/// Prints when each piece of work began.
struct Timed(Instant);

impl Progress for Timed {
    fn start(&self, what: &str, total: Option<u64>) {
        println!("  {:?}: {what}, {total:?} bytes", self.0.elapsed());
    }
    fn advance(&self, _n: u64) {}
    fn note(&self, text: &str) {
        println!("  {:?}: {text}", self.0.elapsed());
    }
}

/// One home for the tests of this file: the lists and packages are fetched once.
struct Bench {
    dir: tempfile::TempDir,
    apt: Apt,
    store: Store,
}

fn bench() -> Option<MutexGuard<'static, Bench>> {
    static BENCH: OnceLock<Option<Mutex<Bench>>> = OnceLock::new();
    let made = BENCH.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        let store = Store::open(home.clone()).unwrap();
        let apt = Apt::new(&home);
        let start = Instant::now();
        crate::testing::unless_without_packages(apt.refresh(&Silent))?;
        println!("lists: {:?}", start.elapsed());
        Some(Mutex::new(Bench { dir, apt, store }))
    });
    match made {
        Some(made) => Some(made.lock().unwrap_or_else(|e| e.into_inner())),
        None => {
            crate::testing::skip("no apt or no network");
            None
        }
    }
}

impl Bench {
    fn pins(&self, id: AssetId) -> crate::error::Result<Vec<Pin>> {
        Ok(resolve_all(&self.store, &self.apt, &[id], &Silent)?.remove(0).packages)
    }

    /// The pin of one package, as if the store had nothing of it.
    fn absent(&self, name: &str) -> Vec<Pin> {
        let mut pins = self.pins(AssetId::image([name])).unwrap();
        pins.retain(|p| p.package == name);
        pins[0].sha256 = "0".repeat(64);
        pins[0].blake3 = crate::digest::ObjectDigest::new([0; 32]);
        pins
    }

    fn debs(&self, id: AssetId) -> (Vec<Pin>, Vec<PathBuf>) {
        let start = Instant::now();
        let pins = resolve_all(&self.store, &self.apt, std::slice::from_ref(&id), &Timed(start))
            .unwrap()
            .remove(0)
            .packages;
        println!("{id}: {} pins in {:?}", pins.len(), start.elapsed());
        let start = Instant::now();
        let debs = fetch_debs(&self.store, &self.apt, &AssetId::Vmm, &pins, &Silent).unwrap();
        println!("{id}: {} bytes fetched in {:?}", pins.iter().map(|p| p.size).sum::<u64>(), start.elapsed());
        (pins, debs)
    }

    fn out(&self, name: &str) -> PathBuf {
        let out = self.dir.path().join(name);
        let _ = fs::remove_dir_all(&out);
        out
    }
}

fn kernel() -> AssetId {
    AssetId::kernel("linux-image-cloud-amd64")
}

#[test]
fn an_image_resolves_to_its_whole_closure_and_is_fetched_verified() {
    let Some(bench) = bench() else { return };
    // With the lists of the others, and nothing that they fetched.
    let crate::store::testing::Scratch { store, dir: _dir } = crate::store::testing::scratch();
    let heard = Heard::default();
    let id = AssetId::image(["bash", "dash"]);
    let pins = resolve_all(&store, &bench.apt, &[id], &heard).unwrap().remove(0).packages;
    let names: Vec<&str> = pins.iter().map(|p| p.package.as_str()).collect();
    assert!(names.contains(&"bash") && names.contains(&"libc6"), "{names:?}");
    assert!(names.is_sorted());
    assert!(pins.iter().all(|p| p.pool.starts_with("pool/")), "{pins:?}");
    let debs = fetch_debs(&store, &bench.apt, &AssetId::Vmm, &pins, &heard).unwrap();
    for (pin, deb) in pins.iter().zip(&debs) {
        assert_eq!(fs::metadata(deb).unwrap().len(), pin.size);
    }
    let (what, total, bytes) = heard.0.lock().unwrap().clone();
    assert_eq!(what.last().map(String::as_str), Some("downloading packages"));
    assert_eq!(Some(bytes), total, "progress ends at its total");
    assert_eq!(total, Some(pins.iter().map(|p| p.size).sum()));

    let again = Heard::default();
    assert_eq!(fetch_debs(&store, &bench.apt, &AssetId::Vmm, &pins, &again).unwrap(), debs);
    assert!(again.0.lock().unwrap().0.is_empty(), "what the store has is not fetched again");
    assert!(have_debs(&store, &pins));
}

#[test]
fn an_unknown_package_is_a_usage_error_with_a_guess() {
    let Some(bench) = bench() else { return };
    let error = bench.pins(AssetId::image(["bash", "corutils"])).unwrap_err();
    assert_eq!(error.code(), "asset.unknown-package");
    assert!(error.to_string().contains("Unable to locate package corutils"), "{error}");
    assert_eq!(error.help_text(), Some("did you mean coreutils?"));
}

#[test]
fn a_virtual_package_lists_who_provides_it() {
    let Some(bench) = bench() else { return };
    let error = bench.pins(AssetId::image(["awk", "dash"])).unwrap_err();
    assert_eq!(error.code(), "asset.virtual-package", "{error}");
    assert!(
        error.to_string().contains("awk is a virtual package, provided by gawk, mawk, original-awk"),
        "{error}"
    );
    assert_eq!(error.help_text(), Some("name the one that you want, such as \"gawk\""));
}

#[test]
fn names_are_meant_as_they_stand() {
    let Some(bench) = bench() else { return };
    for (name, near) in [("dash-", "dash"), ("dash+", "dash"), ("libgcc.s1", "libgcc-s1")] {
        let error = bench.pins(AssetId::image(["bash", name])).unwrap_err();
        assert_eq!(error.code(), "asset.unknown-package", "{name}: {error}");
        assert_eq!(error.help_text(), Some(format!("did you mean {near}?").as_str()), "{name}");
    }
    // A plus that belongs to a name.
    let pins = bench.pins(AssetId::image(["libstdc++6"])).unwrap();
    assert!(pins.iter().any(|pin| pin.package == "libstdc++6"));
}

#[test]
fn packages_that_conflict_are_named() {
    let Some(bench) = bench() else { return };
    let error = bench.pins(AssetId::image(["exim4-daemon-light", "postfix"])).unwrap_err();
    assert_eq!(error.code(), "asset.unsatisfiable", "{error}");
    assert!(error.to_string().contains("Conflicts"), "{error}");
}

#[test]
fn a_package_without_a_kernel_is_no_kernel() {
    let Some(bench) = bench() else { return };
    let error = bench.pins(AssetId::kernel("dash")).unwrap_err();
    assert_eq!(error.code(), "asset.no-kernel", "{error}");
}

#[test]
fn a_version_that_is_gone_names_update() {
    let Some(bench) = bench() else { return };
    let mut pins = bench.absent("dash");
    pins[0].version = "0.0.1-1".to_owned();
    let error = fetch_debs(&bench.store, &bench.apt, &AssetId::Vmm, &pins, &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.gone", "{error}");
    assert!(error.help_text().unwrap().contains("firegopher update"));
}

#[test]
fn other_bytes_than_pinned_are_refused_and_not_published() {
    let Some(bench) = bench() else { return };
    let pins = bench.absent("libacl1");
    let error = fetch_debs(&bench.store, &bench.apt, &AssetId::Vmm, &pins, &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.digest", "{error}");
    assert!(!have_debs(&bench.store, &pins));
    let left = fs::read_dir(bench.store.home().store().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "no temporary file stays");
}

#[test]
fn a_wrong_size_is_refused() {
    let Some(bench) = bench() else { return };
    let mut pins = bench.pins(AssetId::image(["libattr1"])).unwrap();
    pins.retain(|p| p.package == "libattr1");
    pins[0].size += 1;
    let error = fetch_debs(&bench.store, &bench.apt, &AssetId::Vmm, &pins, &Silent).unwrap_err();
    assert_eq!(error.code(), "asset.digest", "{error}");
}

#[test]
fn pins_of_another_distribution_name_update() {
    let home = Home::new("/nonexistent");
    let apt = Apt::new(&home);
    let Ok(mut origin) = apt.origin() else {
        crate::testing::skip("no os-release");
        return;
    };
    apt.check_origin(&AssetId::Vmm, &origin).unwrap();
    origin = Origin { suite: "sarge".to_owned(), ..origin };
    let error = apt.check_origin(&AssetId::Vmm, &origin).unwrap_err();
    assert_eq!(error.code(), "lock.other-distribution");
    assert!(error.help_text().unwrap().contains("firegopher update"));
}

#[test]
fn a_kernel_becomes_a_tree_with_its_modules_in_load_order() {
    let Some(bench) = bench() else { return };
    let (pins, debs) = bench.debs(kernel());
    assert!(pins.iter().all(|p| p.package.starts_with("linux-image-") && p.size > 1 << 20), "{pins:?}");
    let out = bench.out("kernel");
    let start = Instant::now();
    kernel_tree(&debs, &out).unwrap();
    println!("kernel tree in {:?}", start.elapsed());
    assert_eq!(fs::read(out.join("vmlinux")).unwrap()[..4], *b"\x7fELF");
    let info = kernel::KernelInfo::load(&out).unwrap();
    println!("{info:?}");
    assert!(info.release.ends_with("-amd64"), "{}", info.release);
    let at = |name: &str| info.modules.iter().position(|m| m.ends_with(&format!("-{name}.ko")));
    assert!(at("virtio_blk").is_some() && at("overlay").is_some(), "{info:?}");
    assert!(
        at("virtio_balloon").is_some() && at("virtio-rng").is_some(),
        "modules in Debian's kernel: {info:?}"
    );
    assert!(at("virtio_ring") <= at("virtio") && at("virtio") <= at("virtio_mmio"), "{info:?}");
    assert!(at("failover") <= at("net_failover") && at("net_failover") <= at("virtio_net"), "{info:?}");
    for path in kernel::module_paths(&out).unwrap() {
        assert_eq!(fs::read(&path).unwrap()[..4], *b"\x7fELF", "{}", path.display());
    }
    assert!(fs::read_to_string(out.join("config")).unwrap().contains("CONFIG_VIRTIO_MMIO="));

    // The same kernel as a file: no modules, but it knows its release.
    let again = bench.out("kernel-from-path");
    kernel_from_path(&out.join("vmlinux"), &again).unwrap();
    let from_path = kernel::KernelInfo::load(&again).unwrap();
    assert_eq!((from_path.release, from_path.modules.len()), (info.release, 0));
}

#[test]
fn qemu_runs_from_its_trimmed_tree_and_boots_the_kernel() {
    let Some(bench) = bench() else { return };
    let (pins, debs) = bench.debs(AssetId::Vmm);
    let out = bench.out("qemu");
    let start = Instant::now();
    qemu_tree(&debs, &out).unwrap();
    println!("qemu tree in {:?}: {} pins", start.elapsed(), pins.len());
    let help = qemu(&out, &["-machine", "help"]);
    assert!(help.contains("microvm"), "{help}");

    let (_, kernel_debs) = bench.debs(kernel());
    let kernel = bench.out("boot-kernel");
    kernel_tree(&kernel_debs, &kernel).unwrap();
    let vmlinux = kernel.join("vmlinux");
    let start = Instant::now();
    let console = qemu(&out, &boot_args(&vmlinux));
    println!("no-init boot in {:?}", start.elapsed());
    assert!(console.contains("Kernel panic"), "{console}");
    assert!(console.contains("Linux version"), "{console}");
}

fn boot_args(vmlinux: &Path) -> Vec<&str> {
    // TSC calibration against the PIT hangs on a busy host; any early figure does for a boot that only panics.
    let append =
        "console=ttyS0 panic=-1 nokaslr mitigations=off tsc_early_khz=2500000 tsc=reliable no_timer_check";
    let machine = "microvm,accel=tcg,isa-serial=on,rtc=on,pit=on,pic=on";
    let mut args = vec!["-machine", machine, "-cpu", "qemu64", "-m", "256", "-nodefaults", "-no-user-config"];
    args.extend(["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", vmlinux.to_str().unwrap()]);
    args.extend(["-append", append]);
    // Every device that a VM gets, and the sandbox: none of them may look for a file that the tree lacks.
    args.extend([
        "-device",
        "virtio-serial-device",
        "-device",
        "pvpanic",
        "-device",
        "virtio-net-device,netdev=n",
    ]);
    args.extend([
        "-netdev",
        "user,id=n,restrict=on",
        "-drive",
        "id=d,if=none,format=raw,read-only=on,file=/dev/null",
    ]);
    args.extend(["-device", "virtio-blk-device,drive=d"]);
    args.extend(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    args
}

/// Runs QEMU out of its tree, for at most a minute; what it printed.
fn qemu(tree: &Path, args: &[&str]) -> String {
    let output = std::process::Command::new("timeout")
        .arg("60")
        .arg(tree.join("ld.so"))
        // Nothing of the host's libraries may help.
        .args(["--inhibit-cache", "--library-path"])
        .arg(tree.join("lib"))
        .arg(tree.join("qemu-system-x86_64"))
        .arg("-L")
        .arg(tree.join("share"))
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("QEMU_MODULE_DIR", tree.join("modules"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// On a home of its own: what a first command does, and a second one on another machine with the lock.
#[test]
fn a_lock_made_here_is_fetched_in_one_download_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let ids =
        [kernel(), AssetId::Vmm, AssetId::image(["base-files", "bash", "coreutils", "python3-minimal"])];
    let open = |name: &str| {
        let home = Home::new(dir.path().join(name));
        (Store::open(home.clone()).unwrap(), Apt::new(&home))
    };
    let (store, apt) = open("first");
    let start = Instant::now();
    let resolved = resolve_all(&store, &apt, &ids, &Timed(start));
    let Some(pins) = crate::testing::unless_without_packages(resolved) else { return };
    println!("pinned, cold: {:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(resolve_all(&store, &apt, &ids, &Silent).unwrap(), pins, "resolving is deterministic");
    println!("pinned, warm: {:?}", start.elapsed());
    let mut lock = crate::lock::Lock::default();
    for (id, pins) in ids.iter().zip(&pins) {
        lock.set(id.clone(), pins.clone()).unwrap();
    }
    let all: Vec<Pin> = pins.iter().flat_map(|p| p.packages.clone()).collect();
    let vmm: Vec<&str> = pins[1].packages.iter().map(|p| p.package.as_str()).collect();
    println!("vmm: {}", vmm.join(" "));
    assert!(!vmm.contains(&"adduser") && vmm.contains(&"libc6"), "{vmm:?}");

    let (store, apt) = open("second");
    let start = Instant::now();
    let debs = fetch_debs(&store, &apt, &AssetId::Vmm, &all, &Timed(start)).unwrap();
    println!("{} packages with lists, cold: {:?}", debs.len(), start.elapsed());
    let start = Instant::now();
    assert_eq!(fetch_debs(&store, &apt, &AssetId::Vmm, &all, &Silent).unwrap(), debs);
    println!("{} packages, warm: {:?}", debs.len(), start.elapsed());
}
