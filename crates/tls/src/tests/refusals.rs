//! Connections that must not come to be: why, in words, and the alert that the other end gets.

use super::*;
use crate::{LiveRevocations, NameCheck, SettingsError};
use adit_pki::{Reason, Revocations, Revoked};
use proptest::prelude::*;

/// Runs in both versions; gives the texts of both ends for each.
fn refused(
    server: impl Fn() -> ServerSettings,
    client: impl Fn() -> ClientSettings,
) -> [(String, String); 2] {
    [Versions::Only12, Versions::Only13].map(|versions| {
        let pair = Pair::run(server(), ClientSettings { versions, ..client() });
        assert!(!pair.server.established() && !pair.client.established());
        assert!(pair.server.peer().chain.is_empty() && pair.client.peer().chain.is_empty());
        (pair.server_refusal(), pair.client_refusal())
    })
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_client_of_another_authority_is_refused_and_told() {
    let world = World::new();
    let other = authority(KeyKind::P384);
    let stranger = Holder::new(&other, KeyKind::P256, Profile::Client);
    let serial = stranger.certificate.serial().to_string();

    let ends = refused(|| world.server_settings(), || client_settings(&world.authority, Some(&stranger)));

    // Both authorities have the same name.
    for (server, client) in ends {
        assert_contains(&server, &["certificate not issued by this gateway's CA", &serial, "another key"]);
        assert_contains(&client, &["the peer refused the client's certificate", "issuer is not known"]);
    }
    let renamed = Authority::create("another CA", Box::new(key(KeyKind::P256)), NOW, 3650 * DAY).unwrap();
    let stranger = Holder::new(&renamed, KeyKind::P256, Profile::Client);
    let ends = refused(|| world.server_settings(), || client_settings(&world.authority, Some(&stranger)));
    for (server, client) in ends {
        assert_contains(&server, &["certificate not issued by this gateway's CA"]);
        assert_contains(&client, &["the peer refused the client's certificate", "issuer is not known"]);
    }
}

#[test]
fn a_server_of_another_authority_is_refused_and_told() {
    let world = World::new();
    let renamed = Authority::create("another CA", Box::new(key(KeyKind::P256)), NOW, 3650 * DAY).unwrap();

    let ends = refused(|| world.server_settings(), || client_settings(&renamed, Some(&world.client)));

    for (server, client) in ends {
        assert_contains(&client, &["certificate not issued by the CA of this profile"]);
        assert_contains(&server, &["the peer refused the gateway's certificate", "issuer is not known"]);
    }
}

#[test]
fn expired_certificates_are_refused_with_serial_and_date() {
    let world = World::new();
    let later = NOW.plus(366 * DAY);
    let fresh = |profile| Holder::valid_from(&world.authority, KeyKind::P256, profile, later);
    let (server, client) = (fresh(server_profile()), fresh(Profile::Client));
    let on_time = |settings: ServerSettings| ServerSettings { clock: at(later), ..settings };
    let on_time_too = |settings: ClientSettings| ClientSettings { clock: at(later), ..settings };

    for (text, alert) in refused(
        || on_time(server_settings(&world.authority, &[&server])),
        || on_time_too(client_settings(&world.authority, Some(&world.client))),
    ) {
        let serial = world.client.certificate.serial().to_string();
        assert_contains(
            &text,
            &["the peer's certificate has expired", &serial, "notAfter 2027-03-01T12:00:00Z"],
        );
        assert_contains(&alert, &["the peer refused the client's certificate: it has expired"]);
    }
    for (alert, text) in refused(
        || on_time(server_settings(&world.authority, &[&world.server])),
        || on_time_too(client_settings(&world.authority, Some(&client))),
    ) {
        assert_contains(&text, &["the peer's certificate has expired", "notAfter 2027-03-01T12:00:00Z"]);
        assert_contains(&alert, &["the peer refused the gateway's certificate: it has expired"]);
    }
}

#[test]
fn certificates_of_the_future_are_refused_with_a_word_on_clocks() {
    let world = World::new();
    let early = NOW.minus(DAY);

    for (server, _) in
        refused(|| ServerSettings { clock: at(early), ..world.server_settings() }, || world.client_settings())
    {
        assert_contains(&server, &["is not valid yet", "notBefore 2026-03-01T11:55:00Z", "check the clocks"]);
    }
    for (_, client) in
        refused(|| world.server_settings(), || ClientSettings { clock: at(early), ..world.client_settings() })
    {
        assert_contains(&client, &["is not valid yet", "check the clocks"]);
    }
}

/// Leaves never outlive our authorities, so an authority of the past is made from the same key.
#[test]
fn an_expired_authority_verifies_nobody() {
    let pem = key(KeyKind::P256).to_pkcs8_pem().unwrap();
    let signer = || Box::new(PrivateKey::from_pem(&pem).unwrap());
    let long = Authority::create("CA", signer(), NOW, 3650 * DAY).unwrap();
    let short = Authority::create("CA", signer(), NOW.minus(20 * DAY), 10 * DAY).unwrap();
    let server = Holder::new(&long, KeyKind::P256, server_profile());
    let client = Holder::new(&long, KeyKind::P256, Profile::Client);

    for (text, _) in refused(|| server_settings(&short, &[&server]), || client_settings(&long, Some(&client)))
    {
        assert_contains(&text, &["a CA certificate in the peer's chain has expired", "renew the CA"]);
    }
    // The old and the renewed certificate side by side are fine.
    let roots = vec![short.certificate().clone(), long.certificate().clone()];
    let both = ServerSettings {
        client_authorities: Arc::new(Trust::new(roots).unwrap()),
        ..server_settings(&long, &[&server])
    };
    Pair::run(both, client_settings(&long, Some(&client))).assert_established("renewed");
}

#[test]
fn a_server_certificate_makes_no_client_and_the_reverse() {
    let world = World::new();

    for (server, client) in
        refused(|| world.server_settings(), || client_settings(&world.authority, Some(&world.server)))
    {
        assert_contains(&server, &["is not one of a client", "TLS Web Client Authentication"]);
        assert_contains(&client, &["not meant for this use"]);
    }
    for (server, client) in refused(
        || server_settings(&world.authority, &[&world.client]),
        || client_settings(&world.authority, Some(&world.client)),
    ) {
        assert_contains(&client, &["is not one of a server", "TLS Web Server Authentication"]);
        assert_contains(&server, &["not meant for this use"]);
    }
}

/// A leaf that OpenSSL issues from our authority with `extensions`.
fn odd_leaf(extensions: &str, digest: &str) -> (Authority, Holder, UnixTime) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let ca_pem = key(KeyKind::Rsa(2048)).to_pkcs8_pem().unwrap();
    let authority =
        Authority::create("CA", Box::new(PrivateKey::from_pem(&ca_pem).unwrap()), NOW, 36500 * DAY).unwrap();
    write("ca.key", &ca_pem);
    write("ca.pem", &authority.certificate().to_pem());
    let leaf = key(KeyKind::P256);
    write("leaf.key", &leaf.to_pkcs8_pem().unwrap());
    write("ext", extensions);
    openssl::command(dir.path(), &["req", "-new", "-key", "leaf.key", "-subj", "/CN=odd", "-out", "r"]);
    let pem = openssl::command(
        dir.path(),
        &[
            "x509", "-req", "-in", "r", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "3000", "-extfile",
            "ext", digest,
        ],
    );
    let certificate = Certificate::from_pem(&pem).unwrap();
    let now = certificate.not_before().plus(DAY);
    (authority, Holder { certificate, key: leaf }, now)
}

