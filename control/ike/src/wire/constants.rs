//! The numbers of IKEv2 that this implementation knows, by registry.

/// Exchange Types (RFC 7296 section 3.1).
pub mod exchange {
    /// IKE_SA_INIT (RFC 7296 section 1.2).
    pub const IKE_SA_INIT: u8 = 34;
    /// IKE_AUTH (RFC 7296 section 1.2).
    pub const IKE_AUTH: u8 = 35;
    /// CREATE_CHILD_SA (RFC 7296 section 1.3).
    pub const CREATE_CHILD_SA: u8 = 36;
    /// INFORMATIONAL (RFC 7296 section 1.4).
    pub const INFORMATIONAL: u8 = 37;
    /// IKE_SESSION_RESUME (RFC 5723 section 4.3.2).
    pub const IKE_SESSION_RESUME: u8 = 38;
    /// IKE_INTERMEDIATE (RFC 9242 section 3.2).
    pub const IKE_INTERMEDIATE: u8 = 43;
    /// IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4).
    pub const IKE_FOLLOWUP_KE: u8 = 44;
    /// Safe IKE Recovery, an experiment: private use (RFC 7296 section 3.1).
    pub const SIR: u8 = 240;
}

/// Payload types, as they stand in a Next Payload field (RFC 7296 section 3.2).
pub mod payload_type {
    /// No Next Payload.
    pub const NONE: u8 = 0;
    /// Security Association.
    pub const SA: u8 = 33;
    /// Key Exchange.
    pub const KE: u8 = 34;
    /// Identification - Initiator.
    pub const ID_INITIATOR: u8 = 35;
    /// Identification - Responder.
    pub const ID_RESPONDER: u8 = 36;
    /// Certificate.
    pub const CERT: u8 = 37;
    /// Certificate Request.
    pub const CERTREQ: u8 = 38;
    /// Authentication.
    pub const AUTH: u8 = 39;
    /// Nonce.
    pub const NONCE: u8 = 40;
    /// Notify.
    pub const NOTIFY: u8 = 41;
    /// Delete.
    pub const DELETE: u8 = 42;
    /// Vendor ID.
    pub const VENDOR_ID: u8 = 43;
    /// Traffic Selector - Initiator.
    pub const TS_INITIATOR: u8 = 44;
    /// Traffic Selector - Responder.
    pub const TS_RESPONDER: u8 = 45;
    /// Encrypted and Authenticated.
    pub const SK: u8 = 46;
    /// Configuration.
    pub const CP: u8 = 47;
    /// Extensible Authentication.
    pub const EAP: u8 = 48;
    /// Encrypted and Authenticated Fragment (RFC 7383 section 2.5).
    pub const SKF: u8 = 53;
}

/// Protocol IDs (RFC 7296 section 3.3.1).
pub mod protocol {
    /// IKE.
    pub const IKE: u8 = 1;
    /// AH.
    pub const AH: u8 = 2;
    /// ESP.
    pub const ESP: u8 = 3;
}

