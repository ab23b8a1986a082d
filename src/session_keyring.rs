//! Session keyrings: what a caller's session holds (tickets, login keys, keys of encrypted disks) is not for a process
//! that handles what others made.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Leaves the session keyring that this thread inherited for a new one without a name and without keys. Whatever it
/// starts from then on inherits that one. Makes a system call and nothing else, so it may run between fork and exec.
///
/// A kernel without keyrings has nothing to leave, and one that forbids keyctl(2) forbids reading keys as well: both
/// are as good. Not in a thread whose relatives go on: the others of its process keep theirs.
///
/// # Errors
/// The kernel's, such as EDQUOT where a user has made too many keys.
pub fn leave() -> io::Result<()> {
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: keyctl(2) takes a number and a null pointer here, which asks for a keyring without a name.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, no_name) };
    if joined >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => Ok(()),
        _ => Err(error),
    }
}

/// Has `command` leave its caller's session keyring before it is executed.
pub fn isolate(command: &mut Command) -> &mut Command {
    // SAFETY: `leave` makes a system call and neither allocates nor locks.
    unsafe { command.pre_exec(leave) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::ffi::CString;

    /// Names the key that the test's child looks for.
    const SOUGHT: &str = "FIREGOPHER_TEST_KEY";
    /// The child's test, for `--exact`.
    const CHILD: &str = "session_keyring::tests::a_child_looks_for_a_key";

    /// Gives this thread a session keyring of its own with a key in it; `None` where there are no keyrings.
    pub(crate) fn session_with_key(name: &str) -> Option<()> {
        leave().unwrap();
        let name = CString::new(name).unwrap();
        let (value, session) = (b"secret", libc::KEY_SPEC_SESSION_KEYRING);
        // SAFETY: strings that end with a zero, and a value of the length that is told.
        let added = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"user".as_ptr(),
                name.as_ptr(),
                value.as_ptr(),
                value.len(),
                session,
            )
        };
        if added < 0 {
            crate::testing::skip(format!("no keyrings here: {}", io::Error::last_os_error()));
            return None;
        }
        Some(())
    }

    /// Whether the key that the environment names is in the session keyring. Not a test by itself.
    #[test]
    fn a_child_looks_for_a_key() {
        if let Ok(name) = std::env::var(SOUGHT) {
            look(&name);
        }
    }

    /// Prints whether the session keyring has this key.
    pub(crate) fn look(name: &str) {
        let name = CString::new(name).unwrap();
        let (search, session) = (libc::KEYCTL_SEARCH, libc::KEY_SPEC_SESSION_KEYRING);
        // SAFETY: numbers and strings that end with a zero.
        let found = unsafe {
            libc::syscall(libc::SYS_keyctl, search, session, c"user".as_ptr(), name.as_ptr(), 0_usize)
        };
        let error = io::Error::last_os_error();
        println!("child: {}", if found >= 0 { "found".to_owned() } else { error.to_string() });
    }

    /// What this very binary prints as a child that looks for `name`.
    pub(crate) fn looking_for(
        name: &str,
    ) -> (Vec<std::ffi::OsString>, Vec<(&'static str, std::ffi::OsString)>) {
        let exe = std::env::current_exe().unwrap().into_os_string();
        let words = ["--exact", CHILD, "--nocapture", "--test-threads=1"].map(Into::into);
        (std::iter::once(exe).chain(words).collect(), vec![(SOUGHT, name.into())])
    }

    #[test]
    fn a_key_of_the_callers_session_is_out_of_reach_once_it_is_left() {
        let look = |isolated: bool| {
            let (argv, env) = looking_for("firegopher-left");
            let mut command = Command::new(&argv[0]);
            command.args(&argv[1..]).envs(env);
            if isolated {
                isolate(&mut command);
            }
            let output = command.output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // A thread has a session keyring of its own, which ends with it.
        let told = std::thread::spawn(move || {
            session_with_key("firegopher-left").map(|()| (look(false), look(true)))
        });
        let Some((inherited, isolated)) = told.join().unwrap() else { return };
        assert!(inherited.contains("child: found"), "a child inherits it otherwise: {inherited}");
        assert!(isolated.contains("child: ") && !isolated.contains("found"), "{isolated}");
    }
}
