use proptest::prelude::*;

use super::*;
use crate::flows::flows;
use crate::testing::{USUAL, at, file, udp};

/// A source of bytes that are no pattern.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 56) as u8
            })
            .collect()
    }
}

/// The moment of the `n`th sample, in a message.
fn clock(n: u64) -> [u8; 4] {
    (at(n * 1000).as_secs() as u32).to_be_bytes()
}

/// First packets of OpenVPN, in time `n`.
fn tls_auth(noise: &mut Noise, n: u64, digest: usize) -> Vec<u8> {
    [&[0x38], noise.bytes(8 + digest).as_slice(), &[0, 0, 0, 1], &clock(n), &[0; 5]].concat()
}

fn tls_crypt(noise: &mut Noise, n: u64) -> Vec<u8> {
    [&[0x38], noise.bytes(8).as_slice(), &[0, 0, 0, 1], &clock(n), &noise.bytes(37)].concat()
}

/// UDP flows with these first packets, each from a port of its own, with this type of service.
fn capture(tos: u8, firsts: impl IntoIterator<Item = Vec<u8>>) -> Vec<Flow> {
    let packets: Vec<_> = firsts
        .into_iter()
        .enumerate()
        .map(|(n, first)| {
            let mut packet = udp(&format!("192.0.2.7:{}", 40_000 + n), "198.51.100.1:443", &first);
            packet[1] = tos;
            (at(n as u64 * 1000), packet)
        })
        .collect();
    flows(&file(USUAL, &packets)).unwrap().flows
}

