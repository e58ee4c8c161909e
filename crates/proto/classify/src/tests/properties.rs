//! What holds for any bytes.

use adit_tunnel::Entropy;
use adit_tunnel::testing::TestRng;
use proptest::prelude::*;

use super::{CORPUS, answer, probes, protocols, repetitions};
use crate::{Answer, Probe, Rule, Table, Transport, Verdict};

/// Protocols that say Yes, and whether any says More.
fn judged(transport: Transport, bytes: &[u8]) -> (Vec<String>, bool) {
    let answers: Vec<_> =
        protocols().into_iter().map(|probe| (answer(&probe, transport, bytes), probe)).collect();
    let yes = answers.iter().filter(|(answer, _)| *answer == Answer::Yes).map(|(_, probe)| probe.to_string());
    (yes.collect(), answers.iter().any(|(answer, _)| *answer == Answer::More))
}

/// At most one Yes, and then nobody who still waits.
fn is_unambiguous(transport: Transport, bytes: &[u8]) -> bool {
    let (yes, more) = judged(transport, bytes);
    yes.is_empty() || (yes.len() == 1 && !more)
}

/// Parts of one genuine beginning put into another, at the same places: what two forms have in common would
/// show.
fn crossed(rng: &mut TestRng) -> (Transport, Vec<u8>) {
    let mut below = |n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    let (_, transport, _, mut one) = CORPUS[below(CORPUS.len())];
    let (_, _, _, mut other) = CORPUS[below(CORPUS.len())];
    if below(4) == 0 {
        std::mem::swap(&mut one, &mut other);
    }
    let mut bytes = one.to_vec();
    // Lengths are what many forms insist on.
    match below(3) {
        0 => bytes.resize(other.len(), 0),
        1 => bytes.resize([14, 16, 42, 54, 56, 86, 88, 148, 353][below(9)], 0),
        _ => {}
    }
    for _ in 0..=below(6) {
        let from = below(bytes.len().min(40));
        let len = 1 + below(12);
        let kind = below(5);
        for (at, byte) in bytes.iter_mut().enumerate().skip(from).take(len) {
            match kind {
                0 => *byte = 0,
                1 => *byte = rng_byte(from, at),
                _ => *byte = other.get(at).copied().unwrap_or(*byte),
            }
        }
    }
    (transport, bytes)
}

fn rng_byte(from: usize, at: usize) -> u8 {
    (from * 31 + at * 7) as u8
}

#[test]
fn no_crossing_of_genuine_beginnings_is_known_by_two_protocols() {
    let mut rng = TestRng::new(5);
    let mut known = 0;
    for _ in 0..repetitions(50_000) {
        let (transport, bytes) = crossed(&mut rng);
        assert!(is_unambiguous(transport, &bytes), "{:?}: {bytes:02x?}", judged(transport, &bytes).0);
        known += usize::from(!judged(transport, &bytes).0.is_empty());
    }
    assert!(known > 1000, "only {known} crossings were anything at all");
}

#[test]
fn random_bytes_are_nothing_by_form() {
    let mut rng = TestRng::new(6);
    let mut bytes = [0; 200];
    for _ in 0..repetitions(100_000) / 10 {
        rng.fill(&mut bytes);
        let len = 20 + usize::from(bytes[0]) % 180;
        assert_eq!(judged(Transport::Udp, &bytes[..len]).0, Vec::<String>::new(), "{bytes:02x?}");
    }
}

#[test]
fn a_beginning_gives_the_same_final_answer_at_every_length() {
    for (name, _, _, bytes) in CORPUS {
        for probe in probes() {
            let mut last = Answer::More;
            for len in 0..=bytes.len() {
                let next = answer(&probe, Transport::Tcp, &bytes[..len]);
                assert!(
                    last == Answer::More || next == last,
                    "{probe} of {name} at {len}: {last:?}, then {next:?}"
                );
                last = next;
            }
        }
    }
}