/// The text with which a gateway refuses `holder`, and a client does.
fn refusals_of(authority: &Authority, holder: &Holder, now: UnixTime) -> (String, Option<String>) {
    let fresh = |profile| Holder::valid_from(authority, KeyKind::P256, profile, now);
    let (server, client) = (fresh(server_profile()), fresh(Profile::Client));
    let by_server = Pair::run(
        ServerSettings { clock: at(now), ..server_settings(authority, &[&server]) },
        ClientSettings { clock: at(now), ..client_settings(authority, Some(holder)) },
    );
    let by_client = Pair::run(
        ServerSettings { clock: at(now), ..server_settings(authority, &[holder]) },
        ClientSettings { clock: at(now), ..client_settings(authority, Some(&client)) },
    );
    (by_server.server_refusal(), by_client.client_fault.map(|fault| fault.to_string()))
}

#[test]
fn usages_must_be_present() {
    let (authority, holder, now) = odd_leaf("keyUsage=digitalSignature\n", "-sha256");
    let (server, client) = refusals_of(&authority, &holder, now);
    assert_contains(&server, &["is not one of a client", "extended key usage does not name"]);
    assert_contains(&client.unwrap(), &["is not one of a server"]);

    let (authority, holder, now) = odd_leaf("extendedKeyUsage=clientAuth,serverAuth\n", "-sha256");
    let (server, client) = refusals_of(&authority, &holder, now);
    assert_contains(&server, &["has no key usage", "client certificate must have"]);
    assert_contains(&client.unwrap(), &["has no key usage", "server certificate must have"]);

    let (authority, holder, now) =
        odd_leaf("keyUsage=keyAgreement\nextendedKeyUsage=clientAuth,serverAuth\n", "-sha256");
    let (server, client) = refusals_of(&authority, &holder, now);
    assert_contains(&server, &["lacks digitalSignature"]);
    assert_eq!(client, None, "remote-cert-tls asks for the presence of a key usage only");
}

