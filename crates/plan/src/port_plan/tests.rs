use proptest::prelude::*;

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ports(text: &str) -> PortSet {
    text.parse().unwrap()
}

fn entrance(addresses: &[&str], both: &str) -> Entrance {
    let addresses = addresses.iter().copied().map(address).collect();
    Entrance { addresses, tcp: ports(both), udp: ports(both) }
}

fn nat(address_: &str, range: &str) -> Option<Nat> {
    Some(Nat { addresses: vec![address(address_)], ports: ports(range), block: 64 })
}

fn forward(address_: &str, range: &str) -> Option<Forward> {
    Some(Forward { addresses: vec![address(address_)], ports: ports(range) })
}

fn service(addresses: &[&str], protocol: Protocol, port: u16) -> Service {
    Service { addresses: addresses.iter().copied().map(address).collect(), protocol, port }
}

const PUBLIC: &str = "192.0.2.1";

/// The default of the documentation, on one address.
fn default_plan() -> Demands {
    Demands {
        entrances: vec![entrance(&[PUBLIC], "1-29999")],
        forward: forward(PUBLIC, "30000-39999"),
        nat: nat(PUBLIC, "40000-64511"),
        ..Demands::default()
    }
}

fn shown(demands: &Demands) -> Vec<String> {
    let plan = PortPlan::solve(demands).unwrap();
    let show = |range: &Range| {
        let (from, to) = range.ports.clone().into_inner();
        format!("{} {} {from}-{to} {}", range.address, range.protocol, range.usage)
    };
    plan.ranges().iter().map(show).collect()
}

fn refusals(demands: &Demands) -> Vec<(&'static str, String, String)> {
    let problems = PortPlan::solve(demands).unwrap_err();
    let works = |hint: String| hint.split_once("; this would").map(|(_, works)| format!("this would{works}"));
    problems.into_iter().map(|p| (p.code, p.message, works(p.hint).unwrap_or_default())).collect()
}

#[test]
fn the_default_plan_gives_every_port_of_an_address_one_use() {
    let uses = ["1-29999 entrance", "30000-39999 forward", "40000-64511 nat", "64512-65535 host"];
    let expected: Vec<String> =
        ["tcp", "udp"].iter().flat_map(|p| uses.iter().map(move |u| format!("{PUBLIC} {p} {u}"))).collect();
    assert_eq!(shown(&default_plan()), expected);
    assert!(PortPlan::solve(&default_plan()).unwrap().protected().is_empty());
}

#[test]
fn an_overlap_is_refused_with_both_ranges_and_a_plan_that_works() {
    let demands = Demands { nat: nat(PUBLIC, "1280-65535"), forward: None, ..default_plan() };
    let found = refusals(&demands);
    assert_eq!(
        found.iter().map(|(code, message, _)| (*code, message.as_str())).collect::<Vec<_>>(),
        [
            ("overlap", "nat 1280-65535 overlaps entrance 1-29999 on 192.0.2.1 tcp"),
            ("overlap", "nat 1280-65535 overlaps entrance 1-29999 on 192.0.2.1 udp"),
            (
                "host-ports",
                "the host has no source ports for its own connections: all of 64512-65535 is taken"
            ),
        ]
    );
    assert!(
        found.iter().all(|(_, _, hint)| hint == "this would work: [nat] ports = \"30000-64511\""),
        "{found:?}"
    );
}

#[test]
fn all_addresses_overlap_with_each_of_their_family() {
    let both = entrance(&["0.0.0.0", "::"], "1000-1999");
    let with = |other: Entrance| Demands { entrances: vec![both.clone(), other], ..Demands::default() };
    let message = |demands: &Demands| refusals(demands).remove(0).1;
    let other = entrance(&[PUBLIC], "1500");
    assert_eq!(message(&with(other)), "entrance 1000-1999 overlaps entrance 1500 on 192.0.2.1 tcp");
    let other = entrance(&["2001:db8::1"], "1500");
    assert_eq!(message(&with(other)), "entrance 1000-1999 overlaps entrance 1500 on 2001:db8::1 tcp");
    assert_eq!(
        message(&Demands { nat: nat(PUBLIC, "1500-2000"), ..with(entrance(&[PUBLIC], "2001")) }),
        "nat 1500-2000 overlaps entrance 1000-1999 on 192.0.2.1 tcp"
    );
    let four = Demands {
        entrances: vec![entrance(&["0.0.0.0"], "443"), entrance(&["::", "2001:db8::1"], "443")],
        ..Demands::default()
    };
    assert!(PortPlan::solve(&four).is_ok());
    let other_address = Demands {
        entrances: vec![entrance(&[PUBLIC], "443"), entrance(&["192.0.2.2"], "443")],
        ..Demands::default()
    };
    assert!(PortPlan::solve(&other_address).is_ok());
}