/// Notify Message Types (RFC 7296 section 3.10.1). Errors are below 16384, status types from there on.
pub mod notify {
    /// RFC 7296 section 2.5.
    pub const UNSUPPORTED_CRITICAL_PAYLOAD: u16 = 1;
    /// RFC 7296 section 2.21.4.
    pub const INVALID_IKE_SPI: u16 = 4;
    /// RFC 7296 section 2.5.
    pub const INVALID_MAJOR_VERSION: u16 = 5;
    /// RFC 7296 section 2.21.
    pub const INVALID_SYNTAX: u16 = 7;
    /// RFC 7296 section 2.3.
    pub const INVALID_MESSAGE_ID: u16 = 9;
    /// RFC 7296 section 1.5.
    pub const INVALID_SPI: u16 = 11;
    /// RFC 7296 section 2.7.
    pub const NO_PROPOSAL_CHOSEN: u16 = 14;
    /// RFC 7296 section 1.3; its data is the wanted group.
    pub const INVALID_KE_PAYLOAD: u16 = 17;
    /// RFC 7296 section 2.21.2.
    pub const AUTHENTICATION_FAILED: u16 = 24;
    /// RFC 7296 section 2.9.
    pub const SINGLE_PAIR_REQUIRED: u16 = 34;
    /// RFC 7296 section 1.3.
    pub const NO_ADDITIONAL_SAS: u16 = 35;
    /// RFC 7296 section 3.15.4.
    pub const INTERNAL_ADDRESS_FAILURE: u16 = 36;
    /// RFC 7296 section 3.15.4.
    pub const FAILED_CP_REQUIRED: u16 = 37;
    /// RFC 7296 section 2.9.
    pub const TS_UNACCEPTABLE: u16 = 38;
    /// RFC 7296 section 2.9.
    pub const INVALID_SELECTORS: u16 = 39;
    /// RFC 7296 section 2.25.
    pub const TEMPORARY_FAILURE: u16 = 43;
    /// RFC 7296 section 2.25.
    pub const CHILD_SA_NOT_FOUND: u16 = 44;
    /// RFC 9370 section 2.2.4.
    pub const STATE_NOT_FOUND: u16 = 47;
    /// RFC 9611 section 5.2.
    pub const TS_MAX_QUEUE: u16 = 48;
    /// The first status type; all below are errors.
    pub const STATUS: u16 = 16384;
    /// RFC 7296 section 2.4.
    pub const INITIAL_CONTACT: u16 = 16384;
    /// RFC 7296 section 2.7.
    pub const SET_WINDOW_SIZE: u16 = 16385;
    /// RFC 7296 section 2.9.
    pub const ADDITIONAL_TS_POSSIBLE: u16 = 16386;
    /// RFC 7296 section 2.22.
    pub const IPCOMP_SUPPORTED: u16 = 16387;
    /// RFC 7296 section 2.23.
    pub const NAT_DETECTION_SOURCE_IP: u16 = 16388;
    /// RFC 7296 section 2.23.
    pub const NAT_DETECTION_DESTINATION_IP: u16 = 16389;
    /// RFC 7296 section 2.6.
    pub const COOKIE: u16 = 16390;
    /// RFC 7296 section 1.3.1.
    pub const USE_TRANSPORT_MODE: u16 = 16391;
    /// RFC 7296 section 3.6.
    pub const HTTP_CERT_LOOKUP_SUPPORTED: u16 = 16392;
    /// RFC 7296 section 1.3.3.
    pub const REKEY_SA: u16 = 16393;
    /// RFC 7296 section 1.3.1.
    pub const ESP_TFC_PADDING_NOT_SUPPORTED: u16 = 16394;
    /// RFC 7296 section 1.3.1.
    pub const NON_FIRST_FRAGMENTS_ALSO: u16 = 16395;
    /// RFC 5685 section 9.1.
    pub const REDIRECT_SUPPORTED: u16 = 16406;
    /// RFC 5685 section 9.2.
    pub const REDIRECT: u16 = 16407;
    /// RFC 5685 section 9.3.
    pub const REDIRECTED_FROM: u16 = 16408;
    /// RFC 5723 section 7.
    pub const TICKET_LT_OPAQUE: u16 = 16409;
    /// RFC 5723 section 7.
    pub const TICKET_REQUEST: u16 = 16410;
    /// RFC 5723 section 7.
    pub const TICKET_ACK: u16 = 16411;
    /// RFC 5723 section 7.
    pub const TICKET_NACK: u16 = 16412;
    /// RFC 5723 section 7.
    pub const TICKET_OPAQUE: u16 = 16413;
    /// QCD_TOKEN (RFC 6290 section 4.1).
    pub const QUICK_CRASH_DETECTION: u16 = 16419;
    /// RFC 6311 section 6.
    pub const MESSAGE_ID_SYNC_SUPPORTED: u16 = 16420;
    /// RFC 6311 section 6.
    pub const REPLAY_COUNTER_SYNC_SUPPORTED: u16 = 16421;
    /// RFC 6311 section 6.
    pub const MESSAGE_ID_SYNC: u16 = 16422;
    /// RFC 6311 section 6.
    pub const REPLAY_COUNTER_SYNC: u16 = 16423;
    /// RFC 7383 section 2.3.
    pub const FRAGMENTATION_SUPPORTED: u16 = 16430;
    /// RFC 7427 section 4.
    pub const SIGNATURE_HASH_ALGORITHMS: u16 = 16431;
    /// RFC 9242 section 3.1.
    pub const INTERMEDIATE_EXCHANGE_SUPPORTED: u16 = 16438;
    /// RFC 9370 section 2.2.4.
    pub const ADDITIONAL_KEY_EXCHANGE: u16 = 16441;
    /// RFC 9611 section 5.1.
    pub const SA_RESOURCE_INFO: u16 = 16444;
    /// CHECK_SPI of Safe IKE Recovery, an experiment: private use (RFC 7296 section 3.10.1).
    pub const SIR_CHECK_SPI: u16 = 40970;
}

