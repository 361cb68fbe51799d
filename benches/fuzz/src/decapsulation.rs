//! Any packets on an inbound SA, authentic or changed on their way, in any order: it takes and refuses them as a model
//! of RFC 4303's replay window, ICV and padding says. They are sealed by the portable provider and opened by the fastest.

use spindle_abi::{KeyMaterial, Limits, Mode, SaParameters, SelectorSet, Spi, Suite};
use spindle_aead::{Algorithm, Key, Provider};
use spindle_esp::{InboundSa, OpenFault};
use std::collections::HashSet;
use std::ops::Range;

const SPI: u32 = 0x1234_5678;
const SALT: [u8; 4] = [7; 4];
const KEY: [u8; 32] = [9; 32];
/// Octets of SPI, sequence number and IV.
const FRONT: usize = 16;
const ICV: usize = 16;
/// Where the SA stands when the packets begin to come.
const TOPS: [u64; 6] = [0, 100, (1 << 32) - 4, (1 << 32) + 70, (7 << 32) - 1, u64::MAX - 9];

/// What the receiver should do.
#[derive(Debug, PartialEq, Eq)]
enum Expected {
    Refused(OpenFault),
    Taken { payload: Range<usize>, next_header: u8, sequence: u64 },
}

/// RFC 4303 sections 2.4, 3.4.3 and appendix A2, with numbers that cannot overflow and everything remembered.
struct Model {
    esn: bool,
    size: i128,
    top: i128,
    seen: HashSet<i128>,
}

impl Model {
    /// The number that is meant by these low bits, if it may be new.
    fn number(&self, low: u32) -> Option<i128> {
        let number = if self.esn {
            let left = self.top - (self.size - 1);
            left + (i128::from(low) - left).rem_euclid(1 << 32)
        } else {
            i128::from(low)
        };
        let is_left = self.size > 0 && number <= self.top - self.size;
        let is_possible = self.size == 0 || (1..=i128::from(u64::MAX)).contains(&number);
        let is_seen = self.size > 0 && self.seen.contains(&number);
        (is_possible && !is_left && !is_seen).then_some(number)
    }

    fn receive(&mut self, low: u32, sealed_as: Option<i128>, plain: &[u8]) -> Expected {
        let [.., padding, next_header] = *plain else { return Expected::Refused(OpenFault::Truncated) };
        let Some(number) = self.number(low) else { return Expected::Refused(OpenFault::Replayed) };
        // The number's high bits are authenticated where there are any.
        if sealed_as != Some(number) {
            return Expected::Refused(OpenFault::NotAuthentic);
        }
        self.seen.insert(number);
        self.top = self.top.max(number);
        let length = (plain.len() - 2).checked_sub(usize::from(padding));
        match length {
            Some(length) if plain[length..plain.len() - 2].iter().copied().eq(1..=padding) => {
                Expected::Taken { payload: FRONT..FRONT + length, next_header, sequence: number as u64 }
            }
            _ => Expected::Refused(OpenFault::Padding),
        }
    }
}

