//! The guest's name and names: hostname, /etc/hosts, /etc/resolv.conf. Files are replaced whole, so nothing grows, and
//! by rename, so a symlink in the image is replaced rather than followed.

use crate::failure::{Context, Result};
use firegopher_protocol::RunConfig;
use nix::unistd::sethostname;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Sets the host name and writes the files under `root`. Returns warnings: a workload may live without these files.
pub fn apply(config: &RunConfig, root: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut note = |done: Result<()>| warnings.extend(done.err().map(|f| f.to_string()));
    note(sethostname(&config.hostname).context(|| format!("setting the host name {:?}", config.hostname)));
    let etc = root.join("etc");
    note(fs::create_dir_all(&etc).context(|| format!("creating {}", etc.display())));
    note(replace(&etc.join("hostname"), format!("{}\n", config.hostname).as_bytes(), 0o644));
    note(replace(&etc.join("hosts"), hosts(config).as_bytes(), 0o644));
    note(replace(&etc.join("resolv.conf"), resolv_conf(&config.dns).as_bytes(), 0o644));
    warnings
}

/// The text of /etc/hosts.
fn hosts(config: &RunConfig) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own: Vec<IpAddr> = config.network.iter().flat_map(|n| n.addresses.iter().map(|(ip, _)| *ip)).collect();
    if own.is_empty() {
        // As Debian does for a host without a fixed address.
        text.push_str(&format!("127.0.1.1\t{}\n", config.hostname));
    }
    for ip in own {
        text.push_str(&format!("{ip}\t{}\n", config.hostname));
    }
    for (ip, name) in &config.hosts {
        text.push_str(&format!("{ip}\t{name}\n"));
    }
    text
}

/// The text of /etc/resolv.conf; empty without name servers.
fn resolv_conf(dns: &[IpAddr]) -> String {
    dns.iter().map(|ip| format!("nameserver {ip}\n")).collect()
}

/// Replaces a file by rename.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".firegopher");
    let temporary = Path::new(&temporary);
    let write = || {
        // A leftover of that name may be a symlink: it goes, rather than being written through.
        match fs::remove_file(temporary) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::write(temporary, contents)?;
        fs::set_permissions(temporary, Permissions::from_mode(mode))?;
        fs::rename(temporary, path)
    };
    write().context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::os::unix::fs::symlink;

    fn config() -> RunConfig {
        let mut config = crate::boot::tests::config();
        config.hosts = vec![("172.19.0.6".parse().unwrap(), "db".into())];
        config
    }

    #[test]
    fn hosts_names_localhost_the_guest_and_its_peers() {
        let mut config = config();
        assert!(hosts(&config).contains("127.0.1.1\tguest\n"));
        config.network = Some(firegopher_protocol::Network {
            addresses: vec![("172.19.0.2".parse().unwrap(), 30), ("fd00::2".parse().unwrap(), 64)],
            gateways: vec![],
            mtu: None,
            neighbours: vec![],
        });
        let text = hosts(&config);
        for line in ["127.0.0.1\tlocalhost", "172.19.0.2\tguest", "fd00::2\tguest", "172.19.0.6\tdb"] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
        assert!(!text.contains("127.0.1.1"));
    }

    #[test]
    fn writing_twice_gives_the_same_file() {
        let dir = TempDir::new();
        let path = dir.path().join("hosts");
        for _ in 0..2 {
            replace(&path, hosts(&config()).as_bytes(), 0o644).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), hosts(&config()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_in_the_image_is_replaced_and_its_target_untouched() {
        let dir = TempDir::new();
        let target = dir.path().join("outside");
        fs::write(&target, "precious").unwrap();
        let link = dir.path().join("resolv.conf");
        symlink(&target, &link).unwrap();
        symlink(&target, dir.path().join("resolv.conf.firegopher")).unwrap();
        replace(&link, b"nameserver 9.9.9.9\n", 0o644).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&link).unwrap(), "nameserver 9.9.9.9\n");
    }

    #[test]
    fn without_name_servers_resolv_conf_is_empty() {
        assert_eq!(resolv_conf(&[]), "");
        assert_eq!(resolv_conf(&["9.9.9.9".parse().unwrap()]), "nameserver 9.9.9.9\n");
    }
}
