//! What is refused before anything is started: drives that cannot be shared, unsafe parents, wrong programs.

use super::*;

#[test]
fn a_writable_drive_on_another_file_system_is_refused_and_a_read_only_one_copied_with_a_word() {
    let elsewhere = Path::new("/dev/shm");
    if !root() {
        return;
    }
    let fake = || [PathBuf::from("/x/firecracker"), PathBuf::from("/x/jailer")];
    let mut vm = vm_of(fake(), "exdev", &Stub::Reset.elf());
    if fs::metadata(elsewhere).unwrap().dev() == fs::metadata(vm.dir.path()).unwrap().dev() {
        crate::testing::skip("no second file system");
        return;
    }
    let other = tempfile::tempdir_in(elsewhere).unwrap();
    let [base, scratch] = ["base", "scratch"].map(|name| other.path().join(name));
    for path in [&base, &scratch] {
        fs::write(path, vec![1; 2 << 20]).unwrap();
    }
    vm.spec.drives[0].path = base;
    let staged = stage::stage(&vm.spec, vm.jail(), Path::new("/x/firecracker"), 1024).unwrap();
    assert!(staged.warnings[0].contains("2 MiB were copied"), "{:?}", staged.warnings);
    assert_eq!(staged.largest, 1 << 20);
    assert_eq!(vm.inside().join(stage::VSOCK.to_owned() + "_1024").metadata().unwrap().uid(), vm.jail().uid);
    vm.clean();
    vm.spec.drives[1].path = scratch;
    let error = stage::stage(&vm.spec, vm.jail(), Path::new("/x/firecracker"), 1024).err().unwrap();
    assert!(error.help_text().unwrap().contains("one file system"), "{error:?}");
    vm.clean();
}

#[test]
fn a_jail_where_others_could_exchange_it_is_refused() {
    if !root() {
        return;
    }
    let mut vm = vm_of(["/x/firecracker".into(), "/x/jailer".into()], "open", &Stub::Reset.elf());
    let open = vm.dir.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    vm.spec.jail.as_mut().unwrap().root = open.join("jail");
    let error = stage::stage(&vm.spec, vm.jail(), Path::new("/x/firecracker"), 1024).err().unwrap();
    assert_eq!(error.code(), "jail.unsafe-parent");
}

#[test]
fn programs_that_cannot_work_are_named_before_anything_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let [firecracker, jailer] = firecracker_programs(dir.path());
    let code = || inspect(&firecracker, &jailer).unwrap_err().code();
    let elf = |machine: u16| {
        let mut header = Stub::Reset.elf();
        header[18..20].copy_from_slice(&machine.to_le_bytes());
        header
    };
    assert_eq!(code(), "vmm.firecracker-missing");
    fs::write(&firecracker, elf(62)).unwrap();
    assert_eq!(code(), "vmm.firecracker-mode");
    fs::set_permissions(&firecracker, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(code(), "vmm.firecracker-missing", "now the jailer");
    fs::write(&jailer, elf(183)).unwrap();
    fs::set_permissions(&jailer, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(code(), "vmm.firecracker-machine");
    fs::write(&jailer, "#!/bin/sh\n").unwrap();
    assert_eq!(code(), "vmm.firecracker-format");
    fs::write(&jailer, elf(62)).unwrap();
    inspect(&firecracker, &jailer).unwrap();
    let dynamic = crate::vmm::program::tests::dynamic("/lib64/ld-linux-x86-64.so.2", 62);
    fs::write(&firecracker, &dynamic).unwrap();
    let error = inspect(&firecracker, &jailer).unwrap_err();
    assert_eq!(error.code(), "vmm.firecracker-dynamic");
    assert!(error.to_string().contains("/lib64/ld-linux-x86-64.so.2 is not in a jail"), "{error}");
    assert!(error.help_text().unwrap().contains("musl"), "{error:?}");
    fs::write(&firecracker, elf(62)).unwrap();
    let odd = dir.path().join("vmm");
    fs::rename(&firecracker, &odd).unwrap();
    assert_eq!(inspect(&odd, &jailer).unwrap_err().code(), "vmm.firecracker-name");
}

#[test]
fn a_kvm_that_cannot_be_opened_is_told_before_anything_is_staged() {
    let dir = tempfile::tempdir().unwrap();
    let absent = kvm_opens(&dir.path().join("kvm")).unwrap_err();
    assert_eq!(absent.code(), "vmm.no-kvm");
    assert!(absent.help_text().unwrap().contains("kvm_intel"), "{absent:?}");
    // A directory opens for nobody's writing, as a device without rights does not.
    let closed = kvm_opens(dir.path()).unwrap_err();
    assert_eq!(closed.code(), "vmm.no-kvm");
    assert!(closed.help_text().unwrap().contains("right to open"), "{closed:?}");
}

#[test]
fn user_networking_and_a_jail_without_root_are_refused() {
    let mut vm = vm_of(["/x/firecracker".into(), "/x/jailer".into()], "rootless", &Stub::Reset.elf());
    vm.spec.net = NetSpec::User { forwards: Vec::new(), mac: [2, 0, 10, 0, 2, 15] };
    let error = backend(&vm.spec).launch(&vm.spec, None).unwrap_err();
    assert!(error.code() == "bug" && error.to_string().contains("no user networking"), "{error}");
    vm.spec.jail = None;
    let error = backend(&vm.spec).launch(&vm.spec, None).unwrap_err();
    assert_eq!(error.code(), "vmm.firecracker-root");
}
