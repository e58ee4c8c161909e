//! A certificate authority: its own certificate, and the certificates and revocation lists it signs.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::digest;
use der::asn1::{Ia5String, OctetString};
use der::flagset::FlagSet;
use der::{Decode, Encode, Sequence};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::Version;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::ext::{Extensions, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Validity;

use crate::algorithm;
use crate::certificate::{Certificate, Purpose};
use crate::key::{SignFault, Signer};
use crate::kind::KeyKind;
use crate::name;
use crate::serial::Serial;
use crate::signed::{SealFault, seal};
use crate::time::UnixTime;

/// New certificates are valid from this long before their issue, for clocks that are slow.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Why an authority does not come to be, or does not issue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A common name that no certificate can hold.
    #[error("{0:?} is no common name: 1 to 64 characters without control characters are expected")]
    BadName(String),
    /// A DNS name that is not one.
    #[error("{0:?} is no DNS name: letters, digits, dots and dashes are expected")]
    BadDnsName(String),
    /// The public key to certify is damaged or of a kind adit does not have.
    #[error("the public key is damaged or of a kind that is not supported")]
    BadKey,
    /// The certificate is not one of an authority.
    #[error("the certificate with serial {0} is not a CA certificate (basicConstraints CA is missing)")]
    NotAnAuthority(Serial),
    /// Certificate and key are not a pair.
    #[error("the CA certificate with serial {0} belongs to another key than the one given")]
    OtherKey(Serial),
    /// The authority's own certificate does not hold at this time.
    #[error("the CA certificate is valid from {from} to {to} only; check the clock, else renew the CA")]
    NotValid {
        /// First second of validity.
        from: UnixTime,
        /// Last second of validity.
        to: UnixTime,
    },
    /// The next update of a revocation list is not after this one.
    #[error("a revocation list's next update must come after this update")]
    BadUpdateTimes,
    /// A serial that a revocation list cannot hold.
    #[error("the serial {0} does not fit into a revocation list")]
    BadSerial(Serial),
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignFault),
    /// The random source failed.
    #[error("the system's random source failed")]
    Random,
    /// The encoder refused, which valid arguments cannot cause.
    #[error("the structure could not be encoded: {0}")]
    Encoding(String),
}

impl From<der::Error> for AuthorityError {
    fn from(error: der::Error) -> Self {
        Self::Encoding(error.to_string())
    }
}

impl From<SealFault> for AuthorityError {
    fn from(fault: SealFault) -> Self {
        match fault {
            SealFault::Encoding(error) => error.into(),
            SealFault::Signing(fault) => fault.into(),
        }
    }
}

/// What a leaf certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// A TLS server: serverAuth. Holds with `remote-cert-tls server`.
    Server {
        /// Names and addresses for the subject alternative name; may be empty.
        names: Vec<SubjectName>,
    },
    /// A TLS client: clientAuth. Holds with `remote-cert-tls client`.
    Client,
}

/// One entry of a subject alternative name (RFC 5280 §4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// A certificate to be issued.
#[derive(Debug, Clone)]
pub struct Leaf<'a> {
    /// The key to certify, as DER SubjectPublicKeyInfo.
    pub public_key: &'a [u8],
    /// Common name of the subject.
    pub common_name: &'a str,
    /// What it is for.
    pub profile: Profile,
    /// The present time; validity begins [`BACKDATE`] earlier.
    pub now: UnixTime,
    /// How long it is valid from `now`. It never outlives the authority's own certificate.
    pub lifetime: Duration,
}

/// A certificate authority.
pub struct Authority {
    certificate: Certificate,
    signer: Box<dyn Signer>,
}

