use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::netlink::Netlink;
use crate::netns::TemporaryNetns;
use crate::nft::apply;
use crate::sysctl;
use crate::testing::{hostile, run};

/// Runs `work` in a namespace that tracks connections, and where 192.0.2.1 port 80 is 10.0.0.2 port 8080.
fn in_namespace(work: impl FnOnce(Netfilter) + Send) {
    TemporaryNetns::create("adit-conntrack").unwrap().run_in(|| {
        for address in ["10.0.0.2/32", "10.0.0.3/32", "192.0.2.1/32", "fd00::2/128", "fd00::3/128"] {
            run(&format!("ip address add {address} dev lo"));
        }
        // The kernel takes up an IPv6 address a moment after it was added.
        for address in ["fd00::2", "fd00::3"] {
            let mut netlink = Netlink::open().unwrap();
            assert!(netlink.wait_for_address(address.parse().unwrap(), Duration::from_secs(10)).unwrap());
        }
        apply(
            "table inet adit_test {
               chain tracked { type filter hook input priority filter; ct state new accept; }
               chain output { type nat hook output priority -100;
                 ip daddr 192.0.2.1 udp dport 80 dnat ip to 10.0.0.2:8080; }
             }",
        )
        .unwrap();
        work(Netfilter::open().unwrap());
    });
}

/// A datagram from one address to another, of this machine both.
fn datagram(from: &str, to: &str) -> SocketAddr {
    let sender = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    sender.send_to(b"x", to).unwrap();
    sender.local_addr().unwrap()
}

/// What the kernel prints: the protocol's number, and source and destination both ways.
fn printed() -> HashSet<(u8, [SocketAddr; 4])> {
    let text = fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    text.lines()
        .map(|line| {
            let words = || line.split_whitespace();
            let values = |name: &str| -> Vec<&str> {
                words().filter_map(|word| word.strip_prefix(name)).collect::<Vec<_>>()
            };
            let ports = |name| match values("id=") {
                ids if ids.is_empty() => values(name),
                ids => ids,
            };
            let (from, to) = (ports("sport="), ports("dport="));
            let (sources, destinations) = (values("src="), values("dst="));
            let end = |ip: &str, port: &str| {
                SocketAddr::from((ip.parse::<IpAddr>().unwrap(), port.parse().unwrap()))
            };
            let ends = [
                end(sources[0], from[0]),
                end(destinations[0], to[0]),
                end(sources[1], from[1]),
                end(destinations[1], to[1]),
            ];
            (words().nth(3).unwrap().parse().unwrap(), ends)
        })
        .collect()
}

fn listed(netfilter: &mut Netfilter) -> HashSet<(u8, [SocketAddr; 4])> {
    let ends = |Tracked { protocol, original, reply }| {
        (protocol, [original.source, original.destination, reply.source, reply.destination])
    };
    netfilter.connections().unwrap().into_iter().map(ends).collect()
}

