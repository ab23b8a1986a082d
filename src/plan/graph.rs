//! The graph of pure steps that a manifest asks for. Steps with the same task and parents are one node, so
//! that VMs share kernels, images and workloads.

use crate::manifest::model::{
    Firecracker, FirecrackerFrom, ImageSource, KernelSource, Manifest, UrlSource, Vm, VmmSource, Workload,
};
use crate::name::Name;
use crate::packages::Wanted;
use crate::vmm::firecracker::version::Version;
use serde::Serialize;
use std::fmt;

/// The kinds of steps, pure ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// A kernel and its modules, extracted.
    FetchKernel,
    /// A VMM as a runnable tree.
    FetchVmm,
    /// What a base image is made of.
    FetchImage,
    /// `base.ext4` and its index.
    Image,
    /// `workload.ext4`.
    Unpack,
    /// The initramfs of a kernel.
    Initramfs,
    /// A VM's `run.json`.
    Init,
    /// A staged chroot.
    Jail,
    /// The guest's network device.
    Tap,
    /// A running, supervised VM.
    Boot,
}

impl StepKind {
    /// All of them, in order.
    pub const ALL: [StepKind; 10] = [
        StepKind::FetchKernel,
        StepKind::FetchVmm,
        StepKind::FetchImage,
        StepKind::Image,
        StepKind::Unpack,
        StepKind::Initramfs,
        StepKind::Init,
        StepKind::Jail,
        StepKind::Tap,
        StepKind::Boot,
    ];

    /// The name in plans and records.
    pub fn label(self) -> &'static str {
        match self {
            StepKind::FetchKernel => "fetch kernel",
            StepKind::FetchVmm => "fetch vmm",
            StepKind::FetchImage => "fetch image",
            StepKind::Image => "image",
            StepKind::Unpack => "unpack",
            StepKind::Initramfs => "initramfs",
            StepKind::Init => "init",
            StepKind::Jail => "jail",
            StepKind::Tap => "tap",
            StepKind::Boot => "boot",
        }
    }

    /// Raised when the same inputs begin to give another output.
    pub fn version(self) -> u32 {
        match self {
            // 4: drivers of the balloon and of the host's entropy.
            StepKind::FetchKernel => 4,
            // 2: what layers must unpack to. 3: where a configuration says it.
            StepKind::FetchImage => 3,
            // 2: names with a prefix in every dialect of tar, signed numbers, links that climb above the root.
            StepKind::Unpack => 2,
            // As that, and 3: where scripts change directory, and what `install` and `chown -h` change.
            StepKind::Image => 3,
            // 2: sysctls, limits, and a working directory that may have to be made.
            StepKind::Init => 2,
            _ => 1,
        }
    }

    /// Whether the step only computes, and its output is cached.
    pub fn is_pure(self) -> bool {
        self < StepKind::Jail
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// What a pure step computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Extracts a kernel.
    FetchKernel(KernelSource),
    /// Assembles QEMU's tree from packages.
    FetchQemu,
    /// Takes Firecracker and its jailer out of a release; it must be of this version.
    FetchFirecracker(UrlSource, Option<Version>),
    /// Collects what the image is made of.
    FetchImage(ImageSource),
    /// Builds the base image.
    Image(ImageSource),
    /// Builds the workload layer.
    Unpack(Vec<Workload>),
    /// Packs the guest init and the kernel's modules.
    Initramfs,
    /// Renders a VM's run configuration.
    Init(Box<Vm>),
}

impl Task {
    /// The kind of step this is.
    pub fn kind(&self) -> StepKind {
        match self {
            Task::FetchKernel(_) => StepKind::FetchKernel,
            Task::FetchQemu | Task::FetchFirecracker(..) => StepKind::FetchVmm,
            Task::FetchImage(_) => StepKind::FetchImage,
            Task::Image(_) => StepKind::Image,
            Task::Unpack(_) => StepKind::Unpack,
            Task::Initramfs => StepKind::Initramfs,
            Task::Init(_) => StepKind::Init,
        }
    }
}

/// A pure step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it computes.
    pub task: Task,
    /// What it is about, for people.
    pub subject: String,
    /// The VMs that need it.
    pub vms: Vec<Name>,
    /// Indices of the nodes whose outputs it reads; all smaller than its own.
    pub parents: Vec<usize>,
}

