//! The storm: ESP packets with unique, random-looking SPIs, made in the kernel, and the sink that counts them.
//!
//! [`Storm`] loads `storm.bpf.c` with a header that is built here, and runs it on XDP live frames: the kernel calls
//! the program in a loop, which fills in SPI, source address and checksum and redirects the frame to a veth. One
//! call costs about 24 ms to set up, so a storm is one call that a signal ends. [`Sink`] stands on a veth's far end.
//! Plain traffic is made in the same way.

use aya::maps::{Array, MapData, MapError, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod, TestRun, TestRunAttrs, TestRunOptions};
use rustix::process::Pid;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/storm.bpf.o"));

/// Octets of the headers that the program writes, with UDP.
const HEADER_MAX: usize = 14 + 20 + 8 + 8;
/// The program counts time in nanoseconds times this.
const TIME_UNIT: u64 = 1024;
/// Frames that the kernel makes in one go.
const BATCH: u32 = 64;
/// Frames that a storm with a rate may catch up after it was held up.
const SLACK_FRAMES: u64 = 256;

/// What a storm consists of.
#[derive(Clone, Debug)]
pub struct StormOptions {
    /// Index of the veth that the frames leave by, in the calling thread's network namespace. Its peer must have an
    /// XDP program, else the kernel refuses each frame.
    pub interface: u32,
    /// Source of the Ethernet header.
    pub source_mac: [u8; 6],
    /// Destination of the Ethernet header.
    pub destination_mac: [u8; 6],
    /// First source address.
    pub source: Ipv4Addr,
    /// Bits of the source address that do not vary, 0 to 32.
    pub source_prefix: u8,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// ESP in UDP, port 4500 to 4500 (RFC 3948)?
    pub encapsulated: bool,
    /// Octets of each frame with its Ethernet header: [`StormOptions::SIZES`].
    pub size: u16,
    /// Another key, another sequence of SPIs; the same key, the same sequence.
    pub key: u32,
    /// Frames to send at most.
    pub limit: u64,
    /// Frames per second; 0 is as fast as possible.
    pub rate: u64,
}

impl StormOptions {
    /// Sizes that a live frame can have.
    pub const SIZES: std::ops::RangeInclusive<u16> = 64..=3000;

    /// The header of every frame, without source address, checksum and SPI.
    fn header(&self) -> [u8; HEADER_MAX] {
        let mut header = [0; HEADER_MAX];
        let length = self.size - 14;
        header[..6].copy_from_slice(&self.destination_mac);
        header[6..12].copy_from_slice(&self.source_mac);
        header[12..14].copy_from_slice(&[0x08, 0x00]);
        header[14..18].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8]);
        // Identification 0, DF (RFC 6864 section 4.1: an atomic datagram); time to live 64.
        header[18..24].copy_from_slice(&[0, 0, 0x40, 0, 64, if self.encapsulated { 17 } else { 50 }]);
        header[30..34].copy_from_slice(&self.destination.octets());
        if self.encapsulated {
            let length = (length - 20).to_be_bytes();
            header[34..36].copy_from_slice(&4500_u16.to_be_bytes());
            header[36..38].copy_from_slice(&4500_u16.to_be_bytes());
            // A UDP checksum of zero, as RFC 3948 section 2.1 recommends.
            header[38..40].copy_from_slice(&length);
        }
        header
    }
}

