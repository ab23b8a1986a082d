use super::*;
use std::process::Command;

fn pidfd(pid: u32) -> OwnedFd {
    pidfd_open(pid as i32).unwrap()
}

extern "C" fn nothing(_: libc::c_int) {}

#[test]
fn a_signal_is_no_end_of_patience() {
    let handler = nix::sys::signal::SigHandler::Handler(nothing);
    // SAFETY: the handler does nothing, and no other test uses this signal.
    unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGURG, handler) }.unwrap();
    let mut child = Command::new("sleep").arg("0.5").spawn().unwrap();
    let watched = pidfd(child.id());
    // SAFETY: takes nothing.
    let waiting = unsafe { libc::pthread_self() } as usize;
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                // SAFETY: that thread waits for this one, so it lives.
                unsafe { libc::pthread_kill(waiting as libc::pthread_t, libc::SIGURG) };
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ended = ends_within(&watched, Duration::from_secs(20));
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(ended.unwrap(), "it ended, and nothing else counts");
    });
    assert!(child.wait().unwrap().success());
}

#[test]
fn patience_has_an_end() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let begin = Instant::now();
    assert!(!ends_within(&pidfd(child.id()), Duration::from_millis(50)).unwrap());
    assert!(begin.elapsed() >= Duration::from_millis(50));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A directory in the place of a jail's root, with a pid file as the jailer leaves it.
fn root(pid_file: impl FnOnce(&Path)) -> (tempfile::TempDir, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    pid_file(&dir.path().join("firecracker.pid"));
    let pinned = File::open(dir.path()).unwrap().into();
    (dir, pinned)
}

fn refusal(pid_file: impl FnOnce(&Path)) -> io::Error {
    let (_dir, root) = root(pid_file);
    adopt(&root, Path::new("firecracker")).map(|(pid, _)| pid).expect_err("no VMM of ours")
}

fn write(text: &str) -> impl FnOnce(&Path) {
    move |path| std::fs::write(path, text).unwrap()
}

#[test]
fn only_a_child_that_the_jailer_named_is_adopted() {
    if !nix::unistd::geteuid().is_root() {
        crate::testing::skip("needs root");
        return;
    }
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let (_dir, root) = root(write(&child.id().to_string()));
    assert_eq!(adopt(&root, Path::new("firecracker")).unwrap().0, child.id() as i32);

    assert_eq!(refusal(|_| ()).kind(), io::ErrorKind::NotFound);
    assert!(refusal(write("")).to_string().contains("names no process"));
    assert!(refusal(write("12 34")).to_string().contains("names no process"));
    assert!(refusal(write("1")).to_string().contains("no child of ours"));
    // Beyond any pid (PID_MAX_LIMIT).
    assert_eq!(refusal(write("2000000000")).raw_os_error(), Some(libc::ESRCH));

    // What the VMM itself could have put there: a file of its own, a link, a FIFO that nobody writes to, and a
    // name that leads out.
    let own = refusal(|path| {
        std::fs::write(path, child.id().to_string()).unwrap();
        std::os::unix::fs::chown(path, Some(1_900_000_000), None).unwrap();
    });
    assert!(own.to_string().contains("not the jailer's"));
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), child.id().to_string()).unwrap();
    let link = refusal(|path| std::os::unix::fs::symlink(elsewhere.path(), path).unwrap());
    assert!(matches!(link.raw_os_error(), Some(libc::ELOOP | libc::EXDEV)), "{link}");
    let fifo = refusal(|path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    });
    assert!(fifo.to_string().contains("not the jailer's"));
    child.kill().unwrap();
    child.wait().unwrap();
}
