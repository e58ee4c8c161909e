//! What is wanted is there, and nothing else has changed.

use std::fs;

use super::*;
use crate::nft::Change;
use crate::testing::{assert_same, run, snapshot};

#[test]
fn everything_is_there_after_apply_and_gone_after_undo() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let tun = plumbing.open_tun(&TunOptions::new("adit0")).unwrap();

        plumbing.apply(&everything()).unwrap();

        let after = snapshot();
        for line in [
            "inet 10.88.0.1/16 brd 10.88.255.255 scope global adit0",
            "inet6 fd88::1/64 scope global",
            "inet 198.51.100.1/32 scope global right0",
            "10.99.0.0/16 dev adit0 proto 173 scope link",
            "default dev left0 table 4242 proto 173 scope link",
            "unreachable default dev lo table 4242 proto 173 metric 9",
            "100:\tnot from all fwmark 0xad lookup 4242 proto 173",
            "101:\tfrom all lookup main suppress_prefixlength 0 proto 173",
            "tcp dport 22 accept",
            "net.ipv4.ip_forward = 1",
            "net.ipv6.conf.all.forwarding = 1",
            "net.ipv4.ip_local_port_range = 64512\t65535",
            "net.ipv4.conf.right0.rp_filter = 2",
        ] {
            assert!(after.contains(line), "{line}\n{after}");
        }
        let link = run("ip link show adit0");
        assert!(link.contains("mtu 1420") && link.contains("qlen 1000") && link.contains(",UP"), "{link}");

        plumbing.undo().unwrap();
        close(tun);
        assert_same(&before, &snapshot());
        assert!(!place.record().exists());
    });
}

#[test]
fn a_missing_interface_or_parameter_is_named_before_anything_is_done() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let fault = plumbing.apply(&everything()).unwrap_err();
        assert_eq!(fault.to_string(), "set link adit0 mtu 1420: there is no interface adit0");

        let sysctls = vec![Sysctl::new("net.ipv4.ip_forward", "1"), Sysctl::new("net.ipv4.nonsense", "1")];
        let fault = plumbing.apply(&HostState { sysctls, ..HostState::default() }).unwrap_err();
        assert!(fault.to_string().starts_with("sysctl net.ipv4.nonsense does not exist"), "{fault}");

        assert_same(&before, &snapshot());
    });
}

#[test]
fn only_the_difference_is_done() {
    in_a_place(|place| {
        let start = snapshot();
        let mut plumbing = place.start();
        let mut wanted = without_tun();
        plumbing.apply(&wanted).unwrap();
        let (first, record) = (snapshot(), fs::metadata(place.record()).unwrap().modified().unwrap());
        // A handle that only lives on in a table that is not loaded again.
        let handle = run("nft -a list table inet adit");

        plumbing.apply(&wanted).unwrap();
        assert_same(&first, &snapshot());
        assert_eq!(fs::metadata(place.record()).unwrap().modified().unwrap(), record);
        assert_eq!(run("nft -a list table inet adit"), handle);

        wanted.routes.remove(0);
        wanted.routes.push(route("10.66.0.0/16", "left0"));
        wanted.sysctls.remove(0);
        wanted.addresses.clear();
        wanted.rules.clear();
        wanted.links[0].tx_queue_len = Some(66);
        wanted.tables = vec![table("tcp dport 23 accept")];
        plumbing.apply(&wanted).unwrap();
        let second = snapshot();
        assert!(
            second.contains("10.66.0.0/16 dev left0") && !second.contains("default dev left0 table 4242")
        );
        assert!(second.contains("net.ipv4.ip_forward = 0") && !second.contains("198.51.100.1/32"));
        assert!(second.contains("qlen 66") && !second.contains("lookup 4242"));
        assert!(second.contains("tcp dport 23") && !second.contains("tcp dport 22"));

        plumbing.apply(&HostState::default()).unwrap();
        assert_same(&start, &snapshot());
        assert!(!place.record().exists());
    });
}

#[test]
fn what_went_missing_is_done_again() {
    in_a_place(|place| {
        let start = snapshot();
        let mut plumbing = place.start();
        let tun = plumbing.open_tun(&TunOptions::new("adit0")).unwrap();
        plumbing.apply(&everything()).unwrap();
        let before = run("ip -br address show") + &run("ip route show table all");

        close(tun);
        run("nft flush ruleset");
        run("nft add table inet foreign");
        let tun = plumbing.open_tun(&TunOptions::new("adit0")).unwrap();
        plumbing.apply(&everything()).unwrap();

        assert_eq!(run("ip -br address show") + &run("ip route show table all"), before);
        assert!(run("nft list ruleset").contains("tcp dport 22 accept"));
        plumbing.undo().unwrap();
        close(tun);
        assert_same(&start, &snapshot());
    });
}

#[test]
fn what_was_there_before_stays() {
    in_a_place(|place| {
        run("ip address add 198.51.100.1/32 dev right0");
        run("ip route add default dev left0 table 4242");
        run("ip rule add priority 100 not fwmark 0xad lookup 4242");
        run("sysctl -qw net.ipv4.ip_forward=1");
        let before = snapshot();
        let mut plumbing = place.start();

        plumbing.apply(&without_tun()).unwrap();
        plumbing.undo().unwrap();

        assert_same(&before, &snapshot());
    });
}

