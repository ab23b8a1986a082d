//! Builds the guest's PID 1 as a static release binary and hands its path and digest to the crate as
//! `FIREGOPHER_INIT` and `FIREGOPHER_INIT_BLAKE3`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    for path in ["guest", "Cargo.lock", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // OUT_DIR is TARGET_DIR/[TRIPLE/]PROFILE/build/PACKAGE-HASH/out. One directory for all profiles: the guest
    // is always a release build, so `cargo build` and `cargo test` share it.
    let shared = out
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|n| n == "build"))
        .and_then(|dir| dir.parent()?.parent());
    let target_dir = shared.unwrap_or(&out).join("guest");
    let init = build(&root, &target_dir);
    let copy = out.join("init");
    fs::copy(&init, &copy).unwrap_or_else(|e| panic!("cannot copy {}: {e}", init.display()));
    println!("cargo::rustc-env=FIREGOPHER_INIT={}", copy.display());
    // Part of step keys: hashed here once, instead of by every command.
    let bytes = fs::read(&copy).unwrap_or_else(|e| panic!("cannot read {}: {e}", copy.display()));
    println!("cargo::rustc-env=FIREGOPHER_INIT_BLAKE3={}", blake3::hash(&bytes).to_hex());
}

/// A static position-dependent binary: nothing to relocate, and no dynamic loader in the initramfs.
fn build(root: &Path, target_dir: &Path) -> PathBuf {
    let home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|h| format!("{h}/.cargo")))
        .unwrap_or_default();
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
        // The same bytes from any checkout: the init's digest is part of step keys.
        format!("--remap-path-prefix={}=.", root.display()),
        format!("--remap-path-prefix={home}=cargo"),
    ];
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--locked", "--package=firegopher-init", "--profile=guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS");
    // Settings of the outer build (clippy's wrapper above all) must not reach this one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_FEATURE_")
            || name == "RUSTC_WORKSPACE_WRAPPER"
            || name == "RUSTC_WRAPPER"
            || name == "CLIPPY_ARGS"
        {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().unwrap_or_else(|e| panic!("cannot run cargo for the guest init: {e}"));
    assert!(status.success(), "building the guest init failed: {status}");
    target_dir.join(TARGET).join("guest/firegopher-init")
}
