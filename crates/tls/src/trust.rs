//! Whether a peer's certificate is good: the chain to a root, what it may be used for, revocation.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};

use adit_pki::{Certificate, Purpose, Revocations, UnixTime};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{self, CertificateDer, TrustAnchor};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::EndEntityCert;

use crate::clock::library_time;
use crate::proven::{ChainId, Proven};
use crate::provider::provider;
use crate::settings::SettingsError;

/// A set of revoked certificates that can be replaced while connections are being made: each handshake is
/// held against the set of its moment.
#[derive(Debug, Default)]
pub struct LiveRevocations {
    current: RwLock<Arc<Revocations>>,
}

impl LiveRevocations {
    /// Begins with `revocations`.
    pub fn new(revocations: Revocations) -> Self {
        Self { current: RwLock::new(Arc::new(revocations)) }
    }

    /// The set in force.
    pub fn current(&self) -> Arc<Revocations> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another set in force.
    pub fn replace(&self, revocations: Revocations) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(revocations);
    }
}

/// Why a certificate is refused: words for the log, and what the library makes its alert from.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) text: String,
    pub(crate) error: CertificateError,
}

impl Refusal {
    pub(crate) fn new(error: CertificateError, text: impl Into<String>) -> Self {
        Self { text: text.into(), error }
    }
}

thread_local! {
    /// The words of the last refusal. The library's errors have no room for them, but it calls the verifier
    /// from within our call to it, on one thread: what the verifier leaves here is found when that call
    /// returns.
    static WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Turns a refusal into the library's error and keeps its words for [`take_words`].
pub(crate) fn refuse(refusal: Refusal) -> Error {
    WORDS.set(Some(refusal.text));
    Error::InvalidCertificate(refusal.error)
}

/// The words of the refusal since the last call, if there was one.
pub(crate) fn take_words() -> Option<String> {
    WORDS.take()
}

/// Roots that peers' certificates must lead to, and the memory of those that did.
///
/// A chain that was verified is not verified again while each certificate of it is valid; at most 16,384 are
/// remembered. What does not follow from the chain itself (the date, revocation, that the peer has the key) is
/// looked at every time. Other roots are another `Trust`, which has verified nothing yet.
#[derive(Default)]
pub struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    /// The same ones, for what an anchor does not tell: how long it is valid.
    authorities: Vec<Certificate>,
    hints: Vec<DistinguishedName>,
    pub(crate) proven: Proven,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({:?})", self.authorities)
    }
}

/// What was learnt of a chain that leads to a root.
struct Path {
    /// A root itself has signed the first certificate: what else the peer sent does not matter.
    direct: bool,
    /// When all of it is valid; `None` if that cannot be told.
    valid: Option<RangeInclusive<UnixTime>>,
}

impl Trust {
    /// Takes the roots.
    ///
    /// # Errors
    /// [`SettingsError::BadAuthority`].
    pub fn new(authorities: Vec<Certificate>) -> Result<Self, SettingsError> {
        let anchor = |authority: &Certificate| {
            let der = CertificateDer::from(authority.der());
            let anchor = webpki::anchor_from_trusted_cert(&der).map(|anchor| anchor.to_owned());
            anchor.map_err(|_| SettingsError::BadAuthority(authority.serial().clone()))
        };
        let anchors = authorities.iter().map(anchor).collect::<Result<Vec<_>, _>>()?;
        let hints = anchors.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Ok(Self { anchors, authorities, hints, proven: Proven::default() })
    }

    /// Verifies a certificate that was issued to a client just now, so that its first handshake finds this done.
    /// Nothing comes of one that leads to none of the roots: it is refused when it is shown.
    pub fn note_issued(&self, certificate: &Certificate, now: UnixTime) {
        let _ = self.verify(certificate.der(), &[], Purpose::Client, now);
    }

    /// How many chains are remembered.
    pub fn remembered(&self) -> usize {
        self.proven.len()
    }

