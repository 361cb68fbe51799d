//! Writes pcapng (draft-ietf-opsawg-pcapng): one section, an interface description for each interface, a packet block for each
//! frame, with its direction and a comment, and statistics at the end.
//!
//! Little-endian; times are nanoseconds since 1970. Only what a capture needs is here.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const SHB_USERAPPL: u16 = 4;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFDROP: u16 = 5;
const ISB_USRDELIV: u16 = 8;

/// What frames of an interface begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// The header of IPv4 or IPv6.
    Raw = 101,
}

/// A frame.
pub(super) struct Packet<'a> {
    /// The interface's number, in the order of their descriptions.
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) at: u64,
    /// It left by the interface; else it came.
    pub(super) outbound: bool,
    /// Its length on the wire, in octets.
    pub(super) length: u32,
    /// As much of it as was captured.
    pub(super) octets: &'a [u8],
    pub(super) comment: Option<&'a str>,
}

/// What there is to be said of an interface when all is written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Statistics {
    /// Frames that were written.
    pub(super) written: u64,
    /// Frames for which there was no room.
    pub(super) lost: u64,
}

/// Writes a capture.
pub(super) struct Writer<W> {
    output: W,
    /// The block under way; its memory is used again.
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a section.
    pub(super) fn new(output: W, application: &str) -> io::Result<Writer<W>> {
        let mut writer = Writer { output, block: Vec::new() };
        writer.begin(SECTION_HEADER);
        writer.put32(BYTE_ORDER_MAGIC);
        // Version 1.0, and a section of unknown length.
        writer.put32(1);
        writer.block.extend([0xff; 8]);
        writer.option(SHB_USERAPPL, application.as_bytes());
        writer.end()?;
        Ok(writer)
    }

    /// Describes the next interface.
    pub(super) fn interface(
        &mut self,
        link: LinkType,
        snaplen: u32,
        name: &str,
        description: &str,
    ) -> io::Result<()> {
        self.begin(INTERFACE_DESCRIPTION);
        self.put32(link as u32);
        self.put32(snaplen);
        self.option(IF_NAME, name.as_bytes());
        self.option(IF_DESCRIPTION, description.as_bytes());
        // Ten to the minus ninth.
        self.option(IF_TSRESOL, &[9]);
        self.end()
    }

