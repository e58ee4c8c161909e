use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn fault(wanted: &Wanted) -> String {
    Layout::new(wanted).unwrap_err().to_string()
}

#[test]
fn blocks_are_counted_from_the_highest_ports_of_the_first_address() {
    let addresses = vec![ip("192.0.2.9"), ip("192.0.2.1")];
    let layout = Layout::new(&Wanted { addresses, ..wanted() }).unwrap();

    assert_eq!(layout.capacity(), 766);
    for (number, text) in [
        (0, "192.0.2.9:64448-64511"),
        (1, "192.0.2.9:64384-64447"),
        (382, "192.0.2.9:40000-40063"),
        (383, "192.0.2.1:64448-64511"),
        (765, "192.0.2.1:40000-40063"),
    ] {
        assert_eq!(layout.block(number), Some(block(text)));
        assert_eq!(layout.block(number).unwrap().to_string(), text);
    }
    assert_eq!(layout.block(766), None);
}

#[test]
fn only_the_very_block_has_its_number() {
    let layout = Layout::new(&wanted()).unwrap();

    assert_eq!(layout.number_of(block("192.0.2.1:64448-64511")), Some(0));
    for other in
        ["192.0.2.2:64448-64511", "192.0.2.1:64449-64511", "192.0.2.1:64416-64479", "192.0.2.1:64512-64575"]
    {
        assert_eq!(layout.number_of(block(other)), None, "{other}");
    }
    for (address, port) in [("192.0.2.1", 39_999), ("192.0.2.1", 64_512), ("192.0.2.2", 50_000)] {
        assert_eq!(layout.number_at(ip(address), port), None);
    }
}

#[test]
fn auto_is_the_largest_block_with_which_every_address_has_one() {
    let auto = |pool: &str, addresses: &[&str], ports: RangeInclusive<u16>| {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        let pools = vec![pool.parse().unwrap()];
        Layout::new(&Wanted { addresses, ports, pools, size: Size::Auto, ..wanted() })
    };
    let size = |pool, addresses: &[&str], ports| auto(pool, addresses, ports).unwrap().block_size();

    // 24512 ports / 253 users = 96; / 509 = 48; / 13 = 1885.
    assert_eq!(size("10.88.0.0/24", &["192.0.2.1"], 40_000..=64_511), 64);
    assert_eq!(size("10.88.0.0/23", &["192.0.2.1"], 40_000..=64_511), 32);
    assert_eq!(size("10.88.0.0/28", &["192.0.2.1"], 40_000..=64_511), 1024);
    // A block is on one address: 64 of 100 ports on each, not 128 of 200.
    assert_eq!(size("10.88.0.0/30", &["192.0.2.1", "192.0.2.2"], 1000..=1099), 64);
    // Exactly as many as there are users.
    assert_eq!(size("10.88.0.0/29", &["192.0.2.1"], 1000..=1039), 8);
    assert_eq!(size("10.88.0.0/29", &["192.0.2.1"], 1000..=1038), 4);
    assert_eq!(size("10.88.0.0/30", &["192.0.2.1"], 1..=65_535), 32_768);
    assert_eq!(size("10.88.0.0/16", &["192.0.2.1", "192.0.2.2", "192.0.2.3"], 40_000..=64_511), 1);

    let none = auto("10.88.0.0/16", &["192.0.2.1"], 40_000..=64_511).unwrap_err();
    assert_eq!(none, LayoutFault::TooManyUsers { users: 65_533, blocks: 24_512, block: 1, fits: None });
}

#[test]
fn static_blocks_follow_the_place_in_the_pools() {
    let pools = vec!["10.88.0.0/28".parse().unwrap(), "10.90.0.0/29".parse().unwrap()];
    let layout = Layout::new(&Wanted { pools, assign: Assign::Static, ..wanted() }).unwrap();

    for (address, number) in [
        ("10.88.0.0", None),
        ("10.88.0.1", None),
        ("10.88.0.2", Some(0)),
        ("10.88.0.14", Some(12)),
        ("10.88.0.15", None),
        ("10.90.0.2", Some(13)),
        ("10.90.0.6", Some(17)),
        ("10.90.0.7", None),
        ("10.91.0.2", None),
    ] {
        assert_eq!(layout.static_number(ip(address)), number, "{address}");
        assert_eq!(layout.translates(ip(address)), number.is_some(), "{address}");
    }
    let lease = Layout::new(&wanted()).unwrap();
    assert_eq!(lease.static_number(ip("10.88.200.1")), None, "beyond the last block");
    assert!(lease.translates(ip("10.88.200.1")));
}