/// Transform Types (RFC 7296 section 3.3.2).
pub mod transform {
    /// ENCR.
    pub const ENCRYPTION: u8 = 1;
    /// PRF.
    pub const PRF: u8 = 2;
    /// INTEG.
    pub const INTEGRITY: u8 = 3;
    /// D-H (RFC 9370: key exchange method).
    pub const KEY_EXCHANGE: u8 = 4;
    /// ESN.
    pub const SEQUENCE_NUMBERS: u8 = 5;

    /// ENCR_AES_GCM_16 (RFC 5282 section 7.3; RFC 4106 for ESP). Needs the Key Length attribute.
    pub const AES_GCM_16: u16 = 20;
    /// ENCR_CHACHA20_POLY1305 (RFC 7634 section 4). Has no Key Length attribute.
    pub const CHACHA20_POLY1305: u16 = 28;
    /// PRF_HMAC_SHA2_256 (RFC 4868).
    pub const PRF_HMAC_SHA2_256: u16 = 5;
    /// PRF_HMAC_SHA2_384 (RFC 4868).
    pub const PRF_HMAC_SHA2_384: u16 = 6;
    /// PRF_HMAC_SHA2_512 (RFC 4868).
    pub const PRF_HMAC_SHA2_512: u16 = 7;
    /// AUTH NONE, which an AEAD proposal may carry (RFC 7296 section 3.3.3).
    pub const INTEGRITY_NONE: u16 = 0;
    /// Key exchange NONE, as good as no transform of this type (RFC 7296 section 3.3.2).
    pub const KEY_EXCHANGE_NONE: u16 = 0;
    /// 256-bit random ECP group (RFC 5903).
    pub const ECP_256: u16 = 19;
    /// Curve25519 (RFC 8031).
    pub const CURVE25519: u16 = 31;
    /// No Extended Sequence Numbers.
    pub const NO_ESN: u16 = 0;
    /// Extended Sequence Numbers.
    pub const ESN: u16 = 1;
}

/// ID Types (RFC 7296 section 3.5).
pub mod identification {
    /// ID_IPV4_ADDR.
    pub const IPV4_ADDR: u8 = 1;
    /// ID_FQDN.
    pub const FQDN: u8 = 2;
    /// ID_RFC822_ADDR.
    pub const RFC822_ADDR: u8 = 3;
    /// ID_IPV6_ADDR.
    pub const IPV6_ADDR: u8 = 5;
    /// ID_KEY_ID.
    pub const KEY_ID: u8 = 11;
}

/// Authentication methods (RFC 7296 section 3.8).
pub mod authentication {
    /// Shared Key Message Integrity Code.
    pub const SHARED_KEY: u8 = 2;
    /// Digital Signature (RFC 7427).
    pub const DIGITAL_SIGNATURE: u8 = 14;
}
