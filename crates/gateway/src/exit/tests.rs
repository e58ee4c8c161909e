use std::net::SocketAddr;

use adit_host::conntrack::{Direction, Tracked};
use adit_host::nft::Change;
use adit_host::plumbing::{FakePlumbing, Request};

use super::*;
use crate::machine_state::Arranged;

fn inner() -> Inner {
    Inner { v4: Some("10.88.0.2".parse().unwrap()), v6: Some("fd88::2".parse().unwrap()) }
}

fn block(from: u16) -> Block {
    Block { address: "192.0.2.1".parse().unwrap(), from, to: from + 63 }
}

fn outlet(from: u16) -> Outlet {
    Outlet { inner: inner().v4, block: Some(block(from)), ..Outlet::default() }
}

/// A connection from an inner address that leaves from `by`.
fn connection(from: &str, by: &str) -> Tracked {
    let (from, by): (SocketAddr, SocketAddr) = (from.parse().unwrap(), by.parse().unwrap());
    let server = if from.is_ipv4() { "198.51.100.7:80" } else { "[2001:db8::7]:80" }.parse().unwrap();
    Tracked {
        protocol: TCP,
        original: Direction { source: from, destination: server },
        reply: Direction { source: server, destination: by },
    }
}

fn exits(connections: &[Tracked]) -> (FakePlumbing, Exits) {
    let plumbing = FakePlumbing::new();
    plumbing.set_connections(connections.to_vec());
    let machine = Machine::new(Box::new(plumbing.clone()), Arranged::default());
    let rules = Rules { blocks: true, forward: None };
    (plumbing, Exits::new(Arc::new(machine), rules))
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_lease_that_ends_loses_its_ports_first_and_then_its_connections() {
    let (plumbing, mut exits) = exits(&[]);
    exits.open(inner(), &outlet(40_000), || false).unwrap();
    let (own, others) =
        (connection("10.88.0.2:1", "192.0.2.1:40001"), connection("10.88.0.3:1", "192.0.2.1:40064"));
    plumbing.set_connections(vec![own, others, connection("[fd88::2]:1", "[fd88::2]:1")]);
    exits.close([(inner(), &outlet(40_000))]);
    let requests = plumbing.requests();
    let change = |request: &Request| match request {
        Request::ChangeElements(changes) => changes.first().map(|change| change.change.clone()),
        _ => None,
    };
    assert!(matches!(change(&requests[0]), Some(Change::Add { .. })));
    assert!(matches!(change(&requests[1]), Some(Change::Remove { .. })), "nothing new leaves");
    let both = addresses(&["10.88.0.2", "fd88::2"]);
    assert_eq!(requests[2], Request::ForgetConnections(both), "and then nothing old is answered");
    assert_eq!(requests[3], Request::Occupy(vec![own]), "and nobody else gets what is under way to it");
    assert_eq!(requests.len(), 4);
}

#[test]
fn without_blocks_connections_end_with_the_lease_all_the_same() {
    let (plumbing, mut exits) = exits(&[]);
    exits.set_rules(Rules::default(), &[]).unwrap();
    let plain = Outlet { block: None, ..outlet(40_000) };
    exits.open(inner(), &plain, || false).unwrap();
    exits.close([(inner(), &plain)]);
    let both = addresses(&["10.88.0.2", "fd88::2"]);
    assert_eq!(plumbing.requests()[0], Request::ForgetConnections(both));
}

#[test]
fn connections_of_an_earlier_run_stay_for_the_same_device_at_the_same_ports_only() {
    let own = connection("10.88.0.2:5000", "192.0.2.1:40017");
    let own6 = connection("[fd88::2]:5000", "[fd88::2]:5000");
    let forgotten = |connections: &[Tracked], same| {
        let (plumbing, mut exits) = exits(connections);
        exits.open(inner(), &outlet(40_000), || same).unwrap();
        let first = plumbing.requests().into_iter().next();
        match first {
            Some(Request::ForgetConnections(addresses)) => addresses,
            _ => Vec::new(),
        }
    };
    assert_eq!(forgotten(&[own, own6], true), addresses(&[]));
    assert_eq!(forgotten(&[own, own6], false), addresses(&["10.88.0.2", "fd88::2"]), "another device's");
    let elsewhere = connection("10.88.0.2:5000", "192.0.2.1:40064");
    assert_eq!(forgotten(&[own, elsewhere], true), addresses(&["10.88.0.2"]), "other ports");
    let others = connection("10.88.0.9:5000", "192.0.2.1:40063");
    assert_eq!(forgotten(&[others], true), addresses(&["10.88.0.9"]), "somebody else at these ports");
    let apart = connection("10.88.0.9:5000", "192.0.2.1:40064");
    assert_eq!(forgotten(&[apart], true), addresses(&[]));
}

#[test]
fn what_the_kernel_refuses_changes_no_rules() {
    let (plumbing, mut exits) = exits(&[]);
    exits.open(inner(), &outlet(40_000), || false).unwrap();
    plumbing.fail_next("no");
    let pair = (outlet(40_000), outlet(40_064));
    assert!(exits.set_rules(Rules::default(), std::slice::from_ref(&pair)).is_err());
    assert_eq!(exits.rules, Rules { blocks: true, forward: None });
}

#[test]
fn a_range_is_in_use_as_long_as_its_owner_has_a_connection_by_it() {
    let (_, exits) = exits(&[connection("10.88.0.2:5000", "192.0.2.1:40017")]);
    let owner = "10.88.0.2".parse().unwrap();
    let ranges =
        [(owner, block(40_000)), (owner, block(40_064)), ("10.88.0.3".parse().unwrap(), block(40_000))];
    assert_eq!(exits.in_use(&ranges).unwrap(), [true, false, false]);
}

#[test]
fn only_what_came_in_by_a_forward_is_cut_with_it() {
    let by = |outside: u16, inside: u16| {
        let client = "203.0.113.9:7000".parse().unwrap();
        Tracked {
            protocol: TCP,
            original: Direction { source: client, destination: SocketAddr::from(([192, 0, 2, 1], outside)) },
            reply: Direction { source: SocketAddr::from(([10, 88, 0, 2], inside)), destination: client },
        }
    };
    let (plumbing, exits) =
        exits(&[by(30_022, 22), by(30_080, 80), connection("10.88.0.2:1", "192.0.2.1:40000")]);
    exits.cut(inner(), &[Way { protocol: TCP, port: 30_022, to: 22 }]).unwrap();
    assert_eq!(plumbing.requests(), [Request::Forget(vec![by(30_022, 22)])]);
}
