//! What the tests of several modules share.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use crate::authority::{Authority, Leaf, Profile};
use crate::certificate::Certificate;
use crate::key::{PrivateKey, Signer};
use crate::kind::KeyKind;
use crate::time::UnixTime;

/// Some moment in 2026.
pub(crate) const NOW: UnixTime = UnixTime::from_secs(1_772_366_400);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A key of `kind`; large RSA keys are always the same ones, because making them takes seconds.
pub(crate) fn key(kind: KeyKind) -> PrivateKey {
    static SMALL: OnceLock<String> = OnceLock::new();
    static MIDDLE: OnceLock<String> = OnceLock::new();
    let fresh = || PrivateKey::generate(kind).unwrap().to_pkcs8_pem().unwrap().to_string();
    let pem = match kind {
        KeyKind::Rsa(2048) => SMALL.get_or_init(fresh),
        KeyKind::Rsa(3072) => MIDDLE.get_or_init(fresh),
        KeyKind::Rsa(4096) => include_str!("../../../testbed/keys/rsa-4096.test.pem"),
        KeyKind::Rsa(8192) => include_str!("../../../testbed/keys/rsa-8192.test.pem"),
        _ => return PrivateKey::generate(kind).unwrap(),
    };
    PrivateKey::from_pem(pem).unwrap()
}

pub(crate) fn authority(kind: KeyKind) -> Authority {
    Authority::create(&format!("{kind} test CA"), Box::new(key(kind)), NOW, 3650 * DAY).unwrap()
}

pub(crate) fn leaf(authority: &Authority, key: &PrivateKey, profile: Profile) -> Certificate {
    authority
        .issue(&Leaf {
            public_key: key.public_key(),
            common_name: "leaf",
            profile,
            now: NOW,
            lifetime: 365 * DAY,
        })
        .unwrap()
}

pub(crate) fn server() -> Profile {
    Profile::Server { names: Vec::new() }
}

/// Runs the real `openssl` in `dir`.
pub(crate) fn openssl(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl is installed")
}

/// Runs `openssl`, which must succeed; gives its standard output.
pub(crate) fn openssl_ok(dir: &Path, arguments: &[&str]) -> String {
    let output = openssl(dir, arguments);
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
