//! Container images: a base image out of an OCI layout's layers, against `umoci unpack` of the same layout.
//!
//! The image is made of Debian packages (a C compiler, git and python3: about 300 MB in three gzip layers), umoci is
//! one of them too and runs out of its own tree. `umoci unpack` writes files and a listing with their digests; ours
//! writes an ext4 image and its index. Both begin with the layout in the page cache, and both verify the layers by their
//! SHA-256, both as blobs and unpacked. Ours then has the layers in the store (each once, for all images), which is also timed from there on: what
//! a second image of the same layers costs. Of the two only ours syncs what it publishes. The heading gives the sizes of
//! the layers as they are (compressed) and of the image.

#[expect(dead_code, reason = "the other benchmarks use the rest")]
mod common;

use common::{Series, heading, home, rounds, scratch, wanted};
use firegopher::asset::{Apt, Silent, fetch_debs, oci, resolve_all};
use firegopher::home::Home;
use firegopher::image::{BaseSource, Layer, build_base, deb};
use firegopher::lock::AssetId;
use firegopher::store::Store;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const PACKAGES: [&str; 4] = ["gcc", "git", "python3", "umoci"];
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

fn main() {
    if !wanted("unpack") {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: umoci unpack needs root to keep owners");
        return;
    }
    match sample() {
        Ok(sample) => unpack(&sample),
        Err(e) => println!("skipped: {e}"),
    }
}

/// An image and the tool that unpacks it.
struct Sample {
    tools: PathBuf,
    layout: PathBuf,
}

impl Sample {
    fn umoci(&self, args: &[&str]) {
        let libraries = LIBRARIES.map(|dir| self.tools.join(dir).display().to_string());
        let output = Command::new(self.tools.join(LIBRARIES[0]).join("ld-linux-x86-64.so.2"))
            .args(["--library-path", &libraries.join(":")])
            .arg(self.tools.join("usr/bin/umoci"))
            .args(args)
            .output()
            .expect("umoci starts");
        assert!(output.status.success(), "umoci {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Made once and kept below `target/`.
fn sample() -> firegopher::error::Result<Sample> {
    let dir = scratch().join("bench").join("oci");
    let sample = Sample { tools: dir.join("tree"), layout: dir.join("layout") };
    let done = dir.join("made");
    if done.exists() {
        return Ok(sample);
    }
    let _ = fs::remove_dir_all(&dir);
    let home = Home::new(home());
    let (store, apt) = (Store::open(home.clone())?, Apt::new(&home));
    let id = AssetId::image(PACKAGES);
    let pins = resolve_all(&store, &apt, std::slice::from_ref(&id), &Silent)?.remove(0).packages;
    let debs = fetch_debs(&store, &apt, &id, &pins, &Silent)?;
    let parts: Vec<PathBuf> = (0..3).map(|part| dir.join(format!("part-{part}"))).collect();
    for (index, deb) in debs.iter().enumerate() {
        for target in [&sample.tools, &parts[index * parts.len() / debs.len()]] {
            let mut archive = tar::Archive::new(deb::data_tar(deb)?);
            archive.set_preserve_permissions(true);
            archive.unpack(target).expect("a package unpacks");
        }
    }
    let layout = sample.layout.display().to_string();
    let image = format!("{layout}:v1");
    sample.umoci(&["init", "--layout", &layout]);
    sample.umoci(&["new", "--image", &image]);
    for part in &parts {
        sample.umoci(&["insert", "--image", &image, &part.display().to_string(), "/"]);
        fs::remove_dir_all(part).expect("it was made just now");
    }
    sample.umoci(&["gc", "--layout", &layout]);
    fs::write(done, "").expect("target/ can be written to");
    Ok(sample)
}

fn unpack(sample: &Sample) {
    let work = scratch().join("bench").join("oci-work");
    let fresh = || {
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).expect("target/ can be written to");
    };
    fresh();
    let image = format!("{}:v1", sample.layout.display());
    let (mut ours, mut whole, mut theirs) = (Series::default(), Series::default(), Series::default());
    let mut sizes = String::new();
    for round in 0..rounds(7) {
        let umoci = || {
            fresh();
            let begin = Instant::now();
            sample.umoci(&["unpack", "--image", &image, &work.join("bundle").display().to_string()]);
            begin.elapsed()
        };
        // Whoever goes second finds a busier disk: they take turns.
        let mut time = None;
        if round % 2 == 0 {
            time = Some(umoci());
        }
        fresh();
        let home = work.join("home");
        let store = Store::open(Home::new(&home)).expect("a store");
        let begin = Instant::now();
        let local = oci::open_local(&store, &sample.layout, Some("v1")).expect("an image");
        let layers: Vec<Layer> = local.layers.iter().map(|layer| layer.in_store(&store)).collect();
        let taken = Instant::now();
        build_base(BaseSource::Layers(&layers), &work, &work).expect("a base image");
        ours.millis(taken.elapsed());
        whole.millis(begin.elapsed());
        sizes = format!(
            "{} layers of {}, an image of {}",
            layers.len(),
            size(layers.iter().map(|layer| &layer.path)),
            size([&work.join("base.ext4")])
        );
        theirs.millis(time.unwrap_or_else(umoci));
    }
    let _ = fs::remove_dir_all(&work);
    heading(format!("a base image from {sizes}"));
    whole.report("firegopher: from the layout, verified, published, synced", "ms", None);
    ours.report("  of that: layers in the store to base.ext4", "ms", None);
    theirs.report("umoci unpack: from the layout, verified, not synced", "ms", None);
    // The fair one: both begin with the layout and end with what they were asked for.
    whole.over(&theirs).report("firegopher / umoci, from the layout", "", 0.5);
    ours.over(&theirs).report("firegopher / umoci, from layers in the store", "", 0.5);
}

/// Allocated mebibytes.
fn size<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let blocks = |path: &PathBuf| fs::metadata(Path::new(path)).map_or(0, |meta| meta.blocks());
    format!("{} MiB", paths.into_iter().map(blocks).sum::<u64>() >> 11)
}
