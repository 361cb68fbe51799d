//! `spindle capture`: its options, which [`crate::capture`] carries out.

use super::{Unsuccessful, named_run_dir, seconds};
use crate::capture::{self, Options};
use clap::{Args, ValueEnum};
use spindle_abi::Spi;
use spindle_ring::capture_socket::MAX_SNAPLEN;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args)]
pub(super) struct Capture {
    /// The gateway's configuration, which names its run_dir.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The gateway's run_dir; without this and --config, the default one.
    #[arg(long, conflicts_with = "config")]
    run_dir: Option<PathBuf>,
    /// The pcapng file, which must not be there yet; `-` is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// Where frames are captured; virtual interfaces are on the inside.
    #[arg(long, value_enum, default_value = "both")]
    side: Side,
    /// Ends after so many frames.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Ends after so many seconds.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Only frames that were dropped.
    #[arg(long)]
    dropped: bool,
    /// Only what comes or leaves in ESP with this SPI, and what was in it or is put into it; hexadecimal.
    #[arg(long, value_parser = spi)]
    spi: Option<Spi>,
    /// Only what comes or leaves on the SAs of this connection, also on those that come while the capture runs.
    #[arg(long, conflicts_with = "spi")]
    connection: Option<String>,
    /// Octets that are captured of each frame, at most.
    #[arg(long, value_name = "OCTETS", default_value_t = MAX_SNAPLEN, value_parser = clap::value_parser!(u16).range(64..=i64::from(MAX_SNAPLEN)))]
    snaplen: u16,
    /// Writes the keys of these SAs to a new file that Wireshark takes as its `esp_sa`, as long as the capture runs. Who has
    /// it can read and forge what these SAs carry. Needs `capture_keys = true` in the configuration.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Inside,
    Outside,
    Both,
}

fn spi(text: &str) -> Result<Spi, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let number = u32::from_str_radix(digits, 16).ok().filter(|number| *number != 0);
    number.map(Spi).ok_or_else(|| "write an SPI as list-sas shows it, such as c0ffee01".into())
}

pub(super) fn run(arguments: Capture) -> Result<u8, Unsuccessful> {
    let Capture { config, run_dir, out, side, count, seconds, dropped, spi, connection, snaplen, keys } =
        arguments;
    let out = (out != Path::new("-")).then_some(out);
    if out.is_none() && std::io::stdout().is_terminal() {
        return Err(Unsuccessful::usage(
            "a capture is nothing for a terminal; name a file with --out, or send it to `tshark -r -`",
        ));
    }
    let options = Options {
        run_dir: named_run_dir(run_dir.as_ref(), config.as_deref())?,
        out,
        inside: side != Side::Outside,
        outside: side != Side::Inside,
        count,
        duration: seconds.map(Duration::from_secs_f64),
        dropped,
        spi,
        connection,
        snaplen,
        keys,
    };
    capture::run(&options).map_err(Unsuccessful::failed)?;
    Ok(0)
}
