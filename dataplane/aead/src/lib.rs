//! AEAD providers for ESP behind one type.

/// Who encrypts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Provider {
    /// AWS-LC, with the CPU's own instructions.
    #[default]
    AwsLc,
    /// RustCrypto's portable code.
    Portable,
}
