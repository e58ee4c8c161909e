//! What has been verified once: what that spares, and what it must not let in.

use adit_pki::Purpose;
use rustls::pki_types::CertificateDer;

use super::*;
use crate::proven::{CAPACITY, ChainId};

fn trust(roots: &[&Authority]) -> Arc<Trust> {
    Arc::new(Trust::new(roots.iter().map(|root| root.certificate().clone()).collect()).unwrap())
}

/// What a gateway of `trust` says to a client.
fn verified(trust: &Trust, chain: &[&Certificate], now: UnixTime) -> Result<(), String> {
    verified_as(trust, chain, Purpose::Client, now)
}

fn verified_as(trust: &Trust, chain: &[&Certificate], role: Purpose, now: UnixTime) -> Result<(), String> {
    let intermediates: Vec<_> = chain[1..].iter().map(|other| CertificateDer::from(other.der())).collect();
    trust.verify(chain[0].der(), &intermediates, role, now).map(|_| ()).map_err(|refusal| refusal.text)
}

/// The same certificate with the last octet of its signature changed.
fn forged(certificate: &Certificate) -> Certificate {
    let mut der = certificate.der().to_vec();
    *der.last_mut().unwrap() ^= 1;
    Certificate::from_der(&der).unwrap()
}

/// Authorities of one name and key, each valid from [`NOW`] for some days.
fn renewed(days: [u32; 2]) -> [Authority; 2] {
    let pem = key(KeyKind::P256).to_pkcs8_pem().unwrap();
    days.map(|days| {
        Authority::create("CA", Box::new(PrivateKey::from_pem(&pem).unwrap()), NOW, days * DAY).unwrap()
    })
}

#[test]
fn a_chain_that_is_known_has_its_signature_checked_no_more() {
    let world = World::new();
    let trust = trust(&[&world.authority]);
    let forged = forged(&world.client.certificate);
    assert!(verified(&trust, &[&forged], NOW).is_err());

    // Nothing but the memory could let this one in.
    let id = ChainId::new(Purpose::Client, forged.der(), &[]);
    trust.proven.keep(id, Arc::new(forged.clone()), NOW..=NOW.plus(DAY));

    assert_eq!(verified(&trust, &[&forged], NOW), Ok(()));
    assert_eq!(verified(&trust, &[&forged, world.authority.certificate()], NOW), Ok(()));
    assert!(verified_as(&trust, &[&forged], Purpose::Server, NOW).is_err());
    assert!(verified(&trust, &[&forged], NOW.plus(2 * DAY)).is_err());
    assert!(verified(&trust, &[&forged], NOW.minus(DAY)).is_err());
}

#[test]
fn a_handshake_is_remembered_once_by_all_servers_of_the_same_roots() {
    let world = World::new();
    let trust = trust(&[&world.authority]);
    let server = || ServerSettings { client_authorities: Arc::clone(&trust), ..world.server_settings() };

    for _ in 0..2 {
        Pair::run(server(), world.client_settings()).assert_established("the same client");
        assert_eq!(trust.remembered(), 1);
    }
    let late = ServerSettings { clock: at(NOW.plus(366 * DAY)), ..server() };
    let pair = Pair::run(late, world.client_settings());
    assert!(pair.server_refusal().contains("the peer's certificate has expired"));
}

#[test]
fn a_certificate_is_known_from_its_issuance_whatever_is_sent_along() {
    let world = World::new();
    let trust = trust(&[&world.authority]);

    trust.note_issued(&world.client.certificate, NOW);
    trust.note_issued(&world.server.certificate, NOW);

    assert_eq!(trust.remembered(), 1, "a server's certificate is none of a client");
    // Another client, first with the root sent along and then without.
    let other = Holder::new(&world.authority, KeyKind::P256, Profile::Client).certificate;
    for chain in [&[&other, world.authority.certificate()][..], &[&other]] {
        assert_eq!(verified(&trust, chain, NOW), Ok(()));
        assert_eq!(trust.remembered(), 2);
    }
}

#[test]
fn what_is_refused_is_not_remembered() {
    let world = World::new();
    let stranger = Holder::new(&authority(KeyKind::P256), KeyKind::P256, Profile::Client);
    let trust = trust(&[&world.authority]);

    for _ in 0..2 {
        assert!(verified(&trust, &[&stranger.certificate], NOW).is_err());
        assert!(verified(&trust, &[&world.server.certificate], NOW).is_err());
        assert!(verified(&trust, &[&world.client.certificate], NOW.minus(DAY)).is_err());
    }

    assert_eq!(trust.remembered(), 0);
    assert_eq!(verified(&trust, &[&world.client.certificate], NOW), Ok(()));
}

#[test]
fn a_known_certificate_with_other_bytes_another_purpose_or_other_roots_is_refused() {
    let world = World::new();
    let known = trust(&[&world.authority]);
    let client = &world.client.certificate;
    assert_eq!(verified(&known, &[client], NOW), Ok(()));

    assert!(verified(&known, &[&forged(client)], NOW).is_err());
    assert!(verified_as(&known, &[client], Purpose::Server, NOW).is_err());
    assert!(verified(&trust(&[&authority(KeyKind::P256)]), &[client], NOW).is_err());
    assert_eq!(verified(&known, &[client], NOW), Ok(()));
}

