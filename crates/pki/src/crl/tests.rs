use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::authority::Profile;
use crate::kind::KeyKind;
use crate::revocations::Revocations;
use crate::testing::{DAY, NOW, authority, key, leaf, openssl, openssl_ok};

fn revoked(certificate: &Certificate, reason: Reason) -> Revoked {
    Revoked { serial: certificate.serial().clone(), time: NOW, reason }
}

fn list(authority: &Authority, revoked: &[Revoked]) -> Crl {
    authority.crl(revoked, NOW, NOW.plus(30 * DAY), 7).unwrap()
}

#[test]
fn a_list_is_read_back_as_it_was_made() {
    let authority = authority(KeyKind::P384);
    let certificate = leaf(&authority, &key(KeyKind::P256), Profile::Client);
    let entries = [
        revoked(&certificate, Reason::KeyCompromise),
        Revoked { serial: "ff".parse().unwrap(), time: NOW.plus(DAY), reason: Reason::Unspecified },
    ];

    let list = list(&authority, &entries);
    let again = Crl::bundle_from_pem(&list.to_pem()).unwrap().remove(0);

    assert_eq!(again.revoked(), entries);
    assert_eq!((again.this_update(), again.next_update()), (NOW, Some(NOW.plus(30 * DAY))));
    assert_eq!(again.issuer_key_id(), authority.certificate().key_id());
    again.verify(authority.certificate()).unwrap();
}

#[test]
fn every_kind_of_authority_signs_lists_that_openssl_verifies() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KeyKind::ALL {
        let authority = authority(kind);
        let list = list(&authority, &[revoked(authority.certificate(), Reason::Superseded)]);
        list.verify(authority.certificate()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.certificate().to_pem()).unwrap();
        std::fs::write(dir.path().join("crl.pem"), list.to_pem()).unwrap();

        let output =
            openssl(dir.path(), &["crl", "-in", "crl.pem", "-CAfile", "ca.pem", "-noout", "-verify"]);

        assert!(String::from_utf8_lossy(&output.stderr).contains("verify OK"), "{kind}: {output:?}");
    }
}

