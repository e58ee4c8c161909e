//! Order, ports, refusals.

use super::{CORPUS, answer, counting, keyed, probe, taken};
use crate::{
    Answer, Evidence, OpenVpnForm, OpenVpnKey, Pattern, Probe, Rule, Table, TableFault, Transport, Verdict,
    WireGuardKey,
};

fn rule(text: &str) -> Rule<()> {
    Rule::new(text, probe(text), ())
}

fn on_ports(text: &str, ports: &str) -> Rule<()> {
    Rule { ports: Some(ports.parse().unwrap()), ..rule(text) }
}

fn bytes(name: &str) -> (Transport, &'static [u8]) {
    let (_, transport, _, bytes) = CORPUS.iter().find(|(known, ..)| *known == name).unwrap();
    (*transport, bytes)
}

/// The name of the rule that takes a beginning.
fn taker<'t>(table: &'t Table<()>, name: &str, port: u16) -> Option<&'t str> {
    let (transport, bytes) = bytes(name);
    taken(table, transport, bytes, port).map(|index| table.rules()[index].name.as_str())
}

fn key_rule() -> Rule<()> {
    let key = OpenVpnKey::from_file(&counting().to_text(), OpenVpnForm::Any).unwrap();
    Rule::new("key", Probe::OpenVpnKey(key), ())
}

#[test]
fn keys_go_before_forms_forms_before_patterns_silence_and_any() {
    let pattern = |length| Rule::new("pattern", Probe::Pattern(length), ());
    let tcp = pattern(Pattern::tcp_length(88).unwrap());
    let mut rules = vec![rule("any"), rule("silence"), tcp, rule("openvpn"), key_rule()];
    for expected in ["key", "openvpn", "pattern", "any"] {
        let table = Table::new(rules.clone()).unwrap();
        assert_eq!(taker(&table, "stream-openvpn-auth-sha512-both", 1), Some(expected));
        rules.retain(|rule| rule.name != expected);
    }
    let table = Table::new(vec![rule("any"), rule("silence")]).unwrap();
    assert_eq!(taken(&table, Transport::Tcp, &[], 1), Some(1));
    let table = Table::new(vec![rule("any"), rule("ssh")]).unwrap();
    assert_eq!(taken(&table, Transport::Tcp, &[], 1), Some(0), "any takes what does not come, too");
}

#[test]
fn a_lower_rank_waits_while_a_higher_one_says_more() {
    let pattern = Rule::new("pattern", Probe::Pattern(Pattern::bytes(0, &[0xff], &[0]).unwrap()), ());
    let table = Table::new(vec![pattern, key_rule()]).unwrap();
    let (_, stream) = bytes("stream-openvpn-auth-sha512-both");
    for len in 0..stream.len() {
        assert!(matches!(table.judge(Transport::Tcp, &stream[..len], 1, false), Verdict::Undecided), "{len}");
    }
    assert_eq!(taken(&table, Transport::Tcp, stream, 1), Some(1));
    assert_eq!(taken(&table, Transport::Tcp, &stream[..20], 1), Some(0), "nothing more comes");
    assert_eq!(taken(&table, Transport::Tcp, b"\0\x56\x39", 1), Some(0), "it can no longer be the key's");
}

#[test]
fn silence_is_told_from_a_slow_client() {
    let table = Table::new(vec![rule("ssh"), rule("silence")]).unwrap();
    let judge = |bytes: &[u8], silent| table.judge(Transport::Tcp, bytes, 22, silent);
    assert!(matches!(judge(b"", false), Verdict::Undecided));
    assert!(matches!(judge(b"SS", false), Verdict::Undecided));
    assert!(matches!(judge(b"SS", true), Verdict::Unknown));
    let Verdict::Matched(found) = judge(b"", true) else { panic!("not silent") };
    assert_eq!((found.index, found.evidence), (1, Evidence::Silence));
    assert_eq!(taken(&table, Transport::Udp, b"", 22), None, "a datagram is never silent");
}

