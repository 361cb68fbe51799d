//! The file of the QCD secret's generations and the anchor, as text: what they look like and what makes them void.
//!
//! RFC 6290 section 5.1: the secret is made once, kept indefinitely, and may be rotated with up to three earlier
//! generations kept. The anchor lies outside the state directory: a directory that was copied or rolled back does
//! not match it.

use crate::api::{Generation, Secret, TokenMethod};
use spindle_ike::random::Random;
use std::io::Write;
use zeroize::Zeroizing;

/// Generations of the secret that are kept (RFC 6290 section 5.1: the newest and three earlier ones).
pub const MAX_GENERATIONS: usize = 4;

const HEAD: &str = "spindle-qcd-secret 2";
/// A line was the secret alone.
const HEAD_BEFORE: &str = "spindle-qcd-secret 1";
const ANCHOR_HEAD: &str = "spindle-anchor 1";

/// A line of the secret's file at most: 64 digits, a method, two numbers.
const MAX_LINE: usize = 64 + 1 + 16 + 1 + 20 + 1 + 20 + 1;

/// What is wrong with a file that should hold a secret or an anchor: the operator's or the disk's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// A new generation, made at `made` seconds since 1970. Nobody holds a token of it yet.
pub fn new_generation(random: &mut dyn Random, method: TokenMethod, made: u64) -> Generation {
    Generation { secret: new_secret(random), method, made, needed_until: Some(0) }
}

/// 32 random octets.
pub fn new_secret(random: &mut dyn Random) -> Secret {
    let mut octets = Zeroizing::new([0; 32]);
    random.fill(&mut *octets);
    Secret(octets)
}

/// The file's text: one line for each generation, newest first: 64 hexadecimal digits, the method, when it was made,
/// until when it is needed. The newest is in use.
pub fn encode_secrets(generations: &[Generation]) -> Zeroizing<Vec<u8>> {
    // Never moved to another place in memory, where the old one would not be zeroised.
    let mut out = Zeroizing::new(Vec::with_capacity(HEAD.len() + 1 + MAX_LINE * MAX_GENERATIONS));
    out.extend(HEAD.bytes());
    out.push(b'\n');
    for (place, generation) in generations.iter().take(MAX_GENERATIONS).enumerate() {
        for octet in generation.secret.0.iter() {
            out.extend([hex_digit(octet >> 4), hex_digit(octet & 15)]);
        }
        let until = generation.needed_until.filter(|_| place > 0);
        let until = until.map_or("-".into(), |second| second.to_string());
        // Writing to memory cannot fail.
        let _ = writeln!(out, " {} {} {until}", method_name(generation.method), generation.made);
    }
    out
}

/// The generations in a file, newest first: at least one, at most four.
pub fn decode_secrets(octets: &[u8]) -> Result<Vec<Generation>, Malformed> {
    let text = std::str::from_utf8(octets).map_err(|_| Malformed("it is not text"))?;
    let (head, body) = text.split_once('\n').unwrap_or((text, ""));
    let line: fn(&str) -> Option<Generation> = match head {
        HEAD => generation,
        HEAD_BEFORE => generation_before,
        _ => return Err(Malformed("its first line is not 'spindle-qcd-secret 2'")),
    };
    if !body.ends_with('\n') {
        return Err(Malformed("it is empty, or its last line is cut off"));
    }
    let mut generations = Vec::new();
    for text in body.lines() {
        let wrong = "a line is not 64 hexadecimal digits, a method, a time and a time or '-'";
        generations.push(line(text).ok_or(Malformed(wrong))?);
    }
    match generations.len() {
        1..=MAX_GENERATIONS => Ok(generations),
        _ => Err(Malformed("it holds more than four generations")),
    }
}

fn generation(line: &str) -> Option<Generation> {
    let mut words = line.split(' ');
    let (secret, method, made, until) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let methods = [TokenMethod::Spis, TokenMethod::SpisAndAddress];
    let generation = Generation {
        secret: Secret(unhex(secret)?),
        method: methods.into_iter().find(|m| method_name(*m) == method)?,
        made: made.parse().ok()?,
        needed_until: if until == "-" { None } else { Some(until.parse().ok()?) },
    };
    words.next().is_none().then_some(generation)
}

fn generation_before(line: &str) -> Option<Generation> {
    let secret = Secret(unhex(line)?);
    Some(Generation { secret, method: TokenMethod::Spis, made: 0, needed_until: None })
}

/// As in the file and in the configuration.
pub fn method_name(method: TokenMethod) -> &'static str {
    match method {
        TokenMethod::Spis => "spis",
        TokenMethod::SpisAndAddress => "spis-and-address",
    }
}

