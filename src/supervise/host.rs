//! The real host: VMM back ends, jails, taps, leases and the port proxy.

use super::effects;
use super::journal::{Effect, Journal};
use super::logs::{VmmLog, escaped};
use super::machine::{Machine, Platform, Proxies, VmmEnd};
use super::pause::Drives;
use super::process::Process;
use super::spec::SuperviseSpec;
use super::supervisor::undo_common;
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::manifest::model::Port;
use crate::net::netns::Netns;
use crate::net::{address, proxy, tap};
use crate::vmm::jail::{self, lease};
use crate::vmm::spec::NetSpec;
use crate::vmm::{self, Circumstances, Ended};
use firegopher_protocol::Network;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener};

/// slirp's fixed addresses (QEMU's `-netdev user` documentation).
const SLIRP_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// This host, and the project's network namespace.
pub(super) struct Host {
    netns: Option<Netns>,
    /// How often the guest was started, for those who wait for what it publishes.
    starts: proxy::Starts,
}

impl Host {
    /// Without a namespace nothing can be launched that has a tap, but everything can be undone: taps end with the
    /// processes that hold them.
    pub fn new(netns: Option<Netns>) -> Self {
        Host { netns, starts: proxy::Starts::default() }
    }
}

impl Platform for Host {
    fn lease(&self, spec: &mut SuperviseSpec, journal: &mut Journal) -> Result<()> {
        let Some(jail) = spec.vm_spec.jail.as_mut().filter(|jail| jail.uid == 0) else { return Ok(()) };
        let (project, vm) = (spec.project.clone(), spec.vm.clone());
        journal.will(Effect::Uid { home: spec.home.clone(), project, vm })?;
        jail.uid = lease::lease(&Home::new(&spec.home), &spec.project, &spec.vm)?;
        jail.gid = jail.uid;
        Ok(())
    }

    fn publish(&self, spec: &SuperviseSpec, ports: Vec<(TcpListener, Port)>) -> Result<Proxies> {
        let mut proxies = Proxies::new();
        let NetSpec::Tap { guest, .. } = spec.vm_spec.net else { return Ok(proxies) };
        let vm = spec.vm.clone();
        let full = move || {
            super::log_line(&format!(
                "the ports of VM {vm} have as many connections as this process may have; others wait"
            ));
        };
        let budget = proxy::Budget::new(crate::descriptors::limit(), ports.len(), full);
        for (listener, port) in ports {
            let failed = || format!("cannot publish port {} of VM {}", port.host, spec.vm);
            let netns = self.netns.as_ref().ok_or_else(|| Error::bug("a tap without a network namespace"))?;
            let netns = netns.try_clone()?;
            listener.set_nonblocking(true).or_failed("supervise.port", failed)?;
            let listener = tokio::net::TcpListener::from_std(listener).or_failed("supervise.port", failed)?;
            let to = SocketAddrV4::new(guest, port.guest);
            let (starts, share) = (self.starts.clone(), budget.share());
            proxies.spawn(async move {
                let connect = move || netns.connect(to);
                if let Err(e) = proxy::serve(listener, connect, starts, proxy::PATIENCE, share).await {
                    super::log_line(&format!("port {} is published no longer: {e}", port.host));
                }
            });
        }
        Ok(proxies)
    }

    fn network(&self, spec: &SuperviseSpec) -> Option<Network> {
        // No gateway: what is not on the link is unreachable, and says so at once.
        let address = match spec.vm_spec.net {
            NetSpec::None => return None,
            NetSpec::Tap { guest, .. } => (IpAddr::V4(guest), 30),
            NetSpec::User { .. } => (IpAddr::V4(SLIRP_GUEST), 24),
        };
        Some(Network {
            addresses: vec![address],
            gateways: Vec::new(),
            mtu: spec.vm_spec.tuning.mtu.map(u32::from),
            neighbours: Vec::new(),
        })
    }

    fn forget(&self, spec: &SuperviseSpec) {
        if let (NetSpec::Tap { .. }, Some(project)) = (&spec.vm_spec.net, spec.dir.parent())
            && let Err(e) = address::release(project, &spec.vm)
        {
            super::log_line(&super::journal::chain(&e));
        }
    }

