//! Several workers: an SA has one owner, and what comes to another worker goes there, unchanged and once.

mod common;

use common::*;
use spindle_abi::{Command, Event, PolicyAction, Resource, SaParameters, Spi, SpiState, Suite, Time};
use spindle_engine::{ArrayVec, Counter, DropReason, MemoryFrame, Origin, PortId};
use spindle_wire::ipv4;
use std::net::Ipv4Addr;

const COMMON: [Resource; 2] = [of_worker(0, false), of_worker(1, false)];
const DEDICATED: [Resource; 2] = [of_worker(0, true), of_worker(1, true)];

const fn of_worker(worker: u16, dedicated: bool) -> Resource {
    Resource { worker, dedicated }
}

/// A's two workers.
fn workers() -> [Gateway; 2] {
    [0, 1].map(|worker| {
        let mut gateway = Gateway::worker(Ipv4Addr::new(10, 1, 0, 1), OUTER_A, worker, 2);
        gateway.apply(Command::SetPolicy {
            id: POLICY,
            priority: 10,
            action: PolicyAction::Protect,
            selectors: selectors(HOST_A, HOST_B),
            hold: 1,
        });
        gateway.hop(HOST_A, PortId::Inside);
        gateway.hop(OUTER_B, PortId::Outside);
        gateway
    })
}

fn of(sa: SaParameters, resource: Resource) -> SaParameters {
    SaParameters { resource, ..sa }
}

fn outbound(spi: u32, index: u32, resource: Resource) -> Command {
    Command::InstallOutbound { sa: of(sa(spi, index, true, Suite::Aes128Gcm, false), resource) }
}

/// Every worker is told every command.
fn tell(workers: &mut [Gateway; 2], command: Command) {
    workers.iter_mut().for_each(|worker| worker.apply(command.clone()));
}

/// Carries what was handed over to whom it is for.
fn deliver(workers: &mut [Gateway; 2]) -> usize {
    let mut delivered = 0;
    for from in 0..2 {
        for (to, origin, frame) in std::mem::take(&mut workers[from].out.handed) {
            let to = &mut workers[usize::from(to)];
            let mut burst: ArrayVec<MemoryFrame, 32> = [frame].into_iter().collect();
            to.engine.take_over(to.now, origin, &mut burst, &mut to.out);
            assert!(burst.is_empty());
            to.engine.counters().check().unwrap();
            delivered += 1;
        }
    }
    delivered
}

fn sent_spi(gateway: &mut Gateway) -> Vec<u32> {
    let spi = |frame: MemoryFrame| u32::from_be_bytes(packet(&frame)[20..24].try_into().unwrap());
    gateway.take_sent(PortId::Outside).into_iter().map(spi).collect()
}

fn count(gateway: &Gateway, counter: Counter) -> u64 {
    gateway.engine.counters().count(counter)
}

#[test]
fn esp_at_the_wrong_worker_is_opened_by_its_owner_as_if_it_had_come_there() {
    let mut a = workers();
    let (_, mut b) = pair(Suite::Aes128Gcm, false);
    tell(&mut a, inbound(of(sa(TO_A, 0, true, Suite::Aes128Gcm, false), COMMON[1])));
    let sent = datagram(HOST_B, HOST_A, &content(100));
    b.process(PortId::Inside, [frame(&sent)]);
    let esp = b.take_sent(PortId::Outside);
    a[0].process(PortId::Outside, esp.clone());
    assert_eq!(a[0].out.handed, [(1, Origin::Outside, esp[0].clone())], "as it came");
    assert_eq!(deliver(&mut a), 1);
    let got = a[1].take_sent(PortId::Inside);
    assert_eq!(packet(&got[0]), after_two_hops(sent));
    assert_eq!((count(&a[0], Counter::HandedOver), count(&a[1], Counter::TakenOver)), (1, 1));
    // The owner's replay window knows it, whoever receives it again.
    a[0].process(PortId::Outside, esp.clone());
    deliver(&mut a);
    a[1].process(PortId::Outside, esp);
    assert_eq!(a[1].dropped(DropReason::Replayed), 2);
    assert_eq!([0, 1].map(|worker| a[worker].engine.spi_state(Spi(TO_A))), [SpiState::Current; 2]);
    tell(&mut a, Command::SetSpiState { spi: Spi(TO_A), state: SpiState::Retired });
    a[0].process(PortId::Outside, [esp_to_a(9)]);
    assert_eq!((a[0].dropped(DropReason::RetiredSpi), a[0].out.handed.len()), (1, 0));
}

fn esp_to_a(sequence: u32) -> MemoryFrame {
    let mut esp = [TO_A.to_be_bytes(), sequence.to_be_bytes()].concat();
    esp.extend([0x55; 60]);
    frame(&ip(OUTER_B, OUTER_A, 50, &esp))
}

#[test]
fn what_is_from_inside_goes_to_the_owner_of_the_sa_before_anything_of_it_is_changed() {
    let mut a = workers();
    tell(&mut a, outbound(TO_B, 1, COMMON[1]));
    let mut expiring = datagram(HOST_A, HOST_B, &content(64));
    let mut last_hop = ipv4::Packet::new_checked(&mut expiring[..]).unwrap();
    (1..64).for_each(|_| last_hop.decrement_ttl());
    for sent in [datagram(HOST_A, HOST_B, &content(64)), expiring] {
        a[0].process(PortId::Inside, [frame(&sent)]);
        assert_eq!(a[0].out.handed.last().unwrap(), &(1, Origin::Inside(0), frame(&sent)));
    }
    deliver(&mut a);
    // The ICMP error goes inside.
    assert_eq!(a[1].out.sent.extract_if(.., |(port, _)| *port == PortId::Inside).count(), 1);
    assert_eq!(sent_spi(&mut a[1]), [TO_B]);
    assert_eq!((a[1].dropped(DropReason::TtlExpired), count(&a[0], Counter::Encapsulated)), (1, 0));
}

