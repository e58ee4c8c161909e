//! Identities, from configuration and keys to what the gate and the sessions use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use adit_openvpn::Role;
use adit_openvpn::gate::{Gate, GateOptions, IdentityId, IdentityWrap};
use adit_openvpn::machine::Settings;
use adit_openvpn::wkc::Unwrapper;
use adit_openvpn::wrap::{Direction, WrapKeys};
use adit_pki::UnixTime;
use adit_tls::{Identity as TlsIdentity, ServerSettings, ServerTls, SettingsError};

use crate::config::{Config, IdentityConfig, Loaded, TunnelConfig, WrapKind};
use crate::control::IdentityPlan;
use crate::keyring::{self, IdentityKeys, Keyring, KeyringFault, WrapKey};

/// Why the identities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFault {
    /// Keys or certificates.
    #[error(transparent)]
    Keyring(#[from] KeyringFault),
    /// TLS refuses them.
    #[error("identity {name}: {fault}")]
    Tls {
        /// The identity.
        name: String,
        /// Why.
        fault: SettingsError,
    },
    /// Two identities have one control channel key.
    #[error("identities {0} and {1} have the same control channel key: nothing tells their clients apart")]
    SameWrap(String, String),
    /// Foreign back ends.
    #[error("{0}")]
    Services(String),
}

/// Loads all identities of a configuration, making what is missing.
///
/// # Errors
/// [`IdentityFault`].
pub fn load(keyring: &Keyring, config: &Config, now: UnixTime) -> Result<Vec<IdentityKeys>, IdentityFault> {
    let mut loaded: Vec<IdentityKeys> = Vec::new();
    for identity in &config.identity {
        let keys = keyring.identity(identity, &config.name, config.ca.server_lifetime, now)?;
        if let Some(other) = loaded.iter().find(|other| same_wrap(&other.wrap, &keys.wrap)) {
            return Err(IdentityFault::SameWrap(other.config.name.clone(), identity.name.clone()));
        }
        loaded.push(keys);
    }
    Ok(loaded)
}

fn same_wrap(a: &WrapKey, b: &WrapKey) -> bool {
    match (a, b) {
        (WrapKey::Shared(a), WrapKey::Shared(b)) => a == b,
        (WrapKey::PerClient(a), WrapKey::PerClient(b)) => a == b,
        _ => false,
    }
}

/// The gate in force, shared by all who judge first packets.
#[derive(Debug, Clone)]
pub(crate) struct SharedGate(Arc<RwLock<Arc<Gate>>>);

impl SharedGate {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self(Arc::new(RwLock::new(gate)))
    }

    pub(crate) fn get(&self) -> Arc<Gate> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, gate: Arc<Gate>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = gate;
    }
}

/// Gives each identity a number that stays the same across reloads: sessions and first packets under way refer to
/// it.
#[derive(Debug)]
pub(crate) struct Numbering {
    known: Mutex<Vec<String>>,
    secret: [u8; 32],
}

impl Numbering {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), secret: keyring::random() }
    }

    fn number(&self, name: &str) -> IdentityId {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|other| other == name).unwrap_or_else(|| {
            known.push(name.to_owned());
            known.len() - 1
        });
        IdentityId(at as u32)
    }

    /// What the gate and the sessions use.
    pub(crate) fn plan(
        &self,
        keyring: &Keyring,
        identities: &[IdentityKeys],
        tunnel: &TunnelConfig,
    ) -> Result<(Gate, HashMap<IdentityId, IdentityPlan>), IdentityFault> {
        let mut wraps = Vec::new();
        let mut plans = HashMap::new();
        for (keys, tls) in identities.iter().zip(tls_sources(keyring, identities)?) {
            let id = self.number(&keys.config.name);
            wraps.push((id, identity_wrap(&keys.config, &keys.wrap)));
            let settings = Arc::new(settings(keys, tls, tunnel));
            let plan = IdentityPlan {
                name: keys.config.name.clone(),
                certificate: keys.certificate.der().to_vec(),
                settings,
            };
            plans.insert(id, plan);
        }
        let options =
            GateOptions { old_clients: if tunnel.old_clients { 64 } else { 0 }, ..GateOptions::default() };
        Ok((Gate::new(wraps, &self.secret, options), plans))
    }
}

