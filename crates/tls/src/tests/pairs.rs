//! Connections that must come to be.

use adit_openvpn::tls::Group;
use adit_pki::Revocations;

use super::*;
use crate::client::{library_client, library_config};
use crate::connection::{Connection, Side};
use crate::{LiveRevocations, NameCheck};

/// Which version a pair agreed on.
fn version(pair: &Pair) -> String {
    pair.server.describe().split(' ').next().unwrap().to_owned()
}

#[test]
fn every_kind_of_leaf_works_under_another_kind_of_authority_in_both_versions() {
    let kinds = KeyKind::ALL;
    for (index, kind) in kinds.into_iter().enumerate() {
        let authority = authority(kinds[(index + 4) % kinds.len()]);
        let server = Holder::new(&authority, kind, server_profile());
        let client = Holder::new(&authority, kind, Profile::Client);
        for (versions, expected) in [(Versions::Only12, "TLSv1.2"), (Versions::Both, "TLSv1.3")] {
            let mut pair = Pair::run(
                server_settings(&authority, &[&server]),
                ClientSettings { versions, ..client_settings(&authority, Some(&client)) },
            );

            pair.assert_established(&format!("{kind} under {authority:?} in {expected}"));
            assert_eq!(version(&pair), expected);
            assert_eq!(exported(pair.server.as_ref()), exported(pair.client.as_ref()), "{kind}");
            assert_eq!(pair.server.peer().chain, [client.certificate.der()], "{kind}");
            assert_eq!(pair.client.peer().chain, [server.certificate.der()], "{kind}");
            pair.client.write(b"to the server").unwrap();
            pair.server.write(b"to the client").unwrap();
            pair.settle();
            assert_eq!(read_all(pair.server.as_mut()), b"to the server");
            assert_eq!(read_all(pair.client.as_mut()), b"to the client");
        }
    }
}

#[test]
fn server_and_client_may_have_different_kinds() {
    let authority = authority(KeyKind::Ed448);
    for (server, client) in [
        (KeyKind::Rsa(2048), KeyKind::Ed448),
        (KeyKind::Ed448, KeyKind::Rsa(2048)),
        (KeyKind::P521, KeyKind::Ed25519),
    ] {
        let server = Holder::new(&authority, server, server_profile());
        let client = Holder::new(&authority, client, Profile::Client);
        for versions in [Versions::Only12, Versions::Only13] {
            let pair = Pair::run(
                server_settings(&authority, &[&server]),
                ClientSettings { versions, ..client_settings(&authority, Some(&client)) },
            );
            pair.assert_established(&format!("{server:?}, {client:?}, {versions:?}"));
        }
    }
}

#[test]
fn two_of_ours_agree_on_tls_13_with_the_hybrid_key_exchange() {
    let world = World::new();

    let pair = Pair::run(world.server_settings(), world.client_settings());

    pair.assert_established("P-256");
    assert_eq!(pair.server.describe(), "TLSv1.3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768");
    assert_eq!(pair.client.describe(), pair.server.describe());
}

#[test]
fn a_client_may_say_which_key_exchange_is_used() {
    let world = World::new();
    for group in Group::ALL {
        let client = ClientSettings { groups: vec![group], ..world.client_settings() };
        let pair = Pair::run(world.server_settings(), client);
        pair.assert_established(group.name());
        assert!(
            pair.server.describe().ends_with(&format!(" {}", group.name())),
            "{}",
            pair.server.describe()
        );
    }
}

#[test]
fn a_client_sends_no_server_name() {
    let world = World::new();
    let mut pair = Pair::new(world.server_settings(), world.client_settings());

    let mut hello = Vec::new();
    pair.client.drain(&mut hello, usize::MAX);

    assert!(hello.len() > 100 && !hello.windows(7).any(|bytes| bytes == b"invalid"));
}

#[test]
fn exported_keys_depend_on_label_and_connection() {
    let world = World::new();
    let one = Pair::run(world.server_settings(), world.client_settings());
    let two = Pair::run(world.server_settings(), world.client_settings());

    let mut other = vec![0; 256];
    one.server.export("EXPORTER-OpenVPN-dynamic-tls-crypt", &mut other).unwrap();

    assert_ne!(exported(one.server.as_ref()), other);
    assert_ne!(exported(one.server.as_ref()), exported(two.server.as_ref()));
}

#[test]
fn of_several_identities_the_one_is_chosen_that_the_client_can_verify() {
    let authority = authority(KeyKind::P256);
    let kinds = [KeyKind::Rsa(2048), KeyKind::P256, KeyKind::P521, KeyKind::Ed25519, KeyKind::Ed448];
    let holders = kinds.map(|kind| Holder::new(&authority, kind, server_profile()));
    let client = Holder::new(&authority, KeyKind::P256, Profile::Client);
    let settings = || server_settings(&authority, &holders.each_ref());
    use rustls::SignatureScheme as Scheme;
    for (expected, scheme) in [
        (0, Scheme::RSA_PSS_SHA256),
        (1, Scheme::ECDSA_NISTP256_SHA256),
        (2, Scheme::ECDSA_NISTP521_SHA512),
        (3, Scheme::ED25519),
        (4, Scheme::ED448),
    ] {
        for versions in [Versions::Only12, Versions::Only13] {
            let client = ClientSettings { versions, ..client_settings(&authority, Some(&client)) };
            let mut pair = Pair::new(settings(), client.clone());
            let config = Arc::new(library_config(client, vec![scheme]).unwrap());
            let library = rustls::Connection::Client(library_client(&config).unwrap());
            pair.client = Box::new(Connection::new(library, Side::Client, Arc::default()));

            pair.settle();

            pair.assert_established(&format!("{scheme:?} {versions:?}"));
            assert_eq!(pair.client.peer().chain, [holders[expected].certificate.der()], "{scheme:?}");
            let own = pair.server.own_certificate();
            assert_eq!(own.as_deref(), Some(holders[expected].certificate.der()), "{scheme:?}");
        }
    }
}

