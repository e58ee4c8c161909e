use super::*;
use crate::key::Signer;
use crate::testing::{key, openssl_ok};
use proptest::prelude::*;

fn request(kind: KeyKind, subject: &str) -> (Vec<u8>, String) {
    let dir = tempfile::tempdir().unwrap();
    let key = key(kind);
    std::fs::write(dir.path().join("key.pem"), key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
    let pem = openssl_ok(dir.path(), &["req", "-new", "-key", "key.pem", "-subj", subject]);
    (key.public_key().to_vec(), pem)
}

#[test]
fn requests_of_every_kind_are_read() {
    for kind in KeyKind::ALL {
        let (public_key, pem) = request(kind, "/O=Example/CN=ann");

        let request = Request::from_pem(&pem).unwrap();

        assert_eq!((request.kind(), request.public_key()), (kind, public_key.as_slice()));
        assert_eq!(request.common_name(), Some("ann"));
    }
}

#[test]
fn a_request_needs_no_subject_and_may_carry_the_old_label() {
    let (_, pem) = request(KeyKind::Ed25519, "/");

    let request = Request::from_pem(&pem.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")).unwrap();

    assert_eq!(request.common_name(), None);
}

#[test]
fn a_request_for_another_key_is_refused() {
    let (own, pem) = request(KeyKind::Ed25519, "/CN=ann");
    let (other, _) = request(KeyKind::Ed25519, "/CN=ann");
    let mut der = pem::parse(&pem).unwrap()[0].der.to_vec();
    let at = der.windows(own.len()).position(|bytes| bytes == own).unwrap();
    der[at..at + own.len()].copy_from_slice(&other);

    assert_eq!(Request::from_der(&der), Err(RequestError::Signature(BadSignature::Wrong)));
}

#[test]
fn a_sha1_signature_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key.pem"), key(KeyKind::Rsa(2048)).to_pkcs8_pem().unwrap().as_bytes())
        .unwrap();
    let pem = openssl_ok(dir.path(), &["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-sha1"]);

    assert_eq!(Request::from_pem(&pem), Err(RequestError::Signature(BadSignature::Sha1)));
}

#[test]
fn text_without_a_request_says_what_is_missing() {
    let error = Request::from_pem("hello").unwrap_err();

    assert!(error.to_string().contains("BEGIN CERTIFICATE REQUEST"), "{error}");
}

proptest! {
    #[test]
    fn damaged_requests_are_refused(at in any::<proptest::sample::Index>(), change in 1u8..) {
        static PEM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let pem = PEM.get_or_init(|| request(KeyKind::Ed25519, "/CN=ann").1);
        let mut der = pem::parse(pem).unwrap()[0].der.to_vec();
        let at = at.index(der.len());
        der[at] ^= change;
        prop_assert!(Request::from_der(&der).is_err());
    }
}
