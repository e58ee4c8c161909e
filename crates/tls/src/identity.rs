//! Certificates with their private keys, as the TLS library wants them.

use std::fmt;
use std::sync::Arc;

use adit_pki::{Certificate, KeyKind, PrivateKey, Signer as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};

use crate::settings::SettingsError;

/// A certificate chain and the key of its first certificate. Clones share the key.
#[derive(Clone)]
pub struct Identity {
    pub(crate) certified: Arc<CertifiedKey>,
    kind: KeyKind,
}

impl Identity {
    /// `chain` begins with the certificate of `key`; the certificates that lead to a root follow, without
    /// the root itself.
    ///
    /// # Errors
    /// [`SettingsError::EmptyChain`], [`SettingsError::OtherKey`], [`SettingsError::Key`].
    pub fn new(chain: &[Certificate], key: &PrivateKey) -> Result<Self, SettingsError> {
        let leaf = chain.first().ok_or(SettingsError::EmptyChain)?;
        if leaf.public_key() != key.public_key() {
            return Err(SettingsError::OtherKey(leaf.serial().clone()));
        }
        let chain =
            chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec())).collect();
        Ok(Self { certified: Arc::new(CertifiedKey::new(chain, signing_key(key)?)), kind: key.kind() })
    }

    /// True when the key can make a signature of this scheme.
    pub(crate) fn signs(&self, scheme: SignatureScheme) -> bool {
        self.certified.key.choose_scheme(&[scheme]).is_some()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, {} in chain)", self.kind, self.certified.cert.len())
    }
}

fn signing_key(key: &PrivateKey) -> Result<Arc<dyn SigningKey>, SettingsError> {
    let der = key.to_pkcs8_der()?;
    if key.kind() == KeyKind::Ed448 {
        return Ok(Arc::new(Ed448Key { key: Arc::new(PrivateKey::from_pkcs8_der(&der)?) }));
    }
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice()));
    Ok(rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?)
}

/// An Ed448 key, which the library does not know: one key, one scheme (RFC 8446 §4.2.3).
#[derive(Debug, Clone)]
struct Ed448Key {
    key: Arc<PrivateKey>,
}

impl SigningKey for Ed448Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED448).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.key.public_key()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED448
    }
}

impl Signer for Ed448Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.key.sign(message).map_err(|fault| Error::General(fault.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED448
    }
}
