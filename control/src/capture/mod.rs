//! `spindle capture`: frames out of the dataplane into a pcapng file, each with the reason if it was dropped.
//!
//! ```text
//! workers ── rings ──► this process ──► pcapng            dataplane's main ── socket: what, and the rings ──► this process
//! control ── SAs, with keys where asked for ──► which SPIs are wanted, and the file with the keys
//! ```
//!
//! The dataplane ends the capture with the socket, so no capture outlives this process. At the end the workers are asked
//! to stop first, and then all that they have written is read.

mod keys;
mod pcapng;

use crate::control_socket;
use crate::daemon::wall_clock_us;
use crate::protocol::{Request, Response, SOCKET, WatchedSa};
use keys::KeyFile;
use pcapng::{LinkType, Packet, Statistics, Writer};
use rustix::time::{ClockId, clock_gettime};
use spindle_abi::Spi;
use spindle_ring::capture::{CaptureReader, Captured, OUTSIDE};
use spindle_ring::capture_socket::{Begun, CaptureClient, Interface, MAX_SPIS, Request as Wish};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::{Zeroize, Zeroizing};

/// Between two looks at the rings, where nothing was found.
const PAUSE: Duration = Duration::from_millis(5);
/// Records taken at a time, so that signals get their turn.
const PORTION: usize = 4096;
/// Octets in front of a packet of an interface without Ethernet.
const ETHERNET: usize = 14;
/// How long the workers may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// What to capture, and where to.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) run_dir: PathBuf,
    /// `None`: standard output.
    pub(crate) out: Option<PathBuf>,
    pub(crate) inside: bool,
    pub(crate) outside: bool,
    pub(crate) count: Option<u64>,
    pub(crate) duration: Option<Duration>,
    pub(crate) dropped: bool,
    pub(crate) spi: Option<Spi>,
    pub(crate) connection: Option<String>,
    pub(crate) snaplen: u16,
    pub(crate) keys: Option<PathBuf>,
}

/// Captures until there is enough, or a signal comes, or nobody reads. Errors are for people.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("no event loop: {e}"))?.block_on(capture(options))
}

async fn capture(options: &Options) -> Result<(), String> {
    if options.keys.is_some() {
        // They pass through this process: neither core files nor other users' ptrace shall have them.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let client = CaptureClient::connect(&options.run_dir).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("{}: no gateway runs there; start it with `spindle up`", options.run_dir.display())
        }
        ErrorKind::PermissionDenied => "only root may capture".into(),
        _ => format!("{}: {e}", options.run_dir.display()),
    })?;
    let mut watch = match (&options.connection, &options.keys) {
        (None, None) => None,
        _ => Some(Watch::begin(options).await?),
    };
    let output: Box<dyn Write> = match &options.out {
        Some(path) => {
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            Box::new(file.map_err(|e| not_made(path, &e))?)
        }
        None => Box::new(io::stdout()),
    };
    let wish = |watch: &Option<Watch>| Wish {
        snaplen: options.snaplen,
        sides: [options.inside, options.outside],
        dropped: options.dropped,
        spis: match (&options.spi, watch) {
            (Some(spi), _) => Some(vec![spi.0]),
            (None, Some(watch)) if options.connection.is_some() => Some(watch.spis.clone()),
            _ => None,
        },
    };
    let lost = |e: io::Error| format!("no capture: {e}");
    client.ask(&wish(&watch)).map_err(lost)?;
    let (begun, rings) = client.begun().map_err(lost)?;
    let readers = rings.iter().map(CaptureReader::open).collect::<io::Result<Vec<_>>>().map_err(lost)?;
    let mut sink = Sink::new(output, options, begun).map_err(|e| format!("cannot write: {e}"))?;
    let mut sources: Vec<Source> = readers.into_iter().map(Source::new).collect();

    let begin = Instant::now();
    let patience = options.duration.unwrap_or(Duration::from_secs(u64::MAX / 4));
    let mut ending: Option<Instant> = None;
    let cause = loop {
        let written = sink.take(&mut sources);
        match &written {
            Ok(Taken::All) => {}
            // Signals get their turn, and it goes on at once.
            Ok(Taken::Portion) if ending.is_none() => {}
            Ok(Taken::Portion) => continue,
            Ok(Taken::Enough) => break Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe => break Ok(()),
            Err(e) => break Err(format!("cannot write: {e}")),
        }
        let has_ended = client.has_ended();
        match ending {
            // What was written until the end is read now.
            _ if has_ended => match sink.take_all(&mut sources) {
                Ok(()) if ending.is_some() => break Ok(()),
                Ok(()) => break Err("the dataplane has ended, and the capture with it".into()),
                Err(e) => break Err(format!("cannot write: {e}")),
            },
            Some(since) if since.elapsed() > ENDING => {
                break Err("the dataplane does not end the capture; what it wrote last may be missing".into());
            }
            Some(_) => {}
            None if begin.elapsed() >= patience => {
                client.end();
                ending = Some(Instant::now());
            }
            None => {}
        }
        let pause = if matches!(written, Ok(Taken::Portion)) { Duration::ZERO } else { PAUSE };
        tokio::select! {
            biased;
            _ = terminate.recv(), if ending.is_none() => { client.end(); ending = Some(Instant::now()); }
            _ = interrupt.recv(), if ending.is_none() => { client.end(); ending = Some(Instant::now()); }
            more = async {
                match &mut watch {
                    Some(watch) => watch.next().await,
                    None => std::future::pending().await,
                }
            } => match more {
                Ok(true) if options.connection.is_some() => client.ask(&wish(&watch)).map_err(lost)?,
                Ok(true) => {}
                Ok(false) => {
                    warn("control has ended: SAs that come from now on are not followed");
                    watch = None;
                }
                Err(e) => break Err(e),
            },
            () = tokio::time::sleep(pause) => {}
        }
    };
    let readers: Vec<&CaptureReader> = sources.iter().map(|source| &source.reader).collect();
    let told = sink.finish(&readers);
    if let (Some(watch), Some(path)) = (&watch, &options.keys) {
        warn(&format!(
            "the keys of {} SAs are in {}; erase it when it has served",
            watch.count(),
            path.display()
        ));
    }
    cause.and(told.or_else(|e| if e.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(e.to_string()) }))
}

