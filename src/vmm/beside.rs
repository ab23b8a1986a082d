//! Makes a VM's tap on a thread of its own while the rest of its launch goes on: the kernel waits for other CPUs
//! (synchronize_net) whenever a device comes, changes or loses its descriptor.

use super::Timings;
use super::spec::{NetSpec, VmSpec};
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use crate::net::tap::{self, TapConfig};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

/// How long the tap lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lives {
    /// As long as the descriptor that is handed out.
    Held,
    /// Until it is removed. There is no descriptor: the VMM opens it by name, under its uid and in the namespace.
    Named,
}

/// Runs `work` beside the making of the tap of `spec`, if it has one. When this returns, both have ended.
pub(super) fn beside_tap<T>(
    spec: &VmSpec,
    net: Option<&Netns>,
    lives: Lives,
    timings: &mut Timings,
    work: impl FnOnce(&mut Timings) -> Result<T>,
) -> Result<(T, Option<OwnedFd>)> {
    let Some((ns, config)) = config(spec, net, lives)? else { return Ok((work(timings)?, None)) };
    thread::scope(|scope| {
        let make = || {
            let begin = Instant::now();
            // A persistent one is let go of here: that takes as long as making it, and the VMM cannot open it before.
            let made = tap::create_here(ns, &config).map(|fd| Some(fd).filter(|_| lives == Lives::Held));
            (made, begin.elapsed())
        };
        let thread = thread::Builder::new().name("tap".to_owned()).spawn_scoped(scope, make);
        let thread = thread.or_failed("net.thread", || "cannot start a thread for the tap")?;
        let worked = work(timings);
        let begin = Instant::now();
        // Only a panic of that thread gets here; it goes on in this one.
        let (made, took) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (timings.tap, timings.tap_wait) = (took, begin.elapsed());
        // Its error comes first: it may be that the tap is somebody else's, and then it must not be removed.
        let tap = made?;
        Ok((worked?, tap))
    })
}

fn config<'a>(spec: &VmSpec, net: Option<&'a Netns>, lives: Lives) -> Result<Option<(&'a Netns, TapConfig)>> {
    let NetSpec::Tap { name, host, guest, mac } = &spec.net else { return Ok(None) };
    let ns = net.ok_or_else(|| Error::bug("a tap needs the project's namespace"))?;
    let config = TapConfig {
        name: name.clone(),
        host: *host,
        guest: *guest,
        mac: *mac,
        owner: spec.jail.as_ref().map(|jail| jail.uid),
        persist: lives == Lives::Named,
        mtu: spec.tuning.mtu,
    };
    Ok(Some((ns, config)))
}
