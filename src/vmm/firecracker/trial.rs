//! Boots a guest of a few instructions to its end: proof that programs, jail and KVM work together on this host.

use super::stub::Stub;
use crate::error::{Context, Error, Result};
use crate::name::{Name, VmId};
use crate::vmm::jail;
use crate::vmm::spec::{JailSpec, NetSpec, VmSpec, VmmBinary, firecracker_programs};
use crate::vmm::{Ended, backend};
use fs_err as fs;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// It takes some 50 ms.
const PATIENCE: Duration = Duration::from_secs(15);
/// In the arguments that the guest prints.
const PROOF: &str = "firegopher.end=reset";

/// What a trial showed.
#[derive(Debug, Clone)]
pub struct Trial {
    /// From the first check to the guest's end.
    pub took: Duration,
    /// What the guest printed.
    pub console: String,
}

/// Boots the guest with the programs in `dir`, in a jail beneath `scratch` and as `uid`. Leaves nothing.
pub fn trial(dir: &Path, scratch: &Path, uid: u32) -> Result<Trial> {
    let fail = || format!("cannot prepare a trial of {}", dir.display());
    let base = scratch.join(format!(".firegopher-trial-{}", std::process::id()));
    let [firecracker, jailer] = firecracker_programs(dir).map(|path| path.canonicalize().unwrap_or(path));
    let name = |text: &str| Name::new(text).map_err(Error::bug);
    let jail = JailSpec { root: base.join("jail"), uid, gid: uid };
    let spec = VmSpec {
        id: VmId::derive(&name("trial")?, &name(&format!("p{}", std::process::id()))?),
        vmm: VmmBinary::Firecracker { firecracker, jailer },
        kvm: true,
        kernel: base.join("kernel"),
        initramfs: base.join("initramfs"),
        tuning: Default::default(),
        cpus: 1,
        memory: 128 << 20,
        drives: Vec::new(),
        net: NetSpec::None,
        jail: Some(jail.clone()),
    };
    let prepare = || {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        std::fs::DirBuilder::new().mode(0o700).create(&base)?;
        for (path, bytes) in [(&spec.kernel, Stub::Reset.elf()), (&spec.initramfs, vec![0; 512])] {
            fs::write(path, bytes)?;
            fs::set_permissions(path, PermissionsExt::from_mode(0o444))?;
        }
        std::io::Result::Ok(())
    };
    let result = prepare().or_failed("vmm.trial", fail).and_then(|()| run(&spec));
    let cleaned = jail::clean(&jail).and_then(|()| jail::remove_tree(&base));
    result.and_then(|trial| cleaned.map(|()| trial))
}

fn run(spec: &VmSpec) -> Result<Trial> {
    let VmmBinary::Firecracker { firecracker, jailer } = &spec.vmm else {
        return Err(Error::bug("a trial of something else"));
    };
    super::usable(firecracker, jailer)?;
    let begin = Instant::now();
    let mut launched = backend(spec).launch(spec, None)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("vmm.trial", || "cannot start an event loop")?;
    let ended = runtime.block_on(async {
        // An error here means that it is still up; dropping `launched` ends it.
        tokio::time::timeout(PATIENCE, launched.monitor.ended()).await
    });
    let took = begin.elapsed();
    let ended = match ended {
        Ok(ended) => ended.or_failed("vmm.trial", || "cannot watch the VMM")?,
        Err(_) => {
            let text = format!("a guest of a few instructions did not end within {} s", PATIENCE.as_secs());
            return Err(Error::host("vmm.trial", text).help("KVM on this host does not run guests"));
        }
    };
    let mut console = Vec::new();
    // The writer is gone: reading ends by itself.
    let reader = launched.console.reader();
    reader
        .and_then(|reader| reader.take(64 << 10).read_to_end(&mut console))
        .or_failed("vmm.trial", || "cannot read the guest's console")?;
    let console = String::from_utf8_lossy(&console).into_owned();
    match ended {
        Ended::GuestReset if console.contains(PROOF) => Ok(Trial { took, console }),
        Ended::GuestReset => Err(Error::host("vmm.trial", "a guest ended without a word on its console")),
        other => Err(Error::host("vmm.trial", format!("a guest did not run: {other}"))),
    }
}
