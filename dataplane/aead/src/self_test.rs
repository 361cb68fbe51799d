//! Known answers, from the GCM specification (McGrew and Viega, test cases 4 and 16) and RFC 8439 section 2.8.2.
//! The tags depend on every octet of the ciphertexts, so they alone are compared.

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

const ANSWERS: [KnownAnswer; 3] = [
    KnownAnswer {
        algorithm: Algorithm::Aes128Gcm,
        key: GCM_KEY.split_at(16).0,
        nonce: hex(b"cafebabefacedbaddecaf888"),
        aad: &GCM_AAD,
        plain: &GCM_PLAIN,
        tag: hex(b"5bc94fbc3221a5db94fae95ae7121a47"),
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
