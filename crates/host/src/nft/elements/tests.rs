use std::net::UdpSocket;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::netns::TemporaryNetns;
use crate::nft::apply;
use crate::testing::{hostile, run};

const TABLES: &str = "
table inet adit_nat {
  map blocks { type ipv4_addr : interval ipv4_addr . inet_service; }
  map sites { type ipv4_addr : interval ipv4_addr . inet_service; flags interval; }
  map forwards { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; counter; }
  set met { type ipv4_addr; counter; }
  map two { type ipv4_addr : interval ipv4_addr . inet_service; size 2; }
  chain output { type filter hook output priority filter; ip daddr @met accept; }
}";

fn in_namespace(work: impl FnOnce(Netfilter) + Send) {
    TemporaryNetns::create("adit-elements").unwrap().run_in(|| {
        apply(TABLES).unwrap();
        work(Netfilter::open().unwrap());
    });
}

fn key(address: &str) -> Vec<u8> {
    address.parse::<Ipv4Addr>().unwrap().octets().to_vec()
}

fn numbered(number: u32) -> Vec<u8> {
    (0x0a00_0000 + number).to_be_bytes().to_vec()
}

/// 64 ports of 192.0.2.1 from this one on.
fn block(from: u16) -> Vec<u8> {
    let address = [192, 0, 2, 1];
    fields([&address[..], &from.to_be_bytes(), &address, &(from + 63).to_be_bytes()])
}

fn of(set: &str, change: Change) -> ElementChange {
    ElementChange { table: "adit_nat".to_owned(), set: set.to_owned(), change }
}

fn add(key: Vec<u8>, data: Vec<u8>) -> ElementChange {
    of("blocks", Change::Add { key, data })
}

fn remove(key: Vec<u8>) -> ElementChange {
    of("blocks", Change::Remove { key })
}

fn interval(from: &str, end: Option<&str>, data: Vec<u8>) -> ElementChange {
    of("sites", Change::AddInterval { from: key(from), end: end.map(key), data })
}

fn no_interval(from: &str, end: Option<&str>) -> ElementChange {
    of("sites", Change::RemoveInterval { from: key(from), end: end.map(key) })
}

fn single(key: Vec<u8>, data: Vec<u8>) -> Element {
    Element { key, end: None, data, packets: 0, bytes: 0 }
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort_by(|one, other| one.key.cmp(&other.key));
    elements
}

