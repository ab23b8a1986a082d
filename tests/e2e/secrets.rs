//! A secret reaches the guest and nothing else.

use crate::harness::{Project, guests};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[test]
fn a_secret_reaches_the_guest_and_neither_store_state_plan_logs_nor_processes() {
    let Some(_turn) = guests(1) else { return };
    let secret = format!("hunter2-{}-{}", std::process::id(), "do-not-store");
    let project = Project::new(
        r##"
        vm "keeper" {
            secret "API_KEY" env="MY_API_KEY"
            run "sh" "-c" #"echo "sum=$(printf %s "$API_KEY" | sha256sum)"; echo ready; exec sleep 600"#
        }
        "##,
    );
    project.run(&["up", "-d"]).expect(64).says("MY_API_KEY");
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let up = project.command(&["up", "-d"]).env("MY_API_KEY", &secret).output().expect(0);
    let logs = project.wait_log("keeper", "ready\n");
    assert!(logs.contains(&format!("sum={}", sha256(secret.as_bytes()))), "{logs}");
    let plan = project.command(&["plan", "--json"]).env("MY_API_KEY", &secret).output().expect(0);
    let console = project.ok(&["logs", "--console"]);
    for output in [&up, &plan, &console] {
        assert!(!output.stdout.contains(&secret) && !output.stderr.contains(&secret));
    }
    let mut seen = 0;
    for dir in [project.home().join("v1"), project.state_dir()] {
        seen += search(&dir, &secret, begun - 1);
    }
    assert!(seen > 3, "only {seen} files were looked through");
    for process in std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(process.join(file)).unwrap_or_default();
            assert!(!holds(&text, &secret), "{}", process.join(file).display());
        }
    }
    // It is no setting: another value is no other VM until it boots anew.
    project.command(&["plan", "--detailed-exitcode"]).env("MY_API_KEY", "another").output().expect(0);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    let (first, rest) = text.as_bytes().split_first().unwrap();
    let mut at = bytes;
    while let Some(n) = at.iter().position(|b| b == first) {
        at = &at[n + 1..];
        if at.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Looks through every file that changed since `since`; returns how many there were.
fn search(dir: &Path, text: &str, since: i64) -> usize {
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            seen += search(&path, text, since);
        // Sparse disks of other tests' guests are not ours to judge, and large.
        } else if meta.is_file() && meta.ctime() >= since && meta.len() < 64 << 20 {
            seen += 1;
            let bytes = std::fs::read(&path).unwrap_or_default();
            assert!(!holds(&bytes, text), "{} holds the secret", path.display());
        }
    }
    seen
}
