//! Connections of an earlier run, whose owners have not come back yet.

use std::collections::HashMap;
use std::net::IpAddr;

use adit_host::conntrack::Tracked;
use adit_plan::nat::Block;
use adit_plan::pool::Inner;

/// For each address with tracked connections, the translated ends of them.
#[derive(Debug, Default)]
pub(super) struct Unclaimed(HashMap<IpAddr, Vec<(IpAddr, u16)>>);

impl Unclaimed {
    pub(super) fn new(connections: &[Tracked]) -> Self {
        let mut ends: HashMap<IpAddr, Vec<(IpAddr, u16)>> = HashMap::new();
        for tracked in connections {
            let (from, end) = (tracked.original.source.ip(), tracked.reply.destination);
            let own = ends.entry(from).or_default();
            // What is not translated leaves by its own address.
            if end.ip() != from {
                own.push((end.ip(), end.port()));
            }
            // What was forwarded is the device's as well.
            ends.entry(tracked.reply.source.ip()).or_default();
        }
        Self(ends)
    }

    /// An address and ports are somebody's now. Gives the addresses whose connections have to go first: its own, unless
    /// the address was the same device's the time before (`was_last`) and they leave by these ports, and whoever else
    /// has any of the ports.
    pub(super) fn claim(
        &mut self,
        inner: Inner,
        block: Option<Block>,
        was_last: impl FnOnce() -> bool,
    ) -> Vec<IpAddr> {
        let mut strange = Vec::new();
        let own: Vec<_> = super::addresses(&inner)
            .filter_map(|address| Some((address, self.0.remove(&address)?)))
            .collect();
        let same = !own.is_empty() && was_last();
        for (address, ends) in &own {
            let elsewhere = |(to, port): &(IpAddr, u16)| block.is_some() && !holds(block, *to, *port);
            if !same || ends.iter().any(elsewhere) {
                strange.push(*address);
            }
        }
        self.0.retain(|address, ends| {
            let hers = ends.iter().any(|(to, port)| holds(block, *to, *port));
            if hers {
                strange.push(*address);
            }
            !hers
        });
        strange
    }
}

fn holds(block: Option<Block>, to: IpAddr, port: u16) -> bool {
    matches!((block, to), (Some(block), IpAddr::V4(to)) if block.contains(to, port))
}
