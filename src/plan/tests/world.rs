//! A project in memory: manifest, lock, scan and store, built and booted without touching anything.

use super::*;
use crate::listing::{Listed, ListedKind, Listing};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A store in memory: what a real one would answer.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) actions: RefCell<BTreeMap<StepKey, store::Action>>,
    pub(super) gone: RefCell<Vec<ObjectDigest>>,
    pub(super) last: RefCell<BTreeMap<Name, store::Last>>,
    pub(super) listings: RefCell<BTreeMap<ObjectDigest, Listing>>,
}

impl StoreView for Memory {
    fn action(&self, key: &StepKey) -> Option<store::Action> {
        self.actions.borrow().get(key).cloned()
    }
    fn has(&self, object: &ObjectDigest) -> bool {
        !self.gone.borrow().contains(object)
    }
    fn last(&self, vm: &Name) -> Option<store::Last> {
        self.last.borrow().get(vm).cloned()
    }
    fn listing(&self, object: &ObjectDigest) -> Option<Listing> {
        self.listings.borrow().get(object).cloned()
    }
}

pub(super) struct World {
    pub(super) manifest: Manifest,
    pub(super) lock: Lock,
    pub(super) scan: Scan,
    pub(super) tools: Tools,
    pub(super) store: Memory,
    pub(super) observed: Vec<ObservedVm>,
    pub(super) project: Name,
}

pub(super) const WEB: &str = r#"vm "web" {
    image { debian "python3-minimal" }
    workload "./app" to="/app"
    run "python3" "server.py"
    port 8080 to=8000
}
"#;

pub(super) fn digest(text: &str) -> ObjectDigest {
    blake3::hash(text.as_bytes()).into()
}

pub(super) fn listing(files: &[(&str, &str)]) -> Listing {
    let entries = files
        .iter()
        .map(|(path, content)| Listed {
            path: (*path).to_owned(),
            mode: 0o644,
            kind: ListedKind::File { size: content.len() as u64, digest: digest(content) },
        })
        .collect();
    Listing { entries }
}

impl World {
    pub(super) fn new(text: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["app", "lib", "app !lib"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let manifest = parse(text, "firegopher.kdl", dir.path()).map_err(|d| d.render(false, 100)).unwrap();
        let mut world = World {
            manifest,
            lock: Lock::default(),
            scan: Scan::default(),
            tools: Tools { init: digest("init"), writer: "1".to_owned() },
            store: Memory::default(),
            observed: vec![],
            project: Name::new("demo").unwrap(),
        };
        world.pin_all();
        world.workload(&[("server.py", "one"), ("static/a.css", "two")]);
        world
    }

    pub(super) fn pin_all(&mut self) {
        for node in Graph::of(&self.manifest).nodes {
            for need in needs(&node.task) {
                self.pin(need.id, "1.0");
            }
        }
    }

    pub(super) fn pin(&mut self, asset: AssetId, version: &str) {
        let pin = Pin {
            package: asset
                .set()
                .and_then(|set| set.names().last().map(str::to_owned))
                .unwrap_or_else(|| "qemu-system-x86".to_owned()),
            version: version.to_owned(),
            arch: "amd64".to_owned(),
            sha256: digest(version).to_hex(),
            blake3: digest(version),
            size: 1,
            pool: "pool/p.deb".to_owned(),
        };
        let origin = Origin { distribution: "debian".to_owned(), suite: "bookworm".to_owned() };
        self.lock.set(asset, Pins { origin, snapshot: vec![], packages: vec![pin] }).unwrap();
    }

    pub(super) fn workload(&mut self, files: &[(&str, &str)]) {
        let listing = listing(files);
        let digest = listing.digest();
        for vm in &self.manifest.vms {
            if let Some(file) = &vm.tuning.cpu_file {
                let content = blake3::hash(file.path.as_os_str().as_encoded_bytes()).into();
                let source =
                    ScannedSource::File { path: file.path.clone(), digest: content, executable: false };
                self.scan.sources.insert(Scan::file_id(&file.path), source);
            }
            for workload in &vm.workloads {
                let source = ScannedSource::Dir {
                    path: self.manifest.dir.join("app"),
                    listing: listing.clone(),
                    digest,
                };
                self.scan.sources.insert(Scan::workload_id(workload), source);
            }
        }
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&Situation {
            project: &self.project,
            manifest: &self.manifest,
            lock: &self.lock,
            scan: &self.scan,
            tools: &self.tools,
            store: &self.store,
            observed: &self.observed,
        })
    }

    /// Builds and boots everything, as `up` would; outputs are digests of the keys unless `output` says otherwise.
    pub(super) fn up(&mut self, output: impl Fn(StepKind, StepKey) -> ObjectDigest) {
        let graph = Graph::of(&self.manifest);
        let mut outputs = vec![None; graph.nodes.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            let kind = node.task.kind();
            let inputs = node_inputs(&graph, node, &outputs, &self.lock, &self.scan, &self.tools).unwrap();
            let key = inputs.key(kind);
            let done = self.store.action(&key).map(|a| a.output).unwrap_or_else(|| output(kind, key));
            outputs[index] = Some(done);
            let action = store::Action {
                kind: kind.label().to_owned(),
                subject: node.subject.clone(),
                output: done,
                inputs: inputs.0.clone(),
                millis: 1,
            };
            self.store.actions.borrow_mut().insert(key, action);
            let mut listings = vec![];
            if kind == StepKind::Unpack {
                for source in self.scan.sources.values() {
                    if let ScannedSource::Dir { listing, digest, .. } = source {
                        listings.push(*digest);
                        self.store.listings.borrow_mut().insert(*digest, listing.clone());
                    }
                }
            }
            for vm in &node.vms {
                let step = store::LastStep {
                    key,
                    inputs: inputs.0.clone(),
                    output: Some(done),
                    listings: listings.clone(),
                };
                self.store
                    .last
                    .borrow_mut()
                    .entry(vm.clone())
                    .or_default()
                    .steps
                    .insert(kind.label().to_owned(), step);
            }
        }
        self.observed.clear();
        for (vm, nodes) in self.manifest.vms.iter().zip(&graph.vms) {
            let desired = desired(vm, nodes, &outputs, &self.scan).unwrap();
            for (kind, inputs) in [
                (StepKind::Jail, &desired.jail),
                (StepKind::Tap, &desired.tap),
                (StepKind::Boot, &desired.boot),
            ] {
                let step = store::LastStep {
                    key: inputs.key(kind),
                    inputs: inputs.0.clone(),
                    output: None,
                    listings: vec![],
                };
                self.store
                    .last
                    .borrow_mut()
                    .entry(vm.name.clone())
                    .or_default()
                    .steps
                    .insert(kind.label().to_owned(), step);
            }
            self.observed.push(ObservedVm {
                name: vm.name.clone(),
                boot_key: desired.boot_key(),
                running: Running::Yes,
                drift: vec![],
            });
        }
    }

    pub(super) fn up_plainly(&mut self) {
        self.up(|_, key| digest(&key.to_hex()));
    }

    pub(super) fn remanifest(&mut self, text: &str) {
        let other = World::new(text);
        self.manifest = other.manifest;
        self.scan = other.scan;
        self.pin_all();
    }
}