#[test]
fn tcp_and_udp_are_planned_apart() {
    let mut tcp = entrance(&[PUBLIC], "443");
    tcp.udp = PortSet::default();
    let mut udp = entrance(&[PUBLIC], "443");
    udp.tcp = PortSet::default();
    let demands = Demands { entrances: vec![tcp, udp], ..Demands::default() };
    let plan = PortPlan::solve(&demands).unwrap();
    assert_eq!(plan.ports(address(PUBLIC), Protocol::Tcp, Use::Entrance), ports("443"));
    assert_eq!(plan.ports(address(PUBLIC), Protocol::Udp, Use::Entrance), ports("443"));
}

#[test]
fn a_service_inside_an_entrance_stays_the_hosts() {
    let demands = Demands {
        entrances: vec![entrance(&["0.0.0.0", "::"], "1-29999")],
        services: vec![
            service(&["0.0.0.0", "::"], Protocol::Tcp, 22),
            service(&["127.0.0.53"], Protocol::Udp, 53),
            service(&["127.0.0.1"], Protocol::Tcp, 31_000),
        ],
        ..Demands::default()
    };
    let plan = PortPlan::solve(&demands).unwrap();
    let entrances = |at: &str, protocol| plan.ports(address(at), protocol, Use::Entrance);
    assert_eq!(entrances("0.0.0.0", Protocol::Tcp), ports("1-21,23-29999"));
    assert_eq!(entrances("192.0.2.7", Protocol::Tcp), ports("1-21,23-29999"), "one of all addresses");
    assert_eq!(entrances("::", Protocol::Tcp), ports("1-21,23-29999"));
    assert_eq!(entrances("0.0.0.0", Protocol::Udp), ports("1-29999"), "only the loopback has port 53");
    assert_eq!(entrances("127.0.0.53", Protocol::Udp), ports("1-52,54-29999"));
    assert_eq!(plan.ports(address("::"), Protocol::Tcp, Use::Host), ports("22,64512-65535"));
    assert!(!plan.ranges().iter().any(|range| range.address == address("127.0.0.1")));
}

#[test]
fn a_service_inside_nat_or_forwards_is_refused() {
    let with = |services| Demands { services, ..default_plan() };
    let found = refusals(&with(vec![service(&["0.0.0.0"], Protocol::Udp, 51_820)]));
    assert_eq!(found[0].1, "nat 40000-64511 overlaps host 51820 on 192.0.2.1 udp");
    assert_eq!(found[0].2, "this would work: [nat] ports = \"51821-64511\"");
    let found = refusals(&with(vec![service(&[PUBLIC], Protocol::Tcp, 30_000)]));
    assert_eq!(found[0].1, "forward 30000-39999 overlaps host 30000 on 192.0.2.1 tcp");
    assert!(found[0].2.contains("[forward] ports = \"30001-39999\""), "{}", found[0].2);
    assert!(PortPlan::solve(&with(vec![service(&["192.0.2.2"], Protocol::Udp, 51_820)])).is_ok());
    let everywhere = Demands {
        forward: forward("0.0.0.0", "30000-39999"),
        services: vec![service(&["127.0.0.1"], Protocol::Tcp, 31_000)],
        ..Demands::default()
    };
    assert!(PortPlan::solve(&everywhere).is_ok(), "nothing is forwarded that comes from the loopback");
}

#[test]
fn nat_needs_source_ports() {
    let mut demands = default_plan();
    demands.nat = nat(PUBLIC, "");
    assert_eq!(refusals(&demands)[0].1, "nat has no source ports");
    demands.nat = nat(PUBLIC, "40000-40062");
    assert_eq!(refusals(&demands)[0].1, "nat 40000-40062 holds no block of 64 ports");
    demands.nat = Some(Nat { addresses: vec![], ..nat(PUBLIC, "40000-64511").unwrap() });
    assert_eq!(refusals(&demands)[0].0, "nat-ports");
}

