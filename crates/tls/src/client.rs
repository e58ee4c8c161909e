//! The side of a client: adit connecting to a gateway, its own or a stock one.

use std::sync::Arc;

use adit_openvpn::tls::{ControlTls, Group, TlsFault, TlsSource};
use adit_pki::{Certificate, Purpose, UnixTime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{self, CertificateDer, DnsName, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection as Library, DigitallySignedStruct, Error,
    SignatureScheme,
};

use crate::clock::{Clock, LibraryClock};
use crate::connection::{Connection, Side};
use crate::identity::Identity;
use crate::provider::{provider, provider_with};
use crate::settings::{SettingsError, Versions, system_clock};
use crate::trust::{self, LiveRevocations, Refusal, Trust, refuse};

/// What a client's TLS needs. `Default` is a client that knows nobody, which [`ClientTls::new`] refuses.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Roots that the server's certificate must lead to (`ca`).
    pub authorities: Vec<Certificate>,
    /// Own certificate (`cert`, `key`), for servers that ask for one.
    pub identity: Option<Identity>,
    /// `remote-cert-tls server`: the server's certificate must have a key usage and name serverAuth in the
    /// extended one. Without this a certificate that has no extended key usage at all passes, so that any
    /// client of an old PKI can pose as the server.
    pub remote_cert_tls: bool,
    /// `verify-x509-name`.
    pub name: Option<NameCheck>,
    /// `peer-fingerprint`: SHA-256 of the certificates accepted; empty when there is no such list. Without
    /// authorities it takes the place of chain verification; dates count all the same.
    pub fingerprints: Vec<[u8; 32]>,
    /// `crl-verify`.
    pub revocations: Option<Arc<LiveRevocations>>,
    /// TLS versions spoken.
    pub versions: Versions,
    /// Key exchanges offered, best first (`tls-groups`); all there are when empty.
    pub groups: Vec<Group>,
    /// The time that certificates are held against.
    pub clock: Arc<dyn Clock>,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            authorities: Vec::new(),
            identity: None,
            remote_cert_tls: true,
            name: None,
            fingerprints: Vec::new(),
            revocations: None,
            versions: Versions::default(),
            groups: Vec::new(),
            clock: system_clock(),
        }
    }
}

/// What `verify-x509-name` compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameCheck {
    /// The whole subject in OpenVPN's form: `C=NG, O=Example, CN=server`.
    Subject(String),
    /// The common name.
    Name(String),
    /// The beginning of the common name.
    NamePrefix(String),
}

impl NameCheck {
    fn accepts(&self, leaf: &Certificate) -> bool {
        match self {
            Self::Subject(subject) => leaf.subject() == *subject,
            Self::Name(name) => leaf.common_name().as_ref() == Some(name),
            Self::NamePrefix(prefix) => leaf.common_name().is_some_and(|name| name.starts_with(prefix)),
        }
    }
}

/// Makes the client's side of TLS connections. As with stock clients no server name is sent and none in the
/// server's certificate is looked at, [`ClientSettings::name`] apart.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Sets everything up once; connections are cheap afterwards.
    ///
    /// # Errors
    /// [`SettingsError::NoAuthority`] without authorities and fingerprints, [`SettingsError::BadAuthority`].
    pub fn new(settings: ClientSettings) -> Result<Self, SettingsError> {
        Ok(Self { config: Arc::new(library_config(settings, trust::signature_schemes())?) })
    }
}

impl TlsSource for ClientTls {
    fn start(&self) -> Result<Box<dyn ControlTls>, TlsFault> {
        let connection = Library::Client(library_client(&self.config)?);
        Ok(Box::new(Connection::new(connection, Side::Client, Arc::default())))
    }
}

/// The library's configuration for `settings`, with the signature algorithms that servers may use.
pub(crate) fn library_config(
    settings: ClientSettings,
    schemes: Vec<SignatureScheme>,
) -> Result<ClientConfig, SettingsError> {
    let rules = ServerRules {
        trust: Trust::new(settings.authorities)?,
        remote_cert_tls: settings.remote_cert_tls,
        name: settings.name,
        fingerprints: settings.fingerprints,
        revocations: settings.revocations,
        schemes,
    };
    if rules.trust.is_empty() && rules.fingerprints.is_empty() {
        return Err(SettingsError::NoAuthority);
    }
    let provider = if settings.groups.is_empty() { provider() } else { provider_with(&settings.groups) };
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(LibraryClock(settings.clock)))
        .with_protocol_versions(settings.versions.list())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(rules))
        .with_client_cert_resolver(Arc::new(OwnCertificate(settings.identity)));
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

pub(crate) fn library_client(config: &Arc<ClientConfig>) -> Result<ClientConnection, TlsFault> {
    // The library insists on a name. It is neither sent nor compared.
    let name = DnsName::try_from("peer.invalid").map(ServerName::DnsName);
    let name = name.map_err(|_| TlsFault::Local("the TLS library refused a made-up name".into()))?;
    ClientConnection::new(Arc::clone(config), name)
        .map_err(|error| TlsFault::Local(format!("the TLS library refused: {error}")))
}

/// The one certificate, sent when the server can verify what its key signs. Which authorities the server names
/// does not matter: there is nothing to choose from.
#[derive(Debug)]
struct OwnCertificate(Option<Identity>);

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let identity = self.0.as_ref()?;
        schemes.iter().any(|scheme| identity.signs(*scheme)).then(|| Arc::clone(&identity.certified))
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

#[derive(Debug)]
struct ServerRules {
    trust: Trust,
    remote_cert_tls: bool,
    name: Option<NameCheck>,
    fingerprints: Vec<[u8; 32]>,
    revocations: Option<Arc<LiveRevocations>>,
    schemes: Vec<SignatureScheme>,
}

impl ServerRules {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let leaf = match self.trust.is_empty() {
            true => Arc::new(trust::read_valid(leaf, now)?),
            false => self.trust.verify(leaf, intermediates, Purpose::Server, now)?,
        };
        if !self.fingerprints.is_empty() && !self.fingerprints.contains(&leaf.fingerprint()) {
            return Err(Refusal::new(
                CertificateError::ApplicationVerificationFailure,
                format!(
                    "the server's certificate (serial {}) is not in the list of peer-fingerprint",
                    leaf.serial()
                ),
            ));
        }
        if self.remote_cert_tls {
            trust::check_remote_cert_tls(&leaf, Purpose::Server)?;
        }
        if self.name.as_ref().is_some_and(|name| !name.accepts(&leaf)) {
            return Err(Refusal::new(
                CertificateError::NotValidForName,
                format!(
                    "the server's certificate (serial {}) does not have the name that verify-x509-name asks for",
                    leaf.serial()
                ),
            ));
        }
        match &self.revocations {
            Some(revocations) => trust::check_revocation(&leaf, intermediates, &revocations.current()),
            None => Ok(()),
        }
    }
}

impl ServerCertVerifier for ServerRules {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: pki_types::UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, intermediates, UnixTime::from_secs(now.as_secs()))
            .map(|()| ServerCertVerified::assertion())
            .map_err(refuse)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        trust::verify_tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        trust::verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
