mod allocator;
mod layout;
mod replan;

use super::*;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A block as it is displayed.
fn block(text: &str) -> Block {
    let (address, ports) = text.split_once(':').unwrap();
    let (from, to) = ports.split_once('-').unwrap();
    Block { address: ip(address), from: from.parse().unwrap(), to: to.parse().unwrap() }
}

fn wanted() -> Wanted {
    Wanted {
        addresses: vec![ip("192.0.2.1")],
        ports: 40_000..=64_511,
        size: Size::Ports(64),
        assign: Assign::Lease,
        pools: vec!["10.88.0.0/16".parse().unwrap()],
        forward: None,
        host: 64_512..=65_535,
    }
}

/// Blocks of `size` ports out of `ports` on each address, for leases from a pool larger than anything here.
fn small(addresses: &[&str], ports: RangeInclusive<u16>, size: u16, assign: Assign) -> Layout {
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    let pools = match assign {
        Assign::Lease => wanted().pools,
        Assign::Static => vec!["10.88.0.0/29".parse().unwrap()],
    };
    Layout::new(&Wanted { addresses, ports, size: Size::Ports(size), assign, pools, ..wanted() }).unwrap()
}

/// The inner address with this place in the pool.
fn inner(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, 2 + place)
}
