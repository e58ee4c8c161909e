//! Keys and certificates on disk: the CA, the server identities, the devices' keys made here.
//!
//! ```text
//! state/ca/ca.pem ca.key crl.pem
//! state/identities/NAME/cert.pem key.pem wrap.key
//! state/devices/ID.key
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_openvpn::keyfile::{KeyFileFault, ServerKeyV2, StaticKey};
use adit_pki::files::{FileError, read_secret, write_public, write_secret};
use adit_pki::{
    Authority, AuthorityError, Certificate, CertificateError, Crl, CrlError, KeyError, KeyKind, Leaf,
    PrivateKey, Profile, Revoked, Signer, SubjectName, UnixTime,
};
use adit_store::DeviceId;
use adit_tls::{SettingsError, Trust};
use zeroize::Zeroizing;

use crate::config::{CaConfig, IdentityConfig, WrapKind};

/// A server certificate is renewed at a start when it is valid for less than this.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
/// How long a CRL is valid. It is made anew long before.
const CRL_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// What goes wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum KeyringFault {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory cannot be made.
    #[error("cannot make {}: {error}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// There is no CA.
    #[error("there is no CA in {}; `adit init --dir DIR` makes one", .0.display())]
    NoAuthority(PathBuf),
    /// A private key is damaged.
    #[error("{}: {fault}; put back the right file from a backup", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: KeyError,
    },
    /// A certificate is damaged.
    #[error("{}: {fault}; put back the right file from a backup", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: CertificateError,
    },
    /// A control channel key is damaged.
    #[error("{}: {fault}; put back the right file from a backup", path.display())]
    WrapKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: KeyFileFault,
    },
    /// The CA does not sign.
    #[error("the CA: {0}")]
    Authority(#[from] AuthorityError),
    /// Nobody can be verified with the CA.
    #[error("{0}; put back the right ca.pem from a backup")]
    Trust(#[from] SettingsError),
    /// A key cannot be made.
    #[error("cannot make a key: {0}")]
    Generate(KeyError),
    /// The CRL cannot be made.
    #[error("the CRL: {0}")]
    Crl(#[from] CrlError),
    /// The configuration and the key on disk disagree.
    #[error(
        "identity {name} has a {found} key, and the configuration says {wanted}; `adit identity rotate {name}` makes \
         a new one"
    )]
    OtherKind {
        /// The identity.
        name: String,
        /// The key's kind.
        found: KeyKind,
        /// The configured kind.
        wanted: KeyKind,
    },
}

/// What protects an identity's control packets.
#[derive(Debug, Clone)]
pub enum WrapKey {
    /// Nothing.
    None,
    /// tls-auth or tls-crypt.
    Shared(StaticKey),
    /// tls-crypt-v2.
    PerClient(ServerKeyV2),
}

/// A server identity with its keys.
#[derive(Debug)]
pub struct IdentityKeys {
    /// As configured.
    pub config: IdentityConfig,
    /// The server's certificate.
    pub certificate: Certificate,
    /// Its key.
    pub key: PrivateKey,
    /// What protects its control packets.
    pub wrap: WrapKey,
}

/// See the module's text.
#[derive(Debug)]
pub struct Keyring {
    dir: PathBuf,
    authority: Authority,
    clients: Arc<Trust>,
}

impl Keyring {
    /// Makes the CA.
    ///
    /// # Errors
    /// [`KeyringFault`]; an existing CA is left alone and is an error.
    pub fn create(dir: &Path, name: &str, config: &CaConfig, now: UnixTime) -> Result<Self, KeyringFault> {
        make_dir(&dir.join("ca"))?;
        let key = PrivateKey::generate(config.key).map_err(KeyringFault::Generate)?;
        let pem = key.to_pkcs8_pem().map_err(KeyringFault::Generate)?;
        let authority = Authority::create(&format!("{name} CA"), Box::new(key), now, config.lifetime)?;
        write_secret(&dir.join("ca/ca.key"), pem.as_bytes())?;
        write_public(&dir.join("ca/ca.pem"), authority.certificate().to_pem().as_bytes())?;
        Self::with(dir, authority)
    }

    /// Opens the CA.
    ///
    /// # Errors
    /// [`KeyringFault`] naming file and remedy.
    pub fn open(dir: &Path) -> Result<Self, KeyringFault> {
        let path = dir.join("ca/ca.pem");
        if !path.exists() {
            return Err(KeyringFault::NoAuthority(dir.to_owned()));
        }
        let certificate = read_certificate(&path)?;
        let key = read_key(&dir.join("ca/ca.key"))?;
        let authority = Authority::load(certificate, Box::new(key))?;
        Self::with(dir, authority)
    }