/// The first octets choose suite, replay window, extended sequence numbers and where the SA stands. Each step is then a
/// shape, a distance (two octets) from the highest number or, if the shape says so, from the window's left end, a place
/// and a difference by which the packet is changed on its way (0: not at all), a length, and so many octets: payload,
/// padding, pad length and next header.
pub fn run(data: &[u8]) {
    let [suite, window, esn, top, rest @ ..] = data else { return };
    let mut rest = rest;
    let suite = Suite::ALL[usize::from(*suite) % Suite::ALL.len()];
    let (esn, size) = match window % 13 {
        0 => (false, 0),
        power => (esn & 1 == 1, 16u32 << power),
    };
    let mut top = TOPS[usize::from(*top) % TOPS.len()];
    if !esn {
        top = top.min(u64::from(u32::MAX) - 4);
    }
    let mut sa = inbound(suite, size, esn);
    sa.window_mut().restore(top, |_| 0);
    let mut model = Model { esn, size: size.into(), top: top.into(), seen: HashSet::new() };
    let sealer = sealer(suite);
    while let [shape, high, low, place, difference, length, tail @ ..] = rest {
        let (plain, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let distance = match shape & 3 {
            0 => i128::from(*low as i8) - i128::from(size),
            power => i128::from(i16::from_be_bytes([*high, *low])) << [0, 0, 8, 20][usize::from(power)],
        };
        let most = if esn { u64::MAX } else { u32::MAX.into() };
        let number = (model.top + distance).clamp(0, most.into());
        let mut packet = seal(&sealer, number as u64, esn, plain);
        let place = usize::from(*place) % packet.len();
        packet[place] ^= difference;
        let carried = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
        let expected = model.receive(carried, (*difference == 0).then_some(number), plain);
        match (sa.open(&mut packet), expected) {
            (Err(fault), Expected::Refused(expected)) => {
                assert_eq!(fault, expected);
                if fault == OpenFault::NotAuthentic {
                    let cipher = &packet[FRONT..packet.len() - ICV];
                    assert!(cipher.iter().all(|octet| *octet == 0), "something of the plaintext is left");
                }
            }
            (Ok(opened), Expected::Taken { payload, next_header, sequence }) => {
                let said = (&opened.payload, opened.next_header, opened.sequence);
                assert_eq!(said, (&payload, next_header, sequence));
                assert_eq!(packet[payload.clone()], plain[..payload.len()]);
            }
            (said, expected) => panic!("{said:?} instead of {expected:?}"),
        }
        assert_eq!(i128::from(sa.sequence()), model.top);
    }
}

fn inbound(suite: Suite, window: u32, esn: bool) -> InboundSa {
    let keymat = [&KEY[..suite.key_length()], &SALT].concat();
    let sa = SaParameters {
        spi: Spi(SPI),
        index: 0,
        policy: 1,
        resource: Default::default(),
        mode: Mode::Tunnel,
        suite,
        keymat: KeyMaterial::new(&keymat).expect("the suite's length"),
        local: ([192, 0, 2, 1], 0).into(),
        remote: ([192, 0, 2, 2], 0).into(),
        encapsulated: false,
        selectors: SelectorSet::default(),
        esn,
        soft: Limits::default(),
        hard: Limits::default(),
    };
    let fastest = Provider::available().next().expect("the portable one is always there");
    InboundSa::new(&sa, window, fastest).expect("parameters of an SA")
}

fn sealer(suite: Suite) -> Key {
    let algorithm = match suite {
        Suite::Aes128Gcm => Algorithm::Aes128Gcm,
        Suite::Aes192Gcm => Algorithm::Aes192Gcm,
        Suite::Aes256Gcm => Algorithm::Aes256Gcm,
        Suite::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
    };
    Provider::Portable.key(algorithm, &KEY[..suite.key_length()]).expect("the suite's length")
}

/// As RFC 4303 section 2 and RFC 4106 draw it.
fn seal(key: &Key, number: u64, esn: bool, plain: &[u8]) -> Vec<u8> {
    let (spi, iv) = (SPI.to_be_bytes(), number.to_be_bytes());
    let mut additional = spi.to_vec();
    additional.extend(if esn { &iv[..] } else { &iv[4..] });
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&SALT);
    nonce[4..].copy_from_slice(&iv);
    let (mut cipher, mut icv) = (plain.to_vec(), [0; ICV]);
    key.seal(&nonce, &additional, &mut cipher, &mut icv);
    [&spi, &iv[4..], &iv, &cipher, &icv].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::Seeded;
    use spindle_ike::random::Random;

    #[test]
    fn any_octets_are_taken_as_the_model_says() {
        for seed in 0..4000 {
            let mut random = Seeded::new(seed);
            let mut data = [0; 400];
            random.fill(&mut data);
            // Most packets are short, and arrive as they were sent.
            for step in data[4..].chunks_exact_mut(9) {
                step[4] = if step[4] < 200 { 0 } else { step[4] };
                (step[5], step[6]) = (3, step[6] & 1);
            }
            run(&data);
        }
    }

    #[test]
    fn the_model_takes_refuses_and_forgets() {
        let mut model = Model { esn: false, size: 32, top: 100, seen: HashSet::new() };
        let plain = [1, 2, 3, 1, 2, 2, 4];
        let taken = |sequence| Expected::Taken { payload: 16..19, next_header: 4, sequence };
        assert_eq!(model.receive(69, Some(69), &plain), taken(69));
        assert_eq!(model.receive(69, Some(69), &plain), Expected::Refused(OpenFault::Replayed));
        assert_eq!(model.receive(68, Some(68), &plain), Expected::Refused(OpenFault::Replayed));
        assert_eq!(model.receive(200, None, &plain), Expected::Refused(OpenFault::NotAuthentic));
        assert_eq!(model.receive(200, Some(200), &[9, 1, 4]), Expected::Refused(OpenFault::Padding));
        assert_eq!(model.receive(168, Some(168), &plain), Expected::Refused(OpenFault::Replayed));
        assert_eq!(model.receive(169, Some(169), &plain), taken(169));
    }
}
