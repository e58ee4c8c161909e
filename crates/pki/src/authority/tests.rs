use super::*;
use crate::key::PrivateKey;
use crate::testing::{DAY, NOW, authority, key, leaf, openssl, openssl_ok, server};
use std::path::Path;

fn write_pair(dir: &Path, authority: &Authority, leaf: &Certificate) {
    std::fs::write(dir.join("ca.pem"), authority.certificate().to_pem()).unwrap();
    std::fs::write(dir.join("leaf.pem"), leaf.to_pem()).unwrap();
}

/// `openssl verify` at the tests' moment.
fn openssl_verifies(dir: &Path, purpose: &str) -> Result<(), String> {
    let at = NOW.as_secs().to_string();
    let output = openssl(
        dir,
        &["verify", "-x509_strict", "-attime", &at, "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"],
    );
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// 9 × 9: checked with our own verifier, which `key::tests` and the lists below hold against OpenSSL.
#[test]
fn every_kind_of_authority_signs_every_kind_of_leaf() {
    let leaves = KeyKind::ALL.map(key);
    for kind in KeyKind::ALL {
        let authority = authority(kind);
        for key in &leaves {
            let certificate = leaf(&authority, key, Profile::Client);

            assert_eq!(certificate.key_kind(), Some(key.kind()));
            let signed = crate::signed::Signed::parse(certificate.der()).unwrap();
            signed.verify(authority.certificate().public_key()).unwrap();
            assert!(signed.verify(leaves[4].public_key()).is_err(), "{kind} over {}", key.kind());
        }
    }
}

#[test]
fn openssl_accepts_our_chains_for_their_purpose_only() {
    let dir = tempfile::tempdir().unwrap();
    for (issuer, subject) in [
        (KeyKind::P384, KeyKind::P256),
        (KeyKind::Ed448, KeyKind::Ed448),
        (KeyKind::Ed448, KeyKind::Rsa(2048)),
        (KeyKind::Rsa(2048), KeyKind::Ed448),
        (KeyKind::Rsa(3072), KeyKind::Ed25519),
        (KeyKind::Rsa(4096), KeyKind::P521),
        (KeyKind::Rsa(8192), KeyKind::Rsa(8192)),
        (KeyKind::P521, KeyKind::P384),
        (KeyKind::Ed25519, KeyKind::Rsa(4096)),
        (KeyKind::P256, KeyKind::Rsa(3072)),
    ] {
        let authority = authority(issuer);
        let key = key(subject);
        for (profile, right, wrong) in
            [(server(), "sslserver", "sslclient"), (Profile::Client, "sslclient", "sslserver")]
        {
            write_pair(dir.path(), &authority, &leaf(&authority, &key, profile));

            openssl_verifies(dir.path(), right)
                .unwrap_or_else(|error| panic!("{issuer} over {subject}: {error}"));
            assert!(openssl_verifies(dir.path(), wrong).is_err(), "{issuer} over {subject}");
        }
    }
}

#[test]
fn the_extensions_are_those_stock_openvpn_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(KeyKind::P256);
    let text = |profile, kind| {
        write_pair(dir.path(), &authority, &leaf(&authority, &key(kind), profile));
        let text = openssl_ok(dir.path(), &["x509", "-in", "leaf.pem", "-noout", "-text"]);
        text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
    };

    let names = ["vpn.example.org", "*.example.org"].map(|name| SubjectName::Dns(name.into()));
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|address| SubjectName::Ip(address.parse().unwrap()));
    let server = text(Profile::Server { names: [names, addresses].concat() }, KeyKind::Rsa(2048));
    let client = text(Profile::Client, KeyKind::P384);

    assert!(server.contains("X509v3 Key Usage: critical\nDigital Signature, Key Encipherment\n"), "{server}");
    assert!(server.contains("X509v3 Extended Key Usage:\nTLS Web Server Authentication\n"), "{server}");
    assert!(
        server.contains(
            "DNS:vpn.example.org, DNS:*.example.org, IP Address:192.0.2.1, IP Address:2001:DB8:0:0:0:0:0:1"
        ),
        "{server}"
    );
    assert!(client.contains("X509v3 Key Usage: critical\nDigital Signature\n"), "{client}");
    assert!(client.contains("X509v3 Extended Key Usage:\nTLS Web Client Authentication\n"), "{client}");
    for leaf in [server, client] {
        assert!(leaf.contains("X509v3 Basic Constraints: critical\nCA:FALSE\n"), "{leaf}");
    }
    let root = openssl_ok(dir.path(), &["x509", "-in", "ca.pem", "-noout", "-text"]);
    assert!(root.contains("X509v3 Basic Constraints: critical\n                CA:TRUE\n"), "{root}");
    assert!(root.contains("Certificate Sign, CRL Sign\n"), "{root}");
}

