//! Asks a QEMU that the manifest names what it is, before anything is built on it.

use super::firmware;
use crate::error::{Context, Error, Result};
use crate::vmm::ask::ask;
use crate::vmm::program;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A machine without anything in it, and the monitor on standard input and output.
const ARGS: [&str; 8] = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"];
/// QMP: its architecture, then its machines (qapi/machine.json).
const QUESTIONS: &str = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-target\"}\n\
                         {\"execute\":\"query-machines\"}\n{\"execute\":\"quit\"}\n";
const HELP: &str = "name a `qemu-system-x86_64` that has the machine `microvm`, or write `vmm \"qemu\"` without a path: \
                    it comes out of Debian's packages";

/// Whether `program` is a QEMU for x86_64 that has microvms, and where it keeps the firmware for them.
///
/// # Errors
/// `vmm.not-qemu`, with what it is instead; `vmm.qemu-cannot-run`; `vmm.no-firmware`.
pub fn identify(program: &Path) -> Result<PathBuf> {
    let shown = program.display();
    if let Some(fault) = program::fault(program) {
        return Err(Error::host("vmm.qemu-cannot-run", format!("{shown} cannot be run: {fault}")).help(HELP));
    }
    let said = ask(program, &ARGS, QUESTIONS)
        .or_host("vmm.qemu-cannot-run", || format!("cannot ask {shown} what it is"))
        .map_err(|e| e.help(HELP))?;
    match lack(&String::from_utf8_lossy(&said)) {
        None => firmware::find(program),
        Some(lack) => Err(Error::usage("vmm.not-qemu", format!("{shown} {lack}")).help(HELP)),
    }
}

/// What is missing in these answers.
fn lack(said: &str) -> Option<String> {
    let answers: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if !answers.iter().any(|answer| answer["QMP"].is_object()) {
        return Some("is no QEMU: it has no monitor".to_owned());
    }
    let arch = answers.iter().find_map(|answer| answer["return"]["arch"].as_str()).unwrap_or("nothing known");
    if arch != "x86_64" {
        return Some(format!("emulates {arch}, not x86_64"));
    }
    let mut machines = answers.iter().filter_map(|answer| answer["return"].as_array()).flatten();
    let microvm = machines.any(|machine| machine["name"] == "microvm");
    (!microvm).then(|| "has no machine `microvm`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::PermissionsExt;

    /// The message about a program that is this script.
    fn refusal(script: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let error = identify(&path).unwrap_err();
        assert!(error.help_text().unwrap().contains("qemu-system-x86_64"), "{error:?}");
        assert_eq!(error.code(), "vmm.not-qemu");
        error.to_string()
    }

    #[test]
    fn what_is_no_qemu_for_microvms_is_told_what_it_lacks() {
        assert!(refusal("exit 0").contains("is no QEMU"));
        assert!(refusal("exec yes").contains("is no QEMU"), "nor does it hold up anybody");
        let greeting = "echo '{\"QMP\": {\"version\": {}}}'";
        assert!(refusal(greeting).contains("nothing known"));
        let other = format!("{greeting}; echo '{{\"return\": {{\"arch\": \"aarch64\"}}}}'");
        assert!(refusal(&other).contains("emulates aarch64, not x86_64"));
        let old = format!(
            "{greeting}; echo '{{\"return\": {{\"arch\": \"x86_64\"}}}}'; echo '{{\"return\": [{{\"name\": \"pc\"}}]}}'"
        );
        assert!(refusal(&old).contains("has no machine `microvm`"));
        let absent = identify(Path::new("/nowhere/qemu")).unwrap_err();
        assert_eq!(absent.code(), "vmm.qemu-cannot-run");
    }

    #[test]
    fn a_real_one_is_known() {
        let Some(files) = crate::testing::artifacts() else { return };
        let (dir, tree) = (tempfile::tempdir().unwrap(), files.qemu.display());
        let script = dir.path().join("qemu-system-x86_64");
        let text = format!(
            "#!/bin/sh\nexport QEMU_MODULE_DIR={tree}/modules\n\
             exec {tree}/ld.so --library-path {tree}/lib {tree}/qemu-system-x86_64 -L {tree}/share \"$@\"\n"
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let firmware = identify(&script).unwrap();
        assert!(firmware.starts_with(files.qemu.join("share")), "{}", firmware.display());
    }
}
