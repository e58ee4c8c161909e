//! First bytes of flows.

use std::sync::LazyLock;

use adit_classify::{
    Answer, OpenVpnForm, OpenVpnKey, Pattern, Probe, Protocol, Rule, Table, TlsCondition, Transport, Verdict,
    WireGuardKey,
};
use adit_openvpn::keyfile::{ServerKeyV2, StaticKey};

/// One probe for each protocol.
fn protocols() -> Vec<Probe> {
    let mut all = vec![Probe::OpenVpn(OpenVpnForm::Any), Probe::Tls(TlsCondition::default())];
    all.extend(Protocol::ALL.map(Probe::Form));
    all
}

/// Probes with a key that nobody has.
fn keyed() -> Vec<Probe> {
    let shared = OpenVpnKey::from_file(&StaticKey::new(&[0xd1; 256]).to_text(), OpenVpnForm::Any);
    let server = OpenVpnKey::from_file(&ServerKeyV2::new(&[0xd2; 128]).to_text(), OpenVpnForm::TlsCryptV2);
    vec![
        Probe::OpenVpnKey(shared.expect("a key file")),
        Probe::OpenVpnKey(server.expect("a key file")),
        Probe::WireGuardKey(WireGuardKey::new(&[0xd3; 32])),
    ]
}

fn named(text: &str) -> Probe {
    text.parse().expect("a named probe")
}

static PROTOCOLS: LazyLock<Vec<Probe>> = LazyLock::new(protocols);
static KEYED: LazyLock<Vec<Probe>> = LazyLock::new(keyed);
static TABLE: LazyLock<Table<()>> = LazyLock::new(|| {
    let mut probes = protocols();
    probes.extend(keyed());
    probes.extend(["tls sni=*.example.com", "tls sni=vpn.example.com alpn=h2", "silence"].map(named));
    probes.push(Probe::Pattern(Pattern::tcp_length(88).expect("a length")));
    probes.push(Probe::Pattern(Pattern::bytes(3, &[0xff], &[7]).expect("a byte")));
    let rules = probes.into_iter().map(|probe| Rule::new(probe.to_string(), probe, ()));
    Table::new(rules.collect()).expect("a table")
});

/// No two protocols say Yes, none without its key says so of a keyed one, datagrams are not waited for, and
/// what is said of a part of a stream is not taken back.
pub(crate) fn probes(bytes: &[u8]) {
    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
    for transport in Transport::BOTH {
        let answers: Vec<_> = PROTOCOLS.iter().map(|probe| probe.answer(transport, bytes, false)).collect();
        let count = |answer| answers.iter().filter(|&&other| other == answer).count();
        match transport {
            Transport::Udp => assert!(count(Answer::Yes) <= 1 && count(Answer::More) == 0),
            Transport::Tcp => {
                assert!(count(Answer::Yes) == 0 || count(Answer::Yes) + count(Answer::More) == 1);
            }
        }
        assert!(KEYED.iter().all(|probe| probe.answer(transport, bytes, false) != Answer::Yes));
    }
    for rule in TABLE.rules().iter() {
        let before = rule.probe.answer(Transport::Tcp, half, false);
        assert!(before == Answer::More || rule.probe.answer(Transport::Tcp, bytes, false) == before);
    }
    if let Ok(probe) = String::from_utf8_lossy(bytes).parse::<Probe>() {
        assert_eq!(named(&probe.to_string()).to_string(), probe.to_string());
    }
}

/// A stream gets the same verdict however it is cut, and one in the end; a datagram at once.
pub(crate) fn classify(bytes: &[u8]) {
    let judge = |bytes, silent| match TABLE.judge(Transport::Tcp, bytes, 443, silent) {
        Verdict::Undecided => None,
        Verdict::Matched(found) => Some(found.index),
        Verdict::Unknown => Some(usize::MAX),
    };
    let whole = judge(bytes, false);
    let steps = (0..bytes.len()).step_by(1 + bytes.len() / 64);
    let first = steps.filter_map(|len| bytes.get(..len)).find_map(|part| judge(part, false));
    assert!(first.is_none() || first == whole);
    assert!(judge(bytes, true).is_some() && (bytes.len() < adit_classify::LOOKS_AT || whole.is_some()));
    assert!(!matches!(TABLE.judge(Transport::Udp, bytes, 443, false), Verdict::Undecided));
}
