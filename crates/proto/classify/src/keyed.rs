//! First packets that a key of ours, or of a back end of ours, verifies.

use std::fmt;

use adit_openvpn::Role;
use adit_openvpn::gate::IdentityWrap;
use adit_openvpn::keyfile::{KeyFileFault, ServerKeyV2, StaticKey};
use adit_openvpn::packet::Opcode;
use adit_openvpn::wkc::Unwrapper;
use adit_openvpn::wrap::{Digest, Direction, WrapKeys};
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use subtle::ConstantTimeEq;

use crate::answer::Answer;
use crate::datagram::WIREGUARD_LEN;
use crate::openvpn::{OpenVpnForm, Record, is_first_byte, is_v2_high, is_v2_len, record};

/// The keys of an OpenVPN server: it is Yes only for a client's first packet that one of them verifies.
///
/// No second packet is recognised: over UDP that belongs to the gate or the relay that took the first one.
#[derive(Clone)]
pub struct OpenVpnKey {
    /// One key for all clients, in each way it may be used.
    shared: Vec<WrapKeys>,
    /// tls-crypt-v2.
    per_client: Option<Unwrapper>,
}

/// Why a key file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The file is no key of the kind that is needed.
    #[error("no key for \"{form}\": {fault}")]
    File {
        /// What it was to be used for.
        form: OpenVpnForm,
        /// What is wrong with it.
        fault: KeyFileFault,
    },
    /// A probe that has no use for a key.
    #[error("\"openvpn none\" has no key: its clients do not protect their first packets; leave `key` out")]
    Plain,
}

impl OpenVpnKey {
    /// The key of a native identity; `None` for one without protection, which only its form tells.
    #[must_use]
    pub fn of_identity(wrap: &IdentityWrap) -> Option<Self> {
        match wrap {
            IdentityWrap::Shared(keys) if !keys.is_keyed() => None,
            IdentityWrap::Shared(keys) => Some(Self { shared: vec![keys.clone()], per_client: None }),
            IdentityWrap::PerClient(unwrapper) => {
                Some(Self { shared: Vec::new(), per_client: Some(unwrapper.clone()) })
            }
        }
    }

    /// The text of a foreign server's key file. `form` tells how the key is used; [`OpenVpnForm::Any`] tries
    /// all that fits: a static key as tls-crypt and as tls-auth with every digest, in both directions.
    ///
    /// # Errors
    /// [`KeyFault`] when the file does not hold such a key.
    pub fn from_file(text: &str, form: OpenVpnForm) -> Result<Self, KeyFault> {
        let fault = |fault| KeyFault::File { form, fault };
        let server_key = || ServerKeyV2::parse(text).map(|key| Unwrapper::new(&key));
        let mut keys = Self { shared: Vec::new(), per_client: None };
        match form {
            OpenVpnForm::Plain => return Err(KeyFault::Plain),
            OpenVpnForm::TlsCryptV2 => keys.per_client = Some(server_key().map_err(fault)?),
            OpenVpnForm::TlsAuth(_) | OpenVpnForm::TlsCrypt => {
                keys.add_static(&StaticKey::parse(text).map_err(fault)?, form);
            }
            OpenVpnForm::Any => match (StaticKey::parse(text), server_key()) {
                (Ok(key), _) => keys.add_static(&key, form),
                (_, Ok(unwrapper)) => keys.per_client = Some(unwrapper),
                (Err(KeyFileFault::NoBlock(_)), Err(damage))
                    if !matches!(damage, KeyFileFault::NoBlock(_)) =>
                {
                    return Err(fault(damage));
                }
                (Err(damage), _) => return Err(fault(damage)),
            },
        }
        Ok(keys)
    }

    fn add_static(&mut self, key: &StaticKey, form: OpenVpnForm) {
        if matches!(form, OpenVpnForm::Any | OpenVpnForm::TlsCrypt) {
            self.shared.push(WrapKeys::tls_crypt(key, Role::Server));
        }
        for digest in Digest::ALL {
            let used = match form {
                OpenVpnForm::TlsAuth(Some(only)) => only == digest,
                other => other != OpenVpnForm::TlsCrypt,
            };
            // A server without a direction receives under the same half of the key as one with direction 1.
            for direction in [Direction::Normal, Direction::Inverse] {
                if used {
                    self.shared.push(WrapKeys::tls_auth(key, digest, direction));
                }
            }
        }
    }

