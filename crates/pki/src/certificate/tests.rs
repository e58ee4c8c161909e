use super::*;
use crate::authority::{Authority, Leaf, Profile};
use crate::key::Signer;
use crate::testing::{DAY, NOW, authority, key, leaf, openssl_ok, server};
use data_encoding::HEXLOWER;
use proptest::prelude::*;

#[test]
fn fields_are_those_that_openssl_prints() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::Ed448);
    let certificate = authority
        .issue(&Leaf {
            public_key: key.public_key(),
            common_name: "Ann's \u{2713}",
            profile: server(),
            now: NOW,
            lifetime: DAY,
        })
        .unwrap();
    std::fs::write(dir.path().join("c.pem"), certificate.to_pem()).unwrap();
    let print = |option: &[&str]| {
        openssl_ok(dir.path(), &[&["x509", "-in", "c.pem", "-noout"], option].concat()).trim().to_owned()
    };

    assert_eq!(print(&["-serial"]).to_lowercase(), format!("serial={}", certificate.serial()));
    let names = ["-nameopt", "sep_comma_plus_space,sname,utf8,esc_ctrl"];
    assert_eq!(
        print(&[&["-subject"], names.as_slice()].concat()),
        format!("subject={}", certificate.subject())
    );
    assert_eq!(print(&[&["-issuer"], names.as_slice()].concat()), format!("issuer={}", certificate.issuer()));
    let fingerprint = print(&["-fingerprint", "-sha256"]).replace(':', "").to_lowercase();
    assert_eq!(fingerprint, format!("sha256 fingerprint={}", HEXLOWER.encode(&certificate.fingerprint())));
    let dates = print(&["-dates", "-dateopt", "iso_8601"]).replace(' ', "T").replace("=", " ");
    assert_eq!(
        dates,
        format!("notBefore {}\nnotAfter {}", certificate.not_before(), certificate.not_after())
    );
    assert_eq!(pem::parse(&print(&["-pubkey"])).unwrap()[0].der.as_slice(), certificate.public_key());
    assert_eq!(certificate.common_name().as_deref(), Some("Ann's \u{2713}"));
}

/// OpenVPN prints with these flags of OpenSSL's; every kind of attribute and value must come out alike.
#[test]
fn subjects_print_exactly_as_openssl_prints_them_for_openvpn() {
    let dir = tempfile::tempdir().unwrap();
    let all = name::short_names().map(|name| match name {
        "C" | "jurisdictionC" => format!("/{name}=NG"),
        _ => format!("/{name}=v"),
    });
    let all = all.collect::<String>();
    for subject in [
        "/C=NG/ST=Ogun/O=a, b/OU=x+OU=y/CN=c d",
        "/CN=back\\\\slash \u{1}\u{7f} \u{e9}\u{2713}\"<>;#=",
        "/1.2.3.4=numbered/CN= spaces ",
        &all,
    ] {
        openssl_ok(
            dir.path(),
            &[
                "req",
                "-x509",
                "-utf8",
                "-multivalue-rdn",
                "-subj",
                subject,
                "-newkey",
                "ed25519",
                "-nodes",
                "-keyout",
                "k",
                "-out",
                "c.pem",
            ],
        );
        let names = ["-nameopt", "sep_comma_plus_space,sname,utf8,esc_ctrl"];
        let expected = openssl_ok(
            dir.path(),
            &[&["x509", "-in", "c.pem", "-noout", "-subject"], names.as_slice()].concat(),
        );

        let pem = std::fs::read_to_string(dir.path().join("c.pem")).unwrap();

        let printed = Certificate::from_pem(&pem).unwrap().subject();
        assert_eq!(format!("subject={printed}\n"), expected);
    }
}

#[test]
fn serial_and_key_hash_are_the_same_without_the_rest() {
    for kind in KeyKind::ALL {
        let certificate = leaf(&authority(KeyKind::P256), &key(kind), Profile::Client);
        let der = certificate.der();
        let expected = (certificate.serial().clone(), certificate.key_hash());
        assert_eq!(Certificate::serial_and_key_hash(der), Ok(expected), "{kind}");
        for damaged in [&der[..der.len() - 1], &[der, &[0]].concat(), b"", b"\x30\x00", b"\x30\x02\x30\x00"] {
            assert!(Certificate::serial_and_key_hash(damaged).is_err(), "{kind}");
        }
    }
}

#[test]
fn the_key_hash_is_that_of_the_key_and_not_of_the_certificate() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let (one, two) = (leaf(&authority, &key, Profile::Client), leaf(&authority, &key, Profile::Client));

    assert_eq!(one.key_hash(), two.key_hash());
    assert_ne!(one.fingerprint(), two.fingerprint());
    assert_eq!(one.public_key(), key.public_key());
}

#[test]
fn usages_are_told_apart() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let client = leaf(&authority, &key, Profile::Client);
    let server = leaf(&authority, &key, server());
    let root = authority.certificate();

    assert!(client.has_purpose(Purpose::Client) && !client.has_purpose(Purpose::Server));
    assert!(server.has_purpose(Purpose::Server) && !server.has_purpose(Purpose::Client));
    assert_eq!(server.extended_key_usages(), ["1.3.6.1.5.5.7.3.1"]);
    assert!(client.has_key_usage() && client.may_sign() && !client.is_authority());
    assert!(root.has_key_usage() && !root.may_sign() && root.is_authority());
    assert!(root.extended_key_usages().is_empty());
}

#[test]
fn a_bundle_is_read_in_order_and_other_blocks_are_passed_over() {
    let authority = authority(KeyKind::P256);
    let certificate = leaf(&authority, &key(KeyKind::P256), Profile::Client);
    let key = key(KeyKind::P256).to_pkcs8_pem().unwrap();
    let text = format!("{}{}text\n{}", certificate.to_pem(), *key, authority.certificate().to_pem());

    let bundle = Certificate::bundle_from_pem(&text).unwrap();

    assert_eq!(bundle, [certificate, authority.certificate().clone()]);
    assert_eq!(Certificate::from_pem(&key), Err(CertificateError::Missing));
}

#[test]
fn a_certificate_without_extensions_is_read_as_having_none() {
    let dir = tempfile::tempdir().unwrap();
    openssl_ok(
        dir.path(),
        &["req", "-new", "-subj", "/CN=x", "-newkey", "ed25519", "-nodes", "-keyout", "k", "-out", "r"],
    );
    let pem = openssl_ok(dir.path(), &["x509", "-req", "-in", "r", "-signkey", "k", "-set_serial", "255"]);

    let certificate = Certificate::from_pem(&pem).unwrap();

    assert!(!certificate.has_key_usage() && !certificate.may_sign() && !certificate.is_authority());
    assert_eq!(certificate.serial().to_string(), "ff");
    assert_eq!(certificate.key_id(), None);
}

proptest! {
    /// Strangers' certificates: any byte changed, any prefix. Refused or read, never a panic.
    #[test]
    fn damaged_certificates_do_not_panic(at in any::<proptest::sample::Index>(), value in any::<u8>(), cut in any::<bool>()) {
        let authority = Authority::create("CA", Box::new(key(KeyKind::Ed25519)), NOW, DAY).unwrap();
        let mut der = authority.certificate().der().to_vec();
        let at = at.index(der.len());
        if cut { der.truncate(at) } else { der[at] = value }
        if let Ok(certificate) = Certificate::from_der(&der) {
            let _ = (certificate.subject(), certificate.common_name(), certificate.not_after().to_string());
        }
    }
}
