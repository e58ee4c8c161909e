//! After faults, crashes and the end everything is as it was.

use std::fs;

use super::*;
use crate::plumbing::plan::Done;
use crate::plumbing::record::{Record, RecordFile, boot_id};
use crate::testing::{assert_same, run, snapshot};

#[test]
fn after_a_crash_the_next_start_leaves_everything_as_it_was() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let tun = plumbing.open_tun(&TunOptions::new("adit0")).unwrap();
        plumbing.apply(&everything()).unwrap();
        // The process ends: its descriptors are closed, nothing else happens.
        close(tun);
        std::mem::forget(plumbing);
        assert!(place.record().exists());

        let recovery = recover(&place.record()).unwrap();

        assert_same(&before, &snapshot());
        let text = recovery.to_string();
        for done in [
            "set sysctl net.ipv4.ip_forward = 0",
            "delete address 198.51.100.1/32 dev right0",
            "delete route 0.0.0.0/0 dev left0 table 4242",
            "delete IPv4 rule 100: not fwmark 0xad lookup 4242",
            "delete table inet adit",
            "set link right0 txqueuelen",
        ] {
            assert!(text.contains(done), "{done}\n{text}");
        }
        assert!(!text.contains("adit0"), "{text}");
        assert!(!place.record().exists());
        assert_eq!(recover(&place.record()).unwrap(), Recovery::Clean);
    });
}

#[test]
fn a_crash_in_the_middle_of_a_change_is_undone_too() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        plumbing.apply(&without_tun()).unwrap();
        std::mem::forget(plumbing);
        // A change to two other values was recorded, and only one of them made.
        let file = RecordFile::at(&place.record());
        let mut record = file.read().unwrap().unwrap();
        let changed = |name: &str, value: &str| {
            let known =
                record.done.iter().find(|done| matches!(done, Done::Sysctl { name: n, .. } if n == name));
            let Some(Done::Sysctl { before, .. }) = known else { panic!("{name} is not in the record") };
            let (asked, ours) = (value.to_owned(), value.to_owned());
            Done::Sysctl { name: name.to_owned(), asked, ours, before: before.clone() }
        };
        let changes = [
            changed("net.ipv4.ip_local_port_range", "50000 60000"),
            changed("net.ipv4.conf.right0.rp_filter", "1"),
            Done::Route(route("10.77.0.0/16", "left0")),
            Done::Address(address("gone0", "10.77.0.1/16")),
        ];
        record.done.extend(changes);
        file.write(&Netns::current().unwrap(), &record.done).unwrap();
        sysctl::set("net.ipv4.ip_local_port_range", "50000 60000").unwrap();

        recover(&place.record()).unwrap();

        assert_same(&before, &snapshot());
    });
}

#[test]
fn a_rejected_rule_set_undoes_the_whole_call_and_keeps_earlier_ones() {
    in_a_place(|place| {
        let mut plumbing = place.start();
        let mut first = without_tun();
        first.routes.push(route("10.98.0.0/16", "left0"));
        plumbing.apply(&first).unwrap();
        let before = snapshot();
        let record = fs::read(place.record()).unwrap();

        let mut second = without_tun();
        second.sysctls = vec![Sysctl::new("net.ipv4.ip_local_port_range", "50000 60000")];
        second.links = vec![LinkSettings { mtu: Some(1300), ..LinkSettings::of("left0") }];
        second.addresses = vec![address("left0", "10.1.1.1/24")];
        second.routes = vec![route("10.2.0.0/16", "right0")];
        second.rules.clear();
        second.tables = vec![table("frobnicate")];
        let fault = plumbing.apply(&second).unwrap_err();

        assert!(fault.to_string().starts_with("nft refused the rules at line 5 (frobnicate)"), "{fault}");
        assert_same(&before, &snapshot());
        assert_eq!(parsed(&record), parsed(&fs::read(place.record()).unwrap()));
    });
}

/// What a record says was done, without regard to order.
fn parsed(record: &[u8]) -> Vec<String> {
    let record: Record = serde_json::from_slice(record).unwrap();
    let mut done: Vec<_> = record.done.iter().map(|done| format!("{done:?}")).collect();
    done.sort();
    done
}

#[test]
fn a_route_the_kernel_refuses_undoes_what_came_before_it() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let mut wanted = without_tun();
        wanted.routes.push(Route::by_gateway("10.3.0.0/16".parse().unwrap(), "203.0.114.1".parse().unwrap()));

        let fault = plumbing.apply(&wanted).unwrap_err();

        assert!(
            fault.to_string().starts_with("add route 10.3.0.0/16 via 203.0.114.1: Network is unreach"),
            "{fault}"
        );
        assert_same(&before, &snapshot());
        assert!(!place.record().exists());
    });
}