    fn with(dir: &Path, authority: Authority) -> Result<Self, KeyringFault> {
        let clients = Arc::new(Trust::new(vec![authority.certificate().clone()])?);
        Ok(Self { dir: dir.to_owned(), authority, clients })
    }

    /// The CA.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What clients' certificates must lead to. One for all identities and reloads, so that a certificate is
    /// verified once.
    #[must_use]
    pub fn clients(&self) -> &Arc<Trust> {
        &self.clients
    }

    /// The certificates that clients are to trust, PEM.
    #[must_use]
    pub fn trusted_pem(&self) -> String {
        self.authority.certificate().to_pem()
    }

    /// Loads an identity. What is missing is made; a certificate that is about to expire, or that another CA
    /// issued, is issued anew for the same key.
    ///
    /// # Errors
    /// [`KeyringFault`] naming file and remedy.
    pub fn identity(
        &self,
        config: &IdentityConfig,
        gateway: &str,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<IdentityKeys, KeyringFault> {
        let dir = self.identity_dir(&config.name);
        make_dir(&dir)?;
        let wrap = self.wrap_key(config)?;
        let key_path = dir.join("key.pem");
        let key = if key_path.exists() { read_key(&key_path)? } else { make_key(&key_path, config.key)? };
        if key.kind() != config.key {
            let (name, found) = (config.name.clone(), key.kind());
            return Err(KeyringFault::OtherKind { name, found, wanted: config.key });
        }
        let certificate_path = dir.join("cert.pem");
        let present = certificate_path.exists().then(|| read_certificate(&certificate_path)).transpose()?;
        let good = present.filter(|certificate| {
            certificate.public_key() == key.public_key()
                && certificate.issuer_key_id() == self.authority.certificate().key_id()
                && certificate.common_name().as_deref() == Some(gateway)
                && certificate.not_after() > now.plus(RENEW_BEFORE)
        });
        let certificate = match good {
            Some(certificate) => certificate,
            None => {
                let names = vec![SubjectName::Dns(gateway.to_owned())];
                let certificate = self.authority.issue(&Leaf {
                    public_key: key.public_key(),
                    common_name: gateway,
                    profile: Profile::Server { names: names.into_iter().filter(is_dns_name).collect() },
                    now,
                    lifetime,
                })?;
                write_public(&certificate_path, certificate.to_pem().as_bytes())?;
                certificate
            }
        };
        Ok(IdentityKeys { config: config.clone(), certificate, key, wrap })
    }

    /// Forgets an identity's key and certificate, so that the next load makes new ones. The key that protects
    /// control packets stays: every profile has it.
    ///
    /// # Errors
    /// [`KeyringFault`] when a file cannot be removed.
    pub fn rotate_identity(&self, name: &str) -> Result<(), KeyringFault> {
        let dir = self.identity_dir(name);
        for file in ["key.pem", "cert.pem"] {
            remove(&dir.join(file))?;
        }
        Ok(())
    }

    /// Removes all files of an identity.
    ///
    /// # Errors
    /// [`KeyringFault`] when a file cannot be removed.
    pub fn remove_identity(&self, name: &str) -> Result<(), KeyringFault> {
        let dir = self.identity_dir(name);
        for file in ["key.pem", "cert.pem", "wrap.key"] {
            remove(&dir.join(file))?;
        }
        // Somebody may have put something else there; then it stays.
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }

    /// Makes a key for a device and keeps it for the profile.
    ///
    /// # Errors
    /// [`KeyringFault`].
    pub fn make_device_key(&self, device: DeviceId, kind: KeyKind) -> Result<PrivateKey, KeyringFault> {
        make_dir(&self.dir.join("devices"))?;
        make_key(&self.device_path(device), kind)
    }

    /// The key of a device as PEM, if it was made here.
    ///
    /// # Errors
    /// [`KeyringFault`].
    pub fn device_key(&self, device: DeviceId) -> Result<Option<Zeroizing<String>>, KeyringFault> {
        let path = self.device_path(device);
        if !path.exists() {
            return Ok(None);
        }
        let key = read_key(&path)?;
        key.to_pkcs8_pem().map(Some).map_err(|fault| KeyringFault::Key { path, fault })
    }

    /// Deletes the key of a device; it is no error if there is none.
    ///
    /// # Errors
    /// [`KeyringFault`].
    pub fn forget_device_key(&self, device: DeviceId) -> Result<(), KeyringFault> {
        remove(&self.device_path(device))
    }

    /// Issues a certificate for a device's key. The name in it is for people; nothing is decided by it.
    ///
    /// # Errors
    /// [`KeyringFault`].
    pub fn issue_device(
        &self,
        public_key: &[u8],
        name: &str,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Certificate, KeyringFault> {
        let certificate = self.authority.issue(&Leaf {
            public_key,
            common_name: name,
            profile: Profile::Client,
            now,
            lifetime,
        })?;
        // Here, and not on the thread that its first handshake is waiting for.
        self.clients.note_issued(&certificate, now);
        Ok(certificate)
    }

    /// Makes the CRL and writes it to disk.
    ///
    /// # Errors
    /// [`KeyringFault`].
    pub fn write_crl(&self, revoked: &[Revoked], number: u64, now: UnixTime) -> Result<Crl, KeyringFault> {
        let crl = self.authority.crl(revoked, now, now.plus(CRL_LIFETIME), number)?;
        write_public(&self.dir.join("ca/crl.pem"), crl.to_pem().as_bytes())?;
        Ok(crl)
    }

    /// The CRL on disk.
    ///
    /// # Errors
    /// [`KeyringFault`] when it is damaged.
    pub fn crl(&self) -> Result<Option<Crl>, KeyringFault> {
        match std::fs::read_to_string(self.dir.join("ca/crl.pem")) {
            Ok(text) => Ok(Crl::bundle_from_pem(&text)?.into_iter().next()),
            Err(_) => Ok(None),
        }
    }

    fn identity_dir(&self, name: &str) -> PathBuf {
        self.dir.join("identities").join(name)
    }

    fn device_path(&self, device: DeviceId) -> PathBuf {
        self.dir.join("devices").join(format!("{device}.key"))
    }

    fn wrap_key(&self, config: &IdentityConfig) -> Result<WrapKey, KeyringFault> {
        if let Some(key) = present_wrap_key(&self.dir, config)? {
            return Ok(key);
        }
        let text = match config.wrap {
            WrapKind::TlsCryptV2 => ServerKeyV2::new(&random()).to_text(),
            WrapKind::None | WrapKind::TlsAuth | WrapKind::TlsCrypt => StaticKey::new(&random()).to_text(),
        };
        let path = wrap_path(&self.dir, &config.name);
        write_secret(&path, text.as_bytes())?;
        read_wrap_key(&path, config.wrap)
    }
}

fn wrap_path(dir: &Path, identity: &str) -> PathBuf {
    dir.join("identities").join(identity).join("wrap.key")
}

/// What protects an identity's control packets, as it is in the state directory `dir`; `None` when it is still to be
/// made. Changes nothing.
///
/// # Errors
/// [`KeyringFault`] when the key cannot be read.
pub(crate) fn present_wrap_key(dir: &Path, config: &IdentityConfig) -> Result<Option<WrapKey>, KeyringFault> {
    let path = wrap_path(dir, &config.name);
    match config.wrap {
        WrapKind::None => Ok(Some(WrapKey::None)),
        _ if !path.exists() => Ok(None),
        kind => read_wrap_key(&path, kind).map(Some),
    }
}

fn read_wrap_key(path: &Path, kind: WrapKind) -> Result<WrapKey, KeyringFault> {
    let text = read_text(path)?;
    let key = match kind {
        WrapKind::None => return Ok(WrapKey::None),
        WrapKind::TlsAuth | WrapKind::TlsCrypt => StaticKey::parse(&text).map(WrapKey::Shared),
        WrapKind::TlsCryptV2 => ServerKeyV2::parse(&text).map(WrapKey::PerClient),
    };
    key.map_err(|fault| KeyringFault::WrapKey { path: path.to_owned(), fault })
}

/// Random bytes fit for keys.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

fn is_dns_name(name: &SubjectName) -> bool {
    match name {
        SubjectName::Dns(name) => name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'),
        SubjectName::Ip(_) => true,
    }
}

fn make_dir(path: &Path) -> Result<(), KeyringFault> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| KeyringFault::Directory { path: path.to_owned(), error })
}

