//! umoci, skopeo and docker-registry out of Debian packages, unpacked beside the shared test home and run from there.

use fs_err as fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const PACKAGES: [&str; 3] = ["docker-registry", "skopeo", "umoci"];
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// A directory with the tools and all that they need.
pub struct Tools(PathBuf);

/// The tools; where they cannot be had, says why and gives none.
pub fn tools() -> Option<&'static Tools> {
    static TOOLS: OnceLock<Option<Tools>> = OnceLock::new();
    TOOLS.get_or_init(unpack).as_ref()
}

fn unpack() -> Option<Tools> {
    let debs = crate::testing::debs(&PACKAGES)?;
    let names: Vec<String> = debs.iter().map(|deb| deb.display().to_string()).collect();
    let digest = blake3::hash(names.join("\n").as_bytes()).to_hex();
    let home = crate::testing::home();
    let dir = home.root().with_file_name(format!("oci-tools-{}", &digest[..16]));
    let _guard = crate::store::lock_file(&home.root().join("oci-tools.guard"), &|_| ()).unwrap();
    let done = dir.join("unpacked");
    if !done.exists() {
        for deb in &debs {
            let mut archive = ::tar::Archive::new(crate::image::deb::data_tar(deb).unwrap());
            archive.set_preserve_mtime(false);
            archive.unpack(&dir).unwrap();
        }
        fs::write(&done, "").unwrap();
    }
    Some(Tools(dir))
}

impl Tools {
    /// A tool, with the libraries of its own distribution and nothing of the user's settings.
    pub fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(self.0.join(LIBRARIES[0]).join("ld-linux-x86-64.so.2"));
        let libraries = LIBRARIES.map(|dir| self.0.join(dir).display().to_string());
        command.arg("--library-path").arg(libraries.join(":")).arg(self.0.join("usr/bin").join(tool));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        command
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