fn not_made(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AlreadyExists => format!("{} is there already; name another file", path.display()),
        _ => format!("{} cannot be made: {error}", path.display()),
    }
}

/// To standard error; nothing is left to do if that is closed.
fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "spindle: {text}");
}

/// A worker's ring and the next record on it.
struct Source {
    reader: CaptureReader,
    next: Option<Captured>,
    octets: Vec<u8>,
}

impl Source {
    fn new(reader: CaptureReader) -> Source {
        Source { reader, next: None, octets: Vec::new() }
    }

    /// When the next record is of.
    fn peek(&mut self) -> io::Result<Option<u64>> {
        if self.next.is_none() {
            self.next = self.reader.read(&mut self.octets)?;
        }
        Ok(self.next.map(|captured| captured.at.0))
    }
}

/// How far the rings were read.
#[derive(PartialEq, Eq, Debug)]
enum Taken {
    /// Nothing more is there.
    All,
    /// More is there.
    Portion,
    /// There are as many frames as were wanted.
    Enough,
}

/// Where frames go.
struct Sink {
    writer: Writer<BufWriter<Box<dyn Write>>>,
    /// In the order of their descriptions.
    interfaces: Vec<(Interface, Statistics)>,
    comments: Vec<String>,
    left: u64,
    /// From CLOCK_MONOTONIC to nanoseconds since 1970.
    offset: u64,
    started: u64,
}

