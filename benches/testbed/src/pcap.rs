//! Capture files: pcap with nanosecond timestamps, Ethernet, written and read.
//!
//! The format is that of libpcap (draft-ietf-opsawg-pcap): a 24-octet header whose magic number tells byte order and
//! the timestamps' unit, then a 16-octet header before each frame. The reader takes either order and either unit.

use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
/// Larger than any frame; a longer one means a broken file.
const LARGEST: u32 = 256 << 10;

/// One frame of a capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// CLOCK_REALTIME in nanoseconds.
    pub at: u64,
    /// The frame from its Ethernet header on.
    pub octets: Vec<u8>,
}

/// Writes a capture file.
#[derive(Debug)]
pub struct Writer<W: Write> {
    output: W,
}

impl Writer<BufWriter<File>> {
    /// Makes (or empties) a file.
    pub fn create(path: &Path) -> Result<Self> {
        let what = || format!("creating {}", path.display());
        Writer::new(BufWriter::with_capacity(1 << 20, File::create(path).context(what)?)).context(what)
    }
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    pub fn new(mut output: W) -> std::io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC_NANOSECONDS.to_le_bytes());
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend(LARGEST.to_le_bytes());
        header.extend(LINKTYPE_ETHERNET.to_le_bytes());
        output.write_all(&header)?;
        Ok(Writer { output })
    }

    /// Appends a frame with its time (CLOCK_REALTIME in nanoseconds).
    pub fn write(&mut self, at: u64, frame: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes();
        let seconds = u32::try_from(at / 1_000_000_000).unwrap_or(u32::MAX).to_le_bytes();
        let rest = u32::try_from(at % 1_000_000_000).unwrap_or(0).to_le_bytes();
        let header = [seconds, rest, length, length].concat();
        self.output.write_all(&header)?;
        self.output.write_all(frame)
    }

    /// Writes out what is buffered and returns the output.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

/// Reads a capture file, frame by frame; a torn last frame ends it with an error.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    swapped: bool,
    nanoseconds_per_unit: u64,
}

impl Reader<BufReader<File>> {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context(|| format!("opening {}", path.display()))?;
        Reader::new(BufReader::with_capacity(1 << 20, file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads the file's header.
    pub fn new(mut input: R) -> Result<Self> {
        let mut header = [0; 24];
        input.read_exact(&mut header).context(|| "reading a capture's header".to_owned())?;
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (swapped, nanoseconds_per_unit) = match (magic, magic.swap_bytes()) {
            (MAGIC_NANOSECONDS, _) => (false, 1),
            (MAGIC_MICROSECONDS, _) => (false, 1_000),
            (_, MAGIC_NANOSECONDS) => (true, 1),
            (_, MAGIC_MICROSECONDS) => (true, 1_000),
            _ => return Err(Error::Capture(format!("not a pcap file (magic {magic:08x})"))),
        };
        let reader = Reader { input, swapped, nanoseconds_per_unit };
        match reader.word(&header, 20) & 0x0fff_ffff {
            LINKTYPE_ETHERNET => Ok(reader),
            other => Err(Error::Capture(format!("link type {other} instead of Ethernet"))),
        }
    }

    fn word(&self, header: &[u8], at: usize) -> u32 {
        let word = u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if self.swapped { word.swap_bytes() } else { word }
    }

    fn frame(&mut self) -> Result<Option<Frame>> {
        let mut header = [0; 16];
        let mut filled = 0;
        while filled < header.len() {
            match self.input.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Capture("ends within a frame's header".to_owned())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(|| "reading a capture".to_owned()),
            }
        }
        let at = u64::from(self.word(&header, 0)) * 1_000_000_000
            + u64::from(self.word(&header, 4)) * self.nanoseconds_per_unit;
        let length = self.word(&header, 8);
        if length > LARGEST {
            return Err(Error::Capture(format!("a frame of {length} octets")));
        }
        let mut octets = vec![0; length as usize];
        self.input.read_exact(&mut octets).context(|| "reading a captured frame".to_owned())?;
        Ok(Some(Frame { at, octets }))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        self.frame().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(frames: &[Frame]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).expect("memory takes it");
        for frame in frames {
            writer.write(frame.at, &frame.octets).expect("memory takes it");
        }
        writer.finish().expect("memory takes it")
    }

    fn frames() -> Vec<Frame> {
        let frame = |at, length| Frame { at, octets: (0..length).map(|octet| octet as u8).collect() };
        vec![frame(1_700_000_000_123_456_789, 60), frame(1_700_000_001_000_000_001, 1514), frame(5, 0)]
    }

    #[test]
    fn what_is_written_is_read_back_to_the_nanosecond() {
        let read: Result<Vec<Frame>> = Reader::new(&capture(&frames())[..]).expect("a header").collect();
        assert_eq!(read.expect("whole frames"), frames());
    }

    #[test]
    fn a_foreign_byte_order_and_microseconds_are_read() {
        let mut file = Vec::new();
        file.extend(MAGIC_MICROSECONDS.to_be_bytes());
        file.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 1]);
        for word in [7_u32, 8, 3, 3] {
            file.extend(word.to_be_bytes());
        }
        file.extend([1, 2, 3]);
        let read: Result<Vec<Frame>> = Reader::new(&file[..]).expect("a header").collect();
        assert_eq!(read.expect("whole frames"), [Frame { at: 7_000_008_000, octets: vec![1, 2, 3] }]);
    }

    #[test]
    fn no_torn_or_foreign_file_is_taken_for_a_capture() {
        let whole = capture(&frames());
        for length in 0..whole.len() {
            let Ok(reader) = Reader::new(&whole[..length]) else {
                assert!(length < 24);
                continue;
            };
            let read: Vec<Result<Frame>> = reader.collect();
            let between_frames = [24, 24 + 16 + 60, 24 + 32 + 60 + 1514].contains(&length);
            assert_eq!(read.iter().all(Result::is_ok), between_frames, "{length} octets");
        }
        assert!(Reader::new(&[0; 24][..]).is_err());
    }
}