#[test]
fn the_host_keeps_source_ports() {
    let all = Demands { entrances: vec![entrance(&[PUBLIC], "1-65535")], ..Demands::default() };
    let found = refusals(&all);
    assert_eq!(found[0].0, "host-ports");
    assert_eq!(found[0].2, "this would work: [[entrance]] tcp = \"1-64511\", [[entrance]] udp = \"1-64511\"");
    // Some of a range is enough; the rest of it is protected.
    let some =
        Demands { ephemeral: 1194..=1195, entrances: vec![entrance(&["::"], "1194")], ..Demands::default() };
    let plan = PortPlan::solve(&some).unwrap();
    assert_eq!(plan.protected(), &ports("1194"));
    assert_eq!(plan.ports(address("::"), Protocol::Udp, Use::Host), ports("1195"));
    let reserved = Demands { reserved: ports("1195"), ..some };
    assert_eq!(refusals(&reserved)[0].0, "host-ports");
}

#[test]
fn an_address_of_its_own_for_nat_may_be_given_up_by_the_host() {
    let wide = Demands {
        nat: nat("192.0.2.2", "1024-65535"),
        forward: forward(PUBLIC, "30000-64511"),
        ..default_plan()
    };
    let plan = PortPlan::solve(&wide).unwrap();
    assert!(plan.protected().is_empty());
    assert_eq!(plan.ports(address(PUBLIC), Protocol::Tcp, Use::Host), ports("64512-65535"));
    assert!(plan.ports(address("192.0.2.2"), Protocol::Tcp, Use::Host).is_empty());
    // Nothing says that there is another address than this one.
    let only = Demands { entrances: vec![entrance(&["0.0.0.0"], "1-1000")], forward: None, ..wide };
    assert!(refusals(&only).iter().any(|(code, _, _)| *code == "host-ports"));
}

#[test]
fn when_nothing_smaller_works_the_default_ranges_are_suggested() {
    let demands = Demands { entrances: vec![entrance(&[PUBLIC], "1-65535")], ..default_plan() };
    let hint = refusals(&demands).remove(0).2;
    assert_eq!(hint, "this would work: [[entrance]] tcp = \"1-29999\", [[entrance]] udp = \"1-29999\"");
}

fn any_ports() -> impl Strategy<Value = PortSet> {
    let edge = prop_oneof![Just(1u16), Just(u16::MAX), Just(30_000), Just(64_512), any::<u16>()];
    let range = (edge, 0u16..30_000).prop_map(|(from, more)| from..=from.saturating_add(more));
    proptest::collection::vec(range, 0..3).prop_map(|ranges| ranges.into_iter().collect())
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec!["0.0.0.0", "::", "192.0.2.1", "192.0.2.2", "2001:db8::1", "127.0.0.1"])
        .prop_map(address)
}

prop_compose! {
    fn any_entrance()(addresses in proptest::collection::btree_set(any_address(), 1..3), tcp in any_ports(), udp in any_ports()) -> Entrance {
        Entrance { addresses: addresses.into_iter().collect(), tcp, udp }
    }
}

prop_compose! {
    fn any_service()(addresses in proptest::collection::vec(any_address(), 1..3), tcp in any::<bool>(), port in 1u16..) -> Service {
        Service { addresses, protocol: if tcp { Protocol::Tcp } else { Protocol::Udp }, port }
    }
}

prop_compose! {
    fn any_demands()(
        entrances in proptest::collection::vec(any_entrance(), 0..3),
        forward in proptest::option::of((any_address(), any_ports())),
        nat in proptest::option::of((any_address(), any_ports())),
        services in proptest::collection::vec(any_service(), 0..4),
        (from, more) in (1024u16.., 0u16..3000),
        reserved in prop_oneof![Just(PortSet::default()), any_ports()],
    ) -> Demands {
        Demands {
            entrances,
            forward: forward.map(|(address, ports)| Forward { addresses: vec![address], ports }),
            nat: nat.map(|(address, ports)| Nat { addresses: vec![address], ports, block: 64 }),
            services,
            ephemeral: from..=from.saturating_add(more),
            reserved,
        }
    }
}

