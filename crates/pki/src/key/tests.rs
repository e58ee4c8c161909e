use super::*;
use crate::testing::{key, openssl_ok};
use proptest::prelude::*;

#[test]
fn every_kind_survives_pkcs8_and_still_signs() {
    for kind in KeyKind::ALL {
        let original = key(kind);

        let again = PrivateKey::from_pem(&original.to_pkcs8_pem().unwrap()).unwrap();

        assert_eq!(again.kind(), kind);
        assert_eq!(again.public_key(), original.public_key(), "{kind}");
        let algorithm = algorithm::signature_algorithm(kind).oid;
        let signature = again.sign(b"message").unwrap();
        algorithm::verify(original.public_key(), algorithm, b"message", &signature).unwrap();
        assert!(
            algorithm::verify(original.public_key(), algorithm, b"massage", &signature).is_err(),
            "{kind}"
        );
    }
}

#[test]
fn two_generated_keys_differ() {
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::P521, KeyKind::Ed25519, KeyKind::Ed448] {
        let (one, two) = (PrivateKey::generate(kind).unwrap(), PrivateKey::generate(kind).unwrap());
        assert_eq!(one.kind(), kind);
        assert_ne!(one.public_key(), two.public_key(), "{kind}");
    }
}

/// What `openssl pkey` makes of our key is the public key we say it has.
#[test]
fn openssl_reads_our_keys_and_agrees_on_the_public_key() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KeyKind::ALL {
        let key = key(kind);
        std::fs::write(dir.path().join("key.pem"), key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();

        let public = openssl_ok(dir.path(), &["pkey", "-in", "key.pem", "-pubout"]);

        assert_eq!(pem::parse(&public).unwrap()[0].der.as_slice(), key.public_key(), "{kind}");
    }
}

#[test]
fn we_read_what_openssl_generates() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, options) in [
        (KeyKind::Rsa(2048), ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"].as_slice()),
        (KeyKind::P256, &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        (KeyKind::P384, &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        (KeyKind::P521, &["EC", "-pkeyopt", "ec_paramgen_curve:P-521"]),
        (KeyKind::Ed25519, &["ED25519"]),
        (KeyKind::Ed448, &["ED448"]),
    ] {
        let pem = openssl_ok(dir.path(), &[&["genpkey", "-algorithm"], options].concat());

        assert_eq!(PrivateKey::from_pem(&pem).unwrap().kind(), kind);
    }
}

#[test]
fn the_older_forms_of_rsa_and_ec_keys_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [KeyKind::Rsa(2048), KeyKind::P256, KeyKind::P384, KeyKind::P521] {
        let key = key(kind);
        std::fs::write(dir.path().join("key.pem"), key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();

        let old = openssl_ok(dir.path(), &["pkey", "-in", "key.pem", "-traditional"]);

        assert!(!old.contains("BEGIN PRIVATE KEY"), "{old}");
        // As `openssl ecparam -genkey` writes it, with the parameters in a block of their own.
        let old = format!("{}{old}", pem::encode("EC PARAMETERS", &[6, 1, 0]));
        let read = PrivateKey::from_pem(&old).unwrap();
        assert_eq!((read.kind(), read.public_key()), (kind, key.public_key()));
    }
}

#[test]
fn encrypted_keys_are_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key.pem"), key(KeyKind::P256).to_pkcs8_pem().unwrap().as_bytes())
        .unwrap();
    let pkcs8 = openssl_ok(dir.path(), &["pkcs8", "-in", "key.pem", "-topk8", "-passout", "pass:x"]);
    let legacy = openssl_ok(dir.path(), &["ec", "-in", "key.pem", "-aes128", "-passout", "pass:x"]);
    assert!(pkcs8.contains("BEGIN ENCRYPTED PRIVATE KEY") && legacy.contains("Proc-Type"));

    for text in [&pkcs8, &legacy] {
        assert_eq!(PrivateKey::from_pem(text).err(), Some(KeyError::Encrypted));
    }
    let der = &pem::parse(&pkcs8).unwrap()[0].der;
    assert_eq!(PrivateKey::from_pkcs8_der(der).err(), Some(KeyError::Encrypted));
    assert!(KeyError::Encrypted.to_string().contains("is encrypted"));
}

#[test]
fn what_is_not_supported_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let small = openssl_ok(dir.path(), &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let curve =
        openssl_ok(dir.path(), &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"]);
    let montgomery = openssl_ok(dir.path(), &["genpkey", "-algorithm", "X25519"]);

    for (text, named) in [(small, "RSA-1024"), (curve, "curve 1.3.132.0.10"), (montgomery, "1.3.101.110")] {
        let error = PrivateKey::from_pem(&text).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(PrivateKey::from_pem("no key here").err(), Some(KeyError::Missing));
    assert_eq!(
        PrivateKey::generate(KeyKind::Rsa(6144)).err(),
        Some(KeyError::NotGenerated(KeyKind::Rsa(6144)))
    );
}

/// Sizes that the library cannot generate can still be used.
#[test]
fn an_rsa_key_of_an_unusual_size_is_read_and_signs() {
    let dir = tempfile::tempdir().unwrap();
    let pem = openssl_ok(dir.path(), &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2560"]);

    let key = PrivateKey::from_pem(&pem).unwrap();

    assert_eq!(key.kind(), KeyKind::Rsa(2560));
    assert_eq!(key.sign(b"message").unwrap().len(), 320);
}

#[test]
fn debug_shows_the_kind_and_nothing_else() {
    for kind in [KeyKind::P256, KeyKind::Ed448] {
        assert_eq!(format!("{:?}", key(kind)), format!("PrivateKey({kind})"));
    }
}

proptest! {
    /// One byte changed anywhere: refused, or a key that still works as one. Never a panic.
    #[test]
    fn damaged_keys_do_not_panic(at in 0usize..100, value in any::<u8>(), ed448 in any::<bool>()) {
        let key = key(if ed448 { KeyKind::Ed448 } else { KeyKind::P256 });
        let mut der = key.to_pkcs8_der().unwrap();
        let at = at % der.len();
        der[at] = value;
        if let Ok(key) = PrivateKey::from_pkcs8_der(&der) {
            key.sign(b"message").unwrap();
        }
    }
}
