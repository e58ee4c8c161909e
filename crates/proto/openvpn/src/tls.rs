//! The seam between the control channel and a TLS library.
//!
//! OpenVPN runs ordinary TLS records over its reliability layer. The machine needs little of a TLS
//! library, and says here what: bytes in, bytes out, an exporter and the peer's certificates. The real
//! implementation lives in a higher layer; tests use a deterministic one.

use std::fmt;

/// Why a TLS connection cannot go on. Both end the key negotiation they happened in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// The peer sent something wrong, or its certificate was refused. The text names the cause for the log
    /// and holds nothing the peer wrote.
    #[error("{0}")]
    Peer(String),
    /// This side is not able to do what was asked (missing key, no common parameters configured, misuse).
    #[error("{0}")]
    Local(String),
}

/// What is known of the peer once the TLS handshake is complete.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PeerCertificates {
    /// The verified chain as the peer sent it, DER, leaf first; empty when no certificate was asked for.
    pub chain: Vec<Vec<u8>>,
}

impl fmt::Debug for PeerCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerCertificates({} in chain)", self.chain.len())
    }
}

/// A key exchange of TLS (`tls-groups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// X25519 and ML-KEM-768 together (draft-ietf-tls-ecdhe-mlkem).
    X25519MlKem768,
    /// X25519 (RFC 8446 §4.2.7, as the others).
    X25519,
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

impl Group {
    /// All groups, the best first.
    pub const ALL: [Self; 5] = [Self::X25519MlKem768, Self::X25519, Self::P256, Self::P384, Self::P521];

    /// The group with this name: that of the standard, or OpenSSL's, in any case; `None` when it is not one of these.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "x25519mlkem768" => Some(Self::X25519MlKem768),
            "x25519" => Some(Self::X25519),
            "secp256r1" | "prime256v1" | "p-256" => Some(Self::P256),
            "secp384r1" | "p-384" => Some(Self::P384),
            "secp521r1" | "p-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// The standard's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "X25519",
            Self::P256 => "secp256r1",
            Self::P384 => "secp384r1",
            Self::P521 => "secp521r1",
        }
    }
}

/// One TLS connection over buffers.
///
/// Calling order: after [`feed`](Self::feed) or [`write`](Self::write), call
/// [`drain`](Self::drain) until it returns 0, and [`read`](Self::read) until it returns 0. After an error
/// from `feed`, `drain` may still hand out an alert for the peer; nothing else is valid then.
pub trait ControlTls: Send {
    /// Takes ciphertext in order and processes it as far as it goes.
    ///
    /// # Errors
    /// [`TlsFault`] when the connection cannot continue, certificate refusal included.
    fn feed(&mut self, ciphertext: &[u8]) -> Result<(), TlsFault>;

    /// Appends at most `limit` bytes of outgoing ciphertext to `out`; returns how many.
    fn drain(&mut self, out: &mut Vec<u8>, limit: usize) -> usize;

    /// Encrypts `plaintext` as one record (at most 16,384 bytes).
    ///
    /// # Errors
    /// [`TlsFault::Local`] before the handshake is complete or after the connection has ended.
    fn write(&mut self, plaintext: &[u8]) -> Result<(), TlsFault>;

    /// Appends the content of the next decrypted record to `out`, never of two at once: the end of a record
    /// ends a key exchange message. Returns its length, 0 when there is none now.
    ///
    /// # Errors
    /// [`TlsFault::Peer`] when the peer has closed the TLS connection.
    fn read(&mut self, out: &mut Vec<u8>) -> Result<usize, TlsFault>;

    /// True once the handshake is complete in this side's eyes.
    fn established(&self) -> bool;

    /// Fills `out` with keying material (RFC 5705 §4, RFC 8446 §7.5) for `label`, without a context.
    ///
    /// # Errors
    /// [`TlsFault::Local`] before the handshake is complete.
    fn export(&self, label: &str, out: &mut [u8]) -> Result<(), TlsFault>;

    /// The peer's verified certificates; empty before the handshake is complete.
    fn peer(&self) -> PeerCertificates;

    /// The certificate this side has chosen among several to show the peer, DER. A side that had no choice need
    /// not say.
    fn own_certificate(&self) -> Option<Vec<u8>> {
        None
    }

    /// Protocol version and cipher suite for people, for instance `TLSv1.3 TLS13_AES_256_GCM_SHA384`.
    fn describe(&self) -> String;
}

/// Makes the TLS connection of each key negotiation. Certificates, authorities and revocations in force are
/// those at the moment of the call, so a renegotiation meets the present ones.
pub trait TlsSource: Send + Sync {
    /// Starts a connection in the role the source was made for.
    ///
    /// # Errors
    /// [`TlsFault::Local`] when it cannot be set up.
    fn start(&self) -> Result<Box<dyn ControlTls>, TlsFault>;
}
