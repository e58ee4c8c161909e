//! How long changes of elements and of tracked connections take, in a network namespace of its own:
//! `cargo run --release -p adit-host --example netfilter_times` as root.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use adit_host::netfilter::Netfilter;
use adit_host::netlink::NetlinkFault;
use adit_host::netns::TemporaryNetns;
use adit_host::nft::{self, Change, ElementChange, fields};

const TABLES: &str = "
table inet adit_nat {
  map blocks { type ipv4_addr : interval ipv4_addr . inet_service; }
  map sites { type ipv4_addr : interval ipv4_addr . inet_service; flags interval; }
  chain input { type filter hook input priority 0; ct state new accept; }
}";

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    TemporaryNetns::create("adit-times")?.run_in(|| {
        nft::apply(TABLES)?;
        let mut netfilter = Netfilter::open()?;
        elements(&mut netfilter)?;
        connections(&mut netfilter)
    })
}

/// Runs `work` with the numbers of the rounds; prints the median and the longest time.
fn timed(words: &str, rounds: u32, mut work: impl FnMut(u32) -> Result<(), NetlinkFault>) -> Outcome {
    let mut times: Vec<Duration> = Vec::new();
    for round in 0..rounds {
        let start = Instant::now();
        work(round)?;
        times.push(start.elapsed());
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    eprintln!("{words}: median {median:.1?}, longest {:.1?}", times.last().copied().unwrap_or_default());
    Ok(())
}

fn of(set: &str, change: Change) -> ElementChange {
    ElementChange { table: "adit_nat".to_owned(), set: set.to_owned(), change }
}

fn key(number: u32) -> Vec<u8> {
    (0x0a00_0000 + number).to_be_bytes().to_vec()
}

fn block(from: u16) -> Vec<u8> {
    let address = [192, 0, 2, 1];
    fields([&address[..], &from.to_be_bytes(), &address, &(from + 63).to_be_bytes()])
}

fn add(number: u32) -> ElementChange {
    of("blocks", Change::Add { key: key(number), data: block(40_000) })
}

fn remove(number: u32) -> ElementChange {
    of("blocks", Change::Remove { key: key(number) })
}

fn elements(netfilter: &mut Netfilter) -> Outcome {
    let all: Vec<_> = (0..60_000).map(add).collect();
    let none: Vec<_> = (0..60_000).map(remove).collect();
    let replaced: Vec<_> = (0..60_000)
        .map(|number| of("blocks", Change::Replace { key: key(number), data: block(40_064) }))
        .collect();
    for present in ["nothing", "60,000"] {
        let other = |round| 0x10_0000 + round;
        timed(&format!("{present} there, add one"), 201, |round| {
            netfilter.change_elements(&[add(other(round))])
        })?;
        for words in ["remove one", "remove one that is gone"] {
            timed(&format!("{present} there, {words}"), 201, |round| {
                netfilter.change_elements(&[remove(other(round))])
            })?;
        }
        if present == "nothing" {
            timed("add 60,000", 1, |_| netfilter.change_elements(&all))?;
        }
    }
    timed("list 60,000", 5, |_| netfilter.elements("adit_nat", "blocks").map(drop))?;
    // Other data than what is there: refused, looked up, done again.
    timed("replace 60,000", 1, |_| netfilter.change_elements(&replaced))?;
    timed("add 60,000 that are there with other data", 1, |_| netfilter.change_elements(&all))?;
    for _ in 0..3 {
        timed("remove 60,000", 1, |_| netfilter.change_elements(&none))?;
        timed("add 60,000", 1, |_| netfilter.change_elements(&all))?;
    }
    let add_interval = |number: u32| {
        let (from, end) = (key(number * 16), Some(key(number * 16 + 16)));
        of("sites", Change::AddInterval { from, end, data: block(40_000) })
    };
    let intervals: Vec<_> = (0..10_000).map(add_interval).collect();
    timed("add 10,000 intervals", 1, |_| netfilter.change_elements(&intervals))?;
    timed("10,000 there, add one interval", 201, |round| {
        netfilter.change_elements(&[add_interval(20_000 + round)])
    })
}

fn connections(netfilter: &mut Netfilter) -> Outcome {
    // A datagram each to 127.1.0.0 to 127.1.7.207 and 50 ports.
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    for number in 0..100_000u32 {
        let to = Ipv4Addr::from(0x7f01_0000 + number / 50);
        sender.send_to(b"x", (to, u16::try_from(20_000 + number % 50)?))?;
    }
    let usage = netfilter.connection_usage()?;
    eprintln!("{} connections of {} possible", usage.count, usage.max);
    for count in [1, 3, 4, 100u8] {
        let nobody: Vec<IpAddr> = (0..count).map(|number| IpAddr::from([172, 16, 0, number])).collect();
        timed(&format!("forget {count} addresses without connections"), 9, |_| {
            netfilter.forget_connections(&nobody)
        })?;
    }
    let v6 = [IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 9])];
    timed("forget an IPv6 address without connections", 9, |_| netfilter.forget_connections(&v6))?;
    timed("list all", 5, |_| netfilter.connections().map(drop))?;
    timed("count", 101, |_| netfilter.connection_usage().map(drop))
}
