//! The control channel and the balloon by a real guest: a small kernel of our own (testdata/guests/vsock.rs) that
//! drives the virtio devices, connects to the host and speaks the protocol. Built with the toolchain's rustc, else skipped.

use super::*;
use firegopher::supervise::Stream;
use firegopher::vmm::firecracker::api::{Api, BalloonUpdate};
use firegopher::vmm::tuning::Balloon;
use firegopher_protocol::{ExitRecord, FromGuest, PROTOCOL, channel, encode_message, encode_stream};
use std::process::Command;

/// Where it is linked to: Firecracker takes no kernel below 1 MiB.
const ADDRESS: &str = "0x200000";

/// The guest's kernel, as an ELF file; `None`, with a word about it, where it cannot be built.
fn kernel(dir: &Path) -> Option<PathBuf> {
    let out = dir.join("vsock-guest");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/guests/vsock.rs");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "-C",
        "panic=abort",
        "-C",
        "opt-level=s",
        "-C",
        "relocation-model=static",
    ]);
    let base = format!("-Wl,--image-base={ADDRESS},--build-id=none");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", &base] {
        rustc.arg("-C").arg(format!("link-arg={arg}"));
    }
    match rustc.arg("-o").arg(&out).arg(&source).output() {
        Ok(built) if built.status.success() => Some(out),
        Ok(built) => panic!("{}", String::from_utf8_lossy(&built.stderr)),
        Err(e) => {
            skip(format!("no rustc to build the guest with: {e}"));
            None
        }
    }
}

/// What the guest says at once, and what it says when the host has answered.
fn script(first: &[FromGuest], second: &[FromGuest], printed: &[u8]) -> Vec<u8> {
    let frames = |messages: &[FromGuest]| {
        let mut out = Vec::new();
        for message in messages {
            encode_message(message, &mut out).unwrap();
        }
        out
    };
    let first = frames(first);
    // Its exit comes last: output is whole before it.
    let (exit, before) = second.split_last().unwrap();
    let mut then = frames(before);
    encode_stream(channel::STDOUT, printed, &mut then);
    then.extend(frames(std::slice::from_ref(exit)));
    let sized = |bytes: Vec<u8>| [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat();
    [sized(first), sized(then)].concat()
}

#[test]
fn a_guest_speaks_over_vsock_and_its_workload_ends_with_its_code() {
    let Some(project) = project() else { return };
    let Some(kernel) = kernel(project.dir.path()) else { return };
    // More than a packet and than the device's ring holds at once.
    let printed: Vec<u8> =
        (0..40_000).flat_map(|n: u32| format!("line {n}\n").into_bytes()).take(60_000).collect();
    let record = ExitRecord { code: Some(7), ..ExitRecord::default() };
    let script = script(
        &[FromGuest::Hello { protocol: PROTOCOL, kernel: "our-own".into() }],
        &[FromGuest::Started { pid: 2 }, FromGuest::Exit(record)],
        &printed,
    );
    let mut spec = project.spec("speaking", "halting");
    spec.vm_spec.kernel = kernel;
    spec.vm_spec.initramfs = project.dir.path().join("script");
    std::fs::write(&spec.vm_spec.initramfs, script).unwrap();
    for file in [&spec.vm_spec.kernel, &spec.vm_spec.initramfs] {
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o444)).unwrap();
    }
    let mut client = project.up(&spec);
    let (mut heard, mut ran) = (Vec::new(), false);
    let outcome = loop {
        match client.next_event().unwrap().expect("an end comes first") {
            Event::Ended(outcome) => break outcome,
            Event::Output { stream: Stream::Stdout, bytes } => heard.extend(bytes),
            Event::Phase(supervise::Phase::Running) => ran = true,
            Event::Warning(text) => panic!("{text}"),
            _ => {}
        }
    };
    let console = std::fs::read_to_string(spec.dir.join("console.log")).unwrap_or_default();
    assert_eq!((outcome.reason, outcome.exit_code()), (Reason::Exited, 7), "{outcome:?}\n{console}");
    assert!(ran && heard == printed, "{} of {} bytes arrived", heard.len(), printed.len());
    assert!(
        console.contains("connected") && console.contains("answered") && console.contains("done"),
        "{console}"
    );
    let state = state(&spec);
    assert_eq!(state.kernel.as_deref(), Some("our-own"));
    let at = |event: &str| (state.events[event].mono_ns - state.events["vmm-exec"].mono_ns) / 1000;
    println!("hello {} us, exit {} us, end {} us after the VMM's exec", at("hello"), at("exit"), at("ended"));
    project.assert_clean(&spec);
}

#[test]
fn a_guest_gives_memory_to_its_balloon_and_more_of_it_when_the_api_asks() {
    let Some(project) = project() else { return };
    let version = firegopher::vmm::firecracker::version::of(&project.programs[0]).unwrap();
    if !version.has(firegopher::vmm::firecracker::version::Need::Balloon) {
        skip(format!("the balloon of Firecracker {version} gives nothing back"));
        return;
    }
    let Some(kernel) = kernel(project.dir.path()) else { return };
    let mut spec = project.spec("giving", "halting");
    spec.vm_spec.kernel = kernel;
    std::fs::set_permissions(&spec.vm_spec.kernel, PermissionsExt::from_mode(0o444)).unwrap();
    spec.vm_spec.tuning.balloon =
        Some(Balloon { amount: 2 << 20, deflate_on_oom: false, free_page_reporting: false });
    let mut client = project.up(&spec);
    wait_for_text(&spec, "given\n");
    let jail = super::stopping::jail_of(&spec.dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let api = Api::open(&jail.join("run/api.sock")).unwrap();
        api.update_balloon(&BalloonUpdate { amount_mib: 5 }).await.unwrap();
    });
    let outcome = loop {
        if let Event::Ended(outcome) = client.next_event().unwrap().expect("an end comes first") {
            break outcome;
        }
    };
    let console = std::fs::read_to_string(spec.dir.join("console.log")).unwrap();
    assert!(console.ends_with("given\ngiven\ndone\n"), "{outcome:?}\n{console}");
    let metrics = supervise::logs::last_metrics(&spec.dir).unwrap().unwrap();
    // 2 MiB, then 3 more, a MiB at once.
    assert_eq!(metrics["balloon"]["inflate_count"], 5, "{}", metrics["balloon"]);
    project.assert_clean(&spec);
}
