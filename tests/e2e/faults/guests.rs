//! Guests that do not come up.

use super::*;

/// A kernel that is entered (by the PVH note that QEMU looks for) and then does nothing.
fn silent_kernel() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2u16.to_le_bytes()); // ET_EXEC
    elf.extend_from_slice(&62u16.to_le_bytes()); // EM_X86_64
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&LOAD.to_le_bytes());
    elf.extend_from_slice(&64u64.to_le_bytes()); // program headers
    elf.extend_from_slice(&0u64.to_le_bytes());
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, size: u64, align: u64| {
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(&5u32.to_le_bytes());
        for word in [offset, address, address, size, size, align] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
    };
    header(1, 0x1000, LOAD, 0x1000, 0x1000); // PT_LOAD
    header(4, 0x1100, LOAD + 0x100, 20, 4); // PT_NOTE
    elf.resize(0x2000, 0);
    elf[0x1000..0x1004].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfc]); // cli; hlt; jmp -4
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&(LOAD as u32).to_le_bytes());
    elf[0x1100..0x1114].copy_from_slice(&note);
    elf
}

#[test]
fn a_guest_that_never_says_hello_is_killed_when_its_time_is_up() {
    let Some(_guests) = guests(1) else { return };
    let project =
        Project::new(&format!("vm \"a\" {{ {SLEEP}; kernel {{ path \"vmlinux\" }}; boot-timeout \"5s\" }}"));
    project.write("vmlinux", silent_kernel());
    let output = project.run(&["up"]).expect(1);
    assert!(output.took < Duration::from_secs(30), "{output:?}");
    output.says("a failed: the guest did not report within 5 s").says("console");
    assert_clean(&project);
}

#[test]
fn a_file_that_is_no_kernel_is_refused_before_a_boot() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP}; kernel {{ path \"vmlinux\" }} }}"));
    let cut = silent_kernel()[..0x1800].to_vec();
    let mut program = silent_kernel();
    program[64 + 56] = 3; // PT_INTERP
    for bytes in [b"no kernel".to_vec(), Vec::new(), b"\x7fELF\x02\x01\x01".to_vec(), cut, program] {
        project.write("vmlinux", bytes);
        let output = project.run(&["up"]).expect(1);
        assert!(output.stderr.contains("vmlinux cannot be used as a kernel"), "{output:?}");
        assert!(output.stderr.contains("help: give it as vmlinux"), "{output:?}");
        assert!(!output.stderr.contains("a failed"), "it was booted: {output:?}");
        assert_clean(&project);
    }
}

#[test]
fn a_kernel_that_qemu_cannot_enter_is_refused_before_a_boot() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new(&format!("vm \"a\" {{ {SLEEP}; kernel {{ path \"vmlinux\" }} }}"));
    let mut kernel = silent_kernel();
    kernel[0x1108] = 1; // XEN_ELFNOTE_ENTRY
    project.write("vmlinux", kernel);
    let output = project.run(&["up"]).expect(64);
    let output = output.says("the kernel vmlinux cannot boot under QEMU").says("CONFIG_PVH=y");
    assert!(!output.stderr.contains("a failed"), "it was booted: {output:?}");
    assert_clean(&project);
}

#[test]
fn workloads_that_cannot_start_are_told_by_name() {
    let Some(_guests) = guests(1) else { return };
    let project = Project::new("vm \"a\" { run \"x\" }");
    project.write("app/run.txt", "no program");
    // What the images tell is told before anything boots, at its place in the manifest.
    for (settings, message) in [
        (r#"run "/no/such""#, "cannot run \"/no/such\": there is no such file"),
        (r#"run "busybocks""#, "there is \"busybox\""),
        (
            r#"run "/app/run.txt"; workload "./app" to="/app""#,
            "cannot run \"/app/run.txt\": it is not executable",
        ),
    ] {
        project.manifest(&format!("vm \"a\" {{ {IMAGE}; {settings} }}"));
        project.run(&["up"]).expect(64).says(message).says("firegopher.kdl:1:").says("cannot be run");
        project.run(&["plan"]).expect(64).says(message);
        project.run(&["run", "--", "/bin/busybox", "true"]).expect(0);
        assert_clean(&project);
    }
    project.run(&["run", "--", "no-such"]).expect(125).says("cannot run \"no-such\"");
    project.manifest(&format!("vm \"a\" {{ {IMAGE}; run \"/bin/busybox\" \"pwd\"; workdir \"/no/where\" }}"));
    project.run(&["run"]).expect(125).says("the working directory \"/no/where\"");
    assert_clean(&project);
    project.run(&["up"]).expect(1).says("a failed: ");
    assert_eq!(project.ps("a").unwrap()["status"], "failed");
    assert_clean(&project);
}

#[test]
fn too_little_memory_is_said() {
    let Some(_guests) = guests(1) else { return };
    let tail = r#"image { debian "busybox-static" }; run "/bin/busybox" "tail" "/dev/zero""#;
    let project = Project::new(&format!("vm \"a\" {{ {tail}; memory \"64MiB\" }}"));
    project.run(&["up"]).expect(64).says("64 MiB of memory are too little for its kernel");
    assert_clean(&project);
    project.manifest(&format!("vm \"a\" {{ {tail}; memory \"128MiB\" }}"));
    project.run(&["up"]).expect(1).says("out of memory: give it more with `memory`");
    project.run(&["run"]).expect(137).says("out of memory: give it more with `memory`");
    assert_clean(&project);
}