#[test]
fn a_known_certificate_is_refused_when_it_or_its_root_has_expired() {
    let [short, long] = renewed([10, 3650]);
    let client = Holder::new(&long, KeyKind::P256, Profile::Client).certificate;
    for (roots, last, text) in [
        (vec![&short], short.certificate().not_after(), "a CA certificate in the peer's chain has expired"),
        (vec![&long], client.not_after(), "the peer's certificate has expired"),
        // The renewed root takes over from the old one.
        (vec![&short, &long], client.not_after(), "the peer's certificate has expired"),
    ] {
        let trust = trust(&roots);
        assert_eq!(verified(&trust, &[&client], NOW), Ok(()));
        assert_eq!(verified(&trust, &[&client], last), Ok(()));
        let refused = verified(&trust, &[&client], last.plus(Duration::from_secs(1))).unwrap_err();
        assert!(refused.contains(text), "{refused}");
        assert_eq!(trust.remembered(), 1);
    }
}

/// Root and two certificates of one intermediate authority, the second one valid for ten days only.
fn two_intermediates() -> (Authority, Authority, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let pems = [key(KeyKind::P256), key(KeyKind::P256)].map(|key| key.to_pkcs8_pem().unwrap());
    let signer = |at: usize| Box::new(PrivateKey::from_pem(&pems[at]).unwrap());
    let root = Authority::create("root", signer(0), NOW, 3650 * DAY).unwrap();
    write("root.key", &pems[0]);
    write("root.pem", &root.certificate().to_pem());
    write("middle.key", &pems[1]);
    write(
        "ext",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n",
    );
    openssl::command(dir.path(), &["req", "-new", "-key", "middle.key", "-subj", "/CN=middle", "-out", "r"]);
    let sign =
        ["x509", "-req", "-in", "r", "-CA", "root.pem", "-CAkey", "root.key", "-extfile", "ext", "-days"];
    let [long, short] = ["1000", "10"].map(|days| {
        let pem = openssl::command(dir.path(), &[&sign[..], &[days]].concat());
        Authority::load(Certificate::from_pem(&pem).unwrap(), signer(1)).unwrap()
    });
    (root, long, short)
}

#[test]
fn a_chain_with_an_intermediate_authority_is_known_with_it_only_and_while_it_is_valid() {
    let (root, long, short) = two_intermediates();
    let (long_middle, short_middle) = (long.certificate(), short.certificate());
    // OpenSSL dated the intermediate ones by the system's clock.
    let now = short_middle.not_before().plus(DAY);
    let client = Holder::valid_from(&long, KeyKind::P256, Profile::Client, now).certificate;
    let trust = trust(&[&root]);

    assert_eq!(verified(&trust, &[&client, short_middle], now), Ok(()));
    assert_eq!(verified(&trust, &[&client, short_middle], short_middle.not_after()), Ok(()));

    assert_eq!(trust.remembered(), 1);
    assert!(verified(&trust, &[&client], now).is_err(), "its issuer is not shown, and could be revoked");
    let late = short_middle.not_after().plus(Duration::from_secs(1));
    let refused = verified(&trust, &[&client, short_middle], late).unwrap_err();
    assert!(refused.contains("a CA certificate in the peer's chain has expired"), "{refused}");
    assert_eq!(verified(&trust, &[&client, long_middle], late), Ok(()));
    assert_eq!(trust.remembered(), 2);
}

#[test]
fn the_oldest_chains_make_room() {
    let world = World::new();
    let trust = trust(&[&world.authority]);
    let leaf = Arc::new(world.client.certificate);
    let id = |number: usize| ChainId::new(Purpose::Client, &number.to_be_bytes(), &[]);
    // The first one, known again, keeps its turn.
    for number in (0..CAPACITY).chain([0, CAPACITY, CAPACITY + 1]) {
        trust.proven.keep(id(number), Arc::clone(&leaf), NOW..=NOW);
    }

    assert_eq!(trust.remembered(), CAPACITY);
    let known = |number| trust.proven.find(&id(number), NOW).is_some();
    assert_eq!([0, 1, 2, CAPACITY + 1].map(known), [false, false, true, true]);
}

#[test]
fn a_chain_is_told_from_the_same_bytes_cut_up_otherwise() {
    let der = |bytes: &'static [u8]| CertificateDer::from(bytes);
    let ids = [
        ChainId::new(Purpose::Client, b"abc", &[]),
        ChainId::new(Purpose::Server, b"abc", &[]),
        ChainId::new(Purpose::Client, b"ab", &[der(b"c")]),
        ChainId::new(Purpose::Client, b"a", &[der(b"bc")]),
        ChainId::new(Purpose::Client, b"a", &[der(b"b"), der(b"c")]),
    ];
    for (index, one) in ids.iter().enumerate() {
        assert!(!ids[index + 1..].contains(one), "{index}");
    }
}
