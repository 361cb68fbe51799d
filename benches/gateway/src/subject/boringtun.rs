//! boringtun: WireGuard in a process, over a TUN device. The kernel routes between it and the host.

use crate::process::{Process, wait_until};
use anyhow::{Context, Result, bail};
use spindle_testbed::{Addresses, Namespace, Side};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 51820;
const DEVICE: &str = "wg0";

/// The key pairs of RFC 7748 section 6.1, private and public: they protect nothing here.
const KEYS: [(&str, &str); 2] = [
    (
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
    ),
    (
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    ),
];

/// One end.
pub(crate) struct Boringtun {
    _process: Process,
}

impl Boringtun {
    /// Starts it in a gateway's place.
    pub(crate) fn start(
        gateway: &Namespace,
        side: Side,
        program: &Path,
        directory: &Path,
    ) -> Result<Boringtun> {
        let mut command = gateway.command("unshare");
        // Its control socket has a fixed place, which is its own by its own mounts.
        command.args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec \"$@\"",
            "sh",
        ]);
        command.arg(program).args(["--foreground", "--disable-drop-privileges", DEVICE]);
        let mut process = Process::start(command, &format!("boringtun-{}", side.letter()), directory)?;
        let socket = format!("/proc/{}/root/run/wireguard/{DEVICE}.sock", process.id());
        wait_until("boringtun's control socket", PATIENCE, || {
            process.check()?;
            Ok(UnixStream::connect(&socket).is_ok())
        })?;
        let addresses = Addresses::default();
        configure(&socket, &configuration(&addresses, side))?;
        gateway.ip(&format!("link set {DEVICE} up"))?;
        gateway.ip(&format!("route replace {} dev {DEVICE}", addresses.inside(side.other())))?;
        Ok(Boringtun { _process: process })
    }
}

/// WireGuard's cross-platform configuration protocol: `set=1`, lines, an empty line; the answer is `errno=0`.
fn configure(socket: &str, text: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("boringtun's control socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.contains("errno=0") {
        bail!("boringtun refused its configuration: {}", answer.trim());
    }
    Ok(())
}

fn configuration(addresses: &Addresses, side: Side) -> String {
    let other = side.other();
    format!(
        "set=1\nprivate_key={}\nlisten_port={PORT}\npublic_key={}\nendpoint={}:{PORT}\nallowed_ip={}\n\n",
        KEYS[side as usize].0,
        KEYS[other as usize].1,
        addresses.gateway_outside(other),
        addresses.inside(other),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_knows_the_others_key_and_address() {
        let [a, b] = [Side::A, Side::B].map(|side| configuration(&Addresses::default(), side));
        assert!(a.starts_with(&format!("set=1\nprivate_key={}\n", KEYS[0].0)));
        assert!(a.contains(&format!(
            "public_key={}\nendpoint=192.0.2.2:51820\nallowed_ip=10.2.0.0/24\n\n",
            KEYS[1].1
        )));
        assert!(b.contains(&format!(
            "public_key={}\nendpoint=192.0.2.1:51820\nallowed_ip=10.1.0.0/24\n\n",
            KEYS[0].1
        )));
    }
}
