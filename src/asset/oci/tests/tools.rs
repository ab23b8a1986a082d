//! umoci, skopeo and docker-registry out of Debian packages, unpacked beside the shared test home and run from there.

use crate::testing::programs::{self, Programs};
use fs_err as fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static PACKAGES: [&str; 3] = ["docker-registry", "skopeo", "umoci"];
/// The tools and all that they need.
pub struct Tools(Programs);

/// The tools; where they cannot be had, says why and gives none.
pub fn tools() -> Option<&'static Tools> {
    static TOOLS: OnceLock<Option<Tools>> = OnceLock::new();
    TOOLS.get_or_init(|| programs::of_packages(&PACKAGES).map(Tools)).as_ref()
}

impl Tools {
    /// A tool, with nothing of the user's settings.
    pub fn command(&self, tool: &str) -> Command {
        self.0.command(tool)
    }

    /// Runs a tool to its end, which must be a good one.
    pub fn run(&self, tool: &str, args: &[&str]) {
        let output = self.command(tool).args(args).output().unwrap();
        assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Copies an image with skopeo.
    pub fn copy(&self, more: &[&str], from: &str, to: &str) {
        let mut args =
            vec!["--insecure-policy", "--tmpdir", "/tmp", "copy", "--quiet", "--dest-tls-verify=false"];
        args.extend(more);
        args.extend([from, to]);
        self.run("skopeo", &args);
    }

    /// A registry on loopback that keeps its blobs in `dir`; `auth` is the section of that name.
    pub fn registry(&self, dir: &Path, auth: &str) -> RealRegistry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{address}'}}\n{auth}",
            dir.join("registry").display()
        );
        fs::write(dir.join("registry.yml"), config).unwrap();
        let mut child = self
            .command("docker-registry")
            .arg("serve")
            .arg(dir.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = child.stderr.take().unwrap();
        // Read to its end, or the registry would stop at a full pipe.
        std::thread::spawn(move || {
            BufReader::new(said).lines().map_while(Result::ok).for_each(|l| println!("{l}"))
        });
        let begun = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the registry does not listen");
            assert!(child.try_wait().unwrap().is_none(), "the registry has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        RealRegistry { address, child }
    }
}

/// A running docker-registry, killed when dropped.
pub struct RealRegistry {
    pub address: String,
    child: Child,
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
