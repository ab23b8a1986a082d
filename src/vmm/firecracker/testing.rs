//! A Firecracker without its jail, for tests.

use super::config::{BootSource, Config, Entropy, Level, Logger, Machine};
use super::stub::Stub;
use fs_err as fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The Firecracker that tests use; says so when there is none.
pub fn binary() -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("FIREGOPHER_TEST_FIRECRACKER") else {
        crate::testing::skip("no firecracker (FIREGOPHER_TEST_FIRECRACKER names no directory)");
        return None;
    };
    if !fs::exists("/dev/kvm").unwrap_or(false) {
        crate::testing::skip("no /dev/kvm");
        return None;
    }
    Some(PathBuf::from(dir).join("firecracker"))
}

/// Files for one boot of a stub.
pub struct Bare {
    firecracker: PathBuf,
    pub dir: TempDir,
}

/// Ends with the test, also with one that fails.
pub struct Running(Child);

impl std::ops::Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a stub boots from: no drives, no network.
pub fn stub_config(dir: &std::path::Path, args: &str) -> Config {
    Config {
        boot_source: BootSource {
            kernel_image_path: dir.join("kernel"),
            initrd_path: None,
            boot_args: Some(args.to_owned()),
        },
        drives: Vec::new(),
        machine_config: Machine::new(1, 64 << 20).unwrap(),
        network_interfaces: Vec::new(),
        vsock: None,
        entropy: Some(Entropy::default()),
        balloon: None,
        cpu_config: None,
        // Else it logs in the midst of what the guest prints.
        logger: Some(Logger { level: Some(Level::Warning), ..Logger::default() }),
        metrics: None,
    }
}

impl Bare {
    pub fn version(&self) -> super::version::Version {
        super::version::of(&self.firecracker).unwrap()
    }

    pub fn prepare(stub: Stub, args: &str) -> Option<Bare> {
        let firecracker = binary()?;
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("kernel"), stub.elf()).unwrap();
        let bare = Bare { firecracker, dir };
        bare.configure(&stub_config(bare.dir.path(), args));
        Some(bare)
    }

    pub fn configure(&self, config: &Config) {
        fs::write(self.dir.path().join("config.json"), config.to_json()).unwrap();
    }

    pub fn start(&self, args: &[&str]) -> Running {
        self.start_bare(&[&["--config-file", "config.json"], args].concat())
    }

    /// Without the configuration file.
    pub fn start_bare(&self, args: &[&str]) -> Running {
        let out = fs::File::create(self.dir.path().join("console")).unwrap();
        let err = fs::File::create(self.dir.path().join("stderr")).unwrap();
        let child = Command::new(&self.firecracker)
            .current_dir(&self.dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.into_file())
            .stderr(err.into_file())
            .spawn()
            .unwrap();
        Running(child)
    }

    pub fn console(&self) -> String {
        let read =
            |name| String::from_utf8_lossy(&fs::read(self.dir.path().join(name)).unwrap()).into_owned();
        read("console") + &read("stderr")
    }

    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.console().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "no {text:?} in {}", self.console());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// User and system time of a process: fields 14 and 15 of /proc/PID/stat, in ticks (proc(5)).
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