impl Authority {
    /// A new root: a self-signed certificate with the common name `name`, valid for `lifetime` from `now`.
    ///
    /// # Errors
    /// [`AuthorityError`] for a bad name or when the key does not sign.
    pub fn create(
        name: &str,
        signer: Box<dyn Signer>,
        now: UnixTime,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        let subject = checked_name(name)?;
        let public_key = checked_key(signer.public_key())?;
        let key_id = key_id_of(&public_key)?;

        let mut extensions = Extensions::new();
        add(&mut extensions, &subject, &BasicConstraints { ca: true, path_len_constraint: None })?;
        add(&mut extensions, &subject, &KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))?;
        add(&mut extensions, &subject, &SubjectKeyIdentifier(key_id))?;
        let certificate = sign(
            &Contents {
                version: Version::V3,
                serial: fresh_serial()?,
                algorithm: algorithm::signature_algorithm(signer.kind()),
                issuer: subject.clone(),
                validity: Validity::new(now.minus(BACKDATE).to_x509(), now.plus(lifetime).to_x509()),
                subject,
                public_key,
                extensions,
            },
            signer.as_ref(),
        )?;
        Ok(Self { certificate, signer })
    }

    /// An existing authority. `signer` must hold the certificate's key.
    ///
    /// # Errors
    /// [`AuthorityError::NotAnAuthority`], [`AuthorityError::OtherKey`].
    pub fn load(certificate: Certificate, signer: Box<dyn Signer>) -> Result<Self, AuthorityError> {
        if !certificate.is_authority() {
            return Err(AuthorityError::NotAnAuthority(certificate.serial().clone()));
        }
        if certificate.public_key() != signer.public_key() {
            return Err(AuthorityError::OtherKey(certificate.serial().clone()));
        }
        Ok(Self { certificate, signer })
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub(crate) fn signer(&self) -> &dyn Signer {
        self.signer.as_ref()
    }

    /// Issues a certificate with a random serial of 16 bytes.
    ///
    /// # Errors
    /// [`AuthorityError`] for bad names and keys, when the authority's own certificate is not valid at
    /// `leaf.now`, or when the key does not sign.
    pub fn issue(&self, leaf: &Leaf<'_>) -> Result<Certificate, AuthorityError> {
        let (from, to) = (self.certificate.not_before(), self.certificate.not_after());
        if leaf.now < from || leaf.now > to {
            return Err(AuthorityError::NotValid { from, to });
        }
        let subject = checked_name(leaf.common_name)?;
        let public_key = checked_key(leaf.public_key)?;
        let extensions = self.leaf_extensions(&leaf.profile, &subject, &public_key)?;
        // Neither before nor after the authority's own certificate is there anything to verify it with.
        let not_before = leaf.now.minus(BACKDATE).max(from);
        let not_after = leaf.now.plus(leaf.lifetime).min(to);
        sign(
            &Contents {
                version: Version::V3,
                serial: fresh_serial()?,
                algorithm: algorithm::signature_algorithm(self.signer.kind()),
                issuer: self.certificate.subject_name().clone(),
                validity: Validity::new(not_before.to_x509(), not_after.to_x509()),
                subject,
                public_key,
                extensions,
            },
            self.signer.as_ref(),
        )
    }

    fn leaf_extensions(
        &self,
        profile: &Profile,
        subject: &Name,
        public_key: &SubjectPublicKeyInfoOwned,
    ) -> Result<Extensions, AuthorityError> {
        let (purpose, names) = match profile {
            Profile::Server { names } => (Purpose::Server, names.as_slice()),
            Profile::Client => (Purpose::Client, [].as_slice()),
        };
        let mut usage = FlagSet::from(KeyUsages::DigitalSignature);
        // Only RSA key transport (TLS 1.2 without forward secrecy) encrypts with a server's key; strict stock
        // clients still ask for the bit by `remote-cert-ku`.
        if purpose == Purpose::Server && kind_of(public_key).is_some_and(KeyKind::is_rsa) {
            usage |= KeyUsages::KeyEncipherment;
        }

        let mut extensions = Extensions::new();
        add(&mut extensions, subject, &BasicConstraints { ca: false, path_len_constraint: None })?;
        add(&mut extensions, subject, &KeyUsage(usage))?;
        add(&mut extensions, subject, &ExtendedKeyUsage(vec![purpose.oid()]))?;
        add(&mut extensions, subject, &SubjectKeyIdentifier(key_id_of(public_key)?))?;
        add(&mut extensions, subject, &self.authority_key_id()?)?;
        if !names.is_empty() {
            let names = names.iter().map(general_name).collect::<Result<_, _>>()?;
            add(&mut extensions, subject, &SubjectAltName(names))?;
        }
        Ok(extensions)
    }

    /// The identifier that what this authority signs carries: the one in its certificate, or the one we would
    /// have given it.
    pub(crate) fn authority_key_id(&self) -> Result<AuthorityKeyIdentifier, AuthorityError> {
        let key_id = match self.certificate.key_id() {
            Some(id) => OctetString::new(id)?,
            None => key_id_of(&checked_key(self.certificate.public_key())?)?,
        };
        Ok(AuthorityKeyIdentifier { key_identifier: Some(key_id), ..AuthorityKeyIdentifier::default() })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({:?}, {})", self.certificate, self.signer.kind())
    }
}

