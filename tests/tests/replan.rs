//! Source ports are laid out anew while connections go on.
//!
//! ```text
//!  client N ── access ── 192.0.2.1 gateway 198.51.100.1 ── router ── outside: a witness on 32 ports
//!                                          198.51.100.3
//!                                          198.51.100.4
//! ```

#[path = "../src/traces.rs"]
mod traces;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread::scope;

use adit_testbed::{Gateway, Network, Rng, Scale, Witness, eventually};
use serde_json::Value;

use self::traces::{
    LATE, PORTS, both, call_often, connect, hold, must_all_be_traced, must_go_on, said, traced,
};

const CLIENTS: usize = 3;
/// Addresses of the gateway on the way out.
const ADDRESSES: [&str; 3] = ["198.51.100.1", "198.51.100.3", "198.51.100.4"];
/// The last port of every layout here.
const LAST: u64 = 64_511;

/// A network whose gateway has all the addresses.
fn network(clients: usize) -> Network {
    let network = Network::with_clients(clients);
    for address in &ADDRESSES[1..] {
        network.gateway.ip(&format!("address add {address}/24 dev back"));
    }
    network
}

fn witness(network: &Network) -> Witness {
    Witness::start(&network.outside, network.outside_address(), PORTS)
}

fn list(items: &[&str]) -> String {
    format!("[{}]", items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", "))
}

/// Ports of an address that are somebody's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    address: String,
    from: u64,
    to: u64,
}

impl Block {
    fn has(&self, address: IpAddr, port: u16) -> bool {
        self.address == address.to_string() && (self.from..=self.to).contains(&port.into())
    }
}

fn rows(gateway: &Gateway) -> Vec<Value> {
    gateway.json(&["nat", "show"])["blocks"].as_array().expect("blocks").clone()
}

/// The block that each user's new connections leave from.
fn blocks(gateway: &Gateway) -> BTreeMap<String, Block> {
    let rows = rows(gateway).into_iter().filter(|row| row["leaving"] != true);
    let block = |row: Value| {
        let block = &row["block"];
        let address = block["address"].as_str().expect("an address").to_owned();
        let port = |key: &str| block[key].as_u64().expect("a port");
        let block = Block { address, from: port("from"), to: port("to") };
        (row["user"].as_str().expect("a user").to_owned(), block)
    };
    rows.map(block).collect()
}

/// Ranges that were left and still have connections.
fn leaving(gateway: &Gateway) -> usize {
    rows(gateway).iter().filter(|row| row["leaving"] == true).count()
}

/// How ports are to be laid out.
#[derive(Debug, Clone)]
struct Plan {
    size: u64,
    addresses: Vec<&'static str>,
    two_pools: bool,
}

impl Plan {
    /// With one thing different.
    fn next(&self, rng: &mut Rng) -> Self {
        let mut next = self.clone();
        match rng.below(3) {
            0 => {
                let others: Vec<_> =
                    [32, 64, 128, 256].into_iter().filter(|size| *size != self.size).collect();
                next.size = *rng.pick(&others);
            }
            1 => next.two_pools = !self.two_pools,
            _ => {
                let address = *rng.pick(&ADDRESSES);
                if !self.addresses.contains(&address) {
                    next.addresses.push(address);
                } else if self.addresses.len() > 1 {
                    next.addresses.retain(|other| *other != address);
                } else {
                    next.addresses = ADDRESSES.to_vec();
                }
            }
        }
        next
    }

    fn write(&self, gateway: &Gateway) {
        let pools = ["10.88.0.0/24", "10.90.0.0/24"];
        gateway.set("nat", "block", &self.size.to_string());
        gateway.set("nat", "addresses", &list(&self.addresses));
        gateway.set("tunnel", "pool4", &list(&pools[..1 + usize::from(self.two_pools)]));
    }

    /// Whether this is just one of its blocks: they are counted from the last port down.
    fn has(&self, block: &Block) -> bool {
        self.addresses.contains(&block.address.as_str())
            && block.to - block.from + 1 == self.size
            && (LAST - block.to).is_multiple_of(self.size)
    }
}

/// Whether a report has something to say about a user's device.
fn names(report: &Value, user: &str) -> bool {
    let changes = report["changes"].as_array().expect("changes");
    changes.iter().any(|change| change.as_str().is_some_and(|text| text.contains(&format!("{user}/laptop"))))
}