impl Sink {
    fn new(output: Box<dyn Write>, options: &Options, begun: Begun) -> io::Result<Sink> {
        let application = concat!("spindle ", env!("CARGO_PKG_VERSION"));
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 18, output), application)?;
        let wanted = |i: &Interface| if i.number == OUTSIDE { options.outside } else { options.inside };
        let interfaces: Vec<_> =
            begun.interfaces.into_iter().filter(wanted).map(|i| (i, Statistics::default())).collect();
        for (interface, _) in &interfaces {
            let link = if interface.raw { LinkType::Raw } else { LinkType::Ethernet };
            let description = match interface.number {
                0 => "inside",
                OUTSIDE => "outside",
                _ => "virtual interface",
            };
            writer.interface(link, options.snaplen.into(), &interface.name, description)?;
        }
        writer.flush()?;
        let monotonic = clock_gettime(ClockId::Monotonic);
        let monotonic = monotonic.tv_sec as u64 * 1_000_000_000 + monotonic.tv_nsec as u64;
        let started = wall_clock_us() * 1000;
        let comments = begun.reasons.iter().map(|name| format!("dropped: {name}")).collect();
        let left = options.count.unwrap_or(u64::MAX);
        Ok(Sink { writer, interfaces, comments, left, offset: started.wrapping_sub(monotonic), started })
    }

    /// Writes what the rings hold, the oldest first, a portion at most.
    fn take(&mut self, sources: &mut [Source]) -> io::Result<Taken> {
        for _ in 0..PORTION {
            if self.left == 0 {
                return Ok(Taken::Enough);
            }
            let mut oldest: Option<(u64, usize)> = None;
            for (number, source) in sources.iter_mut().enumerate() {
                if let Some(at) = source.peek()?
                    && oldest.is_none_or(|(least, _)| at < least)
                {
                    oldest = Some((at, number));
                }
            }
            let Some((_, number)) = oldest else {
                // For whoever reads along.
                self.writer.flush()?;
                return Ok(Taken::All);
            };
            let source = &mut sources[number];
            if let Some(captured) = source.next.take() {
                self.write(&captured, &source.octets)?;
            }
        }
        Ok(Taken::Portion)
    }

    fn take_all(&mut self, sources: &mut [Source]) -> io::Result<()> {
        while self.take(sources)? == Taken::Portion {}
        Ok(())
    }

    fn write(&mut self, captured: &Captured, octets: &[u8]) -> io::Result<()> {
        let place = self.interfaces.iter().position(|(i, _)| i.number == captured.interface);
        let Some(place) = place else { return Ok(()) };
        let (interface, statistics) = &mut self.interfaces[place];
        let skipped = if interface.raw { ETHERNET } else { 0 };
        let of_sa;
        let comment = match captured.dropped {
            Some(reason) => Some(self.comments.get(usize::from(reason)).map_or("dropped", String::as_str)),
            // Outside the frame itself shows it.
            None if captured.interface != OUTSIDE && captured.spi.0 != 0 => {
                of_sa = format!("spi: {}", captured.spi);
                Some(&*of_sa)
            }
            None => None,
        };
        statistics.written += 1;
        self.left -= 1;
        self.writer.packet(&Packet {
            interface: place as u32,
            at: captured.at.0.wrapping_add(self.offset),
            outbound: captured.left,
            length: u32::from(captured.length).saturating_sub(skipped as u32),
            octets: octets.get(skipped..).unwrap_or(&[]),
            comment,
        })
    }

    /// Says what was lost, in the capture and to people.
    fn finish(mut self, readers: &[&CaptureReader]) -> io::Result<()> {
        let lost = readers.iter().map(|reader| reader.lost());
        let lost = lost.fold([0, 0], |[a, b], [inside, outside]| [a + inside, b + outside]);
        let written: u64 = self.interfaces.iter().map(|(_, s)| s.written).sum();
        warn(&format!(
            "{written} frames captured, {} lost for want of room (inside {}, outside {})",
            lost[0] + lost[1],
            lost[0],
            lost[1]
        ));
        // Those of virtual interfaces are counted with the first one's.
        let mut untold = [Some(lost[0]), Some(lost[1])];
        let period = (self.started, wall_clock_us() * 1000);
        for (number, (interface, statistics)) in (0..).zip(&self.interfaces) {
            let side = usize::from(interface.number == OUTSIDE);
            let lost = untold[side].take().unwrap_or(0);
            self.writer.statistics(number, period, Statistics { lost, ..*statistics })?;
        }
        self.writer.flush()
    }
}

/// What control says of SAs, for as long as it lives.
struct Watch {
    control: BufReader<UnixStream>,
    /// The latest ones at the end.
    spis: Vec<u32>,
    only: Option<Spi>,
    keys: Option<KeyFile>,
    line: Zeroizing<Vec<u8>>,
}

impl Watch {
    async fn begin(options: &Options) -> Result<Watch, String> {
        let path = options.run_dir.join(SOCKET);
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let keys = options.keys.is_some();
        let request = Request::WatchSas { connection: options.connection.clone(), keys };
        let (answer, control) = control_socket::ask(&path, &request).await.map_err(failed)?;
        if let Response::Error(why) | Response::Refused(why) = answer {
            return Err(why);
        }
        let keys = match &options.keys {
            Some(path) => {
                let file = KeyFile::create(path).map_err(|e| not_made(path, &e))?;
                warn(&format!(
                    "WARNING: the keys of current and coming SAs are written to {}: who reads them can read, and forge, all that these SAs carry",
                    path.display()
                ));
                Some(file)
            }
            None => None,
        };
        // Large enough as a rule, so that no copy stays behind where it grew.
        let line = Zeroizing::new(Vec::with_capacity(1 << 20));
        let mut watch = Watch { control, spis: Vec::new(), only: options.spi, keys, line };
        if !watch.next().await? {
            return Err("control has ended".into());
        }
        Ok(watch)
    }

    /// Takes the next line; `false`: there will be none. May be cancelled and called again.
    async fn next(&mut self) -> Result<bool, String> {
        // What one cancelled call has read stays in `line`.
        let read = self.control.read_until(b'\n', &mut self.line).await;
        if !matches!(read, Ok(1..)) || !self.line.ends_with(b"\n") {
            return Ok(false);
        }
        let sas: Vec<WatchedSa<'_>> =
            serde_json::from_slice(&self.line).map_err(|e| format!("an answer of another version: {e}"))?;
        for sa in sas {
            self.spis.retain(|spi| *spi != sa.spi);
            if self.spis.len() == MAX_SPIS {
                self.spis.remove(0);
            }
            self.spis.push(sa.spi);
            if self.only.is_none_or(|only| only.0 == sa.spi)
                && let Some(keys) = &mut self.keys
            {
                keys.add(&sa).map_err(|e| format!("the keys cannot be written: {e}"))?;
            }
        }
        self.line.zeroize();
        Ok(true)
    }

    /// SAs whose keys were written.
    fn count(&self) -> usize {
        self.keys.as_ref().map_or(0, KeyFile::count)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
