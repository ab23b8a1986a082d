//! Leases each VM of a project a /30 of its own out of 172.19.0.0/16. Projects cannot collide: each has its own
//! namespace.

use super::book;
use crate::error::{Error, Result};
use crate::name::Name;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

/// The first two bytes of every address.
const NETWORK: [u8; 2] = [172, 19];
/// How many /30s a /16 holds.
const COUNT: u16 = 1 << 14;

/// A VM's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    index: u16,
}

impl Subnet {
    fn address(self, within: u8) -> Ipv4Addr {
        let [high, low] = (self.index * 4).to_be_bytes();
        Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low + within)
    }
    /// The namespace's end, the guest's gateway.
    pub fn host(self) -> Ipv4Addr {
        self.address(1)
    }
    /// The guest's end.
    pub fn guest(self) -> Ipv4Addr {
        self.address(2)
    }
    /// Length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        30
    }
    /// The guest's MAC: locally administered, the address in its last four bytes.
    pub fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.guest().octets();
        [2, 0, a, b, c, d]
    }
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Book {
    subnets: BTreeMap<Name, u16>,
}

/// The subnet of `vm`, the same one at every call until it is released.
pub fn lease(project_dir: &Path, vm: &Name) -> Result<Subnet> {
    fs::create_dir_all(project_dir)
        .map_err(|e| Error::failed("net.address", "cannot record the project's addresses").because(e))?;
    book::update(&project_dir.join("addresses.json"), |book: &mut Book| {
        if let Some(&index) = book.subnets.get(vm) {
            return Ok(Subnet { index });
        }
        let free = (0..COUNT).find(|n| !book.subnets.values().any(|taken| taken == n));
        let index = free.ok_or_else(|| {
            Error::failed("net.addresses-used-up", "all 16384 subnets of the project are taken")
        })?;
        book.subnets.insert(vm.clone(), index);
        Ok(Subnet { index })
    })
}

/// Gives the subnet of `vm` back. A VM without one is no error.
pub fn release(project_dir: &Path, vm: &Name) -> Result<()> {
    if !project_dir.exists() {
        return Ok(());
    }
    book::update(&project_dir.join("addresses.json"), |book: &mut Book| {
        book.subnets.remove(vm);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    #[test]
    fn a_lease_is_stable_and_reused_after_release() {
        let dir = tempfile::tempdir().unwrap();
        let a = lease(dir.path(), &name("a")).unwrap();
        let b = lease(dir.path(), &name("b")).unwrap();
        assert_eq!((a.host(), a.guest()), ([172, 19, 0, 1].into(), [172, 19, 0, 2].into()));
        assert_eq!((b.host(), b.guest()), ([172, 19, 0, 5].into(), [172, 19, 0, 6].into()));
        assert_eq!(a.mac(), [2, 0, 172, 19, 0, 2]);
        assert_eq!(lease(dir.path(), &name("a")).unwrap(), a);
        release(dir.path(), &name("a")).unwrap();
        assert_eq!(lease(dir.path(), &name("c")).unwrap(), a);
    }

    #[test]
    fn the_last_subnet_stays_in_the_network() {
        assert_eq!(Subnet { index: COUNT - 1 }.guest(), Ipv4Addr::new(172, 19, 255, 254));
    }

    #[test]
    fn vms_that_start_together_get_different_subnets() {
        let dir = tempfile::tempdir().unwrap();
        let mut got: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..16)
                .map(|i| {
                    s.spawn({
                        let dir = dir.path();
                        move || lease(dir, &name(&format!("vm{i}"))).unwrap().host()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        got.sort();
        got.dedup();
        assert_eq!(got.len(), 16);
    }
}