fn make_key(path: &Path, kind: KeyKind) -> Result<PrivateKey, KeyringFault> {
    let key = PrivateKey::generate(kind).map_err(KeyringFault::Generate)?;
    let pem = key.to_pkcs8_pem().map_err(KeyringFault::Generate)?;
    write_secret(path, pem.as_bytes())?;
    Ok(key)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, KeyringFault> {
    let bytes = read_secret(path)?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn read_key(path: &Path) -> Result<PrivateKey, KeyringFault> {
    let text = read_text(path)?;
    PrivateKey::from_pem(&text).map_err(|fault| KeyringFault::Key { path: path.to_owned(), fault })
}

fn read_certificate(path: &Path) -> Result<Certificate, KeyringFault> {
    let text = std::fs::read_to_string(path).map_err(|error| FileError::Io {
        action: "read",
        path: path.to_owned(),
        error,
    })?;
    Certificate::from_pem(&text).map_err(|fault| KeyringFault::Certificate { path: path.to_owned(), fault })
}

fn remove(path: &Path) -> Result<(), KeyringFault> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::Io { action: "remove", path: path.to_owned(), error }.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    fn identity(key: KeyKind, wrap: WrapKind) -> IdentityConfig {
        IdentityConfig { name: "main".into(), key, wrap, auth: None, port: None }
    }

    fn keyring(dir: &Path) -> Keyring {
        Keyring::create(dir, "north", &CaConfig { key: KeyKind::P256, ..CaConfig::default() }, NOW).unwrap()
    }

    #[test]
    fn what_was_made_once_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = keyring(dir.path());
        for wrap in [WrapKind::None, WrapKind::TlsAuth, WrapKind::TlsCryptV2] {
            first.remove_identity("main").unwrap();
            let config = identity(KeyKind::Ed25519, wrap);
            let made = first.identity(&config, "north", YEAR, NOW).unwrap();
            let again = Keyring::open(dir.path()).unwrap().identity(&config, "north", YEAR, NOW).unwrap();
            assert_eq!(made.certificate.der(), again.certificate.der());
            match (made.wrap, again.wrap) {
                (WrapKey::None, WrapKey::None) => {}
                (WrapKey::Shared(a), WrapKey::Shared(b)) => assert!(a == b),
                (WrapKey::PerClient(a), WrapKey::PerClient(b)) => assert!(a == b),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn every_secret_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.identity(&identity(KeyKind::P256, WrapKind::TlsCrypt), "north", YEAR, NOW).unwrap();
        let device: DeviceId = "00112233445566778899aabbccddeeff".parse().unwrap();
        ring.make_device_key(device, KeyKind::P256).unwrap();
        let secrets = ["ca/ca.key", "identities/main/key.pem", "identities/main/wrap.key"];
        let device_file = format!("devices/{device}.key");
        for file in secrets.into_iter().chain([device_file.as_str()]) {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        for folder in ["ca", "identities/main", "devices"] {
            let mode = std::fs::metadata(dir.path().join(folder)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{folder}");
        }
        assert!(ring.device_key(device).unwrap().is_some());
        ring.forget_device_key(device).unwrap();
        assert!(ring.device_key(device).unwrap().is_none());
    }

    #[test]
    fn a_device_s_certificate_is_verified_when_it_is_issued() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.identity(&identity(KeyKind::P256, WrapKind::None), "north", YEAR, NOW).unwrap();
        assert_eq!(ring.clients().remembered(), 0);
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        ring.issue_device(key.public_key(), "ann-laptop", YEAR, NOW).unwrap();
        assert_eq!(ring.clients().remembered(), 1);
    }

    #[test]
    fn a_certificate_near_its_end_is_renewed_for_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        let config = identity(KeyKind::P256, WrapKind::None);
        let first = ring.identity(&config, "north", YEAR, NOW).unwrap().certificate;
        let later = NOW.plus(YEAR - Duration::from_secs(86_400));
        let second = ring.identity(&config, "north", YEAR, later).unwrap().certificate;
        assert_ne!(first.serial(), second.serial());
        assert_eq!(first.public_key(), second.public_key());
        assert!(second.not_after() > later.plus(YEAR / 2));
    }

    #[test]
    fn another_kind_of_key_needs_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.identity(&identity(KeyKind::P256, WrapKind::TlsCrypt), "north", YEAR, NOW).unwrap();
        let wrap = std::fs::read(dir.path().join("identities/main/wrap.key")).unwrap();
        let other = identity(KeyKind::Ed25519, WrapKind::TlsCrypt);
        let fault = ring.identity(&other, "north", YEAR, NOW).unwrap_err();
        assert!(fault.to_string().contains("adit identity rotate main"), "{fault}");
        ring.rotate_identity("main").unwrap();
        assert_eq!(ring.identity(&other, "north", YEAR, NOW).unwrap().key.kind(), KeyKind::Ed25519);
        assert_eq!(std::fs::read(dir.path().join("identities/main/wrap.key")).unwrap(), wrap);
    }

    #[test]
    fn a_secret_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        keyring(dir.path());
        let path = dir.path().join("ca/ca.key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let fault = Keyring::open(dir.path()).unwrap_err();
        assert!(fault.to_string().contains("chmod 600"), "{fault}");
    }
}