fn table() -> Table<()> {
    let mut rules: Vec<Rule<()>> = Vec::new();
    for probe in probes() {
        let mut more = rules.clone();
        more.push(Rule::new(probe.to_string(), probe, ()));
        if Table::new(more.clone()).is_ok() {
            rules = more;
        }
    }
    Table::new(rules).unwrap()
}

/// Bytes that are genuine at first, then changed here and there.
fn mutated() -> impl Strategy<Value = (Transport, Vec<u8>)> {
    let changes = prop::collection::vec((0usize..400, any::<u8>()), 0..6);
    (0..CORPUS.len(), changes, prop::option::of(0usize..1300)).prop_map(|(which, changes, len)| {
        let (_, transport, _, bytes) = CORPUS[which];
        let mut bytes = bytes.to_vec();
        bytes.truncate(len.unwrap_or(usize::MAX));
        for (at, value) in changes {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = value;
            }
        }
        (transport, bytes)
    })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

proptest! {
    #[test]
    fn at_most_one_protocol_says_yes((transport, bytes) in mutated(), random in any_bytes()) {
        prop_assert!(is_unambiguous(transport, &bytes), "{:?}", judged(transport, &bytes));
        for transport in Transport::BOTH {
            prop_assert!(is_unambiguous(transport, &random), "{:?}", judged(transport, &random));
        }
    }

    #[test]
    fn yes_and_no_are_final((_, mut bytes) in mutated(), tail in any_bytes()) {
        bytes.extend(tail);
        for probe in probes() {
            let mut last = Answer::More;
            for len in 0..=bytes.len() {
                let next = answer(&probe, Transport::Tcp, &bytes[..len]);
                prop_assert!(last == Answer::More || next == last, "{probe} at {len}: {last:?}, then {next:?}");
                last = next;
            }
        }
    }

    #[test]
    fn nothing_looks_further_than_it_says((transport, bytes) in mutated(), tail in any_bytes()) {
        for probe in probes() {
            let bound = probe.looks_at();
            prop_assert!(bound <= crate::LOOKS_AT);
            let mut longer = bytes.clone();
            longer.resize(bound.max(bytes.len()), 0);
            let seen = answer(&probe, Transport::Tcp, &longer[..bound]);
            prop_assert!(seen != Answer::More, "{probe} has not decided after {bound} bytes");
            longer.truncate(bound);
            longer.extend(&tail);
            prop_assert_eq!(answer(&probe, Transport::Tcp, &longer), seen);
            if transport == Transport::Udp && bytes.len() > bound {
                let before = answer(&probe, transport, &bytes);
                let mut changed = bytes.clone();
                changed[bound..].iter_mut().for_each(|byte| *byte ^= 0xff);
                prop_assert_eq!(answer(&probe, transport, &changed), before, "{}", probe);
            }
        }
    }

    #[test]
    fn the_verdict_does_not_depend_on_how_the_stream_was_cut((_, bytes) in mutated(), port: u16) {
        let table = table();
        let name = |verdict: Verdict<'_, ()>| match verdict {
            Verdict::Undecided => None,
            Verdict::Unknown => Some("unknown".to_owned()),
            Verdict::Matched(found) => Some(found.rule.name.clone()),
        };
        let whole = name(table.judge(Transport::Tcp, &bytes, port, false));
        let decided = (0..=bytes.len()).find_map(|len| name(table.judge(Transport::Tcp, &bytes[..len], port, false)));
        prop_assert_eq!(decided, whole);
        prop_assert!(name(table.judge(Transport::Tcp, &bytes, port, true)).is_some());
        prop_assert!(name(table.judge(Transport::Udp, &bytes, port, false)).is_some());
    }

    #[test]
    fn datagrams_are_never_waited_for((_, bytes) in mutated()) {
        for probe in probes() {
            prop_assert!(answer(&probe, Transport::Udp, &bytes) != Answer::More);
        }
        prop_assert_eq!(answer(&Probe::Any, Transport::Udp, &bytes), Answer::Yes);
    }
}
