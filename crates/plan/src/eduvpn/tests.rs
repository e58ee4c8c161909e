use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn profile(range: &str, processes: u32) -> Profile {
    Profile { range: range.parse().unwrap(), processes }
}

fn wanted(profiles: &[(&str, u32)]) -> Wanted {
    let profiles = profiles.iter().map(|(range, processes)| profile(range, *processes)).collect();
    Wanted { address: Ipv4Addr::new(192, 0, 2, 1), ports: PORTS, profiles }
}

fn mapping(profiles: &[(&str, u32)]) -> Result<Mapping, String> {
    Mapping::new(&wanted(profiles)).map_err(|fault| fault.to_string())
}

/// The profiles that an expected file is about: `## profile RANGE processes NUMBER`.
fn profiles(expected: &str) -> Vec<(&str, u32)> {
    let lines = expected.lines().filter_map(|line| line.strip_prefix("## profile "));
    let all = lines.map(|line| {
        let (range, processes) = line.split_once(" processes ").unwrap();
        (range, processes.parse().unwrap())
    });
    all.collect()
}

#[test]
fn files_are_those_worked_out_by_hand() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/eduvpn/expected");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display();
        let expected = std::fs::read_to_string(&path).unwrap();
        let outcome = mapping(&profiles(&expected)).map(|mapping| mapping.render(0));
        let said: Vec<&str> = expected.lines().filter(|line| !line.starts_with("##")).collect();
        count += 1;
        if let Some(error) = said[0].strip_prefix("@error ") {
            assert!(outcome.unwrap_err().starts_with(error), "{name}");
            continue;
        }
        let text = outcome.unwrap();
        assert!(text.ends_with("\nCOMMIT\n"), "{name}");
        let Some(lines) = said[0].strip_prefix("@lines ") else {
            let whole = said.join("\n") + "\n";
            assert!(same(whole.as_bytes(), text.as_bytes()), "{name}:\n{text}");
            continue;
        };
        let found: Vec<&str> = text.lines().collect();
        assert_eq!(found.len(), lines.parse::<usize>().unwrap(), "{name}");
        for line in &said[1..] {
            let (number, line) = line[1..].split_once(' ').unwrap();
            let there = found[number.parse::<usize>().unwrap() - 1];
            assert!(same(line.as_bytes(), there.as_bytes()), "{name}:{number}: {there}");
        }
    }
    assert_eq!(count, 8);
}

#[test]
fn ports_for_each_client_are_a_power_of_two_strictly_below_the_quotient() {
    for (quotient, expected) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 4), (256, 128), (257, 256)] {
        assert_eq!(power_below(quotient), expected, "{quotient}");
    }
}

#[test]
fn as_many_clients_fit_as_the_message_says_and_no_more() {
    // 5 + 1 clients: 4 x 3 + 1 = 13 ports are two for each, of which one is left; 12 are not.
    let six = |ports| {
        let profiles = vec![profile("10.0.0.0/29", 1), profile("10.0.1.0/30", 1)];
        Mapping::new(&Wanted { ports, profiles, ..wanted(&[]) }).map_err(|fault| fault.to_string())
    };
    assert_eq!(six(2000..=2012).map(|mapping| mapping.block()), Ok(1));
    let fault = six(2000..=2011).unwrap_err();
    assert!(fault.starts_with("6 clients are too many: source ports 2000-2011 suffice for 5;"), "{fault}");
    // Nothing is written out for what is far too large.
    let fault = mapping(&[("10.0.0.0/8", 1)]).unwrap_err();
    assert!(fault.starts_with("16777213 clients are too many"), "{fault}");
    assert!(mapping(&[("10.0.0.0/8", 1 << 22)]).unwrap_err().starts_with("4194304 clients"));
}

#[test]
fn private_networks_are_those_of_the_rfcs_to_the_last_address() {
    for private in [
        "10.0.0.0/30",
        "10.255.255.252/30",
        "172.16.0.0/30",
        "172.31.255.252/30",
        "192.168.0.0/30",
        "192.168.255.252/30",
        "100.64.0.0/30",
        "100.110.0.0/30",
        "100.127.255.252/30",
    ] {
        assert!(mapping(&[(private, 1)]).is_ok(), "{private}");
    }
    for public in [
        "9.255.255.252/30",
        "11.0.0.0/30",
        "172.15.255.252/30",
        "172.32.0.0/30",
        "192.167.255.252/30",
        "192.169.0.0/30",
        "100.63.255.252/30",
        "100.128.0.0/30",
        "100.7.0.0/24",
        "100.8.0.0/24",
        "100.9.0.0/24",
        "100.10.0.0/24",
        "100.11.0.0/24",
    ] {
        let expected = format!("there are no private networks in {public}");
        assert_eq!(mapping(&[(public, 1)]), Err(expected));
    }
}