/// Each identity's name, and how its control packets are protected.
pub(crate) fn wraps(identities: &[IdentityKeys]) -> Vec<(String, IdentityWrap)> {
    identities
        .iter()
        .map(|keys| (keys.config.name.clone(), identity_wrap(&keys.config, &keys.wrap)))
        .collect()
}

/// The same from the state directory alone, where nothing is made or renewed: without a wrap where the key is still to
/// be made.
pub(crate) fn present_wraps(loaded: &Loaded) -> Result<Vec<(String, Option<IdentityWrap>)>, KeyringFault> {
    let wrap = |config: &IdentityConfig| {
        let key = keyring::present_wrap_key(&loaded.state(), config)?;
        Ok((config.name.clone(), key.map(|key| identity_wrap(config, &key))))
    };
    loaded.config.identity.iter().map(wrap).collect()
}

/// A TLS source for each identity. Identities without a wrap are reached by the same packets, so each of them
/// answers for all: the client's signature algorithms choose the certificate.
fn tls_sources(keyring: &Keyring, identities: &[IdentityKeys]) -> Result<Vec<Arc<ServerTls>>, IdentityFault> {
    let certified = |keys: &IdentityKeys| {
        TlsIdentity::new(std::slice::from_ref(&keys.certificate), &keys.key)
            .map_err(|fault| IdentityFault::Tls { name: keys.config.name.clone(), fault })
    };
    let unkeyed: Vec<&IdentityKeys> = identities.iter().filter(|k| k.config.wrap == WrapKind::None).collect();
    identities
        .iter()
        .map(|keys| {
            let group = if keys.config.wrap == WrapKind::None { unkeyed.clone() } else { vec![keys] };
            let server = ServerTls::new(ServerSettings {
                identities: group.into_iter().map(certified).collect::<Result<_, _>>()?,
                client_authorities: Arc::clone(keyring.clients()),
                ..ServerSettings::default()
            });
            server.map(Arc::new).map_err(|fault| IdentityFault::Tls { name: keys.config.name.clone(), fault })
        })
        .collect()
}

fn identity_wrap(config: &IdentityConfig, key: &WrapKey) -> IdentityWrap {
    match key {
        WrapKey::None => IdentityWrap::Shared(WrapKeys::none()),
        WrapKey::Shared(key) if config.wrap == WrapKind::TlsAuth => {
            IdentityWrap::Shared(WrapKeys::tls_auth(key, config.digest(), Direction::Normal))
        }
        WrapKey::Shared(key) => IdentityWrap::Shared(WrapKeys::tls_crypt(key, Role::Server)),
        WrapKey::PerClient(key) => IdentityWrap::PerClient(Unwrapper::new(key)),
    }
}

fn settings(keys: &IdentityKeys, tls: Arc<ServerTls>, tunnel: &TunnelConfig) -> Settings {
    let nonzero = |n: u16| (n > 0).then_some(n);
    Settings {
        ciphers: tunnel.ciphers.clone(),
        fallback: tunnel.fallback,
        auth: keys.config.digest(),
        replay: tunnel.replay_window,
        tun_mtu: tunnel.mtu,
        mssfix: nonzero(tunnel.mssfix),
        fragment: nonzero(tunnel.fragment),
        ping: Some(tunnel.ping),
        // The client gives up first and comes back; what is left of it here then goes.
        ping_restart: Some(tunnel.ping_restart * 2),
        renegotiate: Some(tunnel.reneg).filter(|interval| *interval > Duration::ZERO),
        tls_auth: (keys.config.wrap == WrapKind::TlsAuth).then_some(Some(0)),
        ..Settings::new(tls)
    }
}