#[test]
fn a_frame_is_handed_over_once_and_what_has_no_room_is_dropped() {
    let mut a = workers();
    // Worker 0 has heard that worker 1 has an SA, which knows the reverse.
    a[0].apply(outbound(TO_B, 1, COMMON[1]));
    a[1].apply(outbound(TO_B + 1, 2, COMMON[0]));
    a[0].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"round"))]);
    assert_eq!(deliver(&mut a), 1);
    assert_eq!((a[1].dropped(DropReason::WrongWorker), a[1].out.handed.len()), (1, 0));
    a[0].out.no_handover = true;
    a[0].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"full"))]);
    assert_eq!((a[0].dropped(DropReason::HandoverFull), a[0].out.handed.len()), (1, 0));
}

#[test]
fn of_several_sas_a_worker_takes_its_own_then_the_one_for_all_then_others() {
    let mut a = workers();
    let sent = || frame(&datagram(HOST_A, HOST_B, b"which"));
    let by = |a: &mut [Gateway; 2], worker: usize| {
        a[worker].process(PortId::Inside, [sent()]);
        let handed = deliver(a) > 0;
        let spis = [0, 1].map(|of| sent_spi(&mut a[of])).concat();
        assert_eq!(spis.len(), 1);
        (spis[0] - TO_B, handed)
    };
    tell(&mut a, outbound(TO_B + 1, 1, DEDICATED[1]));
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((1, true), (1, false)), "there is no other");
    tell(&mut a, outbound(TO_B + 2, 2, COMMON[1]));
    // The owner prefers its own one.
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((1, true), (1, false)));
    tell(&mut a, outbound(TO_B + 3, 3, DEDICATED[0]));
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((3, false), (1, false)));
    // A rekey: the later one of its kind.
    tell(&mut a, outbound(TO_B + 4, 4, DEDICATED[0]));
    assert_eq!(by(&mut a, 0), (4, false));
    tell(&mut a, outbound(TO_B + 5, 5, COMMON[0]));
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((4, false), (1, false)));
    [3, 4].into_iter().for_each(|index| tell(&mut a, Command::RemoveOutbound { index }));
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((5, false), (1, false)));
    [1, 5].into_iter().for_each(|index| tell(&mut a, Command::RemoveOutbound { index }));
    assert_eq!((by(&mut a, 0), by(&mut a, 1)), ((2, true), (2, false)));
    tell(&mut a, Command::RemoveOutbound { index: 2 });
    a[0].process(PortId::Inside, [sent()]);
    assert_eq!((deliver(&mut a), a[0].out.without_sa.len()), (0, 1));
}

#[test]
fn what_waited_at_one_worker_is_taken_up_by_another_ones_sa() {
    let mut a = workers();
    a[0].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"first"))]);
    assert!(matches!(a[0].out.events[..], [Event::Acquire { policy: POLICY, .. }]));
    tell(&mut a, outbound(TO_B, 1, COMMON[1]));
    let (policy, waiting) = a[0].out.without_sa.pop().unwrap();
    let worker = &mut a[0];
    worker.engine.take_up(worker.now, policy, waiting, &mut worker.out);
    deliver(&mut a);
    assert_eq!(sent_spi(&mut a[1]), [TO_B]);
    a.iter().for_each(|worker| worker.engine.counters().check().unwrap());
}

#[test]
fn an_icmp_error_about_esp_reaches_who_sent_it() {
    let mut a = workers();
    tell(&mut a, outbound(TO_B, 1, COMMON[1]));
    a[1].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, &content(1300)))]);
    let esp = packet(&a[1].take_sent(PortId::Outside)[0]);
    a[0].process(PortId::Outside, [too_big(&esp, 1200, 8)]);
    assert_eq!(deliver(&mut a), 1);
    assert_eq!(count(&a[1], Counter::PathMtuLearned), 1);
    let mut other = esp;
    other[23] ^= 1;
    a[0].process(PortId::Outside, [too_big(&other, 1200, 8)]);
    assert_eq!((deliver(&mut a), a[0].dropped(DropReason::IcmpUnknownSa)), (0, 1));
}

#[test]
fn commands_are_idempotent_at_all_workers_and_an_sa_is_removed_at_all() {
    let mut a = workers();
    for _ in 0..2 {
        tell(&mut a, outbound(TO_B, 1, COMMON[1]));
        tell(&mut a, inbound(of(sa(TO_A, 0, true, Suite::Aes128Gcm, false), COMMON[1])));
        let (local, remote) = ((OUTER_A, 0).into(), (OUTER_B, 0).into());
        tell(&mut a, Command::Readdress { index: 1, local, remote });
    }
    a[0].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"one"))]);
    assert_eq!(deliver(&mut a), 1);
    assert!(
        a[0].engine.apply(Time(0), outbound(TO_B + 1, 1, COMMON[1])).is_err(),
        "the index is another one's"
    );
    for _ in 0..2 {
        tell(&mut a, Command::RemoveOutbound { index: 1 });
    }
    a[0].process(PortId::Inside, [frame(&datagram(HOST_A, HOST_B, b"two"))]);
    assert_eq!((deliver(&mut a), a[0].out.without_sa.len()), (0, 1));
    let state = Command::SetSpiState { spi: Spi(TO_A), state: SpiState::Larval };
    a.iter_mut().for_each(|worker| assert!(worker.engine.apply(worker.now, state.clone()).is_err()));
}
