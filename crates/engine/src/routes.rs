//! Which session an inner destination belongs to: exact addresses first, then the longest prefix.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustc_hash::FxHashMap;

use crate::Session;

type Networks<N> = Vec<(u8, FxHashMap<N, Arc<Session>>)>;

/// See the module's text. A look-up costs one hash for an address, and one for each length of prefix in use.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Longest prefixes first.
    v4: Networks<Ipv4Net>,
    v6: Networks<Ipv6Net>,
}

impl Routes {
    /// Leads `network` to `session`; whoever had it before has it no more.
    pub(crate) fn insert(&mut self, network: IpNet, session: &Arc<Session>) {
        match network {
            IpNet::V4(network) => insert(&mut self.v4, network.prefix_len(), network.trunc(), session),
            IpNet::V6(network) => insert(&mut self.v6, network.prefix_len(), network.trunc(), session),
        }
    }

    /// Removes `network`, if it still leads to `session`.
    pub(crate) fn remove(&mut self, network: IpNet, session: &Arc<Session>) {
        match network {
            IpNet::V4(network) => remove(&mut self.v4, network.prefix_len(), &network.trunc(), session),
            IpNet::V6(network) => remove(&mut self.v6, network.prefix_len(), &network.trunc(), session),
        }
    }

    /// The session that owns `destination`.
    pub(crate) fn find(&self, destination: IpAddr) -> Option<&Arc<Session>> {
        match destination {
            IpAddr::V4(address) => self
                .v4
                .iter()
                .find_map(|(length, networks)| networks.get(&Ipv4Net::new(address, *length).ok()?.trunc())),
            IpAddr::V6(address) => self
                .v6
                .iter()
                .find_map(|(length, networks)| networks.get(&Ipv6Net::new(address, *length).ok()?.trunc())),
        }
    }
}

fn insert<N: std::hash::Hash + Eq>(all: &mut Networks<N>, length: u8, network: N, session: &Arc<Session>) {
    let at = all.partition_point(|(other, _)| *other > length);
    if all.get(at).is_none_or(|(other, _)| *other != length) {
        all.insert(at, (length, FxHashMap::default()));
    }
    if let Some((_, networks)) = all.get_mut(at) {
        networks.insert(network, Arc::clone(session));
    }
}

fn remove<N: std::hash::Hash + Eq>(all: &mut Networks<N>, length: u8, network: &N, session: &Arc<Session>) {
    let Some((_, networks)) = all.iter_mut().find(|(other, _)| *other == length) else { return };
    if networks.get(network).is_some_and(|owner| Arc::ptr_eq(owner, session)) {
        networks.remove(network);
    }
    all.retain(|(_, networks)| !networks.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::session;

    #[test]
    fn the_longest_prefix_wins_and_the_latest_owner_has_it() {
        let mut routes = Routes::default();
        let [wide, narrow, host, heir] = [1, 2, 3, 4].map(|n| session(n, &[]));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        routes.insert(net("10.0.0.0/8"), &wide);
        routes.insert(net("10.1.0.0/16"), &narrow);
        routes.insert(net("10.1.2.3/32"), &host);
        routes.insert(net("fd00::/8"), &wide);
        let find = |routes: &Routes, text: &str| {
            routes.find(text.parse().unwrap()).map(|session| session.handle().number())
        };
        assert_eq!(find(&routes, "10.1.2.3"), Some(3));
        assert_eq!(find(&routes, "10.1.2.4"), Some(2));
        assert_eq!(find(&routes, "10.2.0.1"), Some(1));
        assert_eq!(find(&routes, "11.0.0.1"), None);
        assert_eq!(find(&routes, "fd12::1"), Some(1));
        routes.insert(net("10.1.2.3/32"), &heir);
        routes.remove(net("10.1.2.3/32"), &host);
        assert_eq!(find(&routes, "10.1.2.3"), Some(4), "the old owner removes nothing of the new one's");
        routes.remove(net("10.1.2.3/32"), &heir);
        routes.remove(net("10.1.0.0/16"), &narrow);
        assert_eq!(find(&routes, "10.1.2.3"), Some(1));
        assert_eq!(routes.v4.len(), 1);
    }
}
