use super::*;
use crate::vmm::firecracker::config;
use crate::vmm::firecracker::stub::Stub;
use crate::vmm::firecracker::testing::{Bare, stub_config};
use std::os::unix::net::UnixListener;
use std::time::Instant;
use tempfile::TempDir;

#[test]
fn a_running_firecracker_answers() {
    // A path longer than the 107 bytes of sun_path is reached all the same.
    let Some(bare) = Bare::prepare(Stub::Halt, "api=1") else { return };
    let mut child = bare.start(&["--api-sock", "api.sock", "--id", "vm-1"]);
    bare.wait_for("api=1");
    let deep = bare.dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    std::fs::rename(bare.dir.path().join("api.sock"), deep.join("api.sock")).unwrap();
    let api = Api::open(&deep.join("api.sock")).unwrap();
    let outcome = block_on(async {
        running(&api).await?;
        let info = api.info().await?;
        assert_eq!((info.id.as_str(), info.state), ("vm-1", RunState::Running));
        assert_eq!(api.version().await?.to_string(), info.vmm_version);
        api.pause().await?;
        assert_eq!(api.info().await?.state, RunState::Paused);
        api.resume().await?;
        let first = Instant::now();
        assert_eq!(api.info().await?.state, RunState::Running);
        println!("one request: {:?}", first.elapsed());
        api.action(Action::SendCtrlAltDel).await?;
        for refused in [
            api.update_drive(&DriveUpdate { drive_id: "drive7".to_owned(), ..DriveUpdate::default() }).await,
            api.update_network(&NetworkUpdate { iface_id: "eth9".to_owned(), ..NetworkUpdate::default() })
                .await,
            api.update_balloon(&BalloonUpdate { amount_mib: 1 }).await,
            api.update_machine(&MachineUpdate { vcpu_count: Some(2), ..MachineUpdate::default() }).await,
            api.action(Action::InstanceStart).await,
        ] {
            let refused = refused.unwrap_err();
            println!("{refused}");
            assert_eq!(refused.code(), "firecracker.api-fault");
        }
        Ok::<_, Error>(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    outcome.unwrap();
    let dead = block_on(api.info()).unwrap_err();
    assert_eq!(dead.code(), "firecracker.api-dead", "{dead}");
    assert!(dead.to_string().contains("api.sock"), "{dead}");
}

/// Waits for it: the console speaks before the API says that the guest runs.
async fn running(api: &Api) -> Result<()> {
    let start = Instant::now();
    while api.info().await?.state != RunState::Running {
        assert!(start.elapsed() < PATIENCE, "it never runs");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Waits until there is a socket that answers.
async fn answering(path: &Path) -> Api {
    let start = Instant::now();
    loop {
        match Api::open(path) {
            Ok(api) if api.info().await.is_ok() => return api,
            other => assert!(start.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_machine_can_be_changed_until_it_starts() {
    let Some(bare) = Bare::prepare(Stub::Halt, "") else { return };
    let _child = bare.start_bare(&["--api-sock", "api.sock"]);
    let outcome = block_on(async {
        let api = answering(&bare.dir.path().join("api.sock")).await;
        assert_eq!(api.info().await?.state, RunState::NotStarted);
        let update = MachineUpdate { vcpu_count: Some(2), mem_size_mib: Some(96) };
        api.update_machine(&update).await?;
        let told: serde_json::Value = api.get("/machine-config").await?;
        assert_eq!((told["vcpu_count"].as_u64(), told["mem_size_mib"].as_u64()), (Some(2), Some(96)));
        let odd = MachineUpdate { vcpu_count: Some(33), ..MachineUpdate::default() };
        assert_eq!(api.update_machine(&odd).await.unwrap_err().code(), "firecracker.api-fault");
        let nothing_to_boot = api.action(Action::InstanceStart).await.unwrap_err();
        assert_eq!(nothing_to_boot.code(), "firecracker.api-fault");
        api.send("PUT", "/boot-source", &stub_config(bare.dir.path(), "started=1").boot_source).await?;
        api.action(Action::InstanceStart).await?;
        running(&api).await?;
        assert_eq!(
            api.update_machine(&update).await.unwrap_err().code(),
            "firecracker.api-fault",
            "too late"
        );
        Ok::<_, Error>(())
    });
    outcome.unwrap();
    bare.wait_for("started=1");
}

#[test]
fn a_network_devices_limits_change_while_its_guest_runs() {
    use crate::net::netns::Netns;
    use crate::net::tap::{self, TapConfig};
    let Some(bare) = Bare::prepare(Stub::Halt, "") else { return };
    if !nix::unistd::geteuid().is_root() {
        crate::testing::skip("needs root");
        return;
    }
    let (ns, mac) = (Netns::create().unwrap(), [6, 0, 172, 19, 0, 2]);
    let (host, guest) = ([172, 19, 0, 1].into(), [172, 19, 0, 2].into());
    let name = "fg-api".to_owned();
    let (owner, persist) = (None, true);
    let tap = TapConfig { name: name.clone(), host, guest, mac, owner, persist, mtu: None };
    drop(tap::create(&ns, &tap).unwrap());
    let mut config = stub_config(bare.dir.path(), "network=1");
    let mut spec = config::tests::spec();
    spec.drives.clear();
    spec.net = crate::vmm::spec::NetSpec::Tap { name, host, guest, mac };
    let paths = config::JailPaths { drives: Vec::new(), ..config::tests::paths() };
    config.network_interfaces = config::config(&spec, &paths, "").unwrap().network_interfaces;
    bare.configure(&config);
    let _child = ns.run_in(|| bare.start(&["--api-sock", "api.sock"])).unwrap();
    bare.wait_for("network=1");
    let limits = |bytes: u64| {
        let bucket = config::TokenBucket { size: bytes, one_time_burst: None, refill_time: 1000 };
        Some(config::RateLimiter { bandwidth: Some(bucket), ops: None })
    };
    let outcome = block_on(async {
        let api = Api::open(&bare.dir.path().join("api.sock"))?;
        running(&api).await?;
        let before: serde_json::Value = api.get("/vm/config").await?;
        assert!(before["network-interfaces"][0]["rx_rate_limiter"].is_null(), "{before}");
        let update = NetworkUpdate {
            iface_id: "eth0".to_owned(),
            rx_rate_limiter: limits(1 << 20),
            tx_rate_limiter: limits(2 << 20),
        };
        api.update_network(&update).await?;
        let after: serde_json::Value = api.get("/vm/config").await?;
        let size = |limiter: &str| after["network-interfaces"][0][limiter]["bandwidth"]["size"].as_u64();
        assert_eq!((size("rx_rate_limiter"), size("tx_rate_limiter")), (Some(1 << 20), Some(2 << 20)));
        Ok::<_, Error>(())
    });
    outcome.unwrap();
}

#[test]
fn every_device_is_taken_and_can_be_changed() {
    let Some(bare) = Bare::prepare(Stub::Halt, "devices=1") else { return };
    let path = |name: &str| bare.dir.path().join(name);
    for disk in ["base", "scratch", "other"] {
        std::fs::File::create(path(disk)).unwrap().set_len(1 << 20).unwrap();
    }
    let mut config = crate::vmm::firecracker::schema_tests::full();
    config.boot_source = stub_config(bare.dir.path(), "devices=1").boot_source;
    config.drives.truncate(2);
    config.drives[0].path_on_host = path("base");
    config.drives[1].path_on_host = path("scratch");
    config.vsock.as_mut().unwrap().uds_path = path("vsock");
    config.metrics.as_mut().unwrap().metrics_path = path("metrics");
    config.logger.as_mut().unwrap().log_path = Some(path("log"));
    config.logger.as_mut().unwrap().module = None;
    // A tap, huge pages and an Intel CPU are the host's matter.
    config.network_interfaces.clear();
    config.machine_config = config::Machine { huge_pages: None, cpu_template: None, ..config.machine_config };
    config.cpu_config = None;
    if let Err(e) = crate::vmm::firecracker::version::check(bare.version(), &config.needs()) {
        return crate::testing::skip(e);
    }
    bare.configure(&config);
    let mut child = bare.start(&["--api-sock", "api.sock"]);
    bare.wait_for("devices=1");
    let api = Api::open(&path("api.sock")).unwrap();
    let outcome = block_on(async {
        running(&api).await?;
        let limits = config.drives[1].rate_limiter.clone();
        let drive = |path_on_host| DriveUpdate {
            drive_id: "drive1".to_owned(),
            path_on_host: Some(path_on_host),
            rate_limiter: limits.clone(),
        };
        api.update_drive(&drive(path("other"))).await?;
        assert_eq!(api.update_drive(&drive(path("none"))).await.unwrap_err().code(), "firecracker.api-fault");
        api.action(Action::FlushMetrics).await?;
        // No driver has taken the balloon.
        assert_eq!(
            api.update_balloon(&BalloonUpdate { amount_mib: 1 }).await.unwrap_err().code(),
            "firecracker.api-fault"
        );
        Ok::<_, Error>(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    outcome.unwrap();
    assert!(path("vsock").exists());
    assert!(std::fs::read_to_string(path("metrics")).unwrap().starts_with('{'));
}

#[test]
fn a_link_in_place_of_the_socket_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = |name| dir.path().join(name);
    let _listener = UnixListener::bind(path("real")).unwrap();
    std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    assert_eq!(Api::open(&path("link")).unwrap_err().code(), "firecracker.api-dead");
    assert_eq!(Api::open(&path("file")).unwrap_err().code(), "firecracker.api-dead");
    assert_eq!(Api::open(&path("none")).unwrap_err().code(), "firecracker.api-dead");
    Api::open(&path("real")).unwrap();
}

/// What `info` says about a server that answers with these bytes and, if told so, stays.
fn answered(bytes: &'static [u8], stay: bool) -> Error {
    use std::io::{Read, Write};
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(bytes);
        if stay {
            // Until the client goes.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let api = Api::open(&path).unwrap().with_patience(Duration::from_millis(200));
    let error = block_on(api.info()).unwrap_err();
    server.join().unwrap();
    error
}

#[test]
fn a_silent_server_is_given_up() {
    assert_eq!(answered(b"", true).code(), "firecracker.api-timeout");
    assert_eq!(
        answered(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", true).code(),
        "firecracker.api-timeout"
    );
}

#[test]
fn a_server_that_hangs_up_is_dead() {
    assert_eq!(answered(b"", false).code(), "firecracker.api-dead");
}

#[test]
fn nonsense_and_floods_are_errors() {
    assert_eq!(answered(b"SSH-2.0\r\n", false).code(), "firecracker.api");
    assert_eq!(answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", false).code(), "firecracker.api");
    let flood = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    let mut bytes = flood.to_vec();
    bytes.resize(3 << 20, b'x');
    assert_eq!(answered(bytes.leak(), false).code(), "firecracker.api");
}

#[test]
fn a_refusal_says_why_in_printable_words() {
    let body = r#"{"fault_message": "No.\n\u001b[31mNever."}"#;
    let answer = format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let error = answered(answer.into_bytes().leak(), false);
    assert_eq!(error.code(), "firecracker.api-fault");
    assert_eq!(error.to_string(), "Firecracker refused GET /: No.  [31mNever.");
    let silent = answered(b"HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n", false);
    assert!(silent.to_string().contains("it does not say why"), "{silent}");
}

#[test]
fn an_id_cannot_change_the_request() {
    for bad in ["", "a/b", "a b", "..", "a\r\nHost: x"] {
        assert_eq!(id(bad).unwrap_err().code(), "bug", "{bad:?}");
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