#[test]
fn a_table_of_our_name_survives_when_its_successor_is_refused() {
    in_a_place(|place| {
        run("nft add table inet adit");
        run("nft add chain inet adit old");
        let before = snapshot();
        let mut plumbing = place.start();

        plumbing.apply(&HostState { tables: vec![table("frobnicate")], ..HostState::default() }).unwrap_err();

        assert_same(&before, &snapshot());
    });
}

#[test]
fn what_someone_else_changed_since_is_left_to_them() {
    in_a_place(|place| {
        let mut plumbing = place.start();
        plumbing.apply(&without_tun()).unwrap();
        sysctl::set("net.ipv4.ip_local_port_range", "40000 50000").unwrap();
        run("ip link set right0 txqueuelen 77");
        run("ip rule del priority 100");

        plumbing.undo().unwrap();

        assert_eq!(sysctl::get("net.ipv4.ip_local_port_range").unwrap(), "40000\t50000");
        assert!(run("ip link show right0").contains("qlen 77"));
        assert_eq!(sysctl::get("net.ipv4.ip_forward").unwrap(), "0");
    });
}

#[test]
fn turning_forwarding_on_and_off_again_loses_no_setting_of_an_interface() {
    in_a_place(|place| {
        sysctl::set("net.ipv4.conf.left0.forwarding", "1").unwrap();
        sysctl::set("net.ipv6.conf.right0.forwarding", "1").unwrap();
        sysctl::set("net.ipv4.conf.all.accept_redirects", "0").unwrap();
        let before = snapshot();
        let mut plumbing = place.start();
        // The kernel would undo this one if it came before turning forwarding on for all.
        let mut wanted = without_tun();
        wanted.sysctls.insert(0, Sysctl::new("net.ipv4.conf.right0.forwarding", "0"));

        plumbing.apply(&wanted).unwrap();

        assert_eq!(sysctl::get("net.ipv4.conf.right0.forwarding").unwrap(), "0");
        assert_eq!(sysctl::get("net.ipv4.conf.default.forwarding").unwrap(), "1");
        std::mem::forget(plumbing);
        recover(&place.record()).unwrap();
        assert_same(&before, &snapshot());
    });
}

#[test]
fn a_failed_call_puts_back_what_the_kernel_changed_along() {
    in_a_place(|place| {
        sysctl::set("net.ipv4.conf.left0.forwarding", "1").unwrap();
        sysctl::set("net.ipv4.conf.all.accept_redirects", "0").unwrap();
        let before = snapshot();
        let mut plumbing = place.start();
        let mut wanted = without_tun();
        wanted.tables = vec![table("frobnicate")];

        plumbing.apply(&wanted).unwrap_err();

        assert_same(&before, &snapshot());
    });
}

#[test]
fn a_value_the_kernel_spells_differently_is_known_again() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        let sysctls = vec![Sysctl::new("net.ipv4.ip_local_reserved_ports", "82,80,81")];
        let wanted = HostState { sysctls, ..HostState::default() };

        plumbing.apply(&wanted).unwrap();
        plumbing.apply(&wanted).unwrap();

        assert_eq!(sysctl::get("net.ipv4.ip_local_reserved_ports").unwrap(), "80-82");
        std::mem::forget(plumbing);
        recover(&place.record()).unwrap();
        assert_same(&before, &snapshot());
    });
}

#[test]
fn without_a_record_nothing_is_changed() {
    in_a_place(|place| {
        let before = snapshot();
        let path = place.directory.path().join("missing/changes.json");
        let (mut plumbing, _) = InProcess::start(&path).unwrap();

        let fault = plumbing.apply(&without_tun()).unwrap_err();

        assert!(fault.to_string().ends_with("missing/changes.json: No such file or directory"), "{fault}");
        assert_same(&before, &snapshot());
    });
}

#[test]
fn dropping_it_undoes_everything() {
    in_a_place(|place| {
        let before = snapshot();
        let mut plumbing = place.start();
        plumbing.apply(&without_tun()).unwrap();

        drop(plumbing);

        assert_same(&before, &snapshot());
    });
}

#[test]
fn a_record_of_another_namespace_or_another_start_is_left_alone() {
    in_a_place(|place| {
        let mut plumbing = place.start();
        plumbing.apply(&without_tun()).unwrap();
        std::mem::forget(plumbing);
        let record = fs::read_to_string(place.record()).unwrap();
        let applied = snapshot();

        let elsewhere = TemporaryNetns::create("adit-elsewhere").unwrap();
        let recovery = elsewhere.run_in(|| recover(&place.record()).unwrap());
        assert_eq!(recovery, Recovery::OtherNamespace);
        assert!(!place.record().exists());

        fs::write(place.record(), record.replace(&boot_id().unwrap(), "another")).unwrap();
        assert_eq!(recover(&place.record()).unwrap(), Recovery::Restarted);
        assert!(!place.record().exists());
        assert_same(&applied, &snapshot());
    });
}