/// TBSCertificate (RFC 5280 §4.1), in the shape of version 3 without unique identifiers.
#[derive(Sequence)]
struct Contents {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: Version,
    serial: SerialNumber,
    algorithm: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    public_key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Extensions,
}

fn sign(contents: &Contents, signer: &dyn Signer) -> Result<Certificate, AuthorityError> {
    let der = seal(&contents.to_der()?, signer)?;
    Certificate::from_der(&der).map_err(|error| AuthorityError::Encoding(error.to_string()))
}

fn fresh_serial() -> Result<SerialNumber, AuthorityError> {
    Ok(Serial::random().map_err(|_| AuthorityError::Random)?.to_x509()?)
}

fn checked_name(common_name: &str) -> Result<Name, AuthorityError> {
    let length = common_name.chars().count();
    if length == 0 || length > name::MAX_COMMON_NAME || common_name.contains(char::is_control) {
        return Err(AuthorityError::BadName(common_name.to_owned()));
    }
    Ok(name::with_common_name(common_name)?)
}

fn checked_key(spki: &[u8]) -> Result<SubjectPublicKeyInfoOwned, AuthorityError> {
    let key = SubjectPublicKeyInfoOwned::from_der(spki).map_err(|_| AuthorityError::BadKey)?;
    kind_of(&key).map(|_| key).ok_or(AuthorityError::BadKey)
}

fn kind_of(key: &SubjectPublicKeyInfoOwned) -> Option<KeyKind> {
    use der::referenced::OwnedToRef;
    algorithm::key_kind(&key.owned_to_ref())
}

/// Key identifier by RFC 7093 §2 method 1: the leftmost 160 bits of the SHA-256 of the public key's bits.
fn key_id_of(key: &SubjectPublicKeyInfoOwned) -> Result<OctetString, der::Error> {
    let hash = digest::digest(&digest::SHA256, key.subject_public_key.raw_bytes());
    OctetString::new(&hash.as_ref()[..20])
}

fn general_name(name: &SubjectName) -> Result<GeneralName, AuthorityError> {
    match name {
        SubjectName::Dns(dns) => {
            let plain = dns.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_*".contains(&byte));
            if dns.is_empty() || dns.len() > 253 || !plain {
                return Err(AuthorityError::BadDnsName(dns.clone()));
            }
            Ok(GeneralName::DnsName(Ia5String::new(dns)?))
        }
        SubjectName::Ip(IpAddr::V4(address)) => {
            Ok(GeneralName::IpAddress(OctetString::new(address.octets())?))
        }
        SubjectName::Ip(IpAddr::V6(address)) => {
            Ok(GeneralName::IpAddress(OctetString::new(address.octets())?))
        }
    }
}

fn add<E>(extensions: &mut Extensions, subject: &Name, extension: &E) -> Result<(), AuthorityError>
where
    for<'a> &'a E: ToExtension<Error = der::Error>,
{
    let extension = extension.to_extension(subject, extensions)?;
    extensions.push(extension);
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod stock;
