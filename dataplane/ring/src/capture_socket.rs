//! How a capture is asked for: over a socket of the dataplane's, which answers with the descriptors of the rings.
//!
//! `spindle capture` connects and sends a [`Request`]; the dataplane answers with [`Begun`] and a ring for each worker, or
//! with the reason why not. Later requests on the same connection change which SPIs are wanted. The capture ends with the
//! connection, however that ends. Who shuts down its half has the workers end first, and hears the end of the connection
//! when all has been written.

use crate::descriptors;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, shutdown, socket_with,
};
use rustix::net::{SendFlags, UCred};
use spindle_abi::LAYOUT_HASH;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The socket's name in the gateway's run directory.
pub const CAPTURE_SOCKET: &str = "capture.sock";
/// SPIs that a capture can be restricted to, at most.
pub const MAX_SPIS: usize = 256;
/// Octets that are captured of a frame, at most: what a frame can have.
pub const MAX_SNAPLEN: u16 = 4096;
/// Octets of an answer, at most: 257 interfaces and the names of the reasons.
const ANSWER: usize = 32 << 10;

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Octets of each frame, at most.
    pub snaplen: u16,
    /// Frames of the inside and of virtual interfaces; frames of the outside.
    pub sides: [bool; 2],
    /// Only frames that were dropped.
    pub dropped: bool,
    /// Only frames that were in ESP with one of these SPIs, or were put into it; the first [`MAX_SPIS`] of them.
    pub spis: Option<Vec<u32>>,
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    layout: u64,
    snaplen: u16,
    inside: u8,
    outside: u8,
    dropped: u8,
    by_spi: u8,
    count: u16,
    spis: [u32; MAX_SPIS],
}

impl Request {
    fn encode(&self) -> Record {
        let mut spis = [0; MAX_SPIS];
        let wanted = self.spis.as_deref().unwrap_or_default();
        let count = wanted.len().min(MAX_SPIS);
        spis[..count].copy_from_slice(&wanted[..count]);
        Record {
            layout: LAYOUT_HASH,
            snaplen: self.snaplen,
            inside: self.sides[0].into(),
            outside: self.sides[1].into(),
            dropped: self.dropped.into(),
            by_spi: self.spis.is_some().into(),
            count: count as u16,
            spis,
        }
    }

    fn decode(octets: &[u8]) -> Option<Request> {
        let record = Record::read_from_bytes(octets).ok().filter(|record| record.layout == LAYOUT_HASH)?;
        let spis = record.spis.get(..usize::from(record.count))?;
        Some(Request {
            snaplen: record.snaplen.min(MAX_SNAPLEN),
            sides: [record.inside != 0, record.outside != 0],
            dropped: record.dropped != 0,
            spis: (record.by_spi != 0).then(|| spis.to_vec()),
        })
    }
}

/// An interface at which frames are captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// In [`Captured`](crate::capture::Captured).
    pub number: u16,
    /// Frames have no Ethernet header; the 14 octets in its place say nothing.
    pub raw: bool,
    /// Its name in the kernel.
    pub name: String,
}

/// What the dataplane says of a capture that has begun.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Begun {
    /// Where frames come from.
    pub interfaces: Vec<Interface>,
    /// Names of the reasons for drops, by their numbers.
    pub reasons: Vec<String>,
}

impl Begun {
    fn encode(&self) -> String {
        let mut text = String::new();
        for Interface { number, raw, name } in &self.interfaces {
            let link = if *raw { "raw" } else { "ethernet" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "interface {number} {link} {name}");
        }
        self.reasons.iter().for_each(|name| text += &format!("reason {name}\n"));
        text
    }

