//! AEADs beside each other: the same packets through one after the other, in alternating rounds.

use crate::report::median;
use spindle_aead::{Algorithm, Key, Provider};
use spindle_ipsec_mb::Gcm;
use std::time::Instant;

/// Octets of packets that one sample works on, so that all of them are in the first cache.
const SAMPLE: usize = 16_384;
/// Samples of each in one round. Each takes a few microseconds, so that on a busy machine most of them are undisturbed.
const SAMPLES: usize = 101;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Encrypts and makes tags.
    Seal,
    /// Checks tags and decrypts.
    Open,
}

/// Who is measured.
pub enum Subject {
    /// One of Spindle's providers.
    Ours(Provider, Key),
    /// intel-ipsec-mb.
    IpsecMb(Gcm),
}

impl Subject {
    /// All that can do this algorithm here: Spindle's available providers, and intel-ipsec-mb where it is linked.
    pub fn all(algorithm: Algorithm, secret: &[u8]) -> Vec<Subject> {
        let ours = Provider::available()
            .filter(|provider| algorithm != Algorithm::ChaCha20Poly1305 || is_primary(*provider))
            .filter_map(|provider| Some(Subject::Ours(provider, provider.key(algorithm, secret)?)));
        let theirs = (algorithm != Algorithm::ChaCha20Poly1305).then(|| Gcm::new(secret)).flatten();
        ours.chain(theirs.map(Subject::IpsecMb)).collect()
    }

    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Subject::Ours(provider, _) => provider.to_string(),
            Subject::IpsecMb(_) => "ipsec-mb".into(),
        }
    }

    #[inline]
    fn seal(&mut self, packet: &mut Packet<'_>) {
        match self {
            Subject::Ours(_, key) => key.seal(packet.nonce, &AAD, packet.octets, packet.tag),
            Subject::IpsecMb(key) => key.seal(packet.nonce, &AAD, packet.octets, packet.tag),
        }
    }

    #[inline]
    fn open(&mut self, packet: &mut Packet<'_>) -> bool {
        match self {
            Subject::Ours(_, key) => key.open(packet.nonce, &AAD, packet.octets, packet.tag).is_ok(),
            Subject::IpsecMb(key) => key.open(packet.nonce, &AAD, packet.octets, packet.tag),
        }
    }
}

/// The two that have a ChaCha20-Poly1305 of their own.
fn is_primary(provider: Provider) -> bool {
    matches!(provider, Provider::AwsLc | Provider::Portable)
}

struct Packet<'a> {
    nonce: &'a [u8; 12],
    octets: &'a mut [u8],
    tag: &'a mut [u8; 16],
}

/// SPI and sequence number.
const AAD: [u8; 8] = [0xc0, 0xff, 0xee, 1, 0, 0, 0, 1];

/// Octets that ESP encrypts for an inner packet: padding to a multiple of 4, pad length and next header.
pub fn encrypted_length(inner: usize) -> usize {
    (inner + 2).next_multiple_of(4)
}

/// Nanoseconds per packet of each subject, one figure for each round: the median of its samples.
pub fn measure(
    subjects: &mut [Subject],
    direction: Direction,
    length: usize,
    rounds: usize,
) -> Vec<Vec<f64>> {
    let count = (SAMPLE / length).clamp(1, 256);
    let nonces: Vec<[u8; 12]> = (0..count).map(|i| [i as u8; 12]).collect();
    let mut template: Vec<u8> = (0..count * length).map(|i| i as u8).collect();
    let mut tags = vec![[0; 16]; count];
    if direction == Direction::Open {
        packets(&nonces, &mut template, &mut tags, length)
            .for_each(|mut packet| subjects[0].seal(&mut packet));
    }
    let mut work = template.clone();
    let mut results = vec![Vec::with_capacity(rounds); subjects.len()];
    for _ in 0..rounds {
        let mut samples = vec![Vec::with_capacity(SAMPLES); subjects.len()];
        for _ in 0..SAMPLES {
            for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
                work.copy_from_slice(&template);
                let mut authentic = true;
                let started = Instant::now();
                for mut packet in packets(&nonces, &mut work, &mut tags, length) {
                    match direction {
                        Direction::Seal => subject.seal(&mut packet),
                        Direction::Open => authentic &= subject.open(&mut packet),
                    }
                }
                samples.push(started.elapsed().as_nanos() as f64 / count as f64);
                assert!(authentic, "{} opens what another sealed", subject.name());
            }
        }
        for (result, mut samples) in results.iter_mut().zip(samples) {
            result.push(median(&mut samples));
        }
    }
    results
}

fn packets<'a>(
    nonces: &'a [[u8; 12]],
    octets: &'a mut [u8],
    tags: &'a mut [[u8; 16]],
    length: usize,
) -> impl Iterator<Item = Packet<'a>> {
    let parts = nonces.iter().zip(octets.chunks_exact_mut(length)).zip(tags);
    parts.map(|((nonce, octets), tag)| Packet { nonce, octets, tag })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_measured_in_every_round() {
        for direction in [Direction::Seal, Direction::Open] {
            let mut subjects = Subject::all(Algorithm::Aes128Gcm, &[7; 16]);
            let results = measure(&mut subjects, direction, encrypted_length(64), 2);
            assert!(results.len() == subjects.len() && subjects.len() >= 2);
            assert!(results.iter().all(|rounds| rounds.len() == 2 && rounds.iter().all(|ns| *ns > 0.0)));
        }
    }

    /// RFC 4303 section 2.4.
    #[test]
    fn lengths_are_those_of_esp() {
        assert_eq!([64, 512, 1408, 66].map(encrypted_length), [68, 516, 1412, 68]);
    }
}