#[test]
fn ranges_that_make_no_sense_are_named_with_the_remedy() {
    for (profiles, expected) in [
        (&[("10.0.0.5/16", 1)][..], "write 10.0.0.0/16"),
        (&[("10.0.0.0/16", 1), ("10.0.8.0/24", 1)], "overlap"),
        (&[("10.0.0.0/31", 1)], "the longest prefix with room for a device is /30"),
        (&[("10.0.0.0/24", 3)], "10.0.0.0/24 cannot be shared by 3 processes: a power of two"),
        (&[("10.0.0.0/24", 0)], "a power of two"),
        (&[("10.0.0.0/24", 128)], "at least 4 addresses for each"),
        (&[("10.0.0.0/24", 1 << 31)], "at least 4 addresses for each"),
        (&[("192.168.0.0/15", 1)], "192.168.0.0/15 is private only as far as 192.168.0.0/16"),
        (&[("192.168.0.0/24", 1), ("172.0.0.0/8", 1)], "private only as far as 172.16.0.0/12"),
    ] {
        let message = mapping(profiles).unwrap_err();
        assert!(message.contains(expected), "{profiles:?}: {message}");
    }
    assert!(mapping(&[("10.0.0.0/24", 64)]).is_ok());
    // Each part is judged by itself.
    let halves = mapping(&[("192.168.0.0/15", 2)]).unwrap_err();
    assert!(halves.starts_with("65533 clients"), "{halves}");
}

#[test]
fn only_the_time_may_differ_in_what_is_the_same() {
    let mapping = mapping(&[("10.0.0.0/29", 1)]).unwrap();
    let (one, other) = (mapping.render(0), mapping.render(1_700_000_000));
    assert_ne!(one, other);
    assert!(same(one.as_bytes(), other.as_bytes()));
    for different in [one.replace("10.0.0.3", "10.0.0.4"), format!("{one}\n"), one.replace("# Gen", "# gen")]
    {
        assert!(!same(one.as_bytes(), different.as_bytes()), "{different}");
    }
    assert!(!same(one.as_bytes(), b""));
}

const FILE: &str = "# a comment\n# NAT ports per client: 256\n*nat\n:POSTROUTING ACCEPT [0:0]\n\
    -A POSTROUTING -p icmp -j SNAT --to-source 192.0.2.1\n\
    -A POSTROUTING -s 192.168.101.2 -p tcp -j SNAT --to-source 192.0.2.1:65280-65535\n\
    -A POSTROUTING -s 192.168.101.2 -p udp -j SNAT --to-source 192.0.2.1:65280-65535\n\
    -A POSTROUTING -s 192.168.101.3/32 -p udp -j SNAT --to-source 192.0.2.1:65024-65279\n\
    COMMIT\n*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";

#[test]
fn a_port_is_found_to_its_edges_by_address_and_protocol() {
    let rules = Rules::parse(FILE.as_bytes()).unwrap();
    let inner = |address: [u8; 4], port, protocol| {
        let found = rules.find(address.into(), port, protocol);
        found.iter().map(|found| found.inner.to_string()).collect::<Vec<_>>()
    };
    let (here, tcp, udp) = ([192, 0, 2, 1], Some(Protocol::Tcp), Some(Protocol::Udp));
    assert_eq!(inner(here, 65_280, tcp), ["192.168.101.2"]);
    assert_eq!(inner(here, 65_535, None), ["192.168.101.2"]);
    assert_eq!(inner(here, 65_279, udp), ["192.168.101.3"]);
    assert_eq!(inner(here, 65_024, None), ["192.168.101.3"]);
    for (address, port, protocol) in [
        (here, 65_279, tcp),
        (here, 65_023, udp),
        ([192, 0, 2, 2], 65_300, None),
        (here, 65_300, Some(Protocol::Icmp)),
    ] {
        assert!(inner(address, port, protocol).is_empty(), "{address:?} {port}");
    }
    assert_eq!(rules.find(here.into(), 65_300, None)[0].ports, 65_280..=65_535);
}