    /// How the key that verifies this datagram is used.
    pub(crate) fn datagram(&self, bytes: &[u8]) -> Option<&'static str> {
        let first = *bytes.first()?;
        if is_first_byte(first, false) {
            let opcode = Opcode::HardResetClientV2;
            return self
                .shared
                .iter()
                .find(|keys| keys.verify_first(opcode, bytes).is_some())
                .map(WrapKeys::name);
        }
        self.per_client.as_ref()?.verify_first(bytes).map(|_| "tls-crypt-v2")
    }

    /// The same of the first record of a connection.
    pub(crate) fn stream(&self, bytes: &[u8]) -> Result<&'static str, Answer> {
        let (packet, len) = match record(bytes) {
            Record::Prefix(high) => {
                let short = high.is_none_or(|high| high == 0) && !self.shared.is_empty();
                let long = is_v2_high(high) && self.per_client.is_some();
                return Err(if short || long { Answer::More } else { Answer::No });
            }
            Record::Packet(packet, len) => (packet, len),
        };
        let opcode = packet.first().is_none_or(|&byte| is_first_byte(byte, is_v2_len(len)));
        if !opcode || !self.has_len(len) {
            Err(Answer::No)
        } else if packet.len() < len {
            Err(Answer::More)
        } else {
            self.datagram(packet).ok_or(Answer::No)
        }
    }

    fn has_len(&self, len: usize) -> bool {
        self.shared.iter().any(|keys| keys.first_len() == len)
            || (self.per_client.is_some() && is_v2_len(len))
    }

    /// True when one packet can verify under both.
    pub(crate) fn shares_a_key_with(&self, other: &Self) -> bool {
        let kinds = |key: &Self| -> Vec<_> {
            key.shared.iter().map(|keys| (keys.name(), keys.first_len(), keys.fingerprint())).collect()
        };
        let others = kinds(other);
        let per_client = |key: &Self| key.per_client.as_ref().map(Unwrapper::fingerprint);
        kinds(self).iter().any(|kind| others.contains(kind))
            || per_client(self).is_some_and(|own| per_client(other) == Some(own))
    }
}

impl fmt::Debug for OpenVpnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenVpnKey(..)")
    }
}

impl fmt::Display for OpenVpnKey {
    /// The ways it is used, not the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.shared.iter().map(WrapKeys::name).collect();
        names.dedup();
        names.extend(self.per_client.as_ref().map(|_| "tls-crypt-v2"));
        write!(f, "openvpn {} key", names.join(" or "))
    }
}

/// A WireGuard server's public key: it is Yes only for handshake initiations whose mac1 was made for it.
#[derive(Clone)]
pub struct WireGuardKey {
    public: [u8; 32],
    mac1: Blake2sMac<U16>,
}

impl fmt::Debug for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireGuardKey(..)")
    }
}

impl WireGuardKey {
    /// From the server's public key.
    #[must_use]
    pub fn new(public: &[u8; 32]) -> Self {
        let key = Blake2s256::new().chain_update(b"mac1----").chain_update(public).finalize();
        Self { public: *public, mac1: Blake2sMac::new(&key) }
    }

    pub(crate) fn datagram(&self, bytes: &[u8]) -> bool {
        if bytes.len() != WIREGUARD_LEN || !bytes.starts_with(&[1, 0, 0, 0]) {
            return false;
        }
        let Some((covered, rest)) = bytes.split_at_checked(WIREGUARD_LEN - 32) else { return false };
        let mut mac = self.mac1.clone();
        Update::update(&mut mac, covered);
        rest.first_chunk::<16>()
            .is_some_and(|tag| mac.finalize_fixed().as_slice().ct_eq(tag.as_slice()).into())
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.public == other.public
    }
}
