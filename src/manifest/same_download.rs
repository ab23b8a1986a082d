//! One address is one file, however often the manifest names it: what one use says of it holds for all.

use super::decode::{Decoder, Spanned};
use super::diagnostic::Problem;
use super::model::{
    Firecracker, FirecrackerFrom, ImageSource, KernelSource, Manifest, UrlSource, Vm, VmmSource, WorkloadFrom,
};
use std::collections::HashMap;

/// Reports addresses with two digests, and gives each use the digest and the smallest limit of all its uses.
pub(super) fn agree(d: &Decoder<'_>, manifest: &mut Manifest) {
    let digests = d.digests.take();
    let mut known: HashMap<&str, &Spanned<String>> = HashMap::new();
    for (url, digest) in &digests {
        let first = known.entry(url).or_insert(digest);
        if first.value != digest.value {
            d.report::<()>(
                Problem::new(
                    "manifest.two-digests",
                    digest.span.clone(),
                    "another digest",
                    format!("{url} cannot have two digests"),
                )
                .also(first.span.clone(), "the first one")
                .help("one address is one file: keep the digest that its publisher names"),
            );
        }
    }
    let mut limits: HashMap<String, u64> = HashMap::new();
    for vm in &mut manifest.vms {
        each(vm, |source| {
            if let Some(max) = source.max {
                let limit = limits.entry(source.url().to_owned()).or_insert(max);
                *limit = max.min(*limit);
            }
        });
    }
    for vm in &mut manifest.vms {
        each(vm, |source| {
            source.sha256 = known.get(source.url()).map(|digest| digest.value.clone());
            source.max = limits.get(source.url()).copied();
        });
    }
}

/// Every download of a VM.
fn each(vm: &mut Vm, mut visit: impl FnMut(&mut UrlSource)) {
    if let KernelSource::Url(source) = &mut vm.kernel {
        visit(source);
    }
    if let ImageSource::Url(source) = &mut vm.image {
        visit(source);
    }
    if let VmmSource::Firecracker(Firecracker { from: FirecrackerFrom::Release(source), .. })
    | VmmSource::AutoFirecracker(Firecracker { from: FirecrackerFrom::Release(source), .. }) = &mut vm.vmm
    {
        visit(source);
    }
    for workload in &mut vm.workloads {
        if let WorkloadFrom::Url(source) = &mut workload.source {
            visit(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use std::path::Path;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn sources(text: &str) -> Result<Vec<UrlSource>, String> {
        let parsed = parse(text, "firegopher.kdl", Path::new("/project"));
        let mut manifest = parsed.map_err(|found| found.render(false, 120))?;
        let mut all = Vec::new();
        manifest.vms.iter_mut().for_each(|vm| each(vm, |source| all.push(source.clone())));
        Ok(all)
    }

    fn vm(name: &str, first: &str, second: &str) -> String {
        format!(
            "vm \"{name}\" {{ run \"x\"; workload to=\"/a\" {{ url \"https://example.org/a.tar\" {first}; }}
             workload to=\"/b\" {{ url \"https://example.org/a.tar\" {second}; }}\n}}\n"
        )
    }

    #[test]
    fn an_address_with_two_digests_is_an_error_at_both_places() {
        let (first, second) = (format!("sha256=\"{A}\""), format!("sha256=\"{}\"", "b".repeat(64)));
        let two = vm("one", &first, &second);
        let found = sources(&two).unwrap_err();
        assert!(found.contains("https://example.org/a.tar cannot have two digests"), "{found}");
        assert!(found.contains("another digest") && found.contains("the first one"), "{found}");
        // In different members, uses and VMs, and where no VM uses it, too.
        let member = vm("one", &first, &format!("{second} member=\"x\""));
        let kernel = format!(
            "kernel \"k\" {{ url \"https://example.org/a.tar\" {second}; }}\n{}",
            vm("one", &first, "")
        );
        let vms = vm("one", &first, "") + &vm("two", &second, "");
        for text in [member, kernel, vms] {
            assert!(sources(&text).unwrap_err().contains("manifest.two-digests"), "{text}");
        }
        // The same digest, written differently, is the same.
        sources(&vm("one", &first, &format!("sha256=\"sha256:{}\"", A.to_uppercase()))).unwrap();
    }

    #[test]
    fn what_one_use_says_holds_for_all() {
        let text = vm("one", "", "max=\"2MiB\"")
            + &vm("two", &format!("sha256=\"{A}\" member=\"x\""), "max=\"1MiB\"");
        for source in sources(&text).unwrap() {
            assert_eq!((source.sha256.as_deref(), source.max), (Some(A), Some(1 << 20)), "{source}");
        }
        let other = text.replace("a.tar\" max", "b.tar\" max");
        let kinds = sources(&other).unwrap();
        assert!(kinds.iter().any(|source| source.sha256.is_none() && source.max == Some(1 << 20)));
        assert!(kinds.iter().any(|source| source.sha256.is_some() && source.max.is_none()));
        for bad in ["max=\"0B\"", "max=\"5\"", "max=5"] {
            sources(&vm("one", bad, "")).unwrap_err();
        }
    }
}
