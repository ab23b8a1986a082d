//! How many descriptors this process may have open. Most hosts grant far more than what holds at first (1024): that is
//! for programs that use select(2), which ours does not.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::sync::OnceLock;

/// The limits before they were raised.
static GIVEN: OnceLock<(u64, u64)> = OnceLock::new();

/// Raises what holds to what is granted. Programs that are started get back what held: see [`given`].
pub(crate) fn raise() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let given = *GIVEN.get_or_init(|| (soft, hard));
    if given.0 < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// What holds now.
pub(crate) fn limit() -> u64 {
    // The least that any system has.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft)
}

/// The soft and the hard limit that held before `raise`, for programs that this one starts.
pub(crate) fn given() -> Option<(u64, u64)> {
    GIVEN.get().copied()
}

#[cfg(test)]
mod tests {
    use crate::vmm::{Spawn, spawn};
    use std::io::Read;
    use std::process::Command;

    /// Runs in a process of its own, as limits are a process's.
    #[test]
    fn what_holds_becomes_what_is_granted_and_programs_get_back_what_held() {
        const ALONE: &str = "FIREGOPHER_TEST_DESCRIPTORS";
        if std::env::var_os(ALONE).is_none() {
            let name =
                "descriptors::tests::what_holds_becomes_what_is_granted_and_programs_get_back_what_held";
            let run = format!("ulimit -Sn 300; ulimit -Hn 600; exec \"$0\" --exact {name}");
            let this = std::env::current_exe().unwrap();
            let output = Command::new("sh").args(["-c", &run]).arg(this).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        assert_eq!((super::limit(), super::given()), (300, None));
        for _ in 0..2 {
            super::raise().unwrap();
            assert_eq!((super::limit(), super::given()), (600, Some((300, 600))));
        }
        let mut spawned = spawn(Spawn {
            argv: ["/bin/sh", "-c", "ulimit -Sn >&2; ulimit -Hn >&2"].map(Into::into).to_vec(),
            env: Vec::new(),
            keep: Vec::new(),
            stdio: None,
            netns: None,
            no_network: false,
            cgroups: &[],
            chroot: None,
            identity: None,
        })
        .unwrap();
        assert!(spawned.child.wait().unwrap().success());
        let mut said = [0; 64];
        let n = std::fs::File::from(spawned.stderr).read(&mut said).unwrap();
        assert_eq!(String::from_utf8_lossy(&said[..n]), "300\n600\n");
    }
}