#[test]
fn a_revoked_certificate_fails_openssl_verification_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(KeyKind::Ed448);
    let bad = leaf(&authority, &key(KeyKind::P256), Profile::Client);
    let good = leaf(&authority, &key(KeyKind::P256), Profile::Client);
    let list = list(&authority, &[revoked(&bad, Reason::KeyCompromise)]);
    for (name, text) in [
        ("ca.pem", authority.certificate().to_pem()),
        ("crl.pem", list.to_pem()),
        ("bad.pem", bad.to_pem()),
        ("good.pem", good.to_pem()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let at = NOW.as_secs().to_string();
    let verify = ["verify", "-attime", &at, "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem"];

    let refused = openssl(dir.path(), &[verify.as_slice(), &["bad.pem"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("certificate revoked"), "{refused:?}");
    openssl_ok(dir.path(), &[verify.as_slice(), &["good.pem"]].concat());
}

#[test]
fn an_empty_list_is_a_list() {
    let authority = authority(KeyKind::P256);

    let list = list(&authority, &[]);

    assert!(list.revoked().is_empty());
    list.verify(authority.certificate()).unwrap();
}

#[test]
fn lists_of_others_and_altered_lists_do_not_verify() {
    let one = authority(KeyKind::P256);
    let same_name = authority(KeyKind::P256);
    let other = authority(KeyKind::P384);
    let list = list(&one, &[revoked(one.certificate(), Reason::Unspecified)]);

    assert_eq!(list.verify(same_name.certificate()), Err(CrlError::Signature(BadSignature::Wrong)));
    assert!(matches!(list.verify(other.certificate()), Err(CrlError::OtherIssuer { .. })));
    let serial = one.certificate().serial().to_x509().unwrap();
    let at =
        list.der().windows(serial.as_bytes().len()).position(|bytes| bytes == serial.as_bytes()).unwrap();
    let mut der = list.der().to_vec();
    der[at] ^= 1;
    let altered = Crl::from_der(&der).unwrap();
    assert_eq!(altered.verify(one.certificate()), Err(CrlError::Signature(BadSignature::Wrong)));
}

/// Without reasons and configured extensions, `openssl ca -gencrl` makes a list of version 1, whose version
/// field is absent.
#[test]
fn lists_that_openssl_makes_are_read_and_verified_in_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let key = key(KeyKind::P256);
    write("ca.key", &key.to_pkcs8_pem().unwrap());
    let authority = Authority::create("CA", Box::new(key), NOW, 36500 * DAY).unwrap();
    write("ca.pem", &authority.certificate().to_pem());
    write("ca.cnf", "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_md=sha256\n");
    for (written, reason, version) in
        [("", Reason::Unspecified, "Version 1"), (",keyCompromise", Reason::KeyCompromise, "Version 2")]
    {
        write("index.txt", &format!("R\t360101000000Z\t260101000000Z{written}\t0ABC\tunknown\t/CN=x\n"));
        let command = ["ca", "-config", "ca.cnf", "-gencrl", "-keyfile", "ca.key", "-cert", "ca.pem"];
        let pem = openssl_ok(dir.path(), &[command.as_slice(), &["-crldays", "10"]].concat());
        write("crl.pem", &pem);
        let shown = openssl_ok(dir.path(), &["crl", "-in", "crl.pem", "-noout", "-text"]);
        assert!(shown.contains(version), "{shown}");

        let list = Crl::bundle_from_pem(&pem).unwrap().remove(0);

        list.verify(authority.certificate()).unwrap();
        assert_eq!(list.revoked()[0].serial.to_string(), "0abc");
        assert_eq!(list.revoked()[0].reason, reason);
    }
}

#[test]
fn the_set_holds_what_its_lists_revoke_and_nothing_else() {
    let authority = authority(KeyKind::P256);
    let key = key(KeyKind::P256);
    let (bad, good) = (leaf(&authority, &key, Profile::Client), leaf(&authority, &key, Profile::Client));
    let mut set = Revocations::new();
    assert!(set.is_empty() && !set.contains(&bad));

    set.add_crl(&list(&authority, &[revoked(&bad, Reason::Unspecified)]), authority.certificate()).unwrap();

    assert!(set.contains(&bad) && !set.contains(&good));
    assert_eq!((set.len(), set.next_update()), (1, Some(NOW.plus(30 * DAY))));
    set.add(authority.certificate(), good.serial().clone());
    assert!(set.contains(&good));
}

#[test]
fn a_serial_is_revoked_for_its_own_issuer_only() {
    let (one, two) = (authority(KeyKind::P256), authority(KeyKind::P384));
    let same_name = authority(KeyKind::P256);
    let certificate = leaf(&one, &key(KeyKind::P256), Profile::Client);
    let mut set = Revocations::new();

    set.add(two.certificate(), certificate.serial().clone());
    set.add(same_name.certificate(), certificate.serial().clone());
    assert!(!set.contains(&certificate));

    set.add(one.certificate(), certificate.serial().clone());
    assert!(set.contains(&certificate));
}

#[test]
fn an_unverified_list_adds_nothing() {
    let (one, two) = (authority(KeyKind::P256), authority(KeyKind::P256));
    let certificate = leaf(&one, &key(KeyKind::P256), Profile::Client);
    let mut set = Revocations::new();

    let error = set.add_crl(&list(&two, &[revoked(&certificate, Reason::Unspecified)]), one.certificate());

    assert_eq!(error, Err(CrlError::Signature(BadSignature::Wrong)));
    assert!(set.is_empty());
}

#[test]
fn updates_in_the_wrong_order_are_refused() {
    let authority = authority(KeyKind::P256);

    assert_eq!(authority.crl(&[], NOW, NOW, 1).err(), Some(AuthorityError::BadUpdateTimes));
}

#[test]
fn a_partial_list_is_refused() {
    let delta = Extension {
        extn_id: "2.5.29.27".parse().unwrap(),
        critical: true,
        extn_value: OctetString::new([2, 1, 1]).unwrap(),
    };

    assert_eq!(refuse_partial(std::slice::from_ref(&delta)), Err(CrlError::Partial(delta.extn_id)));
}

proptest! {
    #[test]
    fn damaged_lists_do_not_panic_and_do_not_verify(at in any::<proptest::sample::Index>(), change in 1u8..) {
        static MADE: OnceLock<(Authority, Crl)> = OnceLock::new();
        let (authority, good) = MADE.get_or_init(|| {
            let authority = authority(KeyKind::Ed25519);
            let list = list(&authority, &[revoked(authority.certificate(), Reason::KeyCompromise)]);
            (authority, list)
        });
        let mut der = good.der().to_vec();
        let at = at.index(der.len());
        der[at] ^= change;
        if let Ok(list) = Crl::from_der(&der) {
            prop_assert!(list.verify(authority.certificate()).is_err());
        }
    }
}