    fn decode(text: &str) -> Option<Begun> {
        let mut begun = Begun::default();
        for line in text.lines() {
            match line.split_once(' ')? {
                ("interface", rest) => {
                    let mut words = rest.splitn(3, ' ');
                    let number = words.next()?.parse().ok()?;
                    let raw = words.next()? == "raw";
                    begun.interfaces.push(Interface { number, raw, name: words.next()?.into() });
                }
                ("reason", name) => begun.reasons.push(name.into()),
                _ => return None,
            }
        }
        Some(begun)
    }
}

/// The dataplane's end: where captures are asked for.
#[derive(Debug)]
pub struct CaptureListener(OwnedFd);

impl CaptureListener {
    /// Listens in this directory, for root alone.
    pub fn bind(run_dir: &Path) -> io::Result<CaptureListener> {
        let path = run_dir.join(CAPTURE_SOCKET);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let socket = new_socket(SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listen(&socket, 4)?;
        Ok(CaptureListener(socket))
    }

    /// The next connection, and whose it is; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<(CaptureServer, UCred)>> {
        match accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => {
                let peer = socket_peercred(&socket)?;
                Ok(Some((CaptureServer(socket), peer)))
            }
            Err(e) if matches!(io::Error::from(e).kind(), io::ErrorKind::WouldBlock) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// The dataplane's end of a connection.
#[derive(Debug)]
pub struct CaptureServer(OwnedFd);

/// What came over a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// Nothing yet.
    Nothing,
    /// This is wanted.
    Request(Request),
    /// The other side has ended the capture, or is gone, or is of another version.
    End,
}

impl CaptureServer {
    /// The next message.
    pub fn asked(&self) -> Asked {
        let mut octets = [0; size_of::<Record>() + 1];
        match recv(&self.0, &mut octets[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => Request::decode(&octets[..length]).map_or(Asked::End, Asked::Request),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Asked::Nothing,
            Err(_) => Asked::End,
        }
    }

    /// The capture has begun.
    pub fn begun(&self, begun: &Begun, rings: &[OwnedFd]) -> io::Result<()> {
        let rings: Vec<BorrowedFd<'_>> = rings.iter().map(AsFd::as_fd).collect();
        descriptors::send(&self.0, begun.encode().as_bytes(), &rings)
    }

    /// There will be no capture, and why.
    pub fn refuse(self, why: &str) {
        // Who has gone needs no answer.
        let _ = send(&self.0, why.as_bytes(), SendFlags::NOSIGNAL);
        // What nobody read when a socket is closed would reset it, and the answer be lost.
        let _ = shutdown(&self.0, Shutdown::Read);
        while matches!(recv(&self.0, &mut [0; 8][..], RecvFlags::DONTWAIT), Ok((1.., _))) {}
    }
}

/// The other end of a connection: `spindle capture`'s.
#[derive(Debug)]
pub struct CaptureClient(OwnedFd);

impl CaptureClient {
    /// Connects to the dataplane of the gateway with this run directory.
    pub fn connect(run_dir: &Path) -> io::Result<CaptureClient> {
        let socket = new_socket(SocketFlags::empty())?;
        connect(&socket, &SocketAddrUnix::new(run_dir.join(CAPTURE_SOCKET))?)?;
        Ok(CaptureClient(socket))
    }

