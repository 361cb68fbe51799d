//! The file of the QCD secret's generations and the anchor, as text: what they look like and what makes them void.
//!
//! RFC 6290 section 5.1: the secret is made once, kept indefinitely, and may be rotated with up to three earlier
//! generations kept. The anchor lies outside the state directory: a directory that was copied or rolled back does
//! not match it.

use crate::api::Secret;
use spindle_ike::random::Random;
use zeroize::Zeroizing;

/// Generations of the secret that are kept (RFC 6290 section 5.1: the newest and three earlier ones).
pub const MAX_GENERATIONS: usize = 4;

const HEAD: &str = "spindle-qcd-secret 1";
const ANCHOR_HEAD: &str = "spindle-anchor 1";

/// What is wrong with a file that should hold a secret or an anchor: the operator's or the disk's fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// A new generation.
pub fn new_secret(random: &mut dyn Random) -> Secret {
    let mut octets = Zeroizing::new([0; 32]);
    random.fill(&mut *octets);
    Secret(octets)
}

/// The file's text: one line of 64 hexadecimal digits for each generation, newest first.
pub fn encode_secrets(secrets: &[Secret]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(HEAD.len() + 1 + 65 * MAX_GENERATIONS));
    out.extend(HEAD.bytes());
    out.push(b'\n');
    for secret in secrets.iter().take(MAX_GENERATIONS) {
        for octet in secret.0.iter() {
            out.extend([hex_digit(octet >> 4), hex_digit(octet & 15)]);
        }
        out.push(b'\n');
    }
    out
}

/// The generations in a file, newest first: at least one, at most four.
pub fn decode_secrets(octets: &[u8]) -> Result<Vec<Secret>, Malformed> {
    let text = std::str::from_utf8(octets).map_err(|_| Malformed("it is not text"))?;
    let body = text.strip_prefix(HEAD).and_then(|t| t.strip_prefix('\n'));
    let body = body.ok_or(Malformed("its first line is not 'spindle-qcd-secret 1'"))?;
    let mut secrets = Vec::new();
    for line in body.lines() {
        let octets = unhex::<32>(line).ok_or(Malformed("a line is not 64 hexadecimal digits"))?;
        secrets.push(Secret(octets));
    }
    match secrets.len() {
        0 => Err(Malformed("it holds no secret")),
        1..=MAX_GENERATIONS => Ok(secrets),
        _ => Err(Malformed("it holds more than four generations")),
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

    fn secret(octet: u8) -> Secret {
        Secret(Zeroizing::new([octet; 32]))
    }

    #[test]
    fn secrets_come_back_newest_first() {
        let text = encode_secrets(&[secret(0xa5), secret(1)]);
        let back = decode_secrets(&text).unwrap();
        assert_eq!(back.iter().map(|s| s.0[0]).collect::<Vec<_>>(), [0xa5, 1]);
    }

    #[test]
    fn a_short_cut_or_foreign_secret_file_is_refused() {
        let text = encode_secrets(&[secret(7)]);
        for cut in 0..text.len() - 1 {
            assert!(decode_secrets(&text[..cut]).is_err(), "{cut} octets were taken for a secret");
        }
        assert!(decode_secrets(b"0707\n").is_err());
        let five: Vec<Secret> = (0..4).map(secret).collect();
        let mut text = encode_secrets(&five).to_vec();
        text.extend(&encode_secrets(&[secret(9)])[HEAD.len() + 1..]);
        assert!(decode_secrets(&text).is_err());
    }

    /// RFC 6290 section 9.1: the secret MUST be protected; it must not reach a log.
    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", secret(0x5a)), "Secret(..)");
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