#[test]
fn the_narrower_of_one_protocol_goes_first() {
    let table = Table::new(vec![
        rule("tls"),
        rule("tls alpn=h2"),
        rule("tls sni=*.com"),
        rule("tls sni=*.example.com"),
        rule("tls sni=vpn.example.com"),
        rule("openvpn"),
        rule("openvpn tls-auth"),
        rule("openvpn tls-auth auth=SHA512"),
    ])
    .unwrap();
    assert_eq!(taker(&table, "stream-tls-openssl", 1), Some("tls sni=vpn.example.com"));
    assert_eq!(taker(&table, "stream-tls-curl", 1), Some("tls alpn=h2"));
    assert_eq!(taker(&table, "stream-tls-bare", 1), Some("tls"));
    assert_eq!(taker(&table, "stream-openvpn-crypt", 1), Some("openvpn"));
    assert_eq!(taker(&table, "stream-openvpn-auth-sha1", 1), Some("openvpn tls-auth"));
    assert_eq!(taker(&table, "datagram-openvpn-auth-sha512-both", 1), Some("openvpn tls-auth auth=SHA512"));
    let rules = vec![rule("tls sni=*.com"), rule("tls sni=*.example.com")];
    assert_eq!(taker(&Table::new(rules).unwrap(), "stream-tls-openssl", 1), Some("tls sni=*.example.com"));
}

#[test]
fn ports_only_narrow() {
    let table = Table::new(vec![
        rule("ssh"),
        Rule { name: "own".into(), ..on_ports("ssh", "22") },
        on_ports("http", "80"),
    ]);
    let table = table.unwrap();
    assert_eq!(taker(&table, "stream-ssh", 22), Some("own"));
    assert_eq!(taker(&table, "stream-ssh", 23), Some("ssh"));
    assert_eq!(
        taker(&table, "stream-ssh", 80),
        Some("ssh"),
        "a rule for the port has no say about other bytes"
    );
    assert_eq!(taker(&table, "stream-http", 80), Some("http"));
    assert_eq!(taker(&table, "stream-http", 81), None);
}

#[test]
fn transports_narrow_too() {
    let table = Table::new(vec![
        Rule { transport: Some(Transport::Tcp), ..Rule::new("tcp", probe("openvpn"), ()) },
        Rule { transport: Some(Transport::Udp), ..Rule::new("udp", probe("openvpn"), ()) },
    ])
    .unwrap();
    assert_eq!(taker(&table, "stream-openvpn-none", 1), Some("tcp"));
    assert_eq!(taker(&table, "datagram-openvpn-none", 1), Some("udp"));
}

#[test]
fn rules_that_cannot_be_told_apart_are_refused() {
    let refused = |rules: Vec<Rule<()>>| Table::new(rules).map(|_| ()).unwrap_err();
    let same = |fault| matches!(fault, TableFault::Same { .. });
    assert!(same(refused(vec![rule("ssh"), rule("http"), rule("ssh")])));
    assert!(same(refused(vec![rule("any"), rule("any")])));
    assert!(same(refused(vec![rule("tls sni=a.b"), rule("tls sni=A.b")])));
    assert!(same(refused(vec![on_ports("ssh", "1-100"), on_ports("ssh", "100-200")])));
    assert!(Table::new(vec![on_ports("ssh", "1-99"), on_ports("ssh", "100-200"), rule("ssh")]).is_ok());

    let same_key = |rules| matches!(refused(rules), TableFault::SameKey { .. });
    assert!(same_key(vec![key_rule(), key_rule()]));
    let crypt = OpenVpnKey::from_file(&counting().to_text(), OpenVpnForm::TlsCrypt).unwrap();
    let auth = OpenVpnKey::from_file(&counting().to_text(), OpenVpnForm::TlsAuth(None)).unwrap();
    let [crypt, auth] = [crypt, auth].map(|key| Rule::new("told", Probe::OpenVpnKey(key), ()));
    assert!(same_key(vec![key_rule(), crypt.clone()]));
    assert!(same_key(vec![key_rule(), auth.clone()]));
    assert!(Table::new(vec![crypt, auth]).is_ok(), "one key in two ways is two keys");
    let wireguard = |n| Rule::new("wg", Probe::WireGuardKey(WireGuardKey::new(&[n; 32])), ());
    assert!(same_key(vec![wireguard(1), wireguard(1)]));
    assert!(Table::new(vec![wireguard(1), wireguard(2)]).is_ok());
    let per_client = || Rule::new("v2", keyed().remove(9).probe, ());
    assert!(same_key(vec![per_client(), per_client()]));
}