    /// Says what is wanted.
    pub fn ask(&self, request: &Request) -> io::Result<()> {
        match send(&self.0, request.encode().as_bytes(), SendFlags::NOSIGNAL) {
            // Refused, or ended: why is still to be heard.
            Ok(_) | Err(rustix::io::Errno::PIPE) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the answer to the first request: what is captured, and the rings; or why not.
    pub fn begun(&self) -> io::Result<(Begun, Vec<OwnedFd>)> {
        let mut answer = vec![0; ANSWER];
        let (length, rings) = descriptors::receive(&self.0, &mut answer, RecvFlags::empty())?;
        let text = String::from_utf8_lossy(&answer[..length]);
        match Begun::decode(&text) {
            _ if length == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(begun) if !rings.is_empty() => Ok((begun, rings)),
            _ => Err(io::Error::other(text.into_owned())),
        }
    }

    /// The workers are to end.
    pub fn end(&self) {
        // Ended by the other side already.
        let _ = shutdown(&self.0, Shutdown::Write);
    }

    /// Has the capture ended: is nothing written any more?
    pub fn has_ended(&self) -> bool {
        !matches!(recv(&self.0, &mut [0; 8][..], RecvFlags::DONTWAIT), Err(rustix::io::Errno::AGAIN))
    }
}

impl AsRawFd for CaptureListener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsRawFd for CaptureServer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn new_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{CaptureReader, Captured, OUTSIDE, create};
    use spindle_abi::{Spi, Time};

    /// A directory of its own, gone at the end.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("spindle-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn request(spis: Option<Vec<u32>>) -> Request {
        Request { snaplen: 96, sides: [false, true], dropped: true, spis }
    }

    #[test]
    fn a_capture_is_asked_for_and_ends_with_its_connection() {
        let directory = Directory::new("capture-socket");
        let listener = CaptureListener::bind(&directory.0).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let mode = std::fs::metadata(directory.0.join(CAPTURE_SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = CaptureClient::connect(&directory.0).unwrap();
        let (server, peer) = listener.accept().unwrap().unwrap();
        assert_eq!(peer.uid, rustix::process::getuid());
        assert_eq!(server.asked(), Asked::Nothing);
        for spis in [None, Some(vec![]), Some(vec![256, 7])] {
            client.ask(&request(spis.clone())).unwrap();
            assert_eq!(server.asked(), Asked::Request(request(spis)));
        }
        let (mut writers, rings) = create(2).unwrap();
        let interface = |number, raw, name: &str| Interface { number, raw, name: name.into() };
        let begun = Begun {
            interfaces: vec![interface(0, true, "in 0"), interface(OUTSIDE, false, "out")],
            reasons: vec!["one".into(), "two".into()],
        };
        server.begun(&begun, &rings).unwrap();
        let (heard, rings) = client.begun().unwrap();
        assert_eq!(heard, begun);
        let captured =
            Captured { at: Time(1), interface: 0, left: true, dropped: None, spi: Spi(256), length: 3 };
        writers[1].write(&captured, b"abc").unwrap();
        writers[1].publish();
        let (mut reader, mut octets) = (CaptureReader::open(&rings[1]).unwrap(), Vec::new());
        assert_eq!((reader.read(&mut octets).unwrap(), &octets[..]), (Some(captured), &b"abc"[..]));

        client.end();
        assert_eq!(server.asked(), Asked::End);
        assert!(!client.has_ended());
        drop(server);
        assert!(client.has_ended());
    }

    #[test]
    fn other_versions_are_none_of_ours_and_a_death_is_an_end() {
        let directory = Directory::new("capture-refused");
        let listener = CaptureListener::bind(&directory.0).unwrap();
        let client = CaptureClient::connect(&directory.0).unwrap();
        let (server, _) = listener.accept().unwrap().unwrap();
        let mut record = request(None).encode();
        record.layout ^= 1;
        send(&client.0, record.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        assert_eq!(server.asked(), Asked::End);
        drop(client);
        assert_eq!(server.asked(), Asked::End, "killed");
    }

    #[test]
    fn a_refusal_is_heard_whether_or_not_the_request_was_read() {
        let directory = Directory::new("capture-unread");
        let listener = CaptureListener::bind(&directory.0).unwrap();
        for asks_first in [true, false] {
            let client = CaptureClient::connect(&directory.0).unwrap();
            if asks_first {
                client.ask(&request(None)).unwrap();
            }
            let (server, _) = listener.accept().unwrap().unwrap();
            server.refuse("a capture runs already");
            if !asks_first {
                client.ask(&request(None)).unwrap();
            }
            assert_eq!(client.begun().unwrap_err().to_string(), "a capture runs already");
        }
    }
}
