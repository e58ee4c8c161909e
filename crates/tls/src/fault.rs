//! The TLS library's errors in words an operator can act on, without anything the peer chose in them.

use adit_openvpn::tls::TlsFault;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use crate::connection::Side;

/// The beginning of what the peer sends: a record header, a handshake header and the version of its hello.
#[derive(Debug, Default)]
pub(crate) struct FirstBytes {
    bytes: [u8; Self::LENGTH],
    seen: usize,
}

impl FirstBytes {
    const LENGTH: usize = 11;

    pub(crate) fn see(&mut self, bytes: &[u8]) {
        let more = bytes.len().min(Self::LENGTH - self.seen);
        self.bytes[self.seen..self.seen + more].copy_from_slice(&bytes[..more]);
        self.seen += more;
    }

    /// The old TLS version that the peer's hello names as its highest; `None` for TLS 1.2 and later (which
    /// also says 1.2 here, RFC 8446 §4.1.2), and when it did not begin with a hello.
    fn old_version(&self) -> Option<&'static str> {
        match self.bytes {
            [22, 3, _, _, _, 1 | 2, _, _, _, 3, 0] => Some("SSL 3.0"),
            [22, 3, _, _, _, 1 | 2, _, _, _, 3, 1] => Some("TLS 1.0"),
            [22, 3, _, _, _, 1 | 2, _, _, _, 3, 2] => Some("TLS 1.1"),
            _ => None,
        }
    }
}

/// What `error` means. `refusal` is what our own verifier said, when it was the one to refuse.
pub(crate) fn describe(error: &Error, refusal: Option<String>, side: Side, first: &FirstBytes) -> TlsFault {
    let text: String = match error {
        Error::InvalidCertificate(error) => refusal.unwrap_or_else(|| bad_signature(error).into()),
        Error::AlertReceived(alert) => alert_text(*alert, side),
        Error::PeerIncompatible(what) => incompatible(what, side, first),
        Error::NoCertificatesPresented => {
            "the peer sent no certificate; a client needs one here (cert and key in its profile)".into()
        }
        Error::InvalidMessage(_) => match first.old_version() {
            Some(version) => old_version(version, side),
            None => "the peer sent a TLS message that cannot be read".into(),
        },
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "the peer sent a TLS message out of turn".into()
        }
        Error::PeerMisbehaved(_) => "the peer broke the rules of TLS".into(),
        Error::DecryptError => "a TLS record of the peer does not decrypt".into(),
        Error::PeerSentOversizedRecord => "the peer sent a TLS record that is too large".into(),
        Error::General(_)
        | Error::Other(_)
        | Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::EncryptError
        | Error::HandshakeNotComplete
        | Error::BadMaxFragmentSize
        | Error::InconsistentKeys(_) => {
            return TlsFault::Local(format!("the TLS library failed: {error}"));
        }
        _ => "the TLS handshake failed".into(),
    };
    TlsFault::Peer(text)
}

/// Certificate errors that do not come from our verifier are about the signature in the handshake.
fn bad_signature(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the peer signed the handshake with an algorithm that does not go with its certificate's key"
        }
        _ => {
            "the peer does not prove that it has the key of its certificate: its handshake signature is wrong"
        }
    }
}

fn old_version(version: &str, side: Side) -> String {
    let remedy = match side {
        Side::Server => "use a newer client, or a foreign back end for it",
        Side::Client => "have the server's software renewed",
    };
    format!("no common TLS version: the peer offers at most {version}; adit needs 1.2; {remedy}")
}

fn incompatible(what: &PeerIncompatible, side: Side, first: &FirstBytes) -> String {
    if let Some(version) = first.old_version() {
        return old_version(version, side);
    }
    let (offers, remedy) = match side {
        Side::Server => ("offers", "use a newer client, or a foreign back end for it"),
        Side::Client => ("accepts", "have the server's software renewed"),
    };
    match what {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            format!(
                "no common TLS version: the peer {offers} none that is enabled here; {remedy}, or lower tls-version-min"
            )
        }
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::NoEcPointFormatsInCommon
        | PeerIncompatible::EcPointsExtensionRequired
        | PeerIncompatible::UncompressedEcPointsRequired
        | PeerIncompatible::KeyShareExtensionRequired => format!(
            "no common cipher suite or group: the peer {offers} only DHE or RSA key exchange, CBC ciphers, or \
             suites that do not go with the certificate's key; adit needs ECDHE on X25519 or a NIST curve with \
             AES-GCM or ChaCha20; {remedy}"
        ),
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => format!(
            "no common signature algorithm: the peer {offers} only SHA-1, or none that goes with the key of the \
             certificate; {remedy}, or add a certificate with another kind of key"
        ),
        _ => format!("the peer lacks a part of TLS that adit needs; {remedy}"),
    }
}

fn alert_text(alert: AlertDescription, side: Side) -> String {
    let (own, their) = match side {
        Side::Server => ("the gateway's", "the client"),
        Side::Client => ("the client's", "the server"),
    };
    let certificate = |what: &str| format!("the peer refused {own} certificate: {what}");
    match alert {
        AlertDescription::CertificateExpired => {
            certificate("it has expired or is not valid yet; check dates and clocks on both sides")
        }
        AlertDescription::CertificateRevoked => certificate("it is revoked"),
        AlertDescription::UnknownCA => {
            certificate("its issuer is not known there; check the CA on both sides")
        }
        AlertDescription::UnsupportedCertificate => certificate(
            "it is not meant for this use (extended key usage), or of a kind the peer does not know",
        ),
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            certificate("the peer's log says why")
        }
        AlertDescription::AccessDenied => certificate("it is valid, but not admitted there"),
        AlertDescription::CertificateRequired => {
            format!("{their} demands a certificate, and none was sent that it can verify; check cert and key")
        }
        AlertDescription::ProtocolVersion => {
            format!(
                "no common TLS version: {their} speaks neither TLS 1.2 nor 1.3, or not the one demanded here"
            )
        }
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            format!(
                "{their} found no common cipher suite, group or signature algorithm, or got no certificate"
            )
        }
        AlertDescription::DecryptError => {
            format!("{their} says that a handshake signature or checksum from this side is wrong")
        }
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => {
            format!("{their} has closed the TLS connection")
        }
        other => format!("{their} ended the TLS connection (alert {})", u8::from(other)),
    }
}