#[test]
fn key_identifiers_link_leaf_and_authority() {
    let authority = authority(KeyKind::Ed25519);
    let leaf = leaf(&authority, &key(KeyKind::P256), Profile::Client);

    assert!(authority.certificate().key_id().is_some());
    assert_eq!(leaf.issuer_key_id(), authority.certificate().key_id());
    assert_ne!(leaf.key_id(), leaf.issuer_key_id());
}

#[test]
fn validity_is_backdated_and_ends_with_the_authority() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let issue = |now: UnixTime, lifetime| {
        let request =
            Leaf { public_key: key.public_key(), common_name: "x", profile: Profile::Client, now, lifetime };
        authority.issue(&request)
    };

    let early = issue(NOW, 30 * DAY).unwrap();
    assert_eq!((early.not_before(), early.not_after()), (NOW.minus(BACKDATE), NOW.plus(30 * DAY)));
    let late = issue(NOW.plus(3649 * DAY), 30 * DAY).unwrap();
    assert_eq!(late.not_after(), authority.certificate().not_after());
    let over = issue(NOW.plus(3651 * DAY), DAY).unwrap_err();
    assert!(over.to_string().ends_with("renew the CA"), "{over}");
}

#[test]
fn every_certificate_has_its_own_serial_and_the_root_too() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let serials: std::collections::HashSet<_> = (0..20)
        .map(|_| leaf(&authority, &key, Profile::Client).serial().clone())
        .chain([authority.certificate().serial().clone()])
        .collect();

    assert_eq!(serials.len(), 21);
}

#[test]
fn bad_names_and_keys_are_refused() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let issue = |common_name: &str, public_key: &[u8], profile| {
        authority.issue(&Leaf { public_key, common_name, profile, now: NOW, lifetime: DAY }).unwrap_err()
    };

    for name in ["", "a\0b", "new\nline", &"x".repeat(65)] {
        assert_eq!(issue(name, key.public_key(), Profile::Client), AuthorityError::BadName(name.into()));
    }
    for dns in ["", "a b", "caf\u{e9}.example"] {
        let profile = Profile::Server { names: vec![SubjectName::Dns(dns.into())] };
        assert_eq!(issue("x", key.public_key(), profile), AuthorityError::BadDnsName(dns.into()));
    }
    assert_eq!(issue("x", &key.public_key()[1..], Profile::Client), AuthorityError::BadKey);
}

#[test]
fn an_authority_is_loaded_with_its_own_key_only() {
    let pem = key(KeyKind::P256).to_pkcs8_pem().unwrap();
    let load = |pem: &str| Box::new(PrivateKey::from_pem(pem).unwrap());
    let original = Authority::create("CA", load(&pem), NOW, 10 * DAY).unwrap();
    let certificate = Certificate::from_pem(&original.certificate().to_pem()).unwrap();

    let loaded = Authority::load(certificate.clone(), load(&pem)).unwrap();
    let leaf = leaf(&loaded, &key(KeyKind::P256), Profile::Client);
    assert_eq!(leaf.issuer_der(), original.certificate().subject_der());

    let other = Authority::load(certificate, Box::new(key(KeyKind::P256))).unwrap_err();
    assert!(matches!(other, AuthorityError::OtherKey(_)), "{other}");
    let no_ca = Authority::load(leaf, Box::new(key(KeyKind::P256))).unwrap_err();
    assert!(matches!(no_ca, AuthorityError::NotAnAuthority(_)), "{no_ca}");
}

/// An authority that other software made: its key identifier is taken over, not computed.
#[test]
fn an_openssl_authority_is_loaded_and_its_chain_holds() {
    let dir = tempfile::tempdir().unwrap();
    let key_arguments =
        ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", "ca.key"];
    openssl_ok(
        dir.path(),
        &[
            &["req", "-x509", "-subj", "/C=NG/O=Example/CN=old CA", "-days", "36500", "-out", "ca.pem"],
            key_arguments.as_slice(),
        ]
        .concat(),
    );
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let certificate = Certificate::from_pem(&read("ca.pem")).unwrap();
    let signer = Box::new(PrivateKey::from_pem(&read("ca.key")).unwrap());
    let authority = Authority::load(certificate, signer).unwrap();
    let now = authority.certificate().not_before().plus(DAY);

    let key = key(KeyKind::Ed448);
    let leaf = authority
        .issue(&Leaf {
            public_key: key.public_key(),
            common_name: "x",
            profile: Profile::Client,
            now,
            lifetime: DAY,
        })
        .unwrap();

    assert_eq!(leaf.issuer(), "C=NG, O=Example, CN=old CA");
    std::fs::write(dir.path().join("leaf.pem"), leaf.to_pem()).unwrap();
    let at = now.as_secs().to_string();
    openssl_ok(dir.path(), &["verify", "-attime", &at, "-CAfile", "ca.pem", "leaf.pem"]);
}