/// The nodes of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmNodes {
    /// The VM.
    pub vm: Name,
    /// Its kernel.
    pub kernel: usize,
    /// Its VMM, unless that is installed on the host.
    pub vmm: Option<usize>,
    /// Its base image.
    pub image: usize,
    /// Its workload layer, if it has workloads.
    pub unpack: Option<usize>,
    /// Its initramfs.
    pub initramfs: usize,
    /// Its run configuration.
    pub init: usize,
}

/// All pure steps, parents first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// Parents before children.
    pub nodes: Vec<Node>,
    /// One a VM, in the order of the manifest.
    pub vms: Vec<VmNodes>,
}

impl Graph {
    /// The graph of a manifest.
    pub fn of(manifest: &Manifest) -> Graph {
        let mut graph = Graph::default();
        for vm in &manifest.vms {
            graph.add_vm(vm);
        }
        graph
    }

    fn add_vm(&mut self, vm: &Vm) {
        let kernel = self.node(vm, Task::FetchKernel(vm.kernel.clone()), kernel_subject(&vm.kernel), vec![]);
        let vmm = match &vm.vmm {
            VmmSource::Auto | VmmSource::Qemu | VmmSource::AutoFirecracker(_) => {
                Some(self.node(vm, Task::FetchQemu, "qemu".to_owned(), vec![]))
            }
            VmmSource::Firecracker(Firecracker { from: FirecrackerFrom::Release(source), version }) => {
                let task = Task::FetchFirecracker(source.clone(), *version);
                Some(self.node(vm, task, source.to_string(), vec![]))
            }
            VmmSource::QemuPath(_) | VmmSource::Firecracker(_) => None,
        };
        let subject = image_subject(&vm.image);
        let fetched = self.node(vm, Task::FetchImage(vm.image.clone()), subject.clone(), vec![]);
        let image = self.node(vm, Task::Image(vm.image.clone()), subject, vec![fetched]);
        let unpack = (!vm.workloads.is_empty()).then(|| {
            let subject = vm.workloads.iter().map(|w| w.source.to_string()).collect::<Vec<_>>().join(", ");
            self.node(vm, Task::Unpack(vm.workloads.clone()), subject, vec![image])
        });
        let initramfs = self.node(vm, Task::Initramfs, kernel_subject(&vm.kernel), vec![kernel]);
        let init = self.node(vm, Task::Init(Box::new(vm.clone())), vm.name.to_string(), vec![]);
        self.vms.push(VmNodes { vm: vm.name.clone(), kernel, vmm, image, unpack, initramfs, init });
    }

    /// The node with this task and these parents, made on first use.
    fn node(&mut self, vm: &Vm, task: Task, subject: String, parents: Vec<usize>) -> usize {
        if let Some(at) = self.nodes.iter().position(|n| n.task == task && n.parents == parents) {
            let vms = &mut self.nodes[at].vms;
            if !vms.contains(&vm.name) {
                vms.push(vm.name.clone());
            }
            return at;
        }
        self.nodes.push(Node { task, subject, vms: vec![vm.name.clone()], parents });
        self.nodes.len() - 1
    }
}

fn kernel_subject(kernel: &KernelSource) -> String {
    match kernel {
        KernelSource::Debian(set) => set.to_string(),
        KernelSource::Path(path) => path.display().to_string(),
        KernelSource::Url(source) => source.to_string(),
    }
}

/// What an image is called: the packages the user chose (the base packages go without saying), or its source.
pub fn image_subject(image: &ImageSource) -> String {
    match image {
        ImageSource::Path { path, .. } | ImageSource::OciPath { path, .. } => path.display().to_string(),
        ImageSource::Url(source) => source.to_string(),
        ImageSource::Oci(reference) => reference.clone(),
        ImageSource::Debian(set) => {
            let base = |wanted: &&Wanted| {
                wanted.version.is_none() && crate::manifest::BASE_PACKAGES.contains(&wanted.name.as_str())
            };
            let chosen: Vec<&Wanted> = set.packages.iter().filter(|wanted| !base(wanted)).collect();
            match chosen.as_slice() {
                [] => "base packages".to_owned(),
                few if few.len() <= 3 => few.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                many => format!("{}, {} and {} more", many[0], many[1], many.len() - 2),
            }
        }
    }
}