#[test]
fn connections_outlive_every_change_of_the_layout() {
    let network = network(CLIENTS);
    let mut gateway = Gateway::new(&network);
    let mut plan = Plan { size: 64, addresses: vec![ADDRESSES[0]], two_pools: false };
    plan.write(&gateway);
    gateway.up();
    // What has ended is to be forgotten before the test is.
    network.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "5");
    let witness = witness(&network);
    let clients = connect(&network, &gateway, CLIENTS);
    let users: Vec<_> = (0..CLIENTS).map(|number| format!("user{number}")).collect();
    let mut held = hold(&clients, &witness, 0);
    let mut rng = Rng::new(11);
    let (mut moves, mut stays) = (0, 0);
    for step in 1..=Scale::get().pick(12, 100) {
        let before = blocks(&gateway);
        let next = plan.next(&mut rng);
        next.write(&gateway);
        let foreseen = gateway.json(&["reload", "--dry-run"]);
        assert_eq!(blocks(&gateway), before, "a dry run changes nothing");
        let done = scope(|scope| {
            for (user, client) in users.iter().zip(&clients) {
                let witness = &witness;
                scope.spawn(move || call_often(client, witness, &format!("{user}/during"), 4, 1));
            }
            gateway.json(&["reload"])
        });
        assert_eq!(
            (&done["applied"], &done["sessions_touched"]),
            (&true.into(), &foreseen["sessions_touched"])
        );
        assert_eq!(done["sessions_touched"], Value::Array(Vec::new()), "{done}");
        let after = blocks(&gateway);
        for user in &users {
            let (old, new) = (&before[user], &after[user]);
            let moved = !next.has(old);
            assert_eq!(old != new, moved, "{plan:?} to {next:?}: {user}: {old:?} to {new:?}");
            assert!(next.has(new), "{next:?}: {new:?}");
            let named = (names(&foreseen, user), names(&done, user));
            assert_eq!(named, (moved, moved), "{user}: {foreseen} {done}");
            *(if moved { &mut moves } else { &mut stays }) += 1;
        }
        must_go_on(&mut held, &format!("{plan:?} to {next:?}"));
        held.extend(hold(&clients, &witness, step));
        let seen = witness.seen();
        for sighting in seen.iter().filter(|seen| seen.name.ends_with(&format!("/held{step}"))) {
            let block = &after[said(sighting)];
            assert!(block.has(sighting.remote.ip(), sighting.remote.port()), "{block:?}: {sighting:?}");
        }
        plan = next;
    }
    assert!(moves > 0 && stays > 0, "{moves} moves, {stays} stays");
    assert!(clients.iter().all(|client| client.connections() == 1), "somebody had to connect anew");
    assert!(leaving(&gateway) > 0, "what was left is still in use");

    // From the next packet on, a flow is forgotten soon.
    network.gateway.sysctl("net.netfilter.nf_conntrack_udp_timeout", "1");
    network.gateway.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "1");
    must_go_on(&mut held, "at the end");
    drop(held);
    eventually("the end of what was left", LATE * 3, || leaving(&gateway) == 0);
    must_all_be_traced(&gateway, &witness.seen(), "0s");
    gateway.ok(&["trace", "verify"]);
}

#[test]
fn who_is_outside_the_pools_comes_back_inside_and_others_notice_nothing() {
    let network = network(2);
    let mut gateway = Gateway::new(&network);
    // There is one address for a client in either.
    gateway.set("tunnel", "pool4", &list(&["10.88.0.0/30", "10.90.0.0/30"]));
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 2);
    let inner = |number: usize| clients[number].inner4().to_string();
    let lost = usize::from(inner(1).starts_with("10.90."));
    assert!(inner(lost).starts_with("10.90.") && inner(1 - lost).starts_with("10.88."));
    let (stays, goes) = (format!("user{}", 1 - lost), format!("user{lost}"));
    let mut held = hold(&clients, &witness, 0);
    held.retain(|(user, _)| *user == stays);
    let session = |user: &str| gateway.wait_for_session(user, LATE)["id"].clone();
    let (kept, ended, mark) = (session(&stays), session(&goes), clients[lost].mark());

    gateway.set("tunnel", "pool4", &list(&["10.88.0.0/29"]));
    for (arguments, applied) in [(&["reload", "--dry-run"][..], false), (&["reload"], true)] {
        let report = gateway.json(arguments);
        assert_eq!(report["applied"], applied, "{report}");
        assert_eq!(report["sessions_touched"], Value::Array(vec![ended.clone()]), "{report}");
        assert!(names(&report, &goes) && !names(&report, &stays), "{report}");
    }

    clients[lost].wait_until_connected_since(mark, LATE);
    eventually("another address", LATE, || inner(lost).starts_with("10.88.0."));
    assert_ne!(inner(lost), inner(1 - lost));
    must_go_on(&mut held, "while others connect anew");
    assert_eq!((session(&stays), clients[1 - lost].connections()), (kept, 1));
    both(&clients[lost], &witness, &format!("{goes}/back"), 1);
    let seen = witness.seen();
    must_all_be_traced(&gateway, &seen, "0s");
    let last = seen.last().expect("calls");
    assert_eq!(traced(&gateway, last, "0s"), [goes]);
}

#[test]
fn a_layout_that_makes_no_sense_is_refused_and_nothing_changes() {
    let network = network(2);
    let mut gateway = Gateway::new(&network);
    gateway.up();
    let witness = witness(&network);
    let clients = connect(&network, &gateway, 2);
    let mut held = hold(&clients, &witness, 0);
    let (before, good) = (gateway.json(&["nat", "show"]), gateway.config_text());
    let cases = [
        ("addresses", "[\"198.51.100.9\"]", "198.51.100.9 is on no interface of this machine"),
        ("assign", "\"static\"", "the pools have 65533 addresses"),
        ("ports", "\"1000-64511\"", "overlaps entrance 1194"),
        ("block", "60", "a power of two"),
    ];
    for (key, value, message) in cases {
        gateway.set("nat", key, value);
        for arguments in [&["reload", "--dry-run"][..], &["reload"]] {
            let outcome = gateway.cli(arguments);
            assert!(outcome.refusal().contains(message), "{key} = {value}: {outcome:?}");
        }
        must_go_on(&mut held, &format!("{key} = {value}"));
        // The command line reads the file as well.
        std::fs::write(gateway.config(), &good).expect("a file can be written");
        assert_eq!(gateway.json(&["nat", "show"]), before, "{key} = {value}");
    }

    let report = gateway.json(&["reload"]);
    assert_eq!((&report["applied"], &report["changes"]), (&true.into(), &Value::Array(Vec::new())));
    held.extend(hold(&clients, &witness, 1));
    must_go_on(&mut held, "afterwards");
    must_all_be_traced(&gateway, &witness.seen(), "0s");
}