    /// Writes a frame.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.begin(ENHANCED_PACKET);
        self.put32(packet.interface);
        self.put_time(packet.at);
        self.put32(packet.octets.len() as u32);
        self.put32(packet.length);
        self.put_padded(packet.octets);
        let direction: u32 = if packet.outbound { 0b10 } else { 0b01 };
        self.option(EPB_FLAGS, &direction.to_le_bytes());
        if let Some(comment) = packet.comment {
            self.option(COMMENT, comment.as_bytes());
        }
        self.end()
    }

    /// Says what has become of an interface's frames between two times.
    pub(super) fn statistics(
        &mut self,
        interface: u32,
        (start, end): (u64, u64),
        statistics: Statistics,
    ) -> io::Result<()> {
        let time = |at: u64| [((at >> 32) as u32).to_le_bytes(), (at as u32).to_le_bytes()].concat();
        self.begin(INTERFACE_STATISTICS);
        self.put32(interface);
        self.put_time(end);
        self.option(ISB_STARTTIME, &time(start));
        self.option(ISB_ENDTIME, &time(end));
        self.option(ISB_IFDROP, &statistics.lost.to_le_bytes());
        self.option(ISB_USRDELIV, &statistics.written.to_le_bytes());
        self.end()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.put32(kind);
        // The length, once it is known.
        self.put32(0);
    }

    fn put32(&mut self, value: u32) {
        self.block.extend(value.to_le_bytes());
    }

    fn put_time(&mut self, at: u64) {
        self.put32((at >> 32) as u32);
        self.put32(at as u32);
    }

    fn put_padded(&mut self, octets: &[u8]) {
        self.block.extend(octets);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.put_padded(value);
    }

    /// All blocks of ours have options, so their end is marked.
    fn end(&mut self) -> io::Result<()> {
        self.put32(0);
        let length = self.block.len() as u32 + 4;
        self.block[4..8].copy_from_slice(&length.to_le_bytes());
        self.put32(length);
        self.output.write_all(&self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of a capture: kind and body, whose lengths must agree at both ends.
    fn blocks(mut octets: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |octets: &[u8]| u32::from_le_bytes(octets[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !octets.is_empty() {
            let length = word(&octets[4..]) as usize;
            assert_eq!((length % 4, word(&octets[length - 4..]) as usize), (0, length));
            blocks.push((word(octets), octets[8..length - 4].to_vec()));
            octets = &octets[length..];
        }
        blocks
    }

    fn options(mut octets: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut options = Vec::new();
        loop {
            let half = |at: usize| u16::from_le_bytes([octets[at], octets[at + 1]]);
            let (code, length) = (half(0), usize::from(half(2)));
            if code == 0 {
                assert_eq!((length, octets.len()), (0, 4), "the end is the end");
                return options;
            }
            options.push((code, octets[4..4 + length].to_vec()));
            octets = &octets[4 + length.next_multiple_of(4)..];
        }
    }

    /// draft-ietf-opsawg-pcapng sections 4.1 to 4.3, 4.6.
    #[test]
    fn a_capture_has_the_blocks_and_options_of_the_format() {
        let mut octets = Vec::new();
        let mut writer = Writer::new(&mut octets, "spindle").unwrap();
        writer.interface(LinkType::Raw, 96, "tun0", "inside").unwrap();
        let at = 0x1234_5678_9abc_def0;
        let packet = Packet {
            interface: 3,
            at,
            outbound: true,
            length: 1500,
            octets: &[1, 2, 3, 4, 5],
            comment: Some("dropped: replayed"),
        };
        writer.packet(&packet).unwrap();
        writer.packet(&Packet { outbound: false, comment: None, octets: &[], ..packet }).unwrap();
        writer.statistics(3, (5, at), Statistics { written: 6, lost: 7 }).unwrap();
        writer.flush().unwrap();
        let blocks = blocks(&octets);
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 5]);
        let body = |number: usize| &blocks[number].1[..];

        assert_eq!(body(0)[..16], [[0x4d, 0x3c, 0x2b, 0x1a], [1, 0, 0, 0], [0xff; 4], [0xff; 4]].concat());
        assert_eq!(options(&body(0)[16..]), [(4, b"spindle".to_vec())]);
        assert_eq!(body(1)[..8], [101, 0, 0, 0, 96, 0, 0, 0]);
        let description = [(2, b"tun0".to_vec()), (3, b"inside".to_vec()), (9, vec![9])];
        assert_eq!(options(&body(1)[8..]), description);
        let head = [3, 0x1234_5678, 0x9abc_def0, 5, 1500].map(u32::to_le_bytes).concat();
        assert_eq!(body(2)[..28], [&head[..], &[1, 2, 3, 4, 5, 0, 0, 0]].concat());
        let said = [(2, vec![2, 0, 0, 0]), (1, b"dropped: replayed".to_vec())];
        assert_eq!(options(&body(2)[28..]), said);
        assert_eq!(options(&body(3)[20..]), [(2, vec![1, 0, 0, 0])]);
        let number = |value: u64| value.to_le_bytes().to_vec();
        let end = [0x1234_5678_u32, 0x9abc_def0].map(u32::to_le_bytes).concat();
        assert_eq!(body(4)[..12], [&3_u32.to_le_bytes()[..], &end].concat());
        let start = [0, 5_u32].map(u32::to_le_bytes).concat();
        assert_eq!(options(&body(4)[12..]), [(2, start), (3, end), (5, number(7)), (8, number(6))]);
    }
}