#[test]
fn public_pools_have_no_part_in_it() {
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let pools = vec![net("203.0.113.0/24"), net("100.64.0.0/29"), net("100.128.0.0/24")];
    let layout = Layout::new(&Wanted { pools, assign: Assign::Static, ..wanted() }).unwrap();

    assert_eq!(layout.static_number(ip("100.64.0.2")), Some(0));
    assert!(!layout.translates(ip("203.0.113.7")) && !layout.translates(ip("100.128.0.7")));
    assert_eq!(
        Layout::new(&Wanted { pools: vec![net("203.0.113.0/24")], ..wanted() }),
        Err(LayoutFault::NoPool)
    );
}

#[test]
fn too_many_users_are_told_how_many_fit_and_what_to_change() {
    let told = fault(&Wanted { assign: Assign::Static, ..wanted() });
    assert!(told.contains("blocks of 64 ports for 383 users, and the pools have 65533 addresses"), "{told}");
    assert!(told.contains("; make the pools smaller, add NAT addresses"), "{told}");

    let pools = vec!["10.88.0.0/22".parse().unwrap()];
    let told = fault(&Wanted { assign: Assign::Static, pools, ..wanted() });
    assert!(told.contains("take blocks of 16 ports, or make the pools smaller"), "{told}");
}

#[test]
fn what_cannot_be_is_refused_and_named() {
    let with = |addresses: &[&str]| {
        fault(&Wanted { addresses: addresses.iter().map(|text| ip(text)).collect(), ..wanted() })
    };
    assert!(with(&[]).contains("has no addresses"));
    assert!(with(&["192.0.2.1", "192.0.2.2", "192.0.2.1"]).contains("192.0.2.1 twice"));
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1"] {
        assert!(with(&[bad]).contains(bad), "{bad}");
    }
    for size in [0, 3, 100] {
        let told = fault(&Wanted { size: Size::Ports(size), ..wanted() });
        assert!(told.contains(&format!("block = {size} is no power of two")), "{told}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    for ports in [0..=64_511, 64_511..=40_000] {
        for size in [Size::Auto, Size::Ports(64)] {
            let told = fault(&Wanted { ports: ports.clone(), size, ..wanted() });
            assert!(told.starts_with("[nat] ports ") && told.contains("no range"), "{told}");
        }
        let told = fault(&Wanted { host: ports, ..wanted() });
        assert!(told.starts_with("[host] ephemeral "), "{told}");
    }
    let told = fault(&Wanted { ports: 40_000..=40_062, ..wanted() });
    assert!(told.contains("40000-40062 hold no block of 64"), "{told}");
    let overlapping = vec!["10.88.0.0/16".parse().unwrap(), "10.88.4.0/24".parse().unwrap()];
    assert!(fault(&Wanted { pools: overlapping, ..wanted() }).contains("overlap"));
}

#[test]
fn notes_say_how_many_have_a_block_and_which_ports_are_in_none() {
    let notes = |size, pool: &str| {
        let pools = vec![pool.parse().unwrap()];
        Layout::new(&Wanted { size: Size::Ports(size), pools, ..wanted() }).unwrap().notes()
    };
    assert_eq!(
        notes(64, "10.88.0.0/16"),
        ["383 clients at once have a block; the pools have 65533 addresses"]
    );
    assert_eq!(notes(128, "10.88.0.0/28"), ["ports 40000-40063 make no block of 128 and stay unused"]);
    assert_eq!(notes(64, "10.88.0.0/28"), [""; 0]);
}