    /// Names for the request of a client certificate (RFC 8446 §4.2.4).
    pub(crate) fn hints(&self) -> &[DistinguishedName] {
        &self.hints
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Reads `leaf`, and verifies signatures, dates and constraints from it to one of the roots, for a peer of
    /// `role`.
    pub(crate) fn verify(
        &self,
        leaf: &[u8],
        intermediates: &[CertificateDer<'_>],
        role: Purpose,
        now: UnixTime,
    ) -> Result<Arc<Certificate>, Refusal> {
        // A peer may send more than it needs, the root for instance.
        let direct = ChainId::new(role, leaf, &[]);
        if let Some(leaf) = self.proven.find(&direct, now) {
            return Ok(leaf);
        }
        let whole = ChainId::new(role, leaf, intermediates);
        if let Some(leaf) = self.proven.find(&whole, now) {
            return Ok(leaf);
        }
        let leaf = Arc::new(read_leaf(leaf)?);
        let path = self.verify_chain(&leaf, intermediates, role, now)?;
        if let Some(valid) = path.valid {
            let id = if path.direct { direct } else { whole };
            self.proven.keep(id, Arc::clone(&leaf), valid);
        }
        Ok(leaf)
    }

    fn verify_chain(
        &self,
        leaf: &Certificate,
        intermediates: &[CertificateDer<'_>],
        role: Purpose,
        now: UnixTime,
    ) -> Result<Path, Refusal> {
        let der = CertificateDer::from(leaf.der());
        let chain = EndEntityCert::try_from(&der).and_then(|entity| {
            let usage = match role {
                Purpose::Server => webpki::KeyUsage::server_auth(),
                Purpose::Client => webpki::KeyUsage::client_auth(),
            };
            let time = library_time(now);
            let algorithms = provider().signature_verification_algorithms.all;
            let root_is_valid =
                |path: &webpki::VerifiedPath<'_>| self.valid_root(path.anchor(), now, time).map(|_| ());
            let path = entity.verify_for_usage(
                algorithms,
                &self.anchors,
                intermediates,
                time,
                usage,
                None,
                Some(&root_is_valid),
            )?;
            let mut used = path.intermediate_certificates().peekable();
            let direct = used.peek().is_none();
            let span = |certificate: &Certificate| (certificate.not_before(), certificate.not_after());
            let root = self.valid_root(path.anchor(), now, time)?;
            let valid = used
                .map(|der| Certificate::from_der(&der.der()).ok().as_ref().map(span))
                .chain([Some(span(leaf)), Some(span(root))])
                .reduce(|one, other| one.zip(other).map(|((a, b), (c, d))| (a.max(c), b.min(d))))
                .flatten()
                .map(|(from, to)| from..=to);
            Ok(Path { direct, valid })
        });
        chain.map_err(|error| explain(&error, leaf, role, now))
    }

    /// The root of an anchor, if it is valid. The library takes roots as valid for ever; stock OpenVPN does not.
    fn valid_root(
        &self,
        anchor: &TrustAnchor<'_>,
        now: UnixTime,
        time: pki_types::UnixTime,
    ) -> Result<&Certificate, webpki::Error> {
        // A renewed root has the name and key of the old one: they are one anchor, valid when either is.
        let same = self.anchors.iter().zip(&self.authorities).filter(|(other, _)| *other == anchor);
        let mut fault = webpki::Error::UnknownIssuer;
        for (_, root) in same {
            if now > root.not_after() {
                fault = webpki::Error::CertExpired { time, not_after: library_time(root.not_after()) };
            } else if now < root.not_before() {
                fault = webpki::Error::CertNotValidYet { time, not_before: library_time(root.not_before()) };
            } else {
                return Ok(root);
            }
        }
        Err(fault)
    }
}

/// Reads a peer's first certificate.
fn read_leaf(der: &[u8]) -> Result<Certificate, Refusal> {
    Certificate::from_der(der).map_err(|_| {
        Refusal::new(CertificateError::BadEncoding, "the peer's certificate is damaged or not X.509")
    })
}

/// Reads a peer's first certificate and looks at its dates only, which is enough for one known by its fingerprint.
pub(crate) fn read_valid(der: &[u8], now: UnixTime) -> Result<Certificate, Refusal> {
    let leaf = read_leaf(der)?;
    if now > leaf.not_after() {
        Err(expired(&leaf))
    } else if now < leaf.not_before() {
        Err(not_valid_yet(&leaf, now))
    } else {
        Ok(leaf)
    }
}

/// The rule of `remote-cert-tls`: the key usage extension is there, and the extended one names `role`.
pub(crate) fn check_remote_cert_tls(leaf: &Certificate, role: Purpose) -> Result<(), Refusal> {
    let (serial, name, word) = (leaf.serial(), purpose_name(role), role_word(role));
    if !leaf.has_purpose(role) {
        return Err(Refusal::new(
            CertificateError::InvalidPurpose,
            format!(
                "the peer's certificate is not one of a {word} (serial {serial}): its extended key usage does \
                 not name {name}; issue it again as a {word} certificate"
            ),
        ));
    }
    if !leaf.has_key_usage() {
        return Err(Refusal::new(
            CertificateError::InvalidPurpose,
            format!(
                "the peer's certificate has no key usage (serial {serial}), which a {word} certificate must \
                 have; issue it again"
            ),
        ));
    }
    Ok(())
}

/// Whether any certificate the peer sent is revoked.
pub(crate) fn check_revocation(
    leaf: &Certificate,
    intermediates: &[CertificateDer<'_>],
    revocations: &Revocations,
) -> Result<(), Refusal> {
    if revocations.contains(leaf) {
        let text = format!("certificate revoked (serial {})", leaf.serial());
        return Err(Refusal::new(CertificateError::Revoked, text));
    }
    // What cannot be read was not part of a verified chain either.
    let readable = intermediates.iter().filter_map(|der| Certificate::from_der(der).ok());
    match readable.into_iter().find(|certificate| revocations.contains(certificate)) {
        Some(certificate) => {
            let text =
                format!("a CA certificate in the peer's chain is revoked (serial {})", certificate.serial());
            Err(Refusal::new(CertificateError::Revoked, text))
        }
        None => Ok(()),
    }
}

/// Checks a handshake signature of TLS 1.2 (RFC 5246 §7.4.8).
pub(crate) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    verify_tls12_signature(message, certificate, signature, &algorithms)
        .map_err(|error| unless_key_is_unknown(error, certificate))
}

/// Checks a handshake signature of TLS 1.3 (RFC 8446 §4.4.3).
pub(crate) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, &algorithms)
        .map_err(|error| unless_key_is_unknown(error, certificate))
}

/// A signature by a key that we do not have the means for looks wrong, too.
fn unless_key_is_unknown(error: Error, certificate: &CertificateDer<'_>) -> Error {
    match (error, Certificate::from_der(certificate)) {
        (Error::InvalidCertificate(_), Ok(leaf)) if leaf.key_kind().is_none() => refuse(Refusal::new(
            CertificateError::InvalidPurpose,
            format!(
                "the key of the peer's certificate (serial {}) is of a kind or size that is not supported; use \
                 RSA from 2048 bits, P-256, P-384, secp521r1, Ed25519 or Ed448",
                leaf.serial()
            ),
        )),
        (error, _) => error,
    }
}

/// What peers may sign with, the best first.
pub(crate) fn signature_schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

fn purpose_name(role: Purpose) -> &'static str {
    match role {
        Purpose::Server => "TLS Web Server Authentication",
        Purpose::Client => "TLS Web Client Authentication",
    }
}

