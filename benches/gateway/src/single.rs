//! One gateway that encapsulates, between a generator and a sink.

use crate::field::{Field, GATEWAY_CORE, Napi, Rate};
use crate::subject::{Dataplane, Dpdk, Neighbours, Programs};
use anyhow::{Context, Result, bail};
use spindle_testbed::Side;

/// What stands in the gateway's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// Ours.
    Spindle,
    /// DPDK's.
    IpsecSecgw,
    /// DPDK's forwarder, which encapsulates nothing: what its ports can do.
    Testpmd,
}

/// Frames per second behind the gateway, for inner packets of so many octets.
pub(crate) fn measure(
    subject: Subject,
    size: u16,
    seconds: f64,
    napi: Napi,
    programs: &Programs<'_>,
) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let field = Field::create()?;
    let (rate, expected) = match subject {
        Subject::Spindle => {
            let mut dataplane = Dataplane::start(&field, programs.spindle, directory.path())?;
            let rate = field.measure(size, seconds, napi)?;
            dataplane.check()?;
            (rate, encapsulated(size))
        }
        Subject::IpsecSecgw => (
            dpdk(Dpdk::IpsecSecgw, &field, (size, seconds, napi), programs, directory.path())?,
            encapsulated(size),
        ),
        Subject::Testpmd => {
            (dpdk(Dpdk::Testpmd, &field, (size, seconds, napi), programs, directory.path())?, size + ETHERNET)
        }
    };
    // A stray frame of the kernel's own is no harm.
    if (rate.octets - f64::from(expected)).abs() > 0.5 {
        bail!("frames of {} octets came to the sink; {expected} were expected", rate.octets);
    }
    Ok(rate.frames)
}

const ETHERNET: u16 = 14;

/// Octets of a frame with ESP in tunnel mode (RFC 4303 section 2, RFC 4106): outer IPv4 header, SPI and sequence number,
/// initialisation vector, padding to four octets with two of its own, ICV.
fn encapsulated(size: u16) -> u16 {
    ETHERNET + 20 + 8 + 8 + (size + 2).next_multiple_of(4) + 16
}

fn dpdk(
    program: Dpdk,
    field: &Field,
    (size, seconds, napi): (u16, f64, Napi),
    programs: &Programs<'_>,
    directory: &std::path::Path,
) -> Result<Rate> {
    let neighbours = Neighbours { host: field.host_mac()?, peer: field.peer_mac()? };
    let (gateway, built) = (&field.gateway, programs.ipsec_secgw);
    let mut process = program.start(gateway, Side::A, GATEWAY_CORE, &neighbours, built, directory)?;
    field.wait_attached(&mut process).with_context(|| process.log_end())?;
    let rate = field.measure(size, seconds, napi);
    process.check()?;
    rate.with_context(|| process.log_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_of_esp_are_those_of_rfc_4303() {
        assert_eq!(encapsulated(64), 14 + 20 + 8 + 8 + 64 + 2 + 2 + 16);
        assert_eq!(encapsulated(1400), 14 + 20 + 8 + 8 + 1400 + 2 + 2 + 16);
    }
}
