//! The file by which Wireshark and tshark decrypt: `esp_sa`, a row for each SA, as their ESP dissector has it.
//!
//! It is made new, readable by its owner alone, and only where that was asked for; a row is added when an SA comes. It holds
//! secrets: nothing else here shows them.

use crate::protocol::WatchedSa;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Octets of a row at most.
const LONGEST: usize = 512;

/// The file, while it is written.
pub(super) struct KeyFile {
    file: File,
    written: HashSet<(u32, IpAddr, IpAddr)>,
}

impl KeyFile {
    /// Makes the file. It must not be there, not even as a symbolic link.
    pub(super) fn create(path: &Path) -> io::Result<KeyFile> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(KeyFile { file, written: HashSet::new() })
    }

    /// Adds an SA, once. Nothing is kept in a buffer.
    pub(super) fn add(&mut self, sa: &WatchedSa<'_>) -> io::Result<()> {
        let Some(row) = row(sa) else { return Ok(()) };
        if self.written.insert((sa.spi, sa.source, sa.destination)) {
            self.file.write_all(row.as_bytes())?;
        }
        Ok(())
    }

    /// SAs in the file.
    pub(super) fn count(&self) -> usize {
        self.written.len()
    }
}

/// The names are Wireshark's; 4.0 does not know ChaCha20-Poly1305 yet. Whether sequence numbers are extended
/// matters only for checking the ICV, and the columns that say so are those of later versions, which may be left out.
fn row(sa: &WatchedSa<'_>) -> Option<Zeroizing<String>> {
    let key = sa.key?;
    let algorithm = match &*sa.suite {
        "chacha20poly1305" => "ChaCha20 with Poly1305 [RFC7634]",
        _ => "AES-GCM with 16 octet ICV [RFC4106]",
    };
    let version = if sa.source.is_ipv6() { "IPv6" } else { "IPv4" };
    let mut row = Zeroizing::new(String::with_capacity(LONGEST));
    let (spi, source, destination) = (sa.spi, sa.source, sa.destination);
    let written = writeln!(
        row,
        "\"{version}\",\"{source}\",\"{destination}\",\"0x{spi:08x}\",\"{algorithm}\",\"0x{key}\",\"NULL\",\"\""
    );
    written.is_ok().then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn sa<'a>(spi: u32, suite: &'a str, key: Option<&'a str>) -> WatchedSa<'a> {
        let (source, destination) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        WatchedSa { connection: "ab".into(), spi, source, destination, suite: suite.into(), key }
    }

    #[test]
    fn a_row_for_each_sa_as_wiresharks_esp_dissector_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("esp_sa");
        let mut file = KeyFile::create(&path).unwrap();
        let six = WatchedSa {
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
            ..sa(0x300, "chacha20poly1305", Some("0102"))
        };
        for sa in [sa(256, "aes128gcm16", Some("00ff")), sa(256, "aes128gcm16", Some("00ff")), six] {
            file.add(&sa).unwrap();
        }
        file.add(&sa(512, "aes128gcm16", None)).unwrap();
        assert_eq!(file.count(), 2);
        let text = "\"IPv4\",\"192.0.2.1\",\"192.0.2.2\",\"0x00000100\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x00ff\",\"NULL\",\"\"\n\
                    \"IPv6\",\"2001:db8::1\",\"2001:db8::2\",\"0x00000300\",\"ChaCha20 with Poly1305 [RFC7634]\",\"0x0102\",\"NULL\",\"\"\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_file_takes_the_place_of_nothing_and_follows_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let (there, link) = (directory.path().join("there"), directory.path().join("link"));
        std::fs::write(&there, "precious").unwrap();
        symlink(directory.path().join("elsewhere"), &link).unwrap();
        for path in [&there, &link] {
            let error = KeyFile::create(path).err().map(|error| error.kind());
            assert_eq!(error, Some(io::ErrorKind::AlreadyExists));
        }
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "precious");
        assert!(!directory.path().join("elsewhere").exists());
    }
}
