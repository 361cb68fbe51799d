//! A Linux kernel in a gateway's place: a peer whose ESP, forwarding and MTU handling no one here wrote.
//!
//! The machine is Debian's cloud kernel in qemu without KVM, made by `benches/peers/linux/build`. Its two network cards
//! are taps on bridges with the gateway's interfaces, and it has the gateway's addresses, so hosts, wires and captures stay
//! what they are:
//!
//! ```text
//!  host-a      gateway-a's namespace                                    box
//!  a-host ═══ a-in ─ bridge in ─ tap-in ┐          ┌ tap-out ─ bridge out ─ a-out ═══ box-a
//!                                  eth0 └─ Linux ──┘ eth1
//! ```
//!
//! strongSwan speaks IKE in it, over the kernel's XFRM. It is told what to do on a serial port: a line in, its output, then an
//! SOH with the exit code.

use crate::cleanup::Guard;
use crate::error::{Context, Error, Result};
use crate::strongswan;
use crate::topology::{Addresses, IPV6_PREFIX, Side, Topology, ipv6};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// From the start until the machine takes commands; alone it needs 4 s.
const BOOT: Duration = Duration::from_secs(120);
/// For a command.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ends a command's output, before its exit code.
const END: char = '\u{1}';

/// A running machine; ended when dropped.
#[derive(Debug)]
pub struct LinuxPeer {
    machine: Child,
    input: ChildStdin,
    output: Receiver<String>,
    messages: PathBuf,
    _guard: Guard,
}