fn role_word(role: Purpose) -> &'static str {
    match role {
        Purpose::Server => "server",
        Purpose::Client => "client",
    }
}

fn expired(leaf: &Certificate) -> Refusal {
    let text = format!(
        "the peer's certificate has expired (serial {}, notAfter {}); issue a new one",
        leaf.serial(),
        leaf.not_after()
    );
    Refusal::new(CertificateError::Expired, text)
}

fn not_valid_yet(leaf: &Certificate, now: UnixTime) -> Refusal {
    let text = format!(
        "the peer's certificate is not valid yet (serial {}, notBefore {}, now {now}); check the clocks",
        leaf.serial(),
        leaf.not_before()
    );
    Refusal::new(CertificateError::NotValidYet, text)
}

/// `sha1WithRSAEncryption` and `ecdsa-with-SHA1` as DER (RFC 3279 §2.2.1, §2.2.3).
const SHA1: [&[u8]; 2] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05],
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
];

/// The chain's fault in words.
fn explain(error: &webpki::Error, leaf: &Certificate, role: Purpose, now: UnixTime) -> Refusal {
    use webpki::Error as Fault;

    let (serial, word) = (leaf.serial(), role_word(role));
    let whose = match role {
        Purpose::Server => "the CA of this profile",
        Purpose::Client => "this gateway's CA",
    };
    let refusal = |error, text: String| Refusal::new(error, text);
    match error {
        Fault::CertExpired { .. } if now > leaf.not_after() => expired(leaf),
        Fault::CertExpired { not_after, .. } => refusal(
            CertificateError::Expired,
            format!(
                "a CA certificate in the peer's chain has expired (notAfter {}); renew the CA",
                UnixTime::from_secs(not_after.as_secs())
            ),
        ),
        Fault::CertNotValidYet { .. } if now < leaf.not_before() => not_valid_yet(leaf, now),
        Fault::CertNotValidYet { not_before, .. } => refusal(
            CertificateError::NotValidYet,
            format!(
                "a CA certificate in the peer's chain is not valid yet (notBefore {}, now {now}); check the \
                 clocks",
                UnixTime::from_secs(not_before.as_secs())
            ),
        ),
        Fault::UnknownIssuer => refusal(
            CertificateError::UnknownIssuer,
            format!("certificate not issued by {whose} (serial {serial})"),
        ),
        Fault::InvalidSignatureForPublicKey => refusal(
            CertificateError::UnknownIssuer,
            format!(
                "certificate not issued by {whose} (serial {serial}): the issuer has the same name but another \
                 key; if the CA was made anew, issue new certificates"
            ),
        ),
        Fault::RequiredEkuNotFoundContext(_) | Fault::EmptyEkuExtension => {
            check_remote_cert_tls(leaf, role).err().unwrap_or_else(|| {
                refusal(
                    CertificateError::InvalidPurpose,
                    format!("a CA certificate in the peer's chain may not issue {word} certificates"),
                )
            })
        }
        Fault::CaUsedAsEndEntity => refusal(
            CertificateError::InvalidPurpose,
            format!("the peer's certificate is a CA certificate (serial {serial}), not one of a {word}"),
        ),
        Fault::UnsupportedSignatureAlgorithmContext(context)
            if SHA1.iter().any(|oid| contains(&context.signature_algorithm_id, oid)) =>
        {
            refusal(
                CertificateError::InvalidPurpose,
                format!(
                    "a certificate of the peer (serial {serial}) is signed with SHA-1, which is broken; issue \
                     it again with SHA-256 or better"
                ),
            )
        }
        Fault::UnsupportedSignatureAlgorithmContext(_)
        | Fault::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => refusal(
            CertificateError::InvalidPurpose,
            format!(
                "a certificate of the peer (serial {serial}) is signed with an algorithm that is not \
                 supported; use RSA from 2048 bits, ECDSA on a NIST curve, Ed25519 or Ed448"
            ),
        ),
        Fault::UnsupportedCertVersion => refusal(
            CertificateError::BadEncoding,
            format!("the peer's certificate (serial {serial}) is not of X.509 version 3; issue it again"),
        ),
        Fault::UnsupportedCriticalExtension => refusal(
            CertificateError::UnhandledCriticalExtension,
            format!(
                "a certificate of the peer (serial {serial}) has a critical extension that is not understood"
            ),
        ),
        Fault::NameConstraintViolation | Fault::PathLenConstraintViolated | Fault::EndEntityUsedAsCa => {
            refusal(
                CertificateError::UnknownIssuer,
                format!(
                    "the constraints of its issuers do not allow the peer's certificate (serial {serial})"
                ),
            )
        }
        _ => refusal(
            CertificateError::BadEncoding,
            format!("the certificate chain of the peer is damaged or too complicated (serial {serial})"),
        ),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
