//! What server and client settings share.

use std::sync::Arc;

use adit_pki::{KeyError, Serial};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};

/// The TLS versions spoken (`tls-version-min`, `tls-version-max`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Versions {
    /// TLS 1.3, and 1.2 with peers that have no better.
    #[default]
    Both,
    /// TLS 1.2 only, for peers whose TLS 1.3 is broken.
    Only12,
    /// TLS 1.3 only.
    Only13,
}

impl Versions {
    pub(crate) fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Both => &BOTH,
            Self::Only12 => &BOTH[1..],
            Self::Only13 => &BOTH[..1],
        }
    }
}

/// Why a source of TLS connections cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A server without a certificate.
    #[error("no server certificate is configured")]
    NoIdentity,
    /// An identity with an empty chain.
    #[error("the certificate chain is empty; the certificate of the key must come first")]
    EmptyChain,
    /// Nothing to verify peers with.
    #[error("no CA certificate is configured, so that nobody's certificate could be verified")]
    NoAuthority,
    /// A CA certificate the verifier does not take.
    #[error("the CA certificate with serial {0} cannot be used to verify others")]
    BadAuthority(Serial),
    /// Certificate and key are not a pair.
    #[error("the certificate with serial {0} belongs to another key than the one given")]
    OtherKey(Serial),
    /// The key cannot be given to the TLS library.
    #[error("private key: {0}")]
    Key(#[from] KeyError),
    /// The TLS library refused.
    #[error("the TLS library refused: {0}")]
    Library(String),
}

impl From<rustls::Error> for SettingsError {
    fn from(error: rustls::Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// For `Default` of settings.
pub(crate) fn system_clock() -> Arc<dyn crate::Clock> {
    Arc::new(crate::SystemClock)
}
