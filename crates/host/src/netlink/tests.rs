use std::process::Command;
use std::time::Duration;

use super::*;
use crate::netns::TemporaryNetns;

/// Runs `work` in a namespace with an interface `left0` (192.0.2.1/24, 2001:db8::1/64) that is up.
fn with_interface(work: impl FnOnce(Netlink) + Send) {
    let netns = TemporaryNetns::create("adit-netlink").unwrap();
    netns.run_in(|| {
        let here = crate::netns::Netns::current().unwrap();
        let mut netlink = Netlink::open().unwrap();
        netlink.add_veth("left0", "right0", std::os::fd::AsFd::as_fd(&here)).unwrap();
        for address in ["192.0.2.1/24", "2001:db8::1/64"] {
            netlink.add_address(&on("left0", address), IfExists::Fail).unwrap();
        }
        netlink.set_up("left0", true).unwrap();
        netlink.set_up("right0", true).unwrap();
        let address = "2001:db8::1".parse().unwrap();
        assert!(netlink.wait_for_address(address, Duration::from_secs(10)).unwrap());
        work(netlink);
    });
}

fn on(interface: &str, address: &str) -> InterfaceAddress {
    InterfaceAddress { interface: interface.to_owned(), address: address.parse().unwrap() }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// What the `ip` command says.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_links_settings_are_set_and_listed() {
    with_interface(|mut netlink| {
        netlink.set_mtu("left0", 1400).unwrap();
        netlink.set_tx_queue_len("left0", 77).unwrap();
        netlink.set_up("left0", false).unwrap();

        let links = netlink.links().unwrap();
        let link = links.iter().find(|link| link.name == "left0").unwrap();

        assert_eq!((link.mtu, link.tx_queue_len, link.up), (1400, 77, false));
        assert_eq!(link.index, netlink.link_index("left0").unwrap());
        let text = ip("link show left0");
        assert!(
            text.contains("mtu 1400") && text.contains("qlen 77") && text.contains("state DOWN"),
            "{text}"
        );

        netlink.delete_link("left0").unwrap();
        assert!(netlink.delete_link("left0").unwrap_err().is_missing());
        assert!(matches!(netlink.link_index("left0"), Err(NetlinkFault::NoInterface { .. })));
    });
}

#[test]
fn addresses_are_added_listed_and_deleted() {
    with_interface(|mut netlink| {
        for address in ["10.88.0.1/16", "fd88::1/64", "198.51.100.7/32"] {
            let address = on("left0", address);
            assert!(netlink.add_address(&address, IfExists::Fail).unwrap());

            assert!(netlink.addresses().unwrap().contains(&address));
            assert!(ip("address show left0").contains(&format!("{} ", address.address)));
            assert!(!netlink.add_address(&address, IfExists::Keep).unwrap());
            assert!(netlink.add_address(&address, IfExists::Fail).unwrap_err().is_existing());

            netlink.delete_address(&address).unwrap();
            assert!(!netlink.addresses().unwrap().contains(&address));
            assert!(netlink.delete_address(&address).unwrap_err().is_missing());
        }
        assert!(ip("address show left0").contains("brd 192.0.2.255"));
    });
}

#[test]
fn it_is_known_which_interface_has_an_address() {
    with_interface(|mut netlink| {
        netlink.add_address(&on("right0", "198.51.100.7/32"), IfExists::Fail).unwrap();
        // The second address is the peer's.
        ip("address add 10.5.0.1 peer 10.5.0.2/32 dev right0");
        ip("route add local 203.0.113.7 dev lo");
        for (address, interface) in [
            ("192.0.2.1", Some("left0")),
            ("2001:db8::1", Some("left0")),
            ("198.51.100.7", Some("right0")),
            ("10.5.0.1", Some("right0")),
            ("127.0.0.1", Some("lo")),
            ("10.5.0.2", None),
            ("192.0.2.2", None),
            ("203.0.113.7", None),
        ] {
            let found = netlink.interface_with(address.parse().unwrap()).unwrap();
            assert_eq!(found.as_deref(), interface, "{address}");
        }
    });
}

#[test]
fn an_address_can_be_waited_for() {
    with_interface(|mut netlink| {
        let address = on("left0", "fd88::1/64");
        assert!(!netlink.wait_for_address(address.address.addr(), Duration::ZERO).unwrap());

        netlink.add_address(&address, IfExists::Fail).unwrap();

        assert!(netlink.wait_for_address(address.address.addr(), Duration::from_secs(10)).unwrap());
        let route = netlink.route_to(address.address.addr(), 0).unwrap().unwrap();
        assert_eq!(route.kind, RouteKind::Local);
    });
}