#[test]
fn the_canonical_text_stays_what_it_is() {
    let forward = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        Some(Forwards { addresses, ports: "30000-39999,7".parse().unwrap() })
    };
    let layout = Layout::new(&Wanted { forward: forward(&["192.0.2.2", "192.0.2.1"]), ..wanted() }).unwrap();

    let text = concat!(
        r#"{"addresses":["192.0.2.1"],"first":40000,"last":64511,"block":64,"assign":"lease","#,
        r#""pools":["10.88.0.0/16"],"#,
        r#""forward":{"addresses":["192.0.2.1","192.0.2.2"],"ports":"7,30000-39999"},"host":[64512,65535]}"#,
    );
    assert_eq!(layout.canonical(), text);
    assert_eq!(Layout::parse(text).unwrap(), layout);
    assert_eq!(serde_json::to_string(&layout).unwrap(), text);
    let order = forward(&["192.0.2.1", "192.0.2.2", "192.0.2.1"]);
    assert_eq!(Layout::new(&Wanted { forward: order, ..wanted() }).unwrap(), layout);
}

#[test]
fn a_text_that_is_no_layout_is_refused() {
    let good = Layout::new(&wanted()).unwrap().canonical();
    assert!(Layout::parse(&good).is_ok());
    for (old, new) in [
        ("\"block\":64", "\"block\":65"),
        ("\"block\":64", "\"block\":64,\"more\":1"),
        ("\"first\":40000", "\"first\":0"),
        ("\"last\":64511", "\"last\":39999"),
        ("\"last\":64511", "\"last\":64511111"),
        ("\"lease\"", "\"static\""),
        ("[\"192.0.2.1\"]", "[]"),
        ("[\"10.88.0.0/16\"]", "[]"),
        ("10.88.0.0/16", "10.88.0.1/16"),
        ("\"host\":[64512,65535]", "\"host\":[]"),
        ("null", "{\"addresses\":[],\"ports\":\"70000\"}"),
    ] {
        assert!(good.contains(old), "{old}");
        let text = good.replace(old, new);
        assert!(Layout::parse(&text).is_err(), "{text}");
        assert!(serde_json::from_str::<Layout>(&text).is_err(), "{text}");
    }
    assert!(Layout::parse("").is_err());
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let range = (1u16.., 1u16..).prop_map(|(a, b)| a.min(b)..=a.max(b));
    (range, 0..16u32, 1..4usize).prop_filter_map("no block", |(ports, power, addresses)| {
        let addresses = (1..=addresses).map(|last| Ipv4Addr::new(192, 0, 2, last as u8)).collect();
        Layout::new(&Wanted { addresses, ports, size: Size::Ports(1 << power), ..wanted() }).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_port_is_in_one_block_at_most_and_numbers_are_inverse(layout in any_layout()) {
        let mut seen = HashSet::new();
        let mut before: Option<Block> = None;
        for number in 0..layout.capacity() {
            let block = layout.block(number).unwrap();
            prop_assert_eq!(u32::from(block.to - block.from) + 1, u32::from(layout.block_size()));
            prop_assert!(layout.ports().contains(&block.from) && layout.ports().contains(&block.to));
            prop_assert_eq!(layout.number_of(block), Some(number));
            for port in [block.from, block.to, block.from + (block.to - block.from) / 2] {
                prop_assert_eq!(layout.number_at(block.address, port), Some(number));
            }
            prop_assert!((block.from..=block.to).all(|port| seen.insert((block.address, port))));
            if let Some(before) = before.filter(|before| before.address == block.address) {
                prop_assert_eq!(u32::from(block.to) + 1, u32::from(before.from), "highest first, no gap");
            } else {
                prop_assert_eq!(block.to, *layout.ports().end());
            }
            before = Some(block);
        }
        prop_assert_eq!(layout.block(layout.capacity()), None);
        for &address in layout.addresses() {
            let none = layout.ports().filter(|port| !seen.contains(&(address, *port)));
            let none: Vec<u16> = none.collect();
            prop_assert!(none.len() < usize::from(layout.block_size()), "a block more would fit");
            prop_assert!(none.iter().all(|&port| layout.number_at(address, port).is_none()));
        }
        prop_assert_eq!(Layout::parse(&layout.canonical()).unwrap(), layout);
    }

    #[test]
    fn parsing_strangers_text_never_panics(text in "\\PC*", layout in any_layout(), cut in 0..200usize) {
        let _ = Layout::parse(&text);
        let canonical = layout.canonical();
        let _ = Layout::parse(&canonical[..cut.min(canonical.len())]);
    }
}