    fn launch(&self, spec: &SuperviseSpec, journal: &mut Journal) -> Result<Machine> {
        self.starts.again();
        let scratch = effects::scratch_path(spec).map(|path| Effect::File { path });
        let jail = spec.vm_spec.jail.clone().map(|jail| Effect::Jail { jail });
        let tap = match &spec.vm_spec.net {
            NetSpec::Tap { name, .. } => Some(Effect::Tap { name: name.clone() }),
            NetSpec::None | NetSpec::User { .. } => None,
        };
        journal.will_all([scratch, jail, tap].into_iter().flatten())?;
        let circumstances = Circumstances::note(&spec.vm_spec);
        let mut disks = || effects::create_scratch(spec);
        let backend = vmm::backend(&spec.vm_spec);
        let launched = backend.launch_with(&spec.vm_spec, self.netns.as_ref(), &mut disks);
        if let (Err(e), NetSpec::Tap { name, .. }) = (&launched, &spec.vm_spec.net)
            && e.code() == tap::TAKEN
        {
            // Somebody else's: not ours to remove.
            journal.forget(&Effect::Tap { name: name.clone() })?;
        }
        let launched = launched?;
        let mut log = VmmLog::resume(&spec.dir)
            .or_failed("supervise.log", || format!("cannot write the VMM's log of VM {}", spec.vm))?;
        let mut monitor = launched.monitor;
        monitor.listen(Box::new(move |said, bytes| {
            if let Some(e) = log.take(said, bytes) {
                super::log_line(&format!("the VMM's log cannot be written: {e}"));
            }
        }));
        // A VMM that has ended by now has no identity to be known by; what it said goes to its log all the same.
        let process = Process::of(launched.pid).map_err(|_| ended_at_once(spec, monitor.reason_so_far()))?;
        let watch = monitor.watch().ok_or_else(|| Error::bug("a new VMM is watched already"))?;
        let ended = Box::pin(async move {
            match monitor.ended().await {
                Ok(ended) => vmm_end(&ended, &circumstances),
                Err(e) => {
                    VmmEnd { words: format!("the VMM cannot be watched: {e}"), logged: false, help: None }
                }
            }
        });
        let cost = launched.timings;
        Ok(Machine {
            process,
            pidfd: launched.pidfd,
            control: launched.control,
            console: Some(launched.console),
            keyboard: launched.keyboard,
            watch,
            drives: Drives::of(&spec.vm_spec),
            timings: vec![
                ("disks", cost.disks),
                ("jail", cost.jail),
                ("tap", cost.tap),
                ("tap-wait", cost.tap_wait),
                ("spawn", cost.spawn),
            ],
            warnings: launched.warnings,
            ended,
        })
    }

    fn undo(&self, effect: &Effect) -> Result<()> {
        if undo_common(effect)? {
            return Ok(());
        }
        match (effect, &self.netns) {
            (Effect::Jail { jail }, _) => jail::clean(jail),
            (Effect::Uid { home, project, vm }, _) => lease::release(&Home::new(home), project, vm),
            (Effect::Tap { name }, Some(netns)) => tap::remove(netns, name),
            _ => Ok(()),
        }
    }
}

fn vmm_end(ended: &Ended, circumstances: &Circumstances) -> VmmEnd {
    let told = escaped(ended.to_string().as_bytes());
    let Ended::Died(death) = ended else { return VmmEnd { words: told, logged: false, help: None } };
    let logged = !death.stderr.trim().is_empty();
    match circumstances.explain(death) {
        Some(cause) => {
            // What the VMM said last may say more, and its log does.
            let words = match death.reason() {
                Some(said) => format!("{}. It said: {}", cause.words, escaped(said.as_bytes())),
                None => cause.words,
            };
            VmmEnd { words, logged, help: Some(cause.help) }
        }
        None => VmmEnd { words: told, logged, help: None },
    }
}

fn ended_at_once(spec: &SuperviseSpec, reason: Option<String>) -> Error {
    let said = reason.map(|reason| format!(": {}", escaped(reason.as_bytes())));
    let error = Error::failed(
        "supervise.vmm-died",
        format!("the VMM ended at once{}", said.as_deref().unwrap_or(" and said nothing")),
    );
    match said.and_then(|_| spec.vmm_log_help()) {
        Some(help) => error.help(help),
        None => error,
    }
}