/// The IPv4 header's words added up (checksum and source are still zero in it).
fn checksum_base(header: &[u8; HEADER_MAX]) -> u32 {
    header[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

/// Plain traffic: IPv4 with UDP from one host to another, whose source port has 64 values, as fast as possible.
#[derive(Clone, Debug)]
pub struct PlainOptions {
    /// As [`StormOptions::interface`].
    pub interface: u32,
    /// Source of the Ethernet header.
    pub source_mac: [u8; 6],
    /// Destination of the Ethernet header.
    pub destination_mac: [u8; 6],
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Octets of each IPv4 packet, at least 50, so that its frame is none of those that are padded.
    pub size: u16,
}

impl PlainOptions {
    fn header(&self) -> [u8; HEADER_MAX] {
        let mut header = [0; HEADER_MAX];
        header[..6].copy_from_slice(&self.destination_mac);
        header[6..12].copy_from_slice(&self.source_mac);
        header[12..14].copy_from_slice(&[0x08, 0x00]);
        header[14..16].copy_from_slice(&[0x45, 0]);
        header[16..18].copy_from_slice(&self.size.to_be_bytes());
        header[18..24].copy_from_slice(&[0, 0, 0x40, 0, 64, 17]);
        header[26..30].copy_from_slice(&self.source.octets());
        header[30..34].copy_from_slice(&self.destination.octets());
        let sum = checksum_base(&header);
        let folded = (sum & 0xffff) + (sum >> 16);
        header[24..26].copy_from_slice(&(!(folded + (folded >> 16)) as u16).to_be_bytes());
        header[36..38].copy_from_slice(&9_u16.to_be_bytes()); // discard
        header[38..40].copy_from_slice(&(self.size - 20).to_be_bytes());
        header
    }
}

/// Why there is no storm, or no sink.
#[derive(Debug, thiserror::Error)]
pub enum StormError {
    /// Our caller's misuse.
    #[error("{0}")]
    Option(&'static str),
    /// The kernel refused the program: privileges (CAP_BPF, CAP_NET_ADMIN) or a kernel before 5.18.
    #[error("cannot load the storm's XDP program (root and Linux 5.18 are needed): {0}")]
    Load(#[from] EbpfError),
    /// The program cannot be attached or run.
    #[error("cannot run the storm's XDP program: {0}")]
    Program(#[from] ProgramError),
    /// Its counters cannot be read.
    #[error("cannot read the storm's counters: {0}")]
    Map(#[from] MapError),
    /// The core or the signal cannot be set.
    #[error("cannot set up the storm's thread: {0}")]
    Thread(std::io::Error),
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct StormCounts {
    /// Frames redirected to the interface. Whether the veth took them is in its own counters.
    pub sent: u64,
    /// SPIs left out because they are reserved (RFC 4303 section 2.1).
    pub reserved_skipped: u64,
    /// Frames per second from the first to the last that was seen; 0 if the storm was too short to tell.
    pub rate: f64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct State {
    sent: u64,
    next: u64,
    counter: u32,
    reserved: u32,
}
// SAFETY: plain integers, no padding.
unsafe impl Pod for State {}

/// A storm that is loaded and has not begun.
pub struct Storm {
    bpf: Ebpf,
    state: Array<MapData, State>,
    /// The name of its program.
    program: &'static str,
    frame: Vec<u8>,
    limit: u64,
}

impl Storm {
    /// Loads the program.
    ///
    /// # Errors
    /// Sizes and prefixes out of range; the kernel's refusal.
    pub fn load(options: &StormOptions) -> Result<Storm, StormError> {
        if !StormOptions::SIZES.contains(&options.size) {
            return Err(StormError::Option("a storm's frames have 64 to 3000 octets"));
        }
        if options.source_prefix > 32 {
            return Err(StormError::Option("an IPv4 prefix has at most 32 bits"));
        }
        let mask = u32::MAX.checked_shr(options.source_prefix.into()).unwrap_or(0);
        let header = options.header();
        let interval = (1_000_000_000 * TIME_UNIT).checked_div(options.rate).map_or(0, |i| i.max(1));
        let mut bpf = EbpfLoader::new()
            .override_global("header", &header, true)
            .override_global("encapsulated", &u32::from(options.encapsulated), true)
            .override_global("checksum_base", &checksum_base(&header), true)
            .override_global("source", &(u32::from(options.source) & !mask), true)
            .override_global("source_mask", &mask, true)
            .override_global("key", &options.key, true)
            .override_global("egress", &options.interface, true)
            .override_global("limit", &options.limit, true)
            .override_global("interval", &interval, true)
            .override_global("slack", &interval.saturating_mul(SLACK_FRAMES), true)
            .load(OBJECT)?;
        let state = Array::try_from(bpf.take_map("storm_state").expect("storm.bpf.c has it"))?;
        let program: &mut Xdp = bpf.program_mut("storm").expect("storm.bpf.c has it").try_into()?;
        program.load()?;
        let frame = padding(options.key, options.size);
        Ok(Storm { bpf, state, program: "storm", frame, limit: options.limit })
    }

    /// Loads the program that sends plain traffic instead.
    ///
    /// # Errors
    /// Sizes out of range; the kernel's refusal.
    pub fn load_plain(options: &PlainOptions) -> Result<Storm, StormError> {
        if !(50..=*StormOptions::SIZES.end() - 14).contains(&options.size) {
            return Err(StormError::Option("plain packets have 50 to 2986 octets"));
        }
        let mut bpf = EbpfLoader::new()
            .override_global("header", &options.header(), true)
            .override_global("egress", &options.interface, true)
            .override_global("limit", &u64::MAX, true)
            .load(OBJECT)?;
        let state = Array::try_from(bpf.take_map("storm_state").expect("storm.bpf.c has it"))?;
        let program: &mut Xdp = bpf.program_mut("plain").expect("storm.bpf.c has it").try_into()?;
        program.load()?;
        let frame = padding(1, options.size + 14);
        Ok(Storm { bpf, state, program: "plain", frame, limit: u64::MAX })
    }

    /// Sends until the limit or the duration is reached or `stop` is set, from the calling thread's network
    /// namespace, on `core` if given (it takes that core for itself). `sample` is called about every millisecond
    /// with the count so far. SIGUSR1 is this function's own while it runs.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run(
        self,
        duration: Duration,
        core: Option<usize>,
        stop: &AtomicBool,
        mut sample: impl FnMut(u64),
    ) -> Result<StormCounts, StormError> {
        interrupt::prepare().map_err(StormError::Thread)?;
        let (began, mut first, mut last) = (Instant::now(), None, None);
        let thread = OnceLock::new();
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| self.generate(core, &thread));
            let mut read = Ok(());
            while !generator.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
                let sent = match self.state.get(&0, 0) {
                    Ok(state) => state.sent,
                    Err(error) => {
                        read = Err(error.into());
                        self.limit // so that it ends
                    }
                };
                sample(sent);
                if sent > 0 && last.is_none_or(|(_, before)| before < sent) {
                    last = Some((Instant::now(), sent));
                    first = first.or(last);
                }
                if sent >= self.limit || began.elapsed() >= duration || stop.load(Ordering::Relaxed) {
                    // Again each millisecond: the first may come before the call began.
                    if let Some(thread) = thread.get() {
                        interrupt::send(*thread);
                    }
                }
            }
            read.and(generator.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        let end = self.state.get(&0, 0)?;
        let rate = match (first, last) {
            (Some((from, before)), Some((to, after))) if after > before => {
                (after - before) as f64 / to.duration_since(from).as_secs_f64()
            }
            _ => 0.0,
        };
        Ok(StormCounts { sent: end.sent, reserved_skipped: end.reserved.into(), rate })
    }

    /// The one long call; a signal ends it.
    fn generate(&self, core: Option<usize>, thread: &OnceLock<Pid>) -> Result<(), StormError> {
        let _ = thread.set(rustix::thread::gettid());
        if let Some(core) = core {
            let mut cores = rustix::thread::CpuSet::new();
            cores.set(core);
            rustix::thread::sched_setaffinity(None, &cores)
                .map_err(|error| StormError::Thread(error.into()))?;
        }
        let program: &Xdp = self.bpf.program(self.program).expect("storm.bpf.c has it").try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(&self.frame),
            repeat: u32::MAX,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        match result {
            Err(ProgramError::SyscallError(error)) if error.io_error.kind() == ErrorKind::Interrupted => {
                Ok(())
            }
            result => Ok(result.map(drop)?),
        }
    }
}

/// The signal that ends the long call.
mod interrupt {
    use rustix::process::Pid;
    use std::io;

    extern "C" fn nothing(_: libc::c_int) {}

    /// A handler that does nothing, and no SA_RESTART: the signal only makes the call return.
    pub(super) fn prepare() -> io::Result<()> {
        // SAFETY: all zeroes is a valid sigaction (empty mask, no flags); the handler touches nothing, so it may
        // run at any time, and the pointers are to a local that outlives the call.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Interrupts this thread of ours; does nothing if it has ended.
    pub(super) fn send(thread: Pid) {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: tgkill only takes integers, and names a thread of this process alone.
        unsafe {
            libc::syscall(libc::SYS_tgkill, process, thread.as_raw_nonzero().get(), libc::SIGUSR1);
        }
    }
}

/// Nothing looks behind the headers without a key; it only has to look like ciphertext.
fn padding(key: u32, size: u16) -> Vec<u8> {
    let mut value = key | 1;
    let next = || {
        value = value.wrapping_mul(0x915f_77f5).wrapping_add(1);
        (value >> 24) as u8
    };
    std::iter::repeat_with(next).take(size.into()).collect()
}

/// What a sink saw; `frames` and `octets` always, the others if it records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SinkCounts {
    /// Frames that arrived.
    pub frames: u64,
    /// Their octets.
    pub octets: u64,
    /// Frames that hold ESP, in UDP or not.
    pub esp: u64,
    /// IPv4 headers with a wrong checksum.
    pub bad_checksums: u64,
    /// ESP with a reserved SPI.
    pub reserved: u64,
    /// ESP with an SPI that was seen before.
    pub duplicates: u64,
    /// ESP whose SPI could not be remembered.
    pub unrecorded: u64,
}
// SAFETY: plain integers, no padding.
unsafe impl Pod for SinkCounts {}

/// Counts all frames that arrive at an interface, and drops them. Dropped, it lets go of the interface.
pub struct Sink {
    counts: PerCpuArray<MapData, SinkCounts>,
    _bpf: Ebpf,
}

impl Sink {
    /// Attaches to the interface with this index in the calling thread's network namespace. `record` is how many
    /// SPIs it can remember; 0: it only counts.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn attach(interface: u32, record: u32) -> Result<Sink, StormError> {
        let mut bpf = EbpfLoader::new()
            .override_global("inspect", &u32::from(record > 0), true)
            .map_max_entries("sink_spis", record.max(1))
            .load(OBJECT)?;
        let counts = PerCpuArray::try_from(bpf.take_map("sink_counts").expect("storm.bpf.c has it"))?;
        let program: &mut Xdp = bpf.program_mut("sink").expect("storm.bpf.c has it").try_into()?;
        program.load()?;
        program.attach_to_if_index(interface, XdpMode::Driver)?;
        Ok(Sink { counts, _bpf: bpf })
    }

    /// What it has seen so far, on all cores.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn counts(&self) -> Result<SinkCounts, StormError> {
        let mut sum = SinkCounts::default();
        for counts in self.counts.get(&0, 0)?.iter() {
            sum.frames += counts.frames;
            sum.octets += counts.octets;
            sum.esp += counts.esp;
            sum.bad_checksums += counts.bad_checksums;
            sum.reserved += counts.reserved;
            sum.duplicates += counts.duplicates;
            sum.unrecorded += counts.unrecorded;
        }
        Ok(sum)
    }
}
