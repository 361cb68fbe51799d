//! DPDK's ipsec-secgw and testpmd over net_af_xdp.

use crate::process::Process;
use anyhow::{Context, Result};
use spindle_testbed::{Addresses, Namespace, Side};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Huge pages that a DPDK program takes: 512 MiB.
const PAGES: u32 = 256;
const OVERCOMMIT: &str = "/proc/sys/vm/nr_overcommit_hugepages";

/// Lets programs take huge pages while it lives. The kernel makes them when they are asked for, and has them back when the
/// program ends, however it ends.
pub(crate) struct HugePages {
    before: String,
}

impl HugePages {
    /// For so many programs at a time.
    pub(crate) fn allow(programs: u32) -> Result<HugePages> {
        let before = std::fs::read_to_string(OVERCOMMIT).context("this kernel has no huge pages")?;
        std::fs::write(OVERCOMMIT, (programs * PAGES).to_string()).context("allowing huge pages")?;
        Ok(HugePages { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(OVERCOMMIT, self.before.trim());
    }
}

/// One of the two programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dpdk {
    /// Forwards each frame as it is to the other port.
    Testpmd,
    /// Encapsulates, and in a pair of gateways decapsulates.
    IpsecSecgw,
}

/// What ipsec-secgw has to be told of its neighbourhood, for it asks nobody.
pub(crate) struct Neighbours {
    /// The MAC address of the host behind it.
    pub(crate) host: String,
    /// That of the other gateway.
    pub(crate) peer: String,
}

impl Dpdk {
    fn name(self) -> &'static str {
        match self {
            Dpdk::Testpmd => "dpdk-testpmd",
            Dpdk::IpsecSecgw => "ipsec-secgw",
        }
    }

    /// Starts it in a gateway's place on this core. `built` is where ipsec-secgw lies.
    pub(crate) fn start(
        self,
        gateway: &Namespace,
        side: Side,
        core: usize,
        neighbours: &Neighbours,
        built: &Path,
        directory: &Path,
    ) -> Result<Process> {
        let config = directory.join(format!("{}-{}.cfg", self.name(), side.letter()));
        std::fs::write(&config, configuration(&Addresses::default(), side, neighbours))?;
        let program = match self {
            Dpdk::Testpmd => PathBuf::from("dpdk-testpmd"),
            Dpdk::IpsecSecgw => built.to_owned(),
        };
        let mut command = gateway.command("unshare");
        // Its own mounts; `exec`, so that the PID stays.
        command.args(["-m", "sh", "-c"]).arg(
            "mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages && mount -t bpf bpf /sys/fs/bpf && exec \"$@\"",
        );
        command.arg("sh").arg(program).args(self.arguments(side, core, &config));
        Process::start(command, &format!("{}-{}", self.name(), side.letter()), directory)
    }

    fn arguments(self, side: Side, core: usize, config: &Path) -> Vec<String> {
        let mut line = format!("--file-prefix spindle-{} --in-memory --no-pci --no-telemetry", side.letter());
        for (number, interface) in [side.inside_interface(), side.outside_interface()].iter().enumerate() {
            // Writing to a string can't fail. Busy polling would have the gateway's core do the generator's part.
            let _ = write!(line, " --vdev net_af_xdp{number},iface={interface},force_copy=1,busy_budget=0");
        }
        let _ = match self {
            // The main core reads commands, another one forwards.
            Dpdk::Testpmd => write!(
                line,
                " -l {},{core} --main-lcore {} -- --forward-mode=io --auto-start --nb-cores=1 --burst=32",
                1 - core.min(1),
                1 - core.min(1)
            ),
            Dpdk::IpsecSecgw => write!(
                line,
                " -l {core} --vdev crypto_aesni_gcm0 -- -p 0x3 -P -u 0x2 --config (0,0,{core}),(1,0,{core}) -f {}",
                config.display()
            ),
        };
        line.split(' ').map(str::to_owned).collect()
    }
}

/// ipsec-secgw's: AES-128-GCM in tunnel mode, one SA each way.
fn configuration(addresses: &Addresses, side: Side, neighbours: &Neighbours) -> String {
    let other = side.other();
    let (here, there) = (addresses.gateway_outside(side), addresses.gateway_outside(other));
    let key = ["07"; 20].join(":");
    // The number is the SPI.
    let spi = |from: Side| if from == Side::A { 5 } else { 6 };
    let any = "sport 0:65535 dport 0:65535";
    format!(
        "sp ipv4 out esp protect {out} pri 1 dst {remote} {any}
sp ipv4 in esp protect {inbound} pri 1 dst {local} {any}
sa out {out} aead_algo aes-128-gcm aead_key {key} mode ipv4-tunnel src {here} dst {there}
sa in {inbound} aead_algo aes-128-gcm aead_key {key} mode ipv4-tunnel src {there} dst {here}
rt ipv4 dst {there}/32 port 1
rt ipv4 dst {local} port 0
neigh port 0 {host}
neigh port 1 {peer}
",
        out = spi(side),
        inbound = spi(other),
        local = addresses.inside(side),
        remote = addresses.inside(other),
        host = neighbours.host,
        peer = neighbours.peer,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_gateways_of_ipsec_secgw_mirror_each_other() {
        let neighbours = Neighbours { host: "02:00:00:00:00:01".into(), peer: "02:00:00:00:00:02".into() };
        let [a, b] = [Side::A, Side::B].map(|side| configuration(&Addresses::default(), side, &neighbours));
        let line = |text: &str, start: &str| text.lines().find(|l| l.starts_with(start)).unwrap().to_owned();
        assert_eq!(line(&a, "sa out 5")[8..], line(&b, "sa in 5")[7..]);
        assert_eq!(line(&b, "sa out 6")[8..], line(&a, "sa in 6")[7..]);
        assert!(line(&a, "sp ipv4 out").contains("protect 5 pri 1 dst 10.2.0.0/24 "));
        assert!(
            a.contains("rt ipv4 dst 192.0.2.2/32 port 1\n") && a.contains("rt ipv4 dst 10.1.0.0/24 port 0\n")
        );
        assert!(a.ends_with("neigh port 0 02:00:00:00:00:01\nneigh port 1 02:00:00:00:00:02\n"));
    }

    #[test]
    fn both_programs_poll_both_interfaces_on_the_same_core() {
        let of = |program: Dpdk| program.arguments(Side::A, 1, Path::new("/c")).join(" ");
        for program in [Dpdk::Testpmd, Dpdk::IpsecSecgw] {
            let line = of(program);
            assert!(line.contains("--vdev net_af_xdp0,iface=a-in,force_copy=1,busy_budget=0"));
            assert!(line.contains("--vdev net_af_xdp1,iface=a-out,force_copy=1,busy_budget=0"));
        }
        assert!(of(Dpdk::Testpmd).contains("-l 0,1 --main-lcore 0 -- --forward-mode=io"));
        assert!(of(Dpdk::IpsecSecgw).ends_with("--config (0,0,1),(1,0,1) -f /c"));
    }
}
