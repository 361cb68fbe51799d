//! Known answers, from the GCM specification (McGrew and Viega, test cases 4, 10 and 16) and RFC 8439 section 2.8.2.
//! The tags depend on every octet of the ciphertexts, so they alone are compared.
//!
//! Those vectors are short. So for each algorithm there is also a chain of packets of many lengths, each with the
//! tag before it as its nonce; OpenSSL made its last tag.

use crate::{Algorithm, Key};

struct KnownAnswer {
    algorithm: Algorithm,
    key: &'static [u8],
    nonce: [u8; 12],
    aad: &'static [u8],
    plain: &'static [u8],
    tag: [u8; 16],
}

const GCM_KEY: [u8; 32] = hex(b"feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
const GCM_AAD: [u8; 20] = hex(b"feedfacedeadbeeffeedfacedeadbeefabaddad2");
const GCM_PLAIN: [u8; 60] = hex(b"d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72\
1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");

const ANSWERS: [KnownAnswer; 4] = [
    KnownAnswer {
        algorithm: Algorithm::Aes128Gcm,
        key: GCM_KEY.split_at(16).0,
        nonce: hex(b"cafebabefacedbaddecaf888"),
        aad: &GCM_AAD,
        plain: &GCM_PLAIN,
        tag: hex(b"5bc94fbc3221a5db94fae95ae7121a47"),
    },
    KnownAnswer {
        algorithm: Algorithm::Aes192Gcm,
        key: GCM_KEY.split_at(24).0,
        nonce: hex(b"cafebabefacedbaddecaf888"),
        aad: &GCM_AAD,
        plain: &GCM_PLAIN,
        tag: hex(b"2519498e80f1478f37ba55bd6d27618c"),
    },
    KnownAnswer {
        algorithm: Algorithm::Aes256Gcm,
        key: &GCM_KEY,
        nonce: hex(b"cafebabefacedbaddecaf888"),
        aad: &GCM_AAD,
        plain: &GCM_PLAIN,
        tag: hex(b"76fc6ece0f4e1768cddf8853bb2d551b"),
    },
    KnownAnswer {
        algorithm: Algorithm::ChaCha20Poly1305,
        key: &hex::<32>(b"808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"),
        nonce: hex(b"070000004041424344454647"),
        aad: &hex::<12>(b"50515253c0c1c2c3c4c5c6c7"),
        plain:
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
sunscreen would be it.",
        tag: hex(b"1ae10b594f09e26a7e902ecbd0600691"),
    },
];

/// Lengths of a chain's packets: about every limit inside an implementation that works on up to 16 blocks at once.
const LENGTHS: [usize; 28] = [
    0, 1, 15, 16, 17, 31, 32, 33, 47, 64, 68, 95, 112, 113, 127, 128, 129, 144, 255, 256, 257, 383, 384, 512,
    516, 1412, 2047, 2048,
];

/// The last tag of each algorithm's chain.
const CHAINS: [(Algorithm, [u8; 16]); 4] = [
    (Algorithm::Aes128Gcm, hex(b"4b02fbecf2e4016fe9aecfd69a2f7de1")),
    (Algorithm::Aes192Gcm, hex(b"82511b1735de2cd6771e25e759f3559e")),
    (Algorithm::Aes256Gcm, hex(b"a28a0fd5b413e8d6fa066fca0296204a")),
    (Algorithm::ChaCha20Poly1305, hex(b"ac76c143aa147863fef3b0391f9bef99")),
];

/// The last tag of a chain; `None` if a packet of it does not come back.
fn chain(key: &Key) -> Option<[u8; 16]> {
    let mut tag = [0; 16];
    for (length, aad) in LENGTHS.into_iter().flat_map(|length| [(length, 8), (length, 12)]) {
        let plain: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let (mut nonce, mut buffer) = ([0; 12], plain.clone());
        nonce.copy_from_slice(&tag[..12]);
        let aad = &GCM_AAD[..aad];
        key.seal(&nonce, aad, &mut buffer, &mut tag);
        if key.open(&nonce, aad, &mut buffer, &tag).is_err() || buffer != plain {
            return None;
        }
    }
    Some(tag)
}

/// Seals and opens every known answer; the first algorithm that is wrong is the error.
pub(crate) fn run(key: &dyn Fn(Algorithm, &[u8]) -> Option<Key>) -> Result<(), Algorithm> {
    for answer in &ANSWERS {
        let wrong = Err(answer.algorithm);
        let Some(key) = key(answer.algorithm, answer.key) else { return wrong };
        let (mut buffer, mut tag) = (answer.plain.to_vec(), [0; 16]);
        key.seal(&answer.nonce, answer.aad, &mut buffer, &mut tag);
        if tag != answer.tag || buffer == answer.plain {
            return wrong;
        }
        let mut forged = buffer.clone();
        forged[0] ^= 1;
        let opens = key.open(&answer.nonce, answer.aad, &mut buffer, &tag).is_ok();
        if !opens || buffer != answer.plain || key.open(&answer.nonce, answer.aad, &mut forged, &tag).is_ok()
        {
            return wrong;
        }
    }
    for (algorithm, last) in CHAINS {
        let secret = &GCM_KEY[..algorithm.key_length()];
        if key(algorithm, secret).and_then(|key| chain(&key)) != Some(last) {
            return Err(algorithm);
        }
    }
    Ok(())
}

const fn hex<const N: usize>(text: &[u8]) -> [u8; N] {
    const fn digit(c: u8) -> u8 {
        match c {
            b'0'..=b'9' => c - b'0',
            _ => c - b'a' + 10,
        }
    }
    assert!(text.len() == 2 * N);
    let mut octets = [0; N];
    let mut i = 0;
    while i < N {
        octets[i] = digit(text[2 * i]) << 4 | digit(text[2 * i + 1]);
        i += 1;
    }
    octets
}