/// Says which state directory is the true one, and how far it had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// The state's random id.
    pub id: [u8; 16],
    /// The highest incarnation that began with it.
    pub incarnation: u64,
}

impl Anchor {
    /// The file's text.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = format!("{ANCHOR_HEAD}\n").into_bytes();
        out.extend(self.id.iter().flat_map(|octet| [hex_digit(octet >> 4), hex_digit(octet & 15)]));
        out.extend(format!("\n{}\n", self.incarnation).bytes());
        out
    }

    /// What a file says.
    pub fn decode(octets: &[u8]) -> Result<Anchor, Malformed> {
        let text = std::str::from_utf8(octets).map_err(|_| Malformed("it is not text"))?;
        let mut lines = text.lines();
        let (head, id, incarnation) = (lines.next(), lines.next(), lines.next());
        if head != Some(ANCHOR_HEAD) {
            return Err(Malformed("its first line is not 'spindle-anchor 1'"));
        }
        let id = id.and_then(unhex::<16>).ok_or(Malformed("its id is not 32 hexadecimal digits"))?;
        let incarnation = incarnation.and_then(|line| line.parse().ok());
        Ok(Anchor { id: *id, incarnation: incarnation.ok_or(Malformed("its incarnation is not a number"))? })
    }
}

fn hex_digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble)]
}

fn unhex<const N: usize>(line: &str) -> Option<Zeroizing<[u8; N]>> {
    let digits = line.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = Zeroizing::new([0; N]);
    for (octet, pair) in out.iter_mut().zip(digits.chunks(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).map(|n| n as u8);
        *octet = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(octet: u8) -> Generation {
        let secret = Secret(Zeroizing::new([octet; 32]));
        Generation { secret, method: TokenMethod::Spis, made: 1_000, needed_until: None }
    }

    #[test]
    fn generations_come_back_newest_first() {
        let older = Generation {
            method: TokenMethod::SpisAndAddress,
            made: u64::MAX,
            needed_until: Some(u64::MAX),
            ..generation(1)
        };
        let all = [generation(0xa5), older, generation(2), generation(3)];
        let text = encode_secrets(&all);
        assert_eq!(decode_secrets(&text).unwrap(), all);
        assert!(text.capacity() >= text.len() && text.len() <= HEAD.len() + 1 + MAX_LINE * MAX_GENERATIONS);
        // The newest one is in use, whatever is said.
        let one = Generation { needed_until: Some(9), ..generation(4) };
        assert_eq!(decode_secrets(&encode_secrets(&[one])).unwrap(), [generation(4)]);
    }

    #[test]
    fn a_file_of_the_first_form_is_understood() {
        let text = format!("spindle-qcd-secret 1\n{}\n{}\n", "a5".repeat(32), "07".repeat(32));
        let generations = decode_secrets(text.as_bytes()).unwrap();
        assert_eq!(generations, [0xa5, 7].map(|octet| Generation { made: 0, ..generation(octet) }));
    }

    #[test]
    fn a_short_cut_or_foreign_secret_file_is_refused() {
        let text = encode_secrets(&[generation(7)]);
        for cut in 0..text.len() {
            assert!(decode_secrets(&text[..cut]).is_err(), "{cut} octets were taken for a secret");
        }
        assert!(decode_secrets(b"0707\n").is_err());
        let four: Vec<Generation> = (0..4).map(generation).collect();
        let mut text = encode_secrets(&four).to_vec();
        text.extend(&encode_secrets(&[generation(9)])[HEAD.len() + 1..]);
        assert!(decode_secrets(&text).is_err());
        let line = |rest: &str| format!("{HEAD}\n{}{rest}\n", "07".repeat(32));
        assert!(decode_secrets(line(" spis 1 -").as_bytes()).is_ok());
        for rest in ["", " spis", " spis 1", " spis 1 - -", " other 1 -", " spis x -", " spis 1 x"] {
            assert!(decode_secrets(line(rest).as_bytes()).is_err(), "{rest}");
        }
    }

    /// RFC 6290 section 9.1: the secret MUST be protected; it must not reach a log.
    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", generation(0x5a));
        assert!(text.contains("Secret(..)") && !text.contains("90"), "{text}");
    }

    #[test]
    fn an_anchor_comes_back_and_a_torn_one_is_refused() {
        let anchor = Anchor { id: [0x1f; 16], incarnation: 42 };
        assert_eq!(Anchor::decode(&anchor.encode()), Ok(anchor));
        for text in ["", "spindle-anchor 1\n", "spindle-anchor 1\n1f\n42\n", "x\n"] {
            assert!(Anchor::decode(text.as_bytes()).is_err());
        }
    }
}
