//! Every AEAD provider that runs here, and intel-ipsec-mb with the feature `ipsec-mb`: seal in place.
#![allow(missing_docs, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spindle_aead::{Algorithm, Provider};
use spindle_benches::aead::encrypted_length;
use spindle_ipsec_mb::Gcm;

fn seal(c: &mut Criterion) {
    for algorithm in Algorithm::ALL {
        let mut group = c.benchmark_group(format!("seal {algorithm:?}"));
        let secret = &[0x42; 32][..algorithm.key_length()];
        for inner in [64, 512, 1408] {
            let mut packet = vec![7; encrypted_length(inner)];
            let mut tag = [0; 16];
            group.throughput(Throughput::Bytes(inner as u64));
            for provider in Provider::available() {
                let key = provider.key(algorithm, secret).expect("a key of this length");
                group.bench_function(BenchmarkId::new(provider.to_string(), inner), |b| {
                    b.iter(|| key.seal(&[1; 12], &[2; 8], &mut packet, &mut tag));
                });
            }
            if algorithm != Algorithm::ChaCha20Poly1305
                && let Some(mut key) = Gcm::new(secret)
            {
                group.bench_function(BenchmarkId::new("ipsec-mb", inner), |b| {
                    b.iter(|| key.seal(&[1; 12], &[2; 8], &mut packet, &mut tag));
                });
            }
        }
    }
}

criterion_group!(benches, seal);
criterion_main!(benches);