/// Root, intermediate authority, and settings of both ends with certificates of the latter.
fn with_intermediate() -> (Authority, Authority, ServerSettings, ClientSettings) {
    let dir = tempfile::tempdir().unwrap();
    // Our authorities issue leaves only, so OpenSSL makes the intermediate one.
    let key = PrivateKey::generate(KeyKind::P384).unwrap();
    let pem = key.to_pkcs8_pem().unwrap();
    let root =
        Authority::create("root", Box::new(PrivateKey::from_pem(&pem).unwrap()), NOW, 3650 * DAY).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("root.key", &pem);
    write("root.pem", &root.certificate().to_pem());
    write(
        "ext",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n",
    );
    let middle = PrivateKey::generate(KeyKind::P256).unwrap();
    write("middle.key", &middle.to_pkcs8_pem().unwrap());
    openssl::command(dir.path(), &["req", "-new", "-key", "middle.key", "-subj", "/CN=middle", "-out", "r"]);
    openssl::command(
        dir.path(),
        &[
            "x509",
            "-req",
            "-in",
            "r",
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-days",
            "3000",
            "-extfile",
            "ext",
            "-out",
            "middle.pem",
        ],
    );
    let middle_pem = std::fs::read_to_string(dir.path().join("middle.pem")).unwrap();
    let middle = Authority::load(Certificate::from_pem(&middle_pem).unwrap(), Box::new(middle)).unwrap();
    // OpenSSL dated the intermediate by the system's clock.
    let now = middle.certificate().not_before().plus(DAY);
    let holder = |profile| Holder::valid_from(&middle, KeyKind::P256, profile, now);
    let (server, client) = (holder(server_profile()), holder(Profile::Client));
    let identity = |holder: &Holder| {
        Identity::new(&[holder.certificate.clone(), middle.certificate().clone()], &holder.key).unwrap()
    };

    let server =
        ServerSettings { identities: vec![identity(&server)], clock: at(now), ..server_settings(&root, &[]) };
    let client =
        ClientSettings { identity: Some(identity(&client)), clock: at(now), ..client_settings(&root, None) };
    (root, middle, server, client)
}

#[test]
fn a_chain_over_an_intermediate_authority_is_verified() {
    let (_, middle, server, client) = with_intermediate();

    let pair = Pair::run(server, client);

    pair.assert_established("intermediate");
    let chain = pair.server.peer().chain;
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], middle.certificate().der());
}

#[test]
fn a_revoked_intermediate_authority_takes_its_certificates_along() {
    let (root, middle, server, client) = with_intermediate();
    let mut revocations = Revocations::new();
    revocations.add(root.certificate(), middle.certificate().serial().clone());
    let revocations = Some(Arc::new(LiveRevocations::new(revocations)));

    let by_server =
        Pair::run(ServerSettings { revocations: revocations.clone(), ..server.clone() }, client.clone());
    let by_client = Pair::run(server, ClientSettings { revocations, ..client });

    for text in [by_server.server_refusal(), by_client.client_refusal()] {
        assert!(text.starts_with("a CA certificate in the peer's chain is revoked"), "{text}");
    }
}

#[test]
fn the_servers_name_is_compared_as_asked() {
    let world = World::new();
    for name in [
        NameCheck::Subject("CN=P-256 holder".into()),
        NameCheck::Name("P-256 holder".into()),
        NameCheck::NamePrefix("P-256".into()),
    ] {
        let client = ClientSettings { name: Some(name.clone()), ..world.client_settings() };
        Pair::run(world.server_settings(), client).assert_established(&format!("{name:?}"));
    }
}

#[test]
fn a_fingerprint_takes_the_place_of_an_authority() {
    let world = World::new();
    let client = ClientSettings {
        authorities: Vec::new(),
        fingerprints: vec![[0; 32], world.server.certificate.fingerprint()],
        ..world.client_settings()
    };

    Pair::run(world.server_settings(), client).assert_established("fingerprint");
}

/// The set-up of OpenVPN's own description of `peer-fingerprint`: a self-signed certificate that says CA.
#[test]
fn a_self_signed_certificate_is_accepted_by_its_fingerprint() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    openssl::command(
        dir.path(),
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "k",
            "-out",
            "c",
            "-subj",
            "/CN=x",
            "-days",
            "3650",
        ],
    );
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let holder = Holder {
        certificate: Certificate::from_pem(&read("c")).unwrap(),
        key: PrivateKey::from_pem(&read("k")).unwrap(),
    };
    let now = holder.certificate.not_before().plus(DAY);
    let client = |now| ClientSettings {
        authorities: Vec::new(),
        fingerprints: vec![holder.certificate.fingerprint()],
        remote_cert_tls: false,
        clock: at(now),
        ..world.client_settings()
    };
    // The clock of the server stands at the moment that its client's certificate is of.
    let server = || server_settings(&world.authority, &[&holder]);

    Pair::run(server(), client(now)).assert_established("self-signed");
    let late = Pair::run(server(), client(now.plus(3651 * DAY)));
    assert!(late.client_refusal().contains("has expired"), "{}", late.client_refusal());
}
