//! Finds the line that says why a VMM died among all that it said.

/// What Firecracker logs last, whatever happened.
const FAREWELL: &str = "Firecracker exiting ";
/// A program in Rust that ends with an error tells it once more, for programmers.
const FOR_PROGRAMMERS: &str = "Error: ";

/// The reason: the last error that was logged, else the last line that says something. As it was said, without the
/// log's time and source.
pub fn reason(said: &str) -> Option<&str> {
    // From the last one on.
    let lines = || said.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let mut telling = lines().filter(|line| !line.contains(FAREWELL) && !line.starts_with(FOR_PROGRAMMERS));
    let error = telling.clone().find_map(|line| logged(line, "ERROR"));
    let error = error.or_else(|| telling.clone().find(|line| is_qemus(line)));
    error.or_else(|| telling.next()).or_else(|| lines().next())
}

/// The message of a line of Firecracker's log: `2026-11-25T22:26:16.494 [ID:THREAD:LEVEL] MESSAGE`.
fn logged<'a>(line: &'a str, level: &str) -> Option<&'a str> {
    let (source, message) = line.split_once(" [")?.1.split_once("] ")?;
    let (_, said) = source.rsplit_once(':')?;
    (said == level).then_some(message)
}

/// Whether QEMU reports an error by this line: `qemu-system-x86_64: …`. Hints follow on lines of their own.
fn is_qemus(line: &str) -> bool {
    let (program, message) = line.split_once(": ").unwrap_or_default();
    program.starts_with("qemu-system") && !message.starts_with("warning: ") && !message.starts_with("info: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Firecracker 1.16.1 says it: its standard error, then its log.
    const REFUSED: &str = "Error: RunWithApi(BuildFromJson(StartMicroVM(GetCpuTemplate(CpuVendorMismatched))))\n\
        2026-11-25T22:26:16.246861129 [id-19:main:ERROR] RunWithApiError error: Failed to build MicroVM from Json: \
        Failed to get CPU template: CPU vendor mismatched between actual CPU and CPU template.\n\
        2026-11-25T22:26:16.246884250 [id-19:main:ERROR] Firecracker exiting with error. exit_code=1\n";

    #[test]
    fn a_refused_configuration_is_told_by_its_cause() {
        let told = "RunWithApiError error: Failed to build MicroVM from Json: \
                    Failed to get CPU template: CPU vendor mismatched between actual CPU and CPU template.";
        assert_eq!(reason(REFUSED), Some(told));
        // Nor does a warning afterwards hide it.
        let warned = format!("{REFUSED}2026-11-25T22:26:17.1 [id-19:fc_vcpu 0:WARN] a vCPU had to go\n");
        assert_eq!(reason(&warned), Some(told));
    }

    #[test]
    fn an_error_of_qemus_is_told_and_not_the_hint_after_it() {
        let said = "qemu-system-x86_64: warning: slow\nqemu-system-x86_64: -device x: Failed to get \"write\" lock\n\
                    Is another process using the image [/drives/02]?\n";
        assert_eq!(reason(said), Some("qemu-system-x86_64: -device x: Failed to get \"write\" lock"));
    }

    #[test]
    fn what_says_no_more_than_one_thing_is_told_as_it_is() {
        assert_eq!(
            reason("qemu: warning: x\nqemu: could not set up a forward\n\n"),
            Some("qemu: could not set up a forward")
        );
        assert_eq!(reason("Error: Exec(NotFound)\n"), Some("Error: Exec(NotFound)"));
        assert_eq!(
            reason("2026 [id:main:ERROR] Firecracker exiting with error. exit_code=1"),
            Some("2026 [id:main:ERROR] Firecracker exiting with error. exit_code=1")
        );
        assert_eq!(reason(" \n"), None);
    }
}
