//! Everything here happens in a namespace of its own with two connected interfaces, `left0` (192.0.2.1/24,
//! 2001:db8::1/64, up) and `right0` (up), and with an address, routes, a rule and a table of somebody else.

mod apply;
mod undo;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::netlink::{Mark, Netlink, RouteKind};
use crate::netns::{Netns, TemporaryNetns};
use crate::sysctl;
use crate::testing::run;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn record(&self) -> PathBuf {
        self.directory.path().join("changes.json")
    }

    fn start(&self) -> InProcess {
        let (plumbing, recovery) = InProcess::start(&self.record()).unwrap();
        assert_eq!(recovery, Recovery::Clean);
        plumbing
    }
}

fn in_a_place(work: impl FnOnce(Place) + Send) {
    let netns = TemporaryNetns::create("adit-plumbing").unwrap();
    let directory = tempfile::tempdir().unwrap();
    netns.run_in(|| {
        // Link-local addresses would come and go by themselves.
        sysctl::set("net.ipv6.conf.default.addr_gen_mode", "1").unwrap();
        let here = Netns::current().unwrap();
        Netlink::open().unwrap().add_veth("left0", "right0", here.as_fd()).unwrap();
        for command in [
            "ip address add 192.0.2.1/24 dev left0",
            "ip address add 2001:db8::1/64 dev left0 nodad",
            "ip link set left0 up",
            "ip link set right0 up",
            "ip route add 203.0.113.0/24 via 192.0.2.254",
            "ip -6 route add 2001:db8:9::/48 via 2001:db8::ff",
            "ip rule add priority 50 fwmark 0x9 lookup 99",
            "nft add table inet foreign",
        ] {
            run(command);
        }
        // The carrier comes a moment after the interfaces are up, and shows in what is compared.
        let deadline = Instant::now() + Duration::from_secs(10);
        while run("ip link show up").matches("state UP").count() < 2 {
            assert!(Instant::now() < deadline, "the interfaces have no carrier");
        }
        work(Place { directory });
    });
}

/// Closes a TUN interface and waits until it is gone: a process that another test is just starting holds a
/// copy of the descriptor for a moment.
fn close(tun: Tun) {
    let name = tun.name().to_owned();
    drop(tun);
    let mut netlink = Netlink::open().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while netlink.links().unwrap().iter().any(|link| link.name == name) {
        assert!(Instant::now() < deadline, "{name} is still there");
    }
}

fn address(interface: &str, address: &str) -> InterfaceAddress {
    InterfaceAddress { interface: interface.to_owned(), address: address.parse().unwrap() }
}

fn route(destination: &str, interface: &str) -> Route {
    Route::by_interface(destination.parse().unwrap(), interface)
}

fn table(rule: &str) -> NftTable {
    let ruleset = format!("table inet adit {{\n chain c {{\n  {rule}\n }}\n}}");
    NftTable { family: Family::Inet, name: "adit".to_owned(), ruleset }
}

/// Something of everything, for a TUN interface `adit0`.
fn everything() -> HostState {
    HostState {
        sysctls: vec![
            Sysctl::new("net.ipv4.ip_forward", "1"),
            Sysctl::new("net.ipv6.conf.all.forwarding", "1"),
            Sysctl::new("net.ipv4.ip_local_port_range", "64512 65535"),
            Sysctl::new("net.ipv4.conf.right0.rp_filter", "2"),
        ],
        links: vec![
            LinkSettings {
                mtu: Some(1420),
                tx_queue_len: Some(1000),
                up: Some(true),
                ..LinkSettings::of("adit0")
            },
            LinkSettings { tx_queue_len: Some(55), ..LinkSettings::of("right0") },
        ],
        addresses: vec![
            address("adit0", "10.88.0.1/16"),
            address("adit0", "fd88::1/64"),
            address("right0", "198.51.100.1/32"),
        ],
        routes: vec![
            route("10.99.0.0/16", "adit0"),
            Route { table: 4242, ..route("0.0.0.0/0", "left0") },
            Route {
                table: 4242,
                metric: Some(9),
                ..Route::new("::/0".parse().unwrap(), RouteKind::Unreachable)
            },
        ],
        rules: vec![
            Rule { mark: Some(Mark::exactly(0xad)), invert: true, ..Rule::new(false, 100, 4242) },
            Rule { suppress_prefix_length: Some(0), ..Rule::new(true, 101, 254) },
        ],
        tables: vec![table("tcp dport 22 accept")],
    }
}

/// Without what is about `adit0`.
fn without_tun() -> HostState {
    let mut wanted = everything();
    wanted.links.retain(|link| link.interface != "adit0");
    wanted.addresses.retain(|address| address.interface != "adit0");
    wanted.routes.retain(|route| route.interface.as_deref() != Some("adit0"));
    wanted
}