#[test]
fn routes_of_every_kind_are_added_listed_and_deleted() {
    with_interface(|mut netlink| {
        let full = Route {
            table: 4242,
            interface: Some("left0".to_owned()),
            metric: Some(7),
            source: Some("192.0.2.1".parse().unwrap()),
            mtu: Some(PathMtu { bytes: 1300, locked: true }),
            ..Route::by_gateway(net("10.0.0.0/8"), "192.0.2.254".parse().unwrap())
        };
        let routes = [
            (
                full,
                "10.0.0.0/8 via 192.0.2.254 dev left0 table 4242 proto 173 src 192.0.2.1 metric 7 mtu lock 1300",
            ),
            (Route::by_interface(net("10.1.0.0/16"), "left0"), "10.1.0.0/16 dev left0 proto 173 scope link"),
            (
                Route::by_gateway(net("0.0.0.0/0"), "192.0.2.254".parse().unwrap()),
                "default via 192.0.2.254 dev left0",
            ),
            (Route::new(net("10.2.0.0/16"), RouteKind::Unreachable), "unreachable 10.2.0.0/16 proto 173"),
            (Route::new(net("10.3.0.0/16"), RouteKind::Blackhole), "blackhole 10.3.0.0/16 proto 173"),
            (
                Route {
                    table: 100,
                    interface: Some("lo".to_owned()),
                    ..Route::new(net("0.0.0.0/0"), RouteKind::Local)
                },
                "local default dev lo table 100 proto 173 scope host",
            ),
            (
                Route { metric: Some(9), ..Route::by_gateway(net("::/0"), "2001:db8::ff".parse().unwrap()) },
                "default via 2001:db8::ff dev left0 proto 173 metric 9",
            ),
            (Route::by_interface(net("fd00::/8"), "left0"), "fd00::/8 dev left0 proto 173 metric 1024"),
            (Route::new(net("fd01::/16"), RouteKind::Unreachable), "unreachable fd01::/16 dev lo proto 173"),
            (
                Route {
                    table: 100,
                    interface: Some("lo".to_owned()),
                    ..Route::new(net("::/0"), RouteKind::Local)
                },
                "local default dev lo table 100 proto 173",
            ),
        ];
        for (route, text) in routes {
            let family = if route.destination.addr().is_ipv4() { "-4" } else { "-6" };
            let shown = || ip(&format!("{family} route show table all"));
            assert!(netlink.add_route(&route, IfExists::Fail).unwrap());

            assert!(shown().contains(text), "{text}\n{}", shown());
            let listed: Vec<_> =
                netlink.routes().unwrap().into_iter().filter(|r| r.protocol == PROTOCOL).collect();
            assert_eq!(listed.len(), 1, "{listed:?}");
            assert!(route.matches(&listed[0]), "{route:?} {listed:?}");
            assert!(!netlink.add_route(&route, IfExists::Keep).unwrap());
            assert!(netlink.add_route(&route, IfExists::Fail).unwrap_err().is_existing());

            netlink.delete_route(&route).unwrap();
            assert!(!shown().contains(text), "{text}");
            assert!(netlink.delete_route(&route).unwrap_err().is_missing());
        }
    });
}

#[test]
fn a_route_of_someone_else_is_not_deleted() {
    with_interface(|mut netlink| {
        ip("route add 10.1.0.0/16 dev left0");

        let fault = netlink.delete_route(&Route::by_interface(net("10.1.0.0/16"), "left0")).unwrap_err();

        assert!(fault.is_missing(), "{fault}");
        assert!(ip("route show").contains("10.1.0.0/16 dev left0"));
    });
}

#[test]
fn routes_that_differ_do_not_match() {
    let route = Route::by_interface(net("fd00::/8"), "left0");
    let differing = [
        Route { metric: Some(1), ..route.clone() },
        Route { table: 1, ..route.clone() },
        Route { interface: Some("right0".to_owned()), ..route.clone() },
        Route { gateway: Some("fd00::1".parse().unwrap()), ..route.clone() },
        Route { kind: RouteKind::Blackhole, ..route.clone() },
        Route { destination: net("fd00::/9"), ..route.clone() },
    ];
    for other in differing {
        assert!(!route.matches(&other), "{other}");
    }
    assert!(route.matches(&Route { metric: Some(1024), protocol: 2, ..route.clone() }));
}

#[test]
fn rules_are_added_listed_and_deleted() {
    with_interface(|mut netlink| {
        let standard = netlink.rules().unwrap();
        assert!(standard.iter().any(|rule| !rule.v6 && rule.table == MAIN_TABLE && rule.priority == 32766));
        for v6 in [false, true] {
            let rules = [
                (Rule::new(v6, 100, 4242), "100:\tfrom all lookup 4242 proto 173"),
                (
                    Rule { mark: Some(Mark::exactly(0xad17)), invert: true, ..Rule::new(v6, 101, 4242) },
                    "101:\tnot from all fwmark 0xad17 lookup 4242 proto 173",
                ),
                (
                    Rule { mark: Some(Mark { value: 0x10, mask: 0xff }), ..Rule::new(v6, 102, 70_000) },
                    "102:\tfrom all fwmark 0x10/0xff lookup 70000 proto 173",
                ),
                (
                    Rule { suppress_prefix_length: Some(0), ..Rule::new(v6, 103, MAIN_TABLE) },
                    "103:\tfrom all lookup main suppress_prefixlength 0 proto 173",
                ),
            ];
            let shown = || ip(if v6 { "-6 rule show" } else { "-4 rule show" });
            for (rule, text) in rules {
                assert!(netlink.add_rule(&rule, IfExists::Fail).unwrap());

                assert!(shown().contains(text), "{text}\n{}", shown());
                assert!(netlink.rules().unwrap().contains(&rule), "{rule}");
                assert!(!netlink.add_rule(&rule, IfExists::Keep).unwrap());
                assert!(netlink.add_rule(&rule, IfExists::Fail).unwrap_err().is_existing());

                netlink.delete_rule(&rule).unwrap();
                assert!(netlink.delete_rule(&rule).unwrap_err().is_missing());
            }
        }
        assert_eq!(netlink.rules().unwrap(), standard);
    });
}