fn samples(count: u64, seed: u64, mut make: impl FnMut(&mut Noise, u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut noise = Noise(seed);
    (0..count).map(|n| make(&mut noise, n)).collect()
}

fn learned(kinds: &[&[Flow]]) -> Lesson {
    let names = ["one", "two", "three"];
    let kinds: Vec<_> = kinds.iter().zip(names).map(|(flows, name)| Kind { name, flows }).collect();
    let mut lessons = learn(&kinds, None);
    assert_eq!(lessons.len(), 1, "{lessons:?}");
    lessons.remove(0)
}

fn rules(lesson: &Lesson) -> Vec<String> {
    let findings = lesson.findings.as_ref().unwrap_or_else(|why| panic!("{why}"));
    findings.iter().map(|finding| finding.own.toml(lesson.transport == Transport::Udp)).collect()
}

#[test]
fn captures_of_real_clients_give_the_published_rules() {
    let golden: [&[u8]; 4] = [
        include_bytes!("../../../../fuzz/seeds/capture-udp-tls-auth"),
        include_bytes!("../../../../fuzz/seeds/capture-tcp-tls-auth"),
        include_bytes!("../../../../fuzz/seeds/capture-udp-tls-crypt"),
        include_bytes!("../../../../fuzz/seeds/capture-tcp-tls-crypt"),
    ];
    let [a_udp, a_tcp, b_udp, b_tcp] = golden.map(|bytes| flows(bytes).unwrap().flows);
    let (a, b) = ([a_udp, a_tcp].concat(), [b_udp, b_tcp].concat());

    let lessons = learn(&[Kind { name: "a", flows: &a }, Kind { name: "b", flows: &b }], None);

    let [udp, tcp] = lessons.as_slice() else { panic!("{lessons:?}") };
    assert_eq!(rules(udp), ["{ udp-length = 86, first = 0x38 }", "{ udp-length = 54, first = 0x38 }"]);
    let u32s: Vec<_> = udp.findings.as_ref().unwrap().iter().map(|f| f.pattern.u32()).collect();
    assert_eq!(u32s, ["0&0xFF=0x72 && 25&0xFF=0x38", "0&0xFF=0x52 && 25&0xFF=0x38"]);
    assert_eq!(rules(tcp), ["{ tcp-length = 88 }", "{ tcp-length = 56 }"]);
    let haproxy: Vec<_> = tcp.findings.as_ref().unwrap().iter().map(|f| f.pattern.haproxy()).collect();
    let expected = [88, 56].map(|n| format!("{{ req.len {n} }} {{ req.payload(2,1) -m bin 38 }}"));
    assert_eq!(haproxy, expected);
}

#[test]
fn the_type_of_service_is_never_what_decides() {
    let kind = |tos, seed| capture(tos, samples(6, seed, tls_crypt));
    let same = learned(&[&kind(0, 1), &kind(0x48, 2)]);
    assert!(matches!(same.findings, Err(Obstacle::Alike { .. })), "{same:?}");

    let other = capture(0, samples(6, 3, |noise, n| tls_auth(noise, n, 64)));
    for tos in [0, 0x48] {
        assert_eq!(
            rules(&learned(&[&other, &kind(tos, 4)])),
            ["{ udp-length = 86, first = 0x38 }", "{ udp-length = 54, first = 0x38 }"]
        );
    }
}

#[test]
fn kinds_of_one_length_are_told_by_bytes_that_the_other_has_only_by_chance() {
    // SHA-256 makes tls-auth's first packet as long as tls-crypt's.
    let a = capture(0, samples(20, 5, |noise, n| tls_auth(noise, n, 32)));
    let b = capture(0, samples(20, 6, tls_crypt));
    assert_eq!(a[0].first_length, b[0].first_length);
    let lesson = learned(&[&a, &b]);
    // Where each has its packet number, and not the time beside it.
    let with = |offset| format!("{{ udp-length = 54, bytes = [{{ offset = {offset}, value = \"0000\" }}] }}");
    assert_eq!(rules(&lesson), [with(41), with(9)]);
    for finding in lesson.findings.as_ref().unwrap() {
        assert_eq!(finding.false_positives, FalsePositives::Computed { bits: 16 });
    }
}

#[test]
fn the_day_of_a_capture_is_no_mark() {
    let on_day = |day: u64, decode: fn(u32) -> [u8; 4]| {
        let mut noise = Noise(day);
        let packets: Vec<_> = (0..8)
            .map(|n| {
                let time = at(day * 86_400_000 + n * 1000);
                let now = decode(time.as_secs() as u32);
                let first = [&[0x38], now.as_slice(), &noise.bytes(40)].concat();
                (time, udp(&format!("192.0.2.7:{}", 40_000 + n), "198.51.100.1:443", &first))
            })
            .collect();
        flows(&file(USUAL, &packets)).unwrap().flows
    };
    for order in [u32::to_be_bytes, u32::to_le_bytes] {
        let lesson = learned(&[&on_day(0, order), &on_day(300, order)]);
        assert!(matches!(lesson.findings, Err(Obstacle::Alike { .. })), "{lesson:?}");
    }
}

#[test]
fn bytes_with_contrary_values_decide_at_once_and_masks_where_only_bits_are_fixed() {
    let make = |high: u8| {
        move |noise: &mut Noise, _| {
            let mut packet = noise.bytes(40);
            packet[7] = high | (packet[7] & 0x0f);
            packet
        }
    };
    let lesson = learned(&[&capture(0, samples(20, 1, make(0x50))), &capture(0, samples(20, 2, make(0x30)))]);
    assert_eq!(
        rules(&lesson),
        [0x50, 0x30].map(|value| format!(
            "{{ udp-length = 40, bytes = [{{ offset = 7, mask = \"f0\", value = \"{value:02x}\" }}] }}"
        ))
    );
}

#[test]
fn a_kind_without_a_mark_is_what_is_left() {
    let marked = capture(0, samples(8, 1, tls_crypt));
    let shapeless = capture(0, samples(8, 2, |noise, n| noise.bytes(60 + n as usize)));
    let lesson = learned(&[&shapeless, &marked]);
    let findings = lesson.findings.unwrap();
    assert_eq!(findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [1]);
    let two = learned(&[&shapeless, &capture(0, samples(8, 3, |noise, n| noise.bytes(60 + n as usize)))]);
    let why = two.findings.unwrap_err().to_string();
    assert!(why.contains("several lengths, and no byte that is always the same"), "{why}");
}

#[test]
fn few_samples_are_refused_and_more_make_surer() {
    let kinds = |count| {
        [capture(0, samples(count, 1, tls_crypt)), capture(0, samples(count, 2, |n, t| tls_auth(n, t, 64)))]
    };
    let [a, b] = kinds(2);
    let why = learned(&[&a, &b]).findings.unwrap_err();
    assert!(matches!(why, Obstacle::TooFew { samples: 2, .. }) && why.to_string().contains("at least 3"));
    let missed = |count| {
        let [a, b] = kinds(count);
        learned(&[&a, &b]).findings.unwrap()[0].missed_at_most
    };
    assert!((missed(3) - 0.632).abs() < 0.001 && (missed(59) - 0.0495).abs() < 0.001);
}

#[test]
fn what_goes_to_other_servers_is_no_sample() {
    let mut a = capture(0, samples(5, 1, tls_crypt));
    let dns = flows(&crate::testing::usual([udp("192.0.2.7:999", "192.0.2.53:53", b"what is")])).unwrap();
    a.extend(dns.flows);
    let lesson = learned(&[&a, &capture(0, samples(5, 2, |n, t| tls_auth(n, t, 64)))]);
    assert_eq!(
        (lesson.samples.as_slice(), lesson.left_out.as_slice()),
        ([5, 5].as_slice(), [1, 0].as_slice())
    );
    assert_eq!(rules(&lesson).len(), 2);
}

#[test]
fn a_background_is_counted() {
    let a = capture(0, samples(5, 1, tls_crypt));
    let b = capture(0, samples(5, 2, |n, t| tls_auth(n, t, 64)));
    let mut strangers = samples(98, 3, |noise, _| noise.bytes(54).into_iter().map(|b| b | 1).collect());
    strangers.extend(samples(2, 4, tls_crypt));
    let background = capture(0, strangers);
    let kinds = [Kind { name: "a", flows: &a }, Kind { name: "b", flows: &b }];
    let lessons = learn(&kinds, Some(&background));
    let found: Vec<_> =
        lessons[0].findings.as_ref().unwrap().iter().map(|finding| finding.false_positives).collect();
    let [
        FalsePositives::Counted { matched: 2, of: 100, at_most: some },
        FalsePositives::Counted { matched: 0, of: 100, at_most: none },
    ] = found[..]
    else {
        panic!("{found:?}")
    };
    assert!((0.04..0.07).contains(&some) && (0.029..0.030).contains(&none), "{some} {none}");
}

proptest! {
    /// Random bytes have no pattern, whatever the samples.
    #[test]
    fn nothing_tells_noise_from_noise(seed: u64, count in 6..20u64, len in 20..200usize) {
        let kind = |seed| capture(0, samples(count, seed, |noise, _| noise.bytes(len)));
        let lesson = learned(&[&kind(seed), &kind(seed ^ 0x5555_5555)]);
        prop_assert!(lesson.findings.is_err(), "{lesson:?}");
    }

    /// What is found fits all samples of its kind and none of another.
    #[test]
    fn what_is_found_holds_for_all_samples(
        seed: u64,
        kinds in prop::collection::vec((0..80usize, 0..3u8, 40..44usize), 2..4),
        count in 3..12u64,
    ) {
        let captures: Vec<_> = kinds.iter().enumerate().map(|(n, (place, value, len))| {
            capture(0, samples(count, seed.wrapping_add(n as u64), |noise, _| {
                let mut packet = noise.bytes(*len);
                if let Some(byte) = packet.get_mut(*place) { *byte = *value; }
                packet
            }))
        }).collect();
        let lesson = learned(&captures.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for finding in lesson.findings.iter().flatten() {
            for (kind, flows) in captures.iter().enumerate() {
                for flow in flows {
                    for pattern in [&finding.pattern, &finding.own] {
                        prop_assert_eq!(pattern.matches(&flow.first, flow.first_length), kind == finding.kind);
                    }
                }
            }
        }
    }
}