#[test]
fn without_remote_cert_tls_a_server_needs_no_usages() {
    let (authority, holder, now) = odd_leaf("basicConstraints=CA:FALSE\n", "-sha256");
    let client = Holder::valid_from(&authority, KeyKind::P256, Profile::Client, now);

    let pair = Pair::run(
        ServerSettings { clock: at(now), ..server_settings(&authority, &[&holder]) },
        ClientSettings {
            clock: at(now),
            remote_cert_tls: false,
            ..client_settings(&authority, Some(&client))
        },
    );

    pair.assert_established("no usages");
}

#[test]
fn a_certificate_signed_with_sha1_is_refused_by_name() {
    let (authority, holder, now) =
        odd_leaf("keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n", "-sha1");

    let (server, client) = refusals_of(&authority, &holder, now);

    assert_contains(&server, &["signed with SHA-1"]);
    assert_contains(&client.unwrap(), &["signed with SHA-1"]);
}

#[test]
fn an_authoritys_own_certificate_is_no_client() {
    let (authority, holder, now) = odd_leaf(
        "basicConstraints=critical,CA:TRUE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n",
        "-sha256",
    );

    assert_contains(&refusals_of(&authority, &holder, now).0, &["is a CA certificate"]);
}

#[test]
fn a_client_without_certificate_is_told_to_bring_one() {
    let world = World::new();

    for (server, client) in refused(|| world.server_settings(), || client_settings(&world.authority, None)) {
        assert_contains(&server, &["sent no certificate"]);
        assert_contains(&client, &["certificate"]);
    }
}

#[test]
fn a_revoked_client_is_refused_from_the_moment_of_its_revocation() {
    let world = World::new();
    let live = Arc::new(LiveRevocations::default());
    let settings = || ServerSettings { revocations: Some(Arc::clone(&live)), ..world.server_settings() };
    let source = ServerTls::new(settings()).unwrap();
    let mut before = Pair::new(settings(), world.client_settings());
    before.server = source.start().unwrap();
    before.settle();
    before.assert_established("not revoked yet");

    let entry = Revoked {
        serial: world.client.certificate.serial().clone(),
        time: NOW,
        reason: Reason::KeyCompromise,
    };
    let list = world.authority.crl(&[entry], NOW, NOW.plus(DAY), 1).unwrap();
    let mut revocations = Revocations::new();
    revocations.add_crl(&list, world.authority.certificate()).unwrap();
    live.replace(revocations);

    let mut after = Pair::new(settings(), world.client_settings());
    after.server = source.start().unwrap();
    after.settle();
    let serial = world.client.certificate.serial().to_string();
    assert_eq!(after.server_refusal(), format!("certificate revoked (serial {serial})"));
    assert_eq!(after.client_refusal(), "the peer refused the client's certificate: it is revoked");
}

#[test]
fn a_revoked_server_is_refused_by_its_clients() {
    let world = World::new();
    let mut revocations = Revocations::new();
    revocations.add(world.authority.certificate(), world.server.certificate.serial().clone());
    let live = Arc::new(LiveRevocations::new(revocations));

    for (server, client) in refused(
        || world.server_settings(),
        || ClientSettings { revocations: Some(Arc::clone(&live)), ..world.client_settings() },
    ) {
        assert_contains(&client, &["certificate revoked"]);
        assert_contains(&server, &["the peer refused the gateway's certificate: it is revoked"]);
    }
}