#[test]
fn damaged_files_say_where_they_are_damaged() {
    for (from, to, expected) in [
        ("192.168.101.2 ", "192.168.101.2x ", "line 6: it is no rule"),
        (":65280-65535\n", ":65280-6553", "line 6: it is no rule"),
        (":65280-65535\n", ":65281-65535\n", "line 6: its ports are not as many"),
        (":65280-65535\n", ":65380-65635\n", "line 6: it is no rule"),
        (":65280-65535\n", ":+5280-65535\n", "line 6: it is no rule"),
        (":65024-65279\n", ":0-255\n", "line 8: it is no rule"),
        ("-p icmp -j SNAT --to-source 192.0.2.1", "-j MASQUERADE", "line 5: it is no rule"),
        ("-p icmp", "-p gre", "line 5: it is no rule"),
        ("-A POSTROUTING -p icmp", "A POSTROUTING -p icmp", "line 5: it is neither"),
        ("client: 256", "client: many", "line 2: it does not say"),
        ("*filter", "*nat", "line 10: a table begins within another, or again"),
        ("*nat\n", "", "line 3: it belongs to no table"),
        ("*nat\n", "*mangle\n", "it has no nat table"),
        ("ACCEPT\nCOMMIT\n", "ACCEPT\nCOMM", "it ends before a COMMIT"),
    ] {
        let damaged = FILE.replacen(from, to, 1);
        assert_ne!(damaged, FILE, "{from}");
        let message = Rules::parse(damaged.as_bytes()).unwrap_err().to_string();
        assert!(message.contains(expected), "{to}: {message}");
    }
    assert_eq!(Rules::parse(b"*nat\n\xff\nCOMMIT\n").unwrap_err().to_string(), "line 2: it is not text");
    assert_eq!(Rules::parse(b""), Err(RulesFault::NoNat));
    assert_eq!(Rules::parse(&vec![b'\n'; MAX_FILE + 1]), Err(RulesFault::TooLarge));
}

#[test]
fn a_file_counts_from_after_its_second_until_the_next_ones_has_passed() {
    let times = [300, 100, 200];
    let at = |from: u64, to: u64| in_force(&times, Duration::from_millis(from), Duration::from_millis(to));
    assert!(at(99_000, 99_000).is_empty());
    assert!(at(100_000, 100_000).is_empty(), "the number is to be lower");
    assert_eq!(at(100_001, 100_001), [100]);
    assert_eq!(at(200_000, 200_000), [100]);
    assert_eq!(at(201_000, 201_000), [200]);
    assert_eq!(at(1_000_000, 1_000_000), [300]);
    assert_eq!(at(199_000, 201_000), [100, 200]);
    assert_eq!(at(200_000, 200_001), [100, 200], "both at the boundary");
    assert_eq!(at(200_001, 300_000), [200]);
    assert_eq!(at(0, 1_000_000), [100, 200, 300]);
    assert!(in_force(&[], Duration::ZERO, Duration::MAX).is_empty());
}

/// Profiles with room for their processes.
fn any_profiles() -> impl Strategy<Value = Vec<Profile>> {
    let one = (0u8..200, 22u8..=30, 0u32..=4).prop_map(|(third, length, halvings)| {
        let range = Ipv4Net::new(Ipv4Addr::new(10, third, 0, 0), length).unwrap();
        Profile { range, processes: 1 << halvings.min(u32::from(30 - length)) }
    });
    proptest::collection::btree_map(any::<u8>(), one, 1..6).prop_map(|profiles| {
        let mut profiles: Vec<Profile> = profiles.into_values().collect();
        profiles.sort_by_key(|profile| profile.range);
        profiles.dedup_by_key(|profile| profile.range.network());
        profiles
    })
}

proptest! {
    #[test]
    fn what_is_rendered_is_read_and_every_port_is_its_clients_alone(
        profiles in any_profiles(), at in any::<u32>(), port in 1u16..
    ) {
        let mapping = Mapping::new(&Wanted { profiles, ..wanted(&[]) }).unwrap();
        let text = mapping.render(at.into());
        let rules = Rules::parse(text.as_bytes()).unwrap();
        let expected: Vec<Found> = mapping
            .clients()
            .filter(|(_, ports)| ports.contains(&port))
            .map(|(inner, ports)| Found { inner, ports })
            .collect();
        prop_assert!(expected.len() <= 1);
        prop_assert_eq!(rules.find([192, 0, 2, 1].into(), port, None), expected);
        for (_, ports) in mapping.clients() {
            prop_assert!(*ports.start() >= 1280 && ports.len() == usize::from(mapping.block()));
        }
        // Cut anywhere before its last line, it is found out.
        let cut = at as usize % (text.len() - 1);
        prop_assert!(Rules::parse(&text.as_bytes()[..cut]).is_err() || text[..cut].ends_with("COMMIT\n")
            || text[..cut].ends_with("COMMIT") , "{}", cut);
    }

    #[test]
    fn any_bytes_are_rules_or_a_clear_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Err(fault) = Rules::parse(&bytes) {
            prop_assert!(!fault.to_string().is_empty());
        }
    }

    #[test]
    fn a_file_with_bytes_changed_is_read_or_refused(at in 0usize..FILE.len(), byte in any::<u8>()) {
        let mut file = FILE.as_bytes().to_vec();
        file[at] = byte;
        let _ = Rules::parse(&file);
    }
}