#[test]
fn a_table_of_our_name_is_replaced_whoever_made_it() {
    in_a_place(|place| {
        let before = snapshot();
        run("nft add table inet adit");
        run("nft add chain inet adit old");
        let mut plumbing = place.start();

        plumbing.apply(&HostState { tables: vec![table("accept")], ..HostState::default() }).unwrap();

        assert!(!run("nft list ruleset").contains("chain old"));
        plumbing.undo().unwrap();
        assert_same(&before, &snapshot());
    });
}

#[test]
fn another_route_in_the_way_is_named() {
    in_a_place(|place| {
        let mut plumbing = place.start();
        let wanted = HostState { routes: vec![route("203.0.113.0/24", "right0")], ..HostState::default() };

        let fault = plumbing.apply(&wanted).unwrap_err();

        assert!(
            fault.to_string().starts_with("add route 203.0.113.0/24 dev right0: another route"),
            "{fault}"
        );
    });
}

#[test]
fn a_route_is_replaced_by_one_to_the_same_destination() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        for interface in ["left0", "right0"] {
            plumbing
                .apply(&HostState { routes: vec![route("10.5.0.0/16", interface)], ..HostState::default() })
                .unwrap();
            assert!(run("ip route show").contains(&format!("10.5.0.0/16 dev {interface}")));
        }
        // The wider description fits the route that goes away.
        let open = Route::by_gateway("10.5.0.0/16".parse().unwrap(), "192.0.2.9".parse().unwrap());
        let narrow = Route { interface: Some("left0".to_owned()), ..open };
        for wanted in [narrow, open] {
            plumbing.apply(&HostState { routes: vec![wanted], ..HostState::default() }).unwrap();
            assert!(run("ip route show").contains("10.5.0.0/16 via 192.0.2.9 dev left0"));
        }
        plumbing.undo().unwrap();
        assert_same(&before, &snapshot());
    });
}

#[test]
fn it_works_at_home_from_a_thread_that_is_elsewhere() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let elsewhere = TemporaryNetns::create("adit-elsewhere").unwrap();
        let untouched = elsewhere.run_in(snapshot);

        let mut plumbing = elsewhere.run_in(move || {
            plumbing.apply(&without_tun()).unwrap();
            plumbing
        });

        assert!(snapshot().contains("tcp dport 22 accept"));
        let udp =
            elsewhere.run_in(|| plumbing.bind_udp("192.0.2.1:0".parse().unwrap(), &UdpOptions::default()));
        udp.unwrap();
        elsewhere.run_in(move || drop(plumbing));
        assert_same(&before, &snapshot());
        assert_same(&untouched, &elsewhere.run_in(snapshot));
    });
}

#[test]
fn conflicts_with_this_machines_networks_are_found() {
    in_a_place(|_| {
        let pools = ["192.0.0.0/8", "203.0.113.128/25", "10.88.0.0/16"].map(|pool| pool.parse().unwrap());

        let found: Vec<_> = find_conflicts(&pools, None).unwrap().iter().map(ToString::to_string).collect();

        assert_eq!(
            found,
            [
                "pool 192.0.0.0/8 overlaps 192.0.2.0/24 on left0 (address)",
                "pool 203.0.113.128/25 overlaps 203.0.113.0/24 on left0 (route)",
            ]
        );
    });
}

#[test]
fn the_wanted_state_is_plain_data() {
    let wanted = everything();

    let text = serde_json::to_string(&wanted).unwrap();

    assert_eq!(serde_json::from_str::<HostState>(&text).unwrap(), wanted);
    assert!(serde_json::from_str::<HostState>("{\"route\":[]}").is_err());
}

#[test]
fn elements_and_connections_are_those_of_home_whoever_asks() {
    in_a_place(|place| {
        let mut plumbing = place.start();
        let ruleset = "table inet adit {\n set met { type ipv4_addr; }\n \
                       chain c { type filter hook input priority 0; \
                       ct state new accept; }\n}\n";
        let table = NftTable { family: Family::Inet, name: "adit".to_owned(), ruleset: ruleset.to_owned() };
        plumbing.apply(&HostState { tables: vec![table], ..HostState::default() }).unwrap();
        let (key, data) = (vec![10, 0, 0, 2], Vec::new());
        let add =
            ElementChange { table: "adit".into(), set: "met".into(), change: Change::Add { key, data } };
        let sender = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        sender.send_to(b"x", "192.0.2.1:9").unwrap();
        let elsewhere = TemporaryNetns::create("adit-elsewhere").unwrap();

        elsewhere.run_in(|| {
            plumbing.change_elements(&[add]).unwrap();
            assert_eq!(plumbing.elements("adit", "met").unwrap().len(), 1);
            let connections = plumbing.connections().unwrap();
            assert_eq!(connections.len(), 1);
            assert_eq!(connections[0].original.source, sender.local_addr().unwrap());
            assert_eq!(plumbing.connection_usage().unwrap().count, 1);
            plumbing.forget_connections(&["192.0.2.1".parse().unwrap()]).unwrap();
            assert_eq!(plumbing.connections().unwrap(), []);
        });

        assert!(run("nft list set inet adit met").contains("10.0.0.2"));
        plumbing.undo().unwrap();
        let fault = plumbing.elements("adit", "met").unwrap_err();
        assert!(
            fault.to_string().starts_with("nft list elements inet adit met: No such file or directory"),
            "{fault}"
        );
    });
}