#[test]
fn tls_crypt_and_tls_auth_without_keys_are_refused_unless_the_digest_tells_them_apart() {
    let pair = |auth: &str| Table::new(vec![rule("openvpn tls-crypt"), rule(auth)]).map(|_| ());
    for auth in ["openvpn tls-auth", "openvpn tls-auth auth=SHA256"] {
        let fault = pair(auth).unwrap_err();
        assert!(matches!(fault, TableFault::LookAlike { .. }));
        assert!(fault.to_string().contains("54 bytes; give one of them its key"), "{fault}");
    }
    assert!(pair("openvpn tls-auth auth=SHA512").is_ok());
    assert!(pair("openvpn tls-crypt-v2").is_ok());
    assert!(Table::new(vec![rule("openvpn tls-crypt"), key_rule()]).is_ok());
    let narrow = vec![on_ports("openvpn tls-crypt", "1-5060"), on_ports("openvpn tls-auth", "5061")];
    assert!(Table::new(narrow).is_ok());
    assert!(Table::new(vec![rule("openvpn tls-crypt"), on_ports("openvpn tls-auth", "5061")]).is_err());
}

#[test]
fn rules_that_never_match_are_refused() {
    let udp = Rule { transport: Some(Transport::Udp), ..rule("ssh") };
    let fault = Table::new(vec![udp]).map(|_| ()).unwrap_err();
    assert_eq!(fault.to_string(), "\"ssh\" can never match: \"ssh\" is not said of flows over udp");
    assert!(matches!(Table::new(vec![on_ports("ssh", "")]), Err(TableFault::NoPorts(_))));
}

#[test]
fn outcomes_are_counted_and_an_empty_table_knows_nobody() {
    let table = Table::new(vec![rule("ssh"), rule("http")]).unwrap();
    for (bytes, silent) in [(&b"G"[..], false), (b"GET /", false), (b"xx", false), (b"SS", true)] {
        let _ = table.judge(Transport::Tcp, bytes, 1, silent);
    }
    let counts = table.counts();
    assert_eq!((counts.matched, counts.undecided, counts.unknown), (vec![0, 1], 1, 2));
    let empty = Table::<()>::new(Vec::new()).unwrap();
    assert!(matches!(empty.judge(Transport::Tcp, b"", 1, false), Verdict::Unknown));
}

#[test]
fn what_is_shared_by_threads_can_be() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    shared(&Table::new(vec![key_rule(), rule("tls sni=*.example.com")]).unwrap());
}

#[test]
fn the_setup_of_a_provider_with_four_kinds_of_clients_needs_no_key() {
    // RSA with tls-auth and SHA512 and ECC with tls-crypt on every port, other kinds of the latter on two
    // ports.
    let mut rules = vec![rule("openvpn tls-auth auth=SHA512")];
    for (name, ports) in [("ecc", None), ("ed25519", Some("5061")), ("ed448", Some("5062"))] {
        let ports = ports.map(|ports| ports.parse().unwrap());
        rules.push(Rule { name: name.into(), ports, ..rule("openvpn tls-crypt") });
    }
    let table = Table::new(rules).unwrap();
    for transport in ["datagram", "stream"] {
        let rsa = format!("{transport}-openvpn-auth-sha512-both");
        let ecc = format!("{transport}-openvpn-crypt");
        for (port, expected) in [(1, "ecc"), (5060, "ecc"), (5061, "ed25519"), (5062, "ed448"), (5063, "ecc")]
        {
            assert_eq!(taker(&table, &rsa, port), Some("openvpn tls-auth auth=SHA512"));
            assert_eq!(taker(&table, &ecc, port), Some(expected));
        }
    }
    assert_eq!(answer(&probe("openvpn"), Transport::Tcp, b""), Answer::More);
}
