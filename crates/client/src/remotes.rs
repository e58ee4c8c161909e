//! Which server is tried next.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use adit_openvpn::profile::{Family, Remote, Transport};
use adit_tunnel::Entropy;

/// What names resolve to, or why they do not.
pub(crate) type Answers = HashMap<String, Result<Vec<IpAddr>, String>>;

/// A server at one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which of the profile's remotes it belongs to.
    pub(crate) remote: usize,
    pub(crate) transport: Transport,
    pub(crate) address: SocketAddr,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.transport.name(), self.address)
    }
}

/// All remotes at all their addresses, in order: the remotes as the profile has them, the addresses of each as the
/// resolver does.
pub(crate) fn candidates(remotes: &[Remote], answers: &Answers) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for (index, remote) in remotes.iter().enumerate() {
        let Some(Ok(addresses)) = answers.get(&remote.host) else { continue };
        for ip in addresses.iter().filter(|ip| fits(**ip, remote.family)) {
            let address = SocketAddr::new(*ip, remote.port);
            let known = |other: &Candidate| (other.transport, other.address) == (remote.transport, address);
            if !found.iter().any(known) {
                found.push(Candidate { remote: index, transport: remote.transport, address });
            }
        }
    }
    found
}

fn fits(address: IpAddr, family: Family) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    }
}

/// Puts the remotes into random order (`remote-random`).
pub(crate) fn shuffle(remotes: &mut [Remote], entropy: &mut dyn Entropy) {
    for last in (1..remotes.len()).rev() {
        let mut bytes = [0; 4];
        entropy.fill(&mut bytes);
        remotes.swap(last, u32::from_be_bytes(bytes) as usize % (last + 1));
    }
}

/// Where the next round begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the candidate that was last tried.
    Same,
    /// At the one after it.
    NextAddress,
    /// At the first one of the next remote.
    NextRemote,
}

/// Goes round the candidates, again and again.
#[derive(Debug, Default)]
pub(crate) struct Rotation {
    candidates: Vec<Candidate>,
    /// The next to be tried.
    next: usize,
    /// How many of this round are left.
    left: usize,
}

impl Rotation {
    /// The next candidate; `None` when all have been tried in this round.
    pub(crate) fn next(&mut self) -> Option<Candidate> {
        self.left = self.left.checked_sub(1)?;
        let candidate = self.candidates.get(self.next % self.candidates.len().max(1)).copied();
        self.next = (self.next + 1) % self.candidates.len().max(1);
        candidate
    }

    /// Begins a round.
    pub(crate) fn restart(&mut self, start: Start) {
        self.left = self.candidates.len();
        let before = self.next.checked_sub(1).or(self.left.checked_sub(1)).unwrap_or(0);
        match start {
            Start::Same => self.next = before,
            Start::NextAddress => {}
            Start::NextRemote => {
                let remote = self.candidates.get(before).map(|candidate| candidate.remote);
                let another = (0..self.left)
                    .map(|step| (before + step) % self.left)
                    .find(|&at| self.candidates.get(at).map(|candidate| candidate.remote) != remote);
                self.next = another.unwrap_or(self.next);
            }
        }
    }

    /// Takes newer candidates and begins a round with the one that was next, if it is still there, else with the
    /// first.
    pub(crate) fn replace(&mut self, candidates: Vec<Candidate>) {
        let next = self.candidates.get(self.next).copied();
        self.next = next.and_then(|next| candidates.iter().position(|other| *other == next)).unwrap_or(0);
        self.left = candidates.len();
        self.candidates = candidates;
    }

    /// There is nobody to try.
    pub(crate) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use adit_tunnel::testing::TestRng;

    use super::*;

    fn remote(host: &str, port: u16, transport: Transport, family: Family) -> Remote {
        Remote { host: host.into(), port, transport, family }
    }

    fn answers() -> Answers {
        let ips = |texts: &[&str]| Ok(texts.iter().map(|text| text.parse().unwrap()).collect());
        HashMap::from([
            ("a".to_owned(), ips(&["2001:db8::1", "192.0.2.1"])),
            ("b".to_owned(), ips(&["192.0.2.2"])),
            ("gone".to_owned(), Err("no such name".to_owned())),
        ])
    }

    fn rotation(remotes: &[Remote]) -> Rotation {
        let mut rotation = Rotation::default();
        rotation.replace(candidates(remotes, &answers()));
        rotation
    }

    fn round(rotation: &mut Rotation) -> Vec<String> {
        std::iter::from_fn(|| rotation.next()).map(|candidate| candidate.to_string()).collect()
    }

    #[test]
    fn remotes_and_their_addresses_are_tried_in_order_each_once() {
        use Transport::{Tcp, Udp};
        let remotes = [
            remote("gone", 1194, Udp, Family::Any),
            remote("a", 1194, Udp, Family::Any),
            remote("b", 443, Tcp, Family::V4),
            remote("a", 443, Tcp, Family::V4),
            remote("a", 1194, Udp, Family::V6),
            remote("b", 1194, Udp, Family::V6),
        ];
        let mut rotation = rotation(&remotes);
        let all = ["udp [2001:db8::1]:1194", "udp 192.0.2.1:1194", "tcp 192.0.2.2:443", "tcp 192.0.2.1:443"];
        assert_eq!(round(&mut rotation), all);
        assert_eq!(rotation.next(), None, "until the next round begins");
        rotation.restart(Start::NextAddress);
        assert_eq!(round(&mut rotation), all);
    }

    #[test]
    fn a_round_begins_where_the_last_session_was_or_behind_it() {
        let remotes =
            [remote("a", 1, Transport::Udp, Family::Any), remote("b", 2, Transport::Udp, Family::Any)];
        let after_first = |start| {
            let mut rotation = rotation(&remotes);
            rotation.next();
            rotation.restart(start);
            round(&mut rotation)
        };
        let [a6, a4, b] = ["udp [2001:db8::1]:1", "udp 192.0.2.1:1", "udp 192.0.2.2:2"];
        assert_eq!(after_first(Start::Same), [a6, a4, b]);
        assert_eq!(after_first(Start::NextAddress), [a4, b, a6]);
        assert_eq!(after_first(Start::NextRemote), [b, a6, a4]);
        let mut only_one = rotation(&remotes[1..]);
        only_one.next();
        only_one.restart(Start::NextRemote);
        assert_eq!(round(&mut only_one), [b]);
    }

    #[test]
    fn newer_addresses_do_not_lose_the_place() {
        let remotes =
            [remote("a", 1, Transport::Udp, Family::Any), remote("b", 2, Transport::Udp, Family::Any)];
        let mut rotation = rotation(&remotes);
        rotation.next();
        rotation.next();
        let only_b = Answers::from([("b".to_owned(), answers().remove("b").unwrap())]);
        rotation.replace(candidates(&remotes, &only_b));
        assert_eq!(round(&mut rotation), ["udp 192.0.2.2:2"]);
        rotation.replace(Vec::new());
        assert!(rotation.is_empty());
        rotation.restart(Start::Same);
        rotation.restart(Start::NextRemote);
        assert_eq!(rotation.next(), None);
    }

    #[test]
    fn random_order_loses_none() {
        let sorted: Vec<Remote> =
            (1..=20).map(|port| remote("a", port, Transport::Udp, Family::Any)).collect();
        let mut shuffled = sorted.clone();
        shuffle(&mut shuffled, &mut TestRng::new(1));
        assert_ne!(shuffled, sorted);
        shuffled.sort_by_key(|remote| remote.port);
        assert_eq!(shuffled, sorted);
    }
}
