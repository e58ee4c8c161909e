//! Network address translation that names users: adit's map of port blocks, beside one rule that hides everybody and
//! beside the published way of two rules for each client (`docs/natfw.md`).
//!
//! ```text
//!  client: 10.88.0.0/16 ── inside ─ gateway ─ outside ── server: 198.18.0.0/24
//! ```
//!
//! [`connections`] is what a new connection costs, [`clients`] what it costs that a client comes or goes.

mod clients;
mod connections;

use std::fmt::Write;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use adit_host::netfilter::Netfilter;
use adit_host::nft::{self, Change, ElementChange, fields};
use adit_plan::rules::{BLOCKS, Gateway, Nat, render, render_nat};
use adit_testbed::Host;

use crate::report::Report;

/// Clients of a large gateway.
const CLIENTS: u32 = 60_000;
/// Source ports of each: so many clients share one address.
const BLOCK: u16 = 64;
const AN_ADDRESS: u32 = 1000;
/// The gateway's interface on the clients' side, and the other one.
const INSIDE: &str = "inside";
const OUTSIDE: &str = "outside";
/// The server has this one and those above it, and listens at one port.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const DESTINATIONS: u32 = 256;
const PORT: u16 = 9000;
/// The table that translates.
const TABLE: &str = "adit_nat";

/// Measures and adds tables.
pub(crate) fn run(report: &mut Report, rounds: u32) {
    connections::run(report, rounds);
    clients::run(report, rounds);
}

/// One of the two programs of this name: with rules of its own in the kernel, or with those of nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Iptables {
    Legacy,
    Nft,
}

impl Iptables {
    fn name(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }

    /// Puts the rules of a file in force.
    ///
    /// # Errors
    /// In words; without the program or its part of the kernel.
    fn restore(self, file: &Path) -> Result<(), String> {
        let program = format!("{}-restore", self.name());
        match Command::new(&program).arg(file).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(format!("{program} was not found: apt-get install iptables"))
            }
            Err(error) => Err(format!("{program}: {error}")),
        }
    }
}

/// Notes that a peer is not measured.
fn left_out(report: &mut Report, peer: &str, reason: &str) {
    report.raw(&format!("{peer} is left out: {reason}"), &serde_json::Value::Null);
}

/// Inner address of a client.
fn inner(client: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 0, 2)) + client)
}

/// Address and source ports outside.
fn block(client: u32) -> (Ipv4Addr, u16, u16) {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 1)) + client / AN_ADDRESS);
    let from = 1024 + (client % AN_ADDRESS) as u16 * BLOCK;
    (address, from, from + BLOCK - 1)
}

/// The published file. Its arithmetic knows one address, which so many clients would not fit.
fn document(clients: u32) -> String {
    let mut text = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
                    :OUTPUT ACCEPT [0:0]\n-A POSTROUTING -p icmp -j SNAT --to-source 203.0.113.1\n"
        .to_owned();
    for client in 0..clients {
        let (inner, (address, from, to)) = (inner(client), block(client));
        for protocol in ["tcp", "udp"] {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "-A POSTROUTING -s {inner} -p {protocol} -j SNAT --to-source {address}:{from}-{to}"
            );
        }
    }
    text + "COMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
}

fn change(change: Change) -> ElementChange {
    ElementChange { table: TABLE.to_owned(), set: BLOCKS.to_owned(), change }
}

/// The client comes.
fn addition(client: u32) -> ElementChange {
    let (address, from, to) = block(client);
    let (octets, [from, to]) = (address.octets(), [from, to].map(u16::to_be_bytes));
    let data = fields([&octets[..], &from, &octets, &to]);
    change(Change::Add { key: inner(client).octets().to_vec(), data })
}

/// The client goes.
fn removal(client: u32) -> ElementChange {
    change(Change::Remove { key: inner(client).octets().to_vec() })
}

/// adit's table with so many clients, put in force in the calling thread's network namespace.
fn load(clients: u32) {
    nft::apply(&render_nat(TABLE, INSIDE)).expect("nft takes the table");
    let all: Vec<_> = (0..clients).map(addition).collect();
    netfilter().change_elements(&all).expect("the kernel takes the elements");
}

/// The gateway's other table.
fn filter(nat: Option<Nat>) {
    let gateway = Gateway {
        table: "adit".into(),
        interface: INSIDE.into(),
        pools: vec!["10.88.0.0/16".parse().expect("a network")],
        prefixes: Vec::new(),
        client_to_client: false,
        entrances: Vec::new(),
        nat,
    };
    nft::apply(&render(&gateway)).expect("nft takes the table");
}

/// To the packet filter of the calling thread's network namespace.
fn netfilter() -> Netfilter {
    Netfilter::open().expect("a packet filter")
}

/// Clients, gateway and server.
struct Net {
    client: Host,
    gateway: Host,
    server: Host,
}

impl Net {
    fn new() -> Self {
        let [client, gateway, server] = ["client", "gateway", "server"].map(Host::new);
        gateway.ip(&format!(
            "link add {INSIDE} type veth peer name eth netns {}\n\
             link add {OUTSIDE} type veth peer name eth netns {}\n\
             link set {INSIDE} up\nlink set {OUTSIDE} up\n\
             address add 172.31.255.1/30 dev {INSIDE}\naddress add 192.0.2.1/24 dev {OUTSIDE}\n",
            client.name(),
            server.name()
        ));
        for (host, address, owns) in
            [(&client, "172.31.255.2/30", "10.88.0.0/16"), (&server, "192.0.2.100/24", "198.18.0.0/24")]
        {
            host.ip(&format!(
                "link set lo up\nlink set eth up\naddress add {address} dev eth\nroute add local {owns} dev lo\n"
            ));
        }
        client.ip("route add default via 172.31.255.1\n");
        // What is not translated is not answered.
        server.ip("route add 203.0.113.0/24 via 192.0.2.1\n");
        gateway.ip("route add 10.88.0.0/16 via 172.31.255.2\nroute add 198.18.0.0/24 via 192.0.2.100\n");
        gateway.sysctl("net.ipv4.ip_forward", "1");
        Self { client, gateway, server }
    }
}