impl LinuxPeer {
    /// Starts the machine in the place of a side's gateway, which must not run; its files lie in `directory`.
    ///
    /// # Errors
    /// If the machine was not made (`scripts/install-packages interop` does), or takes no command within two minutes.
    pub fn start(topology: &Topology, side: Side, directory: &Path) -> Result<LinuxPeer> {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/linux-peer");
        let (kernel, initrd) = (made.join("vmlinuz"), made.join("initrd"));
        if !kernel.exists() || !initrd.exists() {
            let text = format!("{} has no kernel; run `scripts/install-packages interop`", made.display());
            return Err(Error::Machine(text));
        }
        let namespace = topology.gateway(side);
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        for (bridge, interface) in [("in", side.inside_interface()), ("out", side.outside_interface())] {
            namespace.ip(&format!("address flush dev {interface}"))?;
            namespace.ip(&format!("tuntap add dev tap-{bridge} mode tap"))?;
            namespace.ip(&format!("link add {bridge} type bridge mcast_snooping 0"))?;
            for port in [&format!("tap-{bridge}"), &interface] {
                namespace.ip(&format!("link set {port} master {bridge}"))?;
                namespace.ip(&format!("link set {port} up"))?;
            }
            namespace.ip(&format!("link set {bridge} up"))?;
        }
        let what = || "starting qemu-system-x86_64".to_owned();
        std::fs::create_dir_all(directory).context(what)?;
        let messages = directory.join("kernel.log");
        let mut command = namespace.command("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-append", "console=ttyS0 panic=-1"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.arg("-serial").arg(format!("file:{}", messages.display())).args(["-serial", "stdio"]);
        for (number, name) in ["in", "out"].into_iter().enumerate() {
            command.args(["-netdev", &format!("tap,id={name},ifname=tap-{name},script=no,downscript=no")]);
            let mac = format!("02:00:00:00:00:{:02x}", 0x10 + number);
            command.args(["-device", &format!("virtio-net-pci,netdev={name},mac={mac},romfile=")]);
        }
        let log = std::fs::File::create(directory.join("qemu.log")).context(what)?;
        let mut machine =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().context(what)?;
        let guard = Guard::process_group(machine.id() as i32);
        let (Some(input), Some(printed)) = (machine.stdin.take(), machine.stdout.take()) else {
            return Err(Error::Machine("qemu has no serial port".to_owned()));
        };
        let (lines, output) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(printed).split(b'\n').map_while(std::result::Result::ok) {
                if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let peer = LinuxPeer { machine, input, output, messages, _guard: guard };
        peer.answer("its start", BOOT)?;
        Ok(peer)
    }

    /// Gives it the gateway's addresses and routes.
    ///
    /// # Errors
    /// If a command fails there.
    pub fn equip(&mut self, addresses: &Addresses, side: Side) -> Result<()> {
        let next = addresses.gateway_outside(side.other());
        for (device, address, network) in [
            ("eth0", addresses.gateway_inside(side), addresses.inside(side)),
            ("eth1", addresses.gateway_outside(side), addresses.outside),
        ] {
            self.run(&format!("ip address add {address}/{} dev {device}", network.prefix))?;
            if addresses.use_ipv6() {
                let prefix = IPV6_PREFIX + network.prefix;
                self.run(&format!("ip address add {}/{prefix} dev {device} nodad", ipv6(address)))?;
            }
            self.run(&format!("ip link set {device} up"))?;
        }
        self.run(&format!("ip route add default via {next}"))?;
        if addresses.use_ipv6() {
            self.run(&format!("ip route add default via {}", ipv6(next)))?;
        }
        Ok(())
    }

    /// Starts charon, with the kernel's ESP and a swanctl.conf.
    ///
    /// # Errors
    /// If it isn't up within half a minute, or finds fault with the configuration.
    pub fn start_charon(&mut self, connections: &str) -> Result<()> {
        let settings = strongswan::settings(Path::new("/run"), "kernel-netlink", None);
        self.write("/etc/strongswan.conf", &(settings + "swanctl {\n  load = random openssl\n}\n"))?;
        self.write("/etc/swanctl.conf", connections)?;
        self.run("export STRONGSWAN_CONF=/etc/strongswan.conf; charon-systemd >/dev/null 2>&1 &")?;
        self.run("i=0; until [ -e /run/charon.vici ] || [ $i = 300 ]; do sleep 0.1; i=$((i+1)); done")?;
        self.swanctl("--load-all --file /etc/swanctl.conf").map(drop)
    }

    /// `swanctl ARGUMENTS`; its output.
    ///
    /// # Errors
    /// If it fails; with its output and charon's log.
    pub fn swanctl(&mut self, arguments: &str) -> Result<String> {
        self.run(&format!("swanctl {arguments} --uri unix:///run/charon.vici"))
    }

    /// Runs a line of shell in the machine; what it printed.
    ///
    /// # Errors
    /// If it fails, with what it printed and charon's log; if it does not end within a minute.
    pub fn run(&mut self, line: &str) -> Result<String> {
        let (code, text) = self.command(line)?;
        if code == 0 {
            return Ok(text);
        }
        let (_, log) = self.command("tail -n 40 /run/log 2>/dev/null")?;
        Err(Error::Command { command: line.to_owned(), output: format!("exit code {code}: {text}\n{log}") })
    }

    fn command(&mut self, line: &str) -> Result<(i32, String)> {
        writeln!(self.input, "{line}").context(|| "writing to the machine's serial port".to_owned())?;
        self.answer(line, PATIENCE)
    }

    fn answer(&self, what: &str, patience: Duration) -> Result<(i32, String)> {
        let deadline = Instant::now() + patience;
        let mut text = String::new();
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(END) {
                    Some(code) => return Ok((code.trim().parse().unwrap_or(-1), text)),
                    None => text += &(line + "\n"),
                },
                Err(error) => {
                    let why = match error {
                        RecvTimeoutError::Timeout => format!("no answer within {patience:?}"),
                        RecvTimeoutError::Disconnected => "the machine has ended".to_owned(),
                    };
                    let messages = std::fs::read_to_string(&self.messages).unwrap_or_default();
                    let lines: Vec<&str> = messages.lines().collect();
                    let end = lines[lines.len().saturating_sub(15)..].join("\n");
                    return Err(Error::Subject(format!(
                        "Linux peer, {what}: {why}; {text}\nits kernel:\n{end}"
                    )));
                }
            }
        }
    }

    /// Writes a file in the machine.
    fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let text = text.replace('\\', "\\\\").replace('\n', "\\n").replace('\'', "'\\''");
        self.run(&format!("printf '%b' '{text}' >{path}")).map(drop)
    }

    /// The packets that its kernel dropped in XFRM, by reason; those that are zero are left out.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn xfrm_drops(&mut self) -> Result<BTreeMap<String, u64>> {
        let text = self.run("cat /proc/net/xfrm_stat")?;
        let counters = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        });
        Ok(counters.filter(|(_, value)| *value != 0).collect())
    }
}

impl Drop for LinuxPeer {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}