#[test]
fn connections_of_all_kinds_are_listed_as_the_kernel_prints_them() {
    in_namespace(|mut netfilter| {
        datagram("10.0.0.2", "10.0.0.3:53");
        datagram("10.0.0.3", "192.0.2.1:80");
        datagram("fd00::2", "[fd00::3]:53");
        run("ping -q -c 1 -I 10.0.0.3 10.0.0.2");
        run("ping -q -c 1 -I fd00::3 fd00::2");
        let listener = TcpListener::bind("10.0.0.2:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        stream.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0]).unwrap();

        // Errors that answer the datagrams are looked up, not tracked, so nothing else begins.
        let listed = listed(&mut netfilter);

        assert_eq!(listed, printed());
        let protocols: HashSet<u8> = listed.iter().map(|(protocol, _)| *protocol).collect();
        assert_eq!(protocols, HashSet::from([6, 17, 1, 58]));
        let translated = |(_, ends): &&(u8, [SocketAddr; 4])| ends[1] == "192.0.2.1:80".parse().unwrap();
        let (_, ends) = listed.iter().find(translated).unwrap();
        assert_eq!(ends[2], "10.0.0.2:8080".parse().unwrap());
        assert!(listed.iter().any(|(protocol, ends)| *protocol == 1 && ends[0].port() == ends[3].port()));
    });
}

#[test]
fn an_address_is_forgotten_in_both_directions_and_others_are_not() {
    // The second list is too long for filters.
    let unused = |first: &str| -> Vec<IpAddr> {
        let others = (0..8).map(|number| IpAddr::from([10, 9, 9, number]));
        [first.parse().unwrap()].into_iter().chain(others).collect()
    };
    for of in [|first: &str| vec![first.parse().unwrap()], unused as fn(&str) -> Vec<IpAddr>] {
        in_namespace(|mut netfilter| {
            let begun = datagram("10.0.0.2", "10.0.0.3:53");
            let translated = datagram("10.0.0.3", "192.0.2.1:80");
            let towards = datagram("10.0.0.3", "10.0.0.3:53");
            let v6 = datagram("fd00::2", "[fd00::3]:53");
            run("ping -q -c 1 -I 10.0.0.2 10.0.0.3");
            let sources = |netfilter: &mut Netfilter| -> HashSet<SocketAddr> {
                netfilter.connections().unwrap().iter().map(|found| found.original.source).collect()
            };
            let all = sources(&mut netfilter);
            assert!(all.is_superset(&HashSet::from([begun, translated, towards, v6])), "{all:?}");
            assert_eq!(all.len(), 5);

            netfilter.forget_connections(&of("10.7.7.7")).unwrap();
            netfilter.forget_connections(&of("fd00::77")).unwrap();
            netfilter.forget_connections(&[]).unwrap();
            assert_eq!(sources(&mut netfilter), all);

            netfilter.forget_connections(&of("10.0.0.2")).unwrap();
            assert_eq!(sources(&mut netfilter), HashSet::from([towards, v6]));

            netfilter.forget_connections(&of("fd00::2")).unwrap();
            assert_eq!(sources(&mut netfilter), HashSet::from([towards]));
            assert_eq!(printed().len(), 1);
        });
    }
}

#[test]
fn single_connections_of_an_address_are_forgotten_and_its_others_are_not() {
    in_namespace(|mut netfilter| {
        let gone = datagram("10.0.0.2", "10.0.0.3:53");
        let stays = datagram("10.0.0.2", "10.0.0.3:54");
        let listed = netfilter.connections().unwrap();
        let chosen: Vec<_> = listed.iter().copied().filter(|found| found.original.source == gone).collect();
        assert_eq!(chosen.len(), 1);
        netfilter.forget(&chosen).unwrap();
        // What has ended already is no fault.
        netfilter.forget(&chosen).unwrap();
        let left: Vec<_> =
            netfilter.connections().unwrap().iter().map(|found| found.original.source).collect();
        assert_eq!(left, [stays]);
    });
}

#[test]
fn translated_ends_of_forgotten_connections_are_nobodys_for_a_while() {
    in_namespace(|mut netfilter| {
        let translated = |protocol, port| Tracked {
            protocol,
            original: Direction {
                source: "10.88.0.2:5000".parse().unwrap(),
                destination: "198.51.100.7:53".parse().unwrap(),
            },
            reply: Direction {
                source: "198.51.100.7:53".parse().unwrap(),
                destination: SocketAddr::from(([192, 0, 2, 9], port)),
            },
        };
        let ends = [translated(TCP, 40_000), translated(UDP, 40_001), translated(1, 40_002)];
        netfilter.occupy(&ends, 60).unwrap();
        // What is used already stays.
        netfilter.occupy(&ends, 60).unwrap();
        let own = |port| SocketAddr::from(([192, 0, 2, 9], port));
        let mut listed: Vec<_> = netfilter.connections().unwrap();
        listed.sort_by_key(|found| found.protocol);
        let seen: Vec<_> = listed
            .iter()
            .map(|found| (found.protocol, found.original.source, found.reply.destination))
            .collect();
        assert_eq!(seen, [(TCP, own(40_000), own(40_000)), (UDP, own(40_001), own(40_001))]);
    });
}

#[test]
fn what_is_tracked_is_counted() {
    in_namespace(|mut netfilter| {
        let max = sysctl::get("net.netfilter.nf_conntrack_max").unwrap().parse().unwrap();
        assert_eq!(netfilter.connection_usage().unwrap(), Usage { count: 0, max });

        for port in 1..=20 {
            datagram("10.0.0.2", &format!("10.0.0.3:{port}"));
        }

        let usage = netfilter.connection_usage().unwrap();
        assert_eq!(usage, Usage { count: 20, max });
        assert_eq!(sysctl::get("net.netfilter.nf_conntrack_count").unwrap(), "20");
    });
}

/// Makes the kernel believe in this many connections of the addresses from 10.0.0.0 on.
fn invent(netfilter: &mut Netfilter, count: u32) {
    let tuple = |kind, source: [u8; 4], from: u16, destination: [u8; 4], to: u16| {
        let ports = [attribute(1, [17]), attribute(2, from.to_be_bytes()), attribute(3, to.to_be_bytes())];
        nest(kind, &[nest(1, &[attribute(1, source), attribute(2, destination)]), nest(2, &ports)])
    };
    let message = |number: u32| {
        let inner = (0x0a00_0000 + number / 8).to_be_bytes();
        let port = u16::try_from(number % 8).unwrap() + 1000;
        let attributes = [
            tuple(TUPLE_ORIGINAL, inner, port, [198, 51, 100, 1], 53),
            tuple(TUPLE_REPLY, [198, 51, 100, 1], 53, inner, port),
            attribute(TIMEOUT, 600u32.to_be_bytes()),
        ];
        Message { kind: NEW, family: IPV4, resource: 0, attributes: write(&attributes) }
    };
    use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
    for first in (0..count).step_by(1000) {
        let last = (first + 999).min(count - 1);
        let messages = (first..=last).map(|number| {
            let ack = if number == last { NLM_F_ACK } else { 0 };
            (message(number), NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | ack)
        });
        netfilter.connection.exchange(messages, ignore).unwrap();
    }
}

#[test]
fn many_connections_are_listed_whole() {
    in_namespace(|mut netfilter| {
        invent(&mut netfilter, 5000);

        let listed = netfilter.connections().unwrap();

        assert_eq!(listed.iter().collect::<HashSet<_>>().len(), 5000);
        assert_eq!(netfilter.connection_usage().unwrap().count, 5000);
        let five: Vec<IpAddr> = (0..5).map(|number| IpAddr::from([10, 0, 0, number])).collect();
        netfilter.forget_connections(&five).unwrap();
        netfilter.forget_connections(&[IpAddr::from([10, 0, 0, 5])]).unwrap();
        assert_eq!(netfilter.connection_usage().unwrap().count, 5000 - 6 * 8);
    });
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(bytes in hostile::bytes(), flips in hostile::flips()) {
        let _ = (tracked(&bytes), usage(&bytes));
        let half = filtered([10, 0, 0, 2].into(), TUPLE_ORIGINAL).attributes;
        let other = filtered([10, 0, 0, 2].into(), TUPLE_REPLY).attributes;
        let attributes = hostile::changed([half, other].concat(), &flips);
        let _ = tracked(&attributes);
        let _ = deletion(&Message { attributes, ..Message::default() });
    }
}
