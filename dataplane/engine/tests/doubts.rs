//! A control process begins anew and says again what there is: SAs go on, and what it does not name goes.

mod common;

use common::*;
use spindle_abi::{Command, Event, PolicyAction, Spi, SpiState, Suite};
use spindle_engine::{DropReason, PortId};

const RETIRED: Spi = Spi(0x1001);
const LARVAL: Spi = Spi(0x1002);
const FORMER: Spi = Spi(0x1003);
const GONE: [Spi; 3] = [Spi(0x2001), Spi(0x2002), Spi(0x2003)];

fn set(spi: Spi, state: SpiState) -> Command {
    Command::SetSpiState { spi, state }
}

fn policy(at_a: bool) -> Command {
    let (own, other) = if at_a { (HOST_A, HOST_B) } else { (HOST_B, HOST_A) };
    let selectors = selectors(own, other);
    Command::SetPolicy { id: POLICY, priority: 10, action: PolicyAction::Protect, selectors, hold: 0 }
}

fn outbound(spi: u32, index: u32, at_a: bool) -> Command {
    Command::InstallOutbound { sa: sa(spi, index, at_a, Suite::Aes128Gcm, false) }
}

/// How many of these packets of A's host come out at B.
fn through(a: &mut Gateway, b: &mut Gateway, packets: &[Vec<u8>]) -> usize {
    a.process(PortId::Inside, packets.iter().map(|packet| frame(packet)));
    b.process(PortId::Outside, a.take_sent(PortId::Outside));
    b.take_sent(PortId::Inside).len()
}

fn install(spi: u32, index: u32, report_first: bool) -> Command {
    let sa = sa(spi, index, false, Suite::Aes128Gcm, false);
    Command::InstallInbound { sa, replay_window: 64, report_first }
}

#[test]
fn what_is_said_again_goes_on_and_what_is_not_goes() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"first")]), 1);
    // Two more inbound SAs at B, one of which will not be named; an outbound one at A that will not be either.
    b.apply(install(0xb0b0, 3, false));
    b.apply(install(0xc0c0, 4, false));
    a.apply(outbound(0xc0c0, 4, true));
    for (spi, state) in [(RETIRED, SpiState::Retired), (LARVAL, SpiState::Larval), (FORMER, SpiState::Former)]
    {
        b.apply(set(spi, state));
    }
    for (spi, state) in GONE.into_iter().zip([SpiState::Retired, SpiState::Larval, SpiState::Former]) {
        b.apply(set(spi, state));
    }
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"before")]), 1);

    b.apply(Command::Doubt);
    // All is in use as before.
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"meanwhile")]), 1);
    b.apply(policy(false));
    b.apply(install(TO_B, 0, false));
    b.apply(outbound(TO_A, 1, false));
    b.apply(Command::ConfirmInbound { spi: Spi(0xb0b0), index: 3 });
    b.apply(set(RETIRED, SpiState::Retired));
    b.apply(set(LARVAL, SpiState::Larval));
    b.apply(Command::SetFormer { spis: vec![FORMER] });
    b.apply(Command::Sweep);

    assert_eq!(
        [RETIRED, LARVAL, FORMER].map(|spi| b.engine.spi_state(spi)),
        [SpiState::Retired, SpiState::Larval, SpiState::Former]
    );
    assert_eq!(GONE.map(|spi| b.engine.spi_state(spi)), [SpiState::Unknown; 3]);
    assert_eq!(b.engine.spi_state(Spi(0xb0b0)), SpiState::Current);
    assert_eq!(b.engine.spi_state(Spi(0xc0c0)), SpiState::Unknown);
    // One that is not here stays so, and another one's index is refused.
    b.apply(Command::ConfirmInbound { spi: Spi(0xc0c0), index: 4 });
    assert_eq!(b.engine.spi_state(Spi(0xc0c0)), SpiState::Unknown);
    assert!(b.engine.apply(b.now, Command::ConfirmInbound { spi: Spi(0xc0c0), index: 3 }).is_err());
    // A second sweep takes nothing: nothing is in doubt.
    b.apply(Command::Sweep);
    assert_eq!(b.engine.spi_state(Spi(TO_B)), SpiState::Current);

    // A sends on the SA that B holds no more, until it hears of that.
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"lost")]), 0);
    a.apply(Command::Doubt);
    a.apply(policy(true));
    a.apply(outbound(TO_B, 1, true));
    a.apply(Command::Sweep);
    // The replay window and the sequence numbers are as they were: what was sent before comes no second time.
    b.apply(Command::Doubt);
    b.apply(install(TO_B, 0, false));
    b.apply(Command::Sweep);
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"after")]), 1);
    assert_eq!(b.dropped(DropReason::Replayed), 0);
    let mut again = sa(TO_B, 1, true, Suite::Aes128Gcm, false);
    again.index = 9;
    a.apply(Command::RemoveOutbound { index: 1 });
    a.apply(Command::InstallOutbound { sa: again });
    // Two that the window has seen before Doubt and after it, then one that it has not.
    let packets = [b"1", b"2", b"3"].map(|data| echo(HOST_A, HOST_B, data));
    assert_eq!(through(&mut a, &mut b, &packets), 1);
    assert_eq!(b.dropped(DropReason::Replayed), 2);
}

/// Whoever installs it again has not heard of a first packet: the next one is told.
#[test]
fn an_sa_that_is_installed_again_reports_its_next_packet() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    b.apply(install(TO_B, 0, true));
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"1"), echo(HOST_A, HOST_B, b"2")]), 2);
    assert_eq!(b.out.events, [Event::FirstInbound { spi: Spi(TO_B) }]);
}

/// Slots are used again: a removal and an installation that both died with control are made up for by the latter.
#[test]
fn an_sa_in_doubt_gives_way_to_the_one_that_has_its_index_now() {
    let (mut a, mut b) = pair(Suite::Aes128Gcm, false);
    let refused = |gateway: &mut Gateway, command| gateway.engine.apply(gateway.now, command).is_err();
    assert!(refused(&mut b, install(0xd0d0, 0, false)) && refused(&mut a, outbound(0xd0d0, 1, true)));
    b.apply(Command::Doubt);
    b.apply(install(0xd0d0, 0, false));
    a.apply(Command::Doubt);
    a.apply(policy(true));
    a.apply(outbound(0xd0d0, 1, true));
    assert_eq!(b.engine.spis_in_doubt().collect::<Vec<_>>(), [Spi(TO_B)]);
    b.apply(Command::Sweep);
    a.apply(Command::Sweep);
    assert_eq!(b.engine.spi_state(Spi(TO_B)), SpiState::Unknown);
    assert_eq!(b.engine.spi_state(Spi(0xd0d0)), SpiState::Current);
    assert_eq!(through(&mut a, &mut b, &[echo(HOST_A, HOST_B, b"on the new SA")]), 1);
    assert!(refused(&mut b, install(0xe0e0, 0, false)), "in doubt no more");
}