#[test]
fn rules_with_other_conditions_are_not_taken_for_ours() {
    with_interface(|mut netlink| {
        let before = netlink.rules().unwrap();
        for rule in ["from 10.0.0.0/8 table 5", "iif lo table 5", "ipproto tcp table 5", "unreachable"] {
            ip(&format!("rule add priority 50 {rule}"));
        }

        assert_eq!(netlink.rules().unwrap(), before);
    });
}

#[test]
fn the_way_to_an_address_depends_on_the_mark() {
    with_interface(|mut netlink| {
        let far = "203.0.113.9".parse().unwrap();
        assert_eq!(netlink.route_to(far, 0).unwrap(), None);
        netlink
            .add_route(&Route::by_gateway(net("0.0.0.0/0"), "192.0.2.254".parse().unwrap()), IfExists::Fail)
            .unwrap();
        let marked = Rule { mark: Some(Mark::exactly(5)), ..Rule::new(false, 100, 77) };
        netlink.add_rule(&marked, IfExists::Fail).unwrap();
        netlink
            .add_route(
                &Route { table: 77, ..Route::by_interface(net("0.0.0.0/0"), "right0") },
                IfExists::Fail,
            )
            .unwrap();

        let plain = netlink.route_to(far, 0).unwrap().unwrap();
        assert_eq!((plain.interface.as_str(), plain.kind), ("left0", RouteKind::Unicast));
        assert_eq!(plain.interface_index, netlink.link_index("left0").unwrap());
        assert_eq!(plain.gateway, Some("192.0.2.254".parse().unwrap()));
        assert_eq!(plain.source, Some("192.0.2.1".parse().unwrap()));
        let marked = netlink.route_to(far, 5).unwrap().unwrap();
        assert_eq!((marked.interface.as_str(), marked.gateway), ("right0", None));

        let v6 = netlink.route_to("2001:db8::77".parse().unwrap(), 0).unwrap().unwrap();
        assert_eq!((v6.interface.as_str(), v6.source), ("left0", Some("2001:db8::1".parse().unwrap())));
        for (kind, refused) in [(RouteKind::Blackhole, "10.9.9.9"), (RouteKind::Unreachable, "fd09::9")] {
            let refused: std::net::IpAddr = refused.parse().unwrap();
            netlink.add_route(&Route::new(refused.into(), kind), IfExists::Fail).unwrap();
            assert_eq!(netlink.route_to(refused, 0).unwrap(), None, "{refused}");
        }
    });
}

#[test]
fn faults_name_the_operation_and_the_object() {
    with_interface(|mut netlink| {
        let gone = netlink.add_route(&Route::by_interface(net("10.0.0.0/8"), "adit0"), IfExists::Fail);
        assert_eq!(
            gone.unwrap_err().to_string(),
            "add route 10.0.0.0/8 dev adit0: there is no interface adit0"
        );

        let lost = Route { table: 9, ..Route::by_gateway(net("10.0.0.0/8"), "203.0.113.1".parse().unwrap()) };
        assert_eq!(
            netlink.add_route(&lost, IfExists::Fail).unwrap_err().to_string(),
            "add route 10.0.0.0/8 via 203.0.113.1 table 9: Network is unreachable (Nexthop has invalid gateway)"
        );

        let small = netlink.set_mtu("left0", 1).unwrap_err().to_string();
        assert!(small.starts_with("set link left0 mtu 1: Invalid argument"), "{small}");

        let missing = netlink.delete_address(&on("left0", "10.88.0.1/16")).unwrap_err().to_string();
        assert!(
            missing.starts_with("delete address 10.88.0.1/16 dev left0: Cannot assign requested address"),
            "{missing}"
        );
    });
}

#[test]
fn many_routes_are_listed_whole() {
    with_interface(|mut netlink| {
        for number in 0..2000u32 {
            let destination = std::net::Ipv4Addr::from(0x0a00_0000 + number * 256);
            let destination = ipnet::Ipv4Net::new(destination, 24).unwrap();
            netlink.add_route(&Route::by_interface(destination.into(), "left0"), IfExists::Fail).unwrap();
        }

        let ours = netlink.routes().unwrap().into_iter().filter(|route| route.protocol == PROTOCOL).count();

        assert_eq!(ours, 2000);
    });
}