#[test]
fn a_server_with_another_name_is_refused() {
    let world = World::new();
    for name in [
        NameCheck::Subject("CN=P-256".into()),
        NameCheck::Name("P-256".into()),
        NameCheck::NamePrefix("holder".into()),
    ] {
        let client = || ClientSettings { name: Some(name.clone()), ..world.client_settings() };
        for (_, text) in refused(|| world.server_settings(), client) {
            assert_contains(&text, &["does not have the name that verify-x509-name asks for"]);
        }
    }
}

#[test]
fn a_fingerprint_that_is_not_listed_is_refused_with_and_without_an_authority() {
    let world = World::new();
    for authorities in [Vec::new(), vec![world.authority.certificate().clone()]] {
        let client = || ClientSettings {
            authorities: authorities.clone(),
            fingerprints: vec![[7; 32]],
            ..world.client_settings()
        };
        for (_, text) in refused(|| world.server_settings(), client) {
            assert_contains(&text, &["not in the list of peer-fingerprint"]);
        }
    }
}

#[test]
fn a_client_of_the_older_version_only_is_refused_when_the_newer_is_demanded() {
    let world = World::new();

    let pair = Pair::run(
        ServerSettings { versions: Versions::Only13, ..world.server_settings() },
        ClientSettings { versions: Versions::Only12, ..world.client_settings() },
    );

    assert_contains(&pair.server_refusal(), &["no common TLS version", "none that is enabled here"]);
    assert_contains(&pair.client_refusal(), &["no common TLS version"]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let world = World::new();
    let server = |settings| ServerTls::new(settings).err();

    assert_eq!(
        server(ServerSettings { identities: Vec::new(), ..world.server_settings() }),
        Some(SettingsError::NoIdentity)
    );
    assert_eq!(
        server(ServerSettings { client_authorities: Arc::default(), ..world.server_settings() }),
        Some(SettingsError::NoAuthority)
    );
    assert_eq!(
        ClientTls::new(ClientSettings { authorities: Vec::new(), ..world.client_settings() }).err(),
        Some(SettingsError::NoAuthority)
    );
    let mismatch = Identity::new(std::slice::from_ref(&world.server.certificate), &world.client.key);
    assert_eq!(mismatch.err(), Some(SettingsError::OtherKey(world.server.certificate.serial().clone())));
    assert_eq!(Identity::new(&[], &world.client.key).err(), Some(SettingsError::EmptyChain));
}

proptest! {
    /// What a stranger sends first. No text may hold any of it.
    #[test]
    fn strangers_bytes_are_refused_without_panic(
        header in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 1..400),
    ) {
        let world = World::new();
        let mut server = ServerTls::new(world.server_settings()).unwrap().start().unwrap();
        let mut hello = Vec::new();
        if header {
            let length = bytes.len() as u16;
            hello.extend([22, 3, 1]);
            hello.extend((length + 4).to_be_bytes());
            hello.extend([1, 0]);
            hello.extend(length.to_be_bytes());
        }
        hello.extend(&bytes);
        if let Err(TlsFault::Local(text)) = server.feed(&hello) {
            prop_assert!(false, "{}", text);
        }
        prop_assert!(!server.established());
        let mut alert = Vec::new();
        server.drain(&mut alert, usize::MAX);
    }

    /// One changed byte anywhere in a handshake: it fails, or the byte was one that nothing depends on. Both
    /// ends never disagree on the keys.
    #[test]
    fn a_tampered_handshake_never_yields_two_different_key_sets(at in 0usize..6000, change in 1u8..) {
        static WORLD: OnceLock<World> = OnceLock::new();
        let world = WORLD.get_or_init(World::new);
        let mut pair = Pair::new(world.server_settings(), world.client_settings());
        let mut passed = 0;
        loop {
            let mut moved = false;
            for to_server in [true, false] {
                let (from, to) = match to_server {
                    true => (&mut pair.client, &mut pair.server),
                    false => (&mut pair.server, &mut pair.client),
                };
                let mut packet = Vec::new();
                from.drain(&mut packet, usize::MAX);
                if let Some(byte) = at.checked_sub(passed).and_then(|at| packet.get_mut(at)) {
                    *byte ^= change;
                }
                passed += packet.len();
                moved |= !packet.is_empty();
                let _ = to.feed(&packet);
            }
            if !moved {
                break;
            }
        }
        if pair.server.established() && pair.client.established() {
            prop_assert_eq!(exported(pair.server.as_ref()), exported(pair.client.as_ref()));
        }
    }
}