/// The elements that nft prints.
fn printed(set: &str) -> Vec<String> {
    let text = run(&format!("nft list map inet adit_nat {set}"));
    let Some((_, elements)) = text.split_once("elements = {") else { return Vec::new() };
    let elements = elements.split_once('}').unwrap().0.split(',');
    elements.map(|element| element.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn what_is_added_nft_prints_and_what_is_removed_it_does_not() {
    in_namespace(|mut netfilter| {
        netfilter
            .change_elements(&[add(key("10.0.0.2"), block(40_000)), add(key("10.0.0.3"), block(40_064))])
            .unwrap();

        let mut shown = printed("blocks");
        shown.sort();
        assert_eq!(shown, ["10.0.0.2 : 192.0.2.1 . 40000-40063", "10.0.0.3 : 192.0.2.1 . 40064-40127"]);
        let there = sorted(netfilter.elements("adit_nat", "blocks").unwrap());
        let wanted = [single(key("10.0.0.2"), block(40_000)), single(key("10.0.0.3"), block(40_064))];
        assert_eq!(there, wanted);

        netfilter.change_elements(&[remove(key("10.0.0.2"))]).unwrap();
        assert_eq!(printed("blocks"), ["10.0.0.3 : 192.0.2.1 . 40064-40127"]);
    });
}

#[test]
fn removing_what_is_gone_is_no_fault_and_adding_what_is_there_replaces_it() {
    in_namespace(|mut netfilter| {
        netfilter.change_elements(&[remove(key("10.0.0.2"))]).unwrap();
        for data in [block(40_000), block(40_000), block(40_064)] {
            netfilter.change_elements(&[add(key("10.0.0.2"), data)]).unwrap();
        }
        assert_eq!(printed("blocks"), ["10.0.0.2 : 192.0.2.1 . 40064-40127"]);

        let replace = |data| of("blocks", Change::Replace { key: key("10.0.0.2"), data });
        netfilter.change_elements(&[replace(block(40_128))]).unwrap();
        assert_eq!(printed("blocks"), ["10.0.0.2 : 192.0.2.1 . 40128-40191"]);

        netfilter.change_elements(&[remove(key("10.0.0.2")), remove(key("10.0.0.2"))]).unwrap();
        netfilter.change_elements(&[replace(block(40_000)), remove(key("10.0.0.9"))]).unwrap();
        assert_eq!(printed("blocks"), ["10.0.0.2 : 192.0.2.1 . 40000-40063"]);

        let gone = ElementChange { table: "nosuch".to_owned(), ..remove(key("10.0.0.2")) };
        netfilter.change_elements(&[gone]).unwrap();
        netfilter.change_elements(&[]).unwrap();
    });
}

#[test]
fn of_a_call_with_one_bad_change_nothing_takes_effect_and_the_fault_names_it() {
    in_namespace(|mut netfilter| {
        netfilter.change_elements(&[add(key("10.0.0.2"), block(40_000))]).unwrap();
        let good = [remove(key("10.0.0.2")), add(key("10.0.0.3"), block(40_064))];
        let missing_map = of("nosuch", Change::Add { key: key("10.0.0.4"), data: block(40_128) });
        let short_data = add(key("10.0.0.5"), vec![1, 2, 3, 4]);
        let long_key = of("blocks", Change::Add { key: vec![0; 70_000], data: block(40_128) });
        let long_name = of(&"x".repeat(300), Change::Add { key: vec![0; 4], data: block(40_128) });
        for (bad, words) in [
            (missing_map, "nft add element inet adit_nat nosuch 10.0.0.4: No such file or directory"),
            (short_data, "nft add element inet adit_nat blocks 10.0.0.5: Invalid argument"),
            (long_key, "nft get element inet adit_nat blocks 0x0000"),
            (long_name, "nft get element inet adit_nat xxxx"),
        ] {
            let fault = netfilter.change_elements(&[&good[..], &[bad]].concat()).unwrap_err();
            assert!(fault.to_string().starts_with(words), "{fault}");
            assert_eq!(printed("blocks"), ["10.0.0.2 : 192.0.2.1 . 40000-40063"]);
        }

        // The one that is too many is the last in the order of keys.
        let third: Vec<_> = (1..=3)
            .map(|number| of("two", Change::Add { key: numbered(number), data: block(40_000) }))
            .collect();
        let fault = netfilter.change_elements(&third).unwrap_err().to_string();
        assert!(fault.starts_with("nft add element inet adit_nat two 10.0.0.3: "), "{fault}");
        assert_eq!(printed("two"), [""; 0]);

        // The socket is as good as before.
        netfilter.change_elements(&good).unwrap();
        assert_eq!(printed("blocks"), ["10.0.0.3 : 192.0.2.1 . 40064-40127"]);
        assert!(netfilter.elements("adit_nat", "nosuch").unwrap_err().is_missing());
    });
}

#[test]
fn intervals_are_added_beside_each_other_replaced_and_removed() {
    in_namespace(|mut netfilter| {
        let (low, middle, high) = (block(40_000), block(40_064), block(40_128));
        netfilter.change_elements(&[interval("10.1.1.0", Some("10.1.2.0"), middle)]).unwrap();
        netfilter.change_elements(&[interval("10.1.2.0", Some("10.1.3.128"), high.clone())]).unwrap();
        netfilter.change_elements(&[interval("10.1.0.0", Some("10.1.1.0"), low.clone())]).unwrap();
        netfilter.change_elements(&[interval("255.0.0.0", None, low)]).unwrap();
        assert_eq!(
            printed("sites"),
            [
                "10.1.0.0/24 : 192.0.2.1 . 40000-40063",
                "10.1.1.0/24 : 192.0.2.1 . 40064-40127",
                "10.1.2.0-10.1.3.127 : 192.0.2.1 . 40128-40191",
                "255.0.0.0/8 : 192.0.2.1 . 40000-40063"
            ]
        );
        let listed = netfilter.elements("adit_nat", "sites").unwrap();
        let ends: Vec<_> = listed.iter().map(|element| element.end.clone()).collect();
        let expected = [Some(key("10.1.1.0")), Some(key("10.1.2.0")), Some(key("10.1.3.128")), None];
        assert_eq!(ends, expected);

        netfilter.change_elements(&[interval("10.1.1.0", Some("10.1.2.0"), high.clone())]).unwrap();
        netfilter
            .change_elements(&[no_interval("10.1.2.0", Some("10.1.3.128")), no_interval("255.0.0.0", None)])
            .unwrap();
        // Neither a part of an interval, nor one from the beginning of one to the end of another, is there.
        netfilter
            .change_elements(&[
                no_interval("10.1.0.0", Some("10.1.0.128")),
                no_interval("10.1.0.0", Some("10.1.2.0")),
                no_interval("10.1.0.0", None),
                no_interval("10.1.0.128", Some("10.1.1.0")),
            ])
            .unwrap();
        assert_eq!(
            printed("sites"),
            ["10.1.0.0/24 : 192.0.2.1 . 40000-40063", "10.1.1.0/24 : 192.0.2.1 . 40128-40191"]
        );

        for (from, end) in [("10.1.0.0", "10.1.0.128"), ("10.1.0.128", "10.1.4.0"), ("10.0.0.0", "10.2.0.0")]
        {
            let fault = netfilter.change_elements(&[interval(from, Some(end), high.clone())]).unwrap_err();
            let fault = fault.to_string();
            assert!(fault.starts_with(&format!("nft add element inet adit_nat sites {from}-10.")), "{fault}");
        }
        assert_eq!(printed("sites").len(), 2);
    });
}

#[test]
fn of_many_intervals_only_those_that_are_there_are_removed() {
    in_namespace(|mut netfilter| {
        let two = [
            interval("10.1.0.0", Some("10.1.1.0"), block(40_000)),
            interval("10.1.1.0", Some("10.1.2.0"), block(40_064)),
        ];
        netfilter.change_elements(&two).unwrap();
        let others = (0..300u16).map(|number| {
            let [high, low] = number.to_be_bytes();
            let (from, end) = (vec![11, high, low, 0], Some(vec![11, high, low, 128]));
            of("sites", Change::AddInterval { from, end, data: block(40_128) })
        });
        let both = no_interval("10.1.0.0", Some("10.1.2.0"));
        netfilter.change_elements(&others.chain([both]).collect::<Vec<_>>()).unwrap();

        let there = netfilter.elements("adit_nat", "sites").unwrap();

        assert_eq!(there.len(), 302);
        assert_eq!(there[0].end, Some(key("10.1.1.0")));
        assert_eq!(there[1].end, Some(key("10.1.2.0")));
    });
}

#[test]
fn counters_are_read_with_their_elements() {
    in_namespace(|mut netfilter| {
        let there = of("met", Change::Add { key: vec![127, 0, 0, 1], data: Vec::new() });
        let forward = fields([&[17][..], &[192, 0, 2, 1], &30_000u16.to_be_bytes()]);
        let target = fields([&[10, 0, 0, 2][..], &80u16.to_be_bytes()]);
        let forward = of("forwards", Change::Add { key: forward, data: target });
        netfilter.change_elements(&[there.clone(), forward]).unwrap();
        let printed = run("nft list map inet adit_nat forwards");
        assert!(
            printed.contains("udp . 192.0.2.1 . 30000 counter packets 0 bytes 0 : 10.0.0.2 . 80"),
            "{printed}"
        );

        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            sender.send_to(&[0; 100], receiver.local_addr().unwrap()).unwrap();
        }

        let counted = |netfilter: &mut Netfilter| {
            let element = netfilter.elements("adit_nat", "met").unwrap().pop().unwrap();
            (element.packets, element.bytes)
        };
        assert_eq!(counted(&mut netfilter), (3, 3 * 128));
        // What is there stays, unless it is to be replaced.
        netfilter.change_elements(std::slice::from_ref(&there)).unwrap();
        assert_eq!(counted(&mut netfilter), (3, 3 * 128));
        let replace = of("met", Change::Replace { key: vec![127, 0, 0, 1], data: Vec::new() });
        netfilter.change_elements(&[replace]).unwrap();
        assert_eq!(counted(&mut netfilter), (0, 0));
    });
}

#[test]
fn a_long_call_may_find_its_elements_there_or_gone() {
    in_namespace(|mut netfilter| {
        netfilter.change_elements(&[add(numbered(7), block(40_000))]).unwrap();
        let data = |number: u32| block(40_064 + 64 * u16::try_from(number % 300).unwrap());
        let long: Vec<_> = (0..300).map(|number| add(numbered(number), data(number))).collect();
        let none: Vec<_> = (0..310).map(|number| remove(numbered(number))).collect();
        let met = |change: fn(Vec<u8>) -> Change| -> Vec<_> {
            (0..300).map(|number| of("met", change(numbered(number)))).collect()
        };

        netfilter.change_elements(&long).unwrap();
        let there = sorted(netfilter.elements("adit_nat", "blocks").unwrap());
        let wanted: Vec<_> = (0..300).map(|number| single(numbered(number), data(number))).collect();
        assert_eq!(there, wanted);

        // What is added and removed in one call is not there, and need not have been.
        let with_one_removed = |number| [&long[..], &[remove(numbered(number))]].concat();
        netfilter.change_elements(&with_one_removed(7)).unwrap();
        netfilter.change_elements(&with_one_removed(7)).unwrap();
        let there = sorted(netfilter.elements("adit_nat", "blocks").unwrap());
        assert_eq!(there, wanted.iter().filter(|one| one.key != numbered(7)).cloned().collect::<Vec<_>>());

        netfilter.change_elements(&none).unwrap();
        netfilter.change_elements(&none).unwrap();
        assert_eq!(netfilter.elements("adit_nat", "blocks").unwrap(), []);
        let gone: Vec<_> = none
            .iter()
            .map(|change| ElementChange { table: "nosuch".to_owned(), ..change.clone() })
            .collect();
        netfilter.change_elements(&gone).unwrap();

        // Elements of a set have no data to differ by.
        let (go, come) = (|key| Change::Remove { key }, |key| Change::Add { key, data: Vec::new() });
        netfilter.change_elements(&[met(go), met(come)].concat()).unwrap();
        assert_eq!(netfilter.elements("adit_nat", "met").unwrap().len(), 300);
    });
}

#[test]
fn sixty_thousand_elements_are_one_call() {
    in_namespace(|mut netfilter| {
        let all = |shift: u16| -> Vec<_> {
            let data = |number: u32| block(40_000 + shift + u16::try_from(number % 300).unwrap() * 64);
            (0..60_000).map(|number| add(numbered(number), data(number))).collect()
        };
        netfilter.change_elements(&all(0)).unwrap();
        assert_eq!(printed("blocks").len(), 60_000);

        // One more that cannot be added, behind all that are replaced.
        let mut changes = all(64);
        changes.push(add(vec![11, 0, 0, 0], vec![1]));
        let fault = netfilter.change_elements(&changes).unwrap_err().to_string();
        assert!(fault.starts_with("nft add element inet adit_nat blocks 11.0.0.0: "), "{fault}");
        let there = sorted(netfilter.elements("adit_nat", "blocks").unwrap());
        assert_eq!(there.len(), 60_000);
        assert_eq!(there[1], single(numbered(1), block(40_064)));

        changes.pop();
        netfilter.change_elements(&changes).unwrap();
        let there = sorted(netfilter.elements("adit_nat", "blocks").unwrap());
        assert_eq!(there[1], single(numbered(1), block(40_128)));
        assert_eq!(there[59_999], single(numbered(59_999), block(40_064 + 299 * 64)));

        let none: Vec<_> = (0..60_000).map(|number| remove(numbered(number))).collect();
        netfilter.change_elements(&none).unwrap();
        assert_eq!(netfilter.elements("adit_nat", "blocks").unwrap(), []);
    });
}

/// Changes of a few keys and of a few intervals that do not overlap.
fn some_changes() -> impl Strategy<Value = Vec<ElementChange>> {
    let data = (0u16..4).prop_map(|number| block(40_000 + 64 * number));
    let keyed = (0u32..12, data.clone(), 0..3).prop_map(|(number, data, kind)| {
        let key = numbered(number);
        of(
            "blocks",
            match kind {
                0 => Change::Add { key, data },
                1 => Change::Remove { key },
                _ => Change::Replace { key, data },
            },
        )
    });
    // Sixteen intervals beside each other, the last one up to the highest address.
    let ranged = (0u8..16, data, any::<bool>(), 1u8..3).prop_map(|(number, data, adding, wide)| {
        let from = vec![240 + number, 0, 0, 0];
        // Two of them together are never there, and are removed all the same.
        let end = number + if adding { 1 } else { wide };
        let end = (end < 16).then(|| vec![240 + end, 0, 0, 0]);
        of(
            "sites",
            match adding {
                true => Change::AddInterval { from, end, data },
                false => Change::RemoveInterval { from, end },
            },
        )
    });
    // Some calls are large enough to read the set first.
    let length = prop_oneof![2 => 1..20usize, 1 => 600..800usize];
    length.prop_flat_map(move |length| {
        prop::collection::vec(prop_oneof![keyed.clone(), ranged.clone()], length)
    })
}

#[test]
fn whatever_the_order_of_changes_the_kernel_has_what_they_say() {
    in_namespace(|mut netfilter| {
        let config = Config { failure_persistence: None, ..Config::with_cases(150) };
        let mut model: HashMap<String, Vec<Element>> = HashMap::new();
        let netfilter = std::cell::RefCell::new(&mut netfilter);
        let model = std::cell::RefCell::new(&mut model);
        TestRunner::new(config)
            .run(&some_changes(), |changes| {
                let (mut netfilter, mut model) = (netfilter.borrow_mut(), model.borrow_mut());
                for change in &changes {
                    change.change.carry_out(model.entry(change.set.clone()).or_default());
                }
                netfilter.change_elements(&changes).unwrap();
                for set in ["blocks", "sites"] {
                    let there = sorted(netfilter.elements("adit_nat", set).unwrap());
                    prop_assert_eq!(there, sorted(model.get(set).cloned().unwrap_or_default()));
                }
                Ok(())
            })
            .unwrap();
    });
}

#[test]
fn neighbours_carry_and_borrow() {
    assert_eq!(neighbour(&[10, 0, 255, 255], 1), [10, 1, 0, 0]);
    assert_eq!(neighbour(&[10, 1, 0, 0], u8::MAX), [10, 0, 255, 255]);
    assert_eq!(neighbour(&[255; 4], 1), [0; 4]);
    assert_eq!(neighbour(&[], 1), [0; 0]);
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(attributes in hostile::bytes(), flips in hostile::flips()) {
        let mut message = Message { kind: 10 << 8 | 12, attributes, ..Message::default() };
        let mut listed = Vec::new();
        let _ = wire::take(message.clone(), &mut listed);
        let good = wire::changes("t", "s", true, &Difference {
            deleted: Vec::new(),
            added: vec![
                (Place::Interval { from: vec![1; 4], end: Some(vec![2; 4]) }, vec![3; 16]),
                (Place::Key(vec![9; 4]), vec![3; 16]),
            ],
        });
        message.attributes = hostile::changed(good.unwrap()[0].message.attributes.clone(), &flips);
        let _ = wire::take(message, &mut listed);
        wire::join(listed);
    }
}