/// Checks an accepted plan port by port, by what the demands say and nothing else.
fn check(demands: &Demands, plan: &PortPlan) -> Result<(), TestCaseError> {
    let wide = |at: IpAddr| if at.is_ipv4() { address("0.0.0.0") } else { address("::") };
    let covers = |addresses: &[IpAddr], at: IpAddr| addresses.iter().any(|a| *a == at || *a == wide(at));
    let mut cells: Vec<_> = plan.ranges().iter().map(|range| (range.address, range.protocol)).collect();
    cells.dedup();
    for (at, protocol) in &cells {
        let ranges = plan.ranges().iter().filter(|r| (r.address, r.protocol) == (*at, *protocol));
        let mut next = 1u32;
        for range in ranges {
            prop_assert_eq!(u32::from(*range.ports.start()), next, "each port once, in order");
            next = u32::from(*range.ports.end()) + 1;
            let within = |port: u16, usage| {
                let service = demands
                    .services
                    .iter()
                    .any(|s| s.protocol == *protocol && s.port == port && covers(&s.addresses, *at));
                let entrances = demands.entrances.iter().filter(|e| {
                    let ports = if *protocol == Protocol::Tcp { &e.tcp } else { &e.udp };
                    ports.contains(port) && covers(&e.addresses, *at)
                });
                let (entrances, nat, forward) = (
                    entrances.count(),
                    demands
                        .nat
                        .iter()
                        .filter(|n| n.ports.contains(port) && covers(&n.addresses, *at))
                        .count(),
                    demands
                        .forward
                        .iter()
                        .filter(|f| f.ports.contains(port) && covers(&f.addresses, *at))
                        .count(),
                );
                prop_assert!(entrances + nat + forward <= 1, "{at} {protocol} {port} is wanted twice");
                let expected = match (entrances, forward, nat) {
                    _ if service => Use::Host,
                    (1, _, _) => Use::Entrance,
                    (_, 1, _) => Use::Forward,
                    (_, _, 1) => Use::Nat,
                    _ => {
                        prop_assert!(usage == Use::Free || usage == Use::Host);
                        prop_assert!(usage == Use::Free || demands.ephemeral.contains(&port));
                        usage
                    }
                };
                prop_assert_eq!(usage, expected, "{} {} {}", at, protocol, port);
                Ok(())
            };
            // The ends of each range, and where somebody else's begin and end.
            let edges = plan.ranges().iter().flat_map(|r| [*r.ports.start(), *r.ports.end()]);
            for port in edges.filter(|port| range.ports.contains(port)) {
                within(port, range.usage)?;
            }
        }
        prop_assert_eq!(next, 65_536, "all ports");
    }
    let host = demands.source_ports();
    prop_assert!(!host.is_empty(), "the host has source ports");
    prop_assert!(host.iter().all(|port| demands.ephemeral.contains(&port)));
    prop_assert!(host.overlap(plan.protected()).is_none() && host.overlap(&demands.reserved).is_none());
    // On every address of which NAT and forwards do not take the whole range, what is chosen is nobody else's.
    for (at, protocol) in cells {
        let used = |usage| plan.ports(at, protocol, usage);
        let others = used(Use::Nat).either(&used(Use::Forward)).either(&used(Use::Entrance));
        let named_of_family =
            plan.ranges().iter().any(|r| r.address.is_ipv4() == at.is_ipv4() && !r.address.is_unspecified());
        let given_up = demands
            .ephemeral
            .clone()
            .all(|port| used(Use::Nat).contains(port) || used(Use::Forward).contains(port));
        let stands_for_others = at.is_unspecified() && named_of_family;
        if !given_up && !stands_for_others {
            prop_assert!(host.overlap(&others).is_none(), "{at} {protocol}: {host} and {others}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn accepted_plans_give_each_port_once_and_leave_the_host_some(demands in any_demands()) {
        if let Ok(plan) = PortPlan::solve(&demands) {
            check(&demands, &plan)?;
        }
    }

    #[test]
    fn suggested_plans_are_accepted(demands in any_demands()) {
        if let (Err(problems), Some(better)) = (PortPlan::solve(&demands), suggest::suggest(&demands)) {
            let plan = PortPlan::solve(&better);
            prop_assert!(plan.is_ok(), "{better:?}: {plan:?}");
            check(&better, &plan.unwrap())?;
            let works = suggest::difference(&demands, &better);
            prop_assert!(!works.is_empty() && problems.iter().all(|p| p.hint.contains(&works)));
        }
    }

    #[test]
    fn what_overlaps_on_one_address_is_always_told_apart(from in 1u16..60_000, count in 64u16..5000, block in 1u16..64) {
        let range: PortSet = [from..=from.saturating_add(count)].into_iter().collect();
        let demands = Demands {
            nat: Some(Nat { addresses: vec![address(PUBLIC)], ports: range, block }),
            forward: None,
            ..default_plan()
        };
        match PortPlan::solve(&demands) {
            Ok(_) => prop_assert!(from > 29_999),
            Err(problems) => {
                prop_assert!(from <= 29_999 || from.saturating_add(count) > 64_511, "{problems:?}");
                prop_assert!(problems[0].hint.contains("; this would work: "), "{problems:?}");
            }
        }
    }
}
