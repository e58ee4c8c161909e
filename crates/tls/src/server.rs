//! The gateway's side.

use std::sync::{Arc, OnceLock};

use adit_openvpn::tls::{ControlTls, TlsFault, TlsSource};
use adit_pki::{Purpose, UnixTime};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{self, CertificateDer};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, Connection as Library, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme,
};

use crate::clock::{Clock, LibraryClock};
use crate::connection::{Connection, Side};
use crate::identity::Identity;
use crate::provider::provider;
use crate::settings::{SettingsError, Versions, system_clock};
use crate::trust::{self, LiveRevocations, Refusal, Trust, refuse};

/// What a gateway's TLS needs. `Default` leaves identities and authorities empty, which
/// [`ServerTls::new`] refuses.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Own certificates. Of several, the client's order of signature algorithms decides.
    pub identities: Vec<Identity>,
    /// Roots that client certificates must lead to. Servers that share them share what has been verified.
    pub client_authorities: Arc<Trust>,
    /// TLS versions spoken.
    pub versions: Versions,
    /// Client certificates to refuse in the handshake. A gateway that would rather answer a revoked client
    /// with `AUTH_FAILED` leaves this out and decides by the serial afterwards.
    pub revocations: Option<Arc<LiveRevocations>>,
    /// The time that certificates are held against.
    pub clock: Arc<dyn Clock>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            identities: Vec::new(),
            client_authorities: Arc::default(),
            versions: Versions::default(),
            revocations: None,
            clock: system_clock(),
        }
    }
}

/// Makes the server's side of TLS connections.
///
/// Clients must have a certificate that leads to one of the roots, names clientAuth in its extended key usage
/// and digitalSignature in its key usage (`remote-cert-tls client`). Names are not looked at.
#[derive(Debug)]
pub struct ServerTls {
    config: ServerConfig,
    identities: Arc<[Identity]>,
}

impl ServerTls {
    /// Sets everything up once; connections are cheap afterwards.
    ///
    /// # Errors
    /// [`SettingsError::NoIdentity`], [`SettingsError::NoAuthority`].
    pub fn new(settings: ServerSettings) -> Result<Self, SettingsError> {
        let ServerSettings { identities, client_authorities, versions, revocations, clock } = settings;
        if identities.is_empty() {
            return Err(SettingsError::NoIdentity);
        }
        let identities: Arc<[Identity]> = identities.into();
        if client_authorities.is_empty() {
            return Err(SettingsError::NoAuthority);
        }
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(LibraryClock(clock)))
            .with_protocol_versions(versions.list())?
            .with_client_cert_verifier(Arc::new(ClientRules { trust: client_authorities, revocations }))
            .with_cert_resolver(Arc::new(Choice { identities: identities.clone(), chosen: Arc::default() }));
        // The key negotiations of one tunnel follow each other by the hour: there is nothing to resume.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config, identities })
    }
}

impl TlsSource for ServerTls {
    fn start(&self) -> Result<Box<dyn ControlTls>, TlsFault> {
        // The library does not tell which certificate it has shown, so each connection has a place to note it.
        let chosen = Arc::default();
        let choice = Choice { identities: Arc::clone(&self.identities), chosen: Arc::clone(&chosen) };
        let mut config = self.config.clone();
        config.cert_resolver = Arc::new(choice);
        let connection = ServerConnection::new(Arc::new(config))
            .map_err(|error| TlsFault::Local(format!("the TLS library refused: {error}")))?;
        Ok(Box::new(Connection::new(Library::Server(connection), Side::Server, chosen)))
    }
}

/// Own certificates, chosen by what the client can verify.
#[derive(Debug)]
struct Choice {
    identities: Arc<[Identity]>,
    chosen: Arc<OnceLock<CertificateDer<'static>>>,
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting =
            |scheme: &SignatureScheme| self.identities.iter().find(|identity| identity.signs(*scheme));
        // When none fits, the library says so better with one in hand than with none.
        let chosen = hello.signature_schemes().iter().find_map(fitting).or(self.identities.first())?;
        if let Some(leaf) = chosen.certified.cert.first() {
            self.chosen.get_or_init(|| leaf.clone());
        }
        Some(Arc::clone(&chosen.certified))
    }
}

#[derive(Debug)]
struct ClientRules {
    trust: Arc<Trust>,
    revocations: Option<Arc<LiveRevocations>>,
}

impl ClientRules {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let leaf = self.trust.verify(leaf, intermediates, Purpose::Client, now)?;
        trust::check_remote_cert_tls(&leaf, Purpose::Client)?;
        if !leaf.may_sign() {
            return Err(Refusal::new(
                CertificateError::InvalidPurpose,
                format!(
                    "the key usage of the peer's certificate lacks digitalSignature (serial {}); issue it again",
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

impl ClientCertVerifier for ClientRules {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.hints()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: pki_types::UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, intermediates, UnixTime::from_secs(now.as_secs()))
            .map(|()| ClientCertVerified::assertion())
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
        trust::signature_schemes()
    }
}
