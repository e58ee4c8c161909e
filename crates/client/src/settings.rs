//! A profile as what TLS, the control machine and control packets need.

use std::sync::Arc;
use std::time::Duration;

use adit_openvpn::Role;
use adit_openvpn::machine::{ClientWrap, Settings};
use adit_openvpn::profile::{Profile, ProfileWrap, VerifyName};
use adit_openvpn::wrap::{Direction, WrapKeys};
use adit_pki::{Certificate, CertificateError, Crl, CrlError, KeyError, PrivateKey, Revocations};
use adit_tls::{ClientSettings, ClientTls, Identity, LiveRevocations, NameCheck, SettingsError, Versions};

/// Silence after which the server is given up, when nobody says anything else (OpenVPN's default with `pull`).
const PING_RESTART: u32 = 120;

/// Why a profile cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub enum SettingsFault {
    /// `ca` or `cert`.
    #[error("<{0}> of the profile: {1}")]
    Certificate(&'static str, #[source] CertificateError),
    /// `ca` or `cert` without any.
    #[error("<{0}> of the profile holds no certificate (-----BEGIN CERTIFICATE-----)")]
    NoCertificate(&'static str),
    /// `key`.
    #[error("<key> of the profile: {0}")]
    Key(#[source] KeyError),
    /// `crl-verify`.
    #[error("crl-verify of the profile: {0}")]
    Crl(#[source] CrlError),
    /// `crl-verify` of an authority that is not in `ca`.
    #[error("crl-verify of the profile: the list is not from an authority in <ca>")]
    ForeignCrl,
    /// `peer-fingerprint`.
    #[error("peer-fingerprint of the profile: {0} is not the SHA-256 of a certificate")]
    Fingerprint(String),
    /// Certificates and keys do not go together.
    #[error("the profile's certificates: {0}")]
    Tls(#[from] SettingsError),
    /// The server wants a user name and password.
    #[error("the profile needs a user name and password (auth-user-pass), and there are none")]
    NoCredentials,
}

/// What a control machine is made of for this profile: its settings, and how its control packets are protected.
///
/// # Errors
/// [`SettingsFault`] with the part of the profile that cannot be put to use.
pub fn read(profile: &Profile) -> Result<(Settings, ClientWrap), SettingsFault> {
    if profile.ask_credentials && profile.credentials.is_none() {
        return Err(SettingsFault::NoCredentials);
    }
    let seconds = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    let mut settings = Settings::new(Arc::new(tls(profile)?));
    settings.ciphers.clone_from(&profile.ciphers);
    settings.fallback = profile.fallback;
    settings.auth = profile.auth;
    settings.replay = profile.replay;
    settings.tun_mtu = profile.tun_mtu.unwrap_or(settings.tun_mtu);
    settings.mssfix = profile.mssfix.map_or(settings.mssfix, |mssfix| Some(mssfix).filter(|&n| n > 0));
    settings.fragment = profile.fragment;
    settings.ping = profile.ping.and_then(seconds);
    settings.ping_restart = seconds(profile.ping_restart.unwrap_or(PING_RESTART));
    settings.renegotiate = profile.reneg_sec.map_or(settings.renegotiate, seconds);
    settings.hand_window = profile.hand_window.and_then(seconds).unwrap_or(settings.hand_window);
    settings.credentials.clone_from(&profile.credentials);
    let wrap = match &profile.wrap {
        ProfileWrap::None => ClientWrap::Shared(WrapKeys::none()),
        ProfileWrap::TlsAuth(key, direction) => {
            settings.tls_auth = Some(match direction {
                Direction::Both => None,
                Direction::Normal => Some(0),
                Direction::Inverse => Some(1),
            });
            ClientWrap::Shared(WrapKeys::tls_auth(key, profile.auth, *direction))
        }
        ProfileWrap::TlsCrypt(key) => ClientWrap::Shared(WrapKeys::tls_crypt(key, Role::Client)),
        ProfileWrap::TlsCryptV2(key) => ClientWrap::Own(key.clone()),
    };
    Ok((settings, wrap))
}

fn tls(profile: &Profile) -> Result<ClientTls, SettingsFault> {
    let bundle = |name, text: &str| match Certificate::bundle_from_pem(text) {
        Ok(none) if none.is_empty() => Err(SettingsFault::NoCertificate(name)),
        Ok(bundle) => Ok(bundle),
        Err(fault) => Err(SettingsFault::Certificate(name, fault)),
    };
    let authorities = profile.ca.as_deref().map(|text| bundle("ca", text)).transpose()?.unwrap_or_default();
    let identity = match (&profile.cert, &profile.key) {
        (Some(cert), Some(key)) => {
            let key = PrivateKey::from_pem(key).map_err(SettingsFault::Key)?;
            Some(Identity::new(&bundle("cert", cert)?, &key)?)
        }
        _ => None,
    };
    let name = profile.verify_name.clone().map(|name| match name {
        VerifyName::Subject(subject) => NameCheck::Subject(subject),
        VerifyName::Name(name) => NameCheck::Name(name),
        VerifyName::NamePrefix(prefix) => NameCheck::NamePrefix(prefix),
    });
    let revocations = profile.crl.as_deref().map(|text| revocations(text, &authorities)).transpose()?;
    let fingerprint = |hex: &String| fingerprint(hex).ok_or_else(|| SettingsFault::Fingerprint(hex.clone()));
    let fingerprints = profile.peer_fingerprints.iter().map(fingerprint).collect::<Result<_, _>>()?;
    Ok(ClientTls::new(ClientSettings {
        authorities,
        identity,
        remote_cert_tls: profile.remote_cert_tls,
        name,
        fingerprints,
        revocations: revocations.map(|revocations| Arc::new(LiveRevocations::new(revocations))),
        versions: if profile.tls13_only { Versions::Only13 } else { Versions::Both },
        groups: profile.tls_groups.clone(),
        ..ClientSettings::default()
    })?)
}

fn revocations(text: &str, authorities: &[Certificate]) -> Result<Revocations, SettingsFault> {
    let mut revocations = Revocations::new();
    for list in Crl::bundle_from_pem(text).map_err(SettingsFault::Crl)? {
        let issuer = authorities.iter().find(|authority| authority.subject_der() == list.issuer_der());
        let issuer = issuer.ok_or(SettingsFault::ForeignCrl)?;
        revocations.add_crl(&list, issuer).map_err(SettingsFault::Crl)?;
    }
    Ok(revocations)
}

/// 32 bytes in hex.
fn fingerprint(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a fingerprint in place of a CA, so that no certificates are needed.
    fn settings(extra: &str) -> Result<(Settings, ClientWrap), SettingsFault> {
        let print = "ab".repeat(32);
        let text = format!("client\nremote a\npeer-fingerprint {print}\n{extra}");
        read(&Profile::parse(&text, &mut |_| Err("no files".into())).unwrap())
    }

    fn fault(extra: &str) -> String {
        settings(extra).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn silence_and_renegotiation_are_the_profiles_or_openvpns_own() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let (plain, _) = settings("").unwrap();
        assert_eq!((plain.ping, plain.ping_restart, plain.fragment), (None, seconds(120), None));
        assert_eq!(plain.renegotiate, seconds(3600));
        let (own, _) = settings("keepalive 5 15\nreneg-sec 60\nmssfix 0\nfragment 1300\n").unwrap();
        assert_eq!((own.ping, own.ping_restart, own.renegotiate), (seconds(5), seconds(15), seconds(60)));
        assert_eq!((own.mssfix, own.fragment), (None, Some(1300)));
        let (never, _) = settings("ping-restart 0\nreneg-sec 0\n").unwrap();
        assert_eq!((never.ping_restart, never.renegotiate), (None, None));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert!(fault("<ca>\nx\n</ca>\n").starts_with("<ca> of the profile holds no certificate"));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        assert!(fault(&format!("<ca>\n{garbage}\n</ca>\n")).starts_with("<ca> of the profile: "));
        let pair = format!("<cert>\n{garbage}\n</cert>\n<key>\nx\n</key>\n");
        assert!(fault(&pair).starts_with("<key> of the profile: "), "{}", fault(&pair));
        assert!(fault("auth-user-pass\n").contains("needs a user name and password"));
    }

    #[test]
    fn control_packets_are_protected_as_the_profile_says() {
        let (none, wrap) = settings("").unwrap();
        assert!(matches!(wrap, ClientWrap::Shared(_)) && none.tls_auth.is_none());
        let key: String = (0..16).map(|_| format!("{}\n", "5a".repeat(16))).collect();
        let block = |name: &str| {
            format!(
                "<{name}>\n-----BEGIN OpenVPN Static key V1-----\n{key}-----END OpenVPN Static key V1-----\n</{name}>\n"
            )
        };
        for (direction, expected) in [("", None), ("key-direction 1\n", Some(1))] {
            let (auth, _) = settings(&format!("{direction}{}", block("tls-auth"))).unwrap();
            assert_eq!(auth.tls_auth, Some(expected));
        }
        let (crypt, _) = settings(&block("tls-crypt")).unwrap();
        assert_eq!(crypt.tls_auth, None);
    }
}
