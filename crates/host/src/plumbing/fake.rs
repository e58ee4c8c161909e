//! Plumbing that changes nothing, for tests of what stands above.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{HostState, Plumbing, PlumbingFault};
use crate::capture::{CaptureOptions, CapturePlan, Captured};
use crate::conntrack::{Tracked, Usage};
use crate::nft::{Counter, Element, ElementChange};
use crate::tcp::{self, ListenOptions};
use crate::tun::{Tun, TunOptions};
use crate::udp::{UdpOptions, UdpSocket};

/// What was asked of a [`FakePlumbing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// [`Plumbing::apply`].
    Apply(HostState),
    /// [`Plumbing::undo`].
    Undo,
    /// [`Plumbing::open_tun`].
    OpenTun(TunOptions),
    /// [`Plumbing::bind_udp`].
    BindUdp(SocketAddr, UdpOptions),
    /// [`Plumbing::listen_tcp`].
    ListenTcp(SocketAddr, ListenOptions),
    /// [`Plumbing::capture`] and [`Plumbing::recapture`].
    Capture(CapturePlan),
    /// [`Plumbing::change_elements`].
    ChangeElements(Vec<ElementChange>),
    /// [`Plumbing::forget_connections`].
    ForgetConnections(Vec<IpAddr>),
    /// [`Plumbing::forget`].
    Forget(Vec<Tracked>),
    /// [`Plumbing::occupy`].
    Occupy(Vec<Tracked>),
}

/// Records requests and answers them without privilege: TUN interfaces are ends of a socket pair, and sockets
/// are on a free port of the loopback address. Elements are kept; there is every table and set, and nothing
/// is counted. Questions that change nothing are not recorded. Clones share one record, so a test keeps one
/// and gives one away.
#[derive(Debug, Clone, Default)]
pub struct FakePlumbing {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: Vec<Request>,
    state: HostState,
    fault: Option<String>,
    tuns: HashMap<String, Vec<UnixDatagram>>,
    udp: HashMap<SocketAddr, SocketAddr>,
    tcp: HashMap<SocketAddr, SocketAddr>,
    /// By table and set.
    elements: HashMap<(String, String), Vec<Element>>,
    connections: Vec<Tracked>,
}

impl FakePlumbing {
    /// One that was asked nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that was asked, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared().requests.clone()
    }

    /// The state that was applied last.
    #[must_use]
    pub fn state(&self) -> HostState {
        self.shared().state.clone()
    }

    /// Makes the next request fail with these words.
    pub fn fail_next(&self, words: &str) {
        self.shared().fault = Some(words.to_owned());
    }

    /// The host's end of a TUN interface's oldest queue not yet taken: what is sent into it the interface
    /// receives, one packet per datagram, and the reverse. Nonblocking.
    #[must_use]
    pub fn take_tun_peer(&self, name: &str) -> Option<UnixDatagram> {
        let mut shared = self.shared();
        let queues = shared.tuns.get_mut(name)?;
        (!queues.is_empty()).then(|| queues.remove(0))
    }

    /// Where the UDP socket that was asked for on `address` really is.
    #[must_use]
    pub fn udp_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.shared().udp.get(&address).copied()
    }

    /// Where the TCP listener that was asked for on `address` really is.
    #[must_use]
    pub fn tcp_address(&self, address: SocketAddr) -> Option<SocketAddr> {
        self.shared().tcp.get(&address).copied()
    }

    /// Makes these the tracked connections, until they are forgotten.
    pub fn set_connections(&self, connections: Vec<Tracked>) {
        self.shared().connections = connections;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A test that panicked elsewhere has failed already.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, request: Request) -> Result<MutexGuard<'_, Shared>, PlumbingFault> {
        let mut shared = self.shared();
        shared.requests.push(request);
        match shared.fault.take() {
            Some(words) => Err(PlumbingFault::Reported(words)),
            None => Ok(shared),
        }
    }
}

impl Plumbing for FakePlumbing {
    fn apply(&mut self, wanted: &HostState) -> Result<(), PlumbingFault> {
        self.note(Request::Apply(wanted.clone()))?.state = wanted.clone();
        Ok(())
    }

    fn undo(&mut self) -> Result<(), PlumbingFault> {
        self.note(Request::Undo)?.state = HostState::default();
        Ok(())
    }

    fn open_tun(&mut self, options: &TunOptions) -> Result<Tun, PlumbingFault> {
        let mut shared = self.note(Request::OpenTun(options.clone()))?;
        let pair = || -> std::io::Result<_> {
            let (gateway, host) = UnixDatagram::pair()?;
            gateway.set_nonblocking(true)?;
            host.set_nonblocking(true)?;
            Ok((gateway, host))
        };
        let (gateway, host) = pair().map_err(|error| PlumbingFault::Reported(error.to_string()))?;
        shared.tuns.entry(options.name.clone()).or_default().push(host);
        Ok(Tun::from_parts(gateway.into(), options.name.clone(), 1))
    }

    fn bind_udp(&mut self, address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, PlumbingFault> {
        let mut shared = self.note(Request::BindUdp(address, *options))?;
        // Marks need privilege, and several sockets on one address get one each here.
        let unprivileged = UdpOptions { mark: None, ..*options };
        let socket = UdpSocket::bind(loopback(address), &unprivileged)?;
        shared.udp.insert(address, socket.local_addr());
        Ok(socket)
    }

    fn listen_tcp(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<TcpListener, PlumbingFault> {
        let mut shared = self.note(Request::ListenTcp(address, *options))?;
        let listener = tcp::listen(loopback(address), options)?;
        let bound = listener.local_addr().map_err(|error| PlumbingFault::Reported(error.to_string()))?;
        shared.tcp.insert(address, bound);
        Ok(listener)
    }

    fn capture(&mut self, plan: &CapturePlan, _: &CaptureOptions) -> Result<Captured, PlumbingFault> {
        self.recapture(plan)?;
        Ok(Captured::default())
    }

    fn recapture(&mut self, plan: &CapturePlan) -> Result<(), PlumbingFault> {
        self.note(Request::Capture(plan.clone())).map(|_| ())
    }

    fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), PlumbingFault> {
        let mut shared = self.note(Request::ChangeElements(changes.to_vec()))?;
        for ElementChange { table, set, change } in changes {
            change.carry_out(shared.elements.entry((table.clone(), set.clone())).or_default());
        }
        Ok(())
    }

    fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, PlumbingFault> {
        Ok(self.shared().elements.get(&(table.to_owned(), set.to_owned())).cloned().unwrap_or_default())
    }

    fn counters(&mut self, _: &str) -> Result<Vec<Counter>, PlumbingFault> {
        Ok(Vec::new())
    }

    fn forget_connections(&mut self, inner: &[IpAddr]) -> Result<(), PlumbingFault> {
        let mut shared = self.note(Request::ForgetConnections(inner.to_vec()))?;
        shared.connections.retain(|tracked| !tracked.sources().iter().any(|source| inner.contains(source)));
        Ok(())
    }

    fn forget(&mut self, connections: &[Tracked]) -> Result<(), PlumbingFault> {
        let mut shared = self.note(Request::Forget(connections.to_vec()))?;
        shared.connections.retain(|tracked| !connections.contains(tracked));
        Ok(())
    }

    fn occupy(&mut self, connections: &[Tracked], _: u32) -> Result<(), PlumbingFault> {
        self.note(Request::Occupy(connections.to_vec())).map(drop)
    }

    fn connections(&mut self) -> Result<Vec<Tracked>, PlumbingFault> {
        Ok(self.shared().connections.clone())
    }

    fn connection_usage(&mut self) -> Result<Usage, PlumbingFault> {
        let count = u32::try_from(self.shared().connections.len()).unwrap_or(u32::MAX);
        Ok(Usage { count, max: 262_144 })
    }
}

/// Any port of the loopback address of the same version.
fn loopback(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    (ip, 0).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Direction;
    use crate::nft::Change;
    use crate::plumbing::Sysctl;

    #[test]
    fn requests_are_recorded_and_answered() {
        let fake = FakePlumbing::new();
        let mut given_away: Box<dyn Plumbing> = Box::new(fake.clone());
        let wanted = HostState { sysctls: vec![Sysctl::new("a.b", "1")], ..HostState::default() };
        let address = "192.0.2.1:1194".parse().unwrap();

        given_away.apply(&wanted).unwrap();
        let tun = given_away.open_tun(&TunOptions::new("adit0")).unwrap();
        let udp =
            given_away.bind_udp(address, &UdpOptions { mark: Some(7), ..UdpOptions::default() }).unwrap();
        let tcp = given_away.listen_tcp(address, &ListenOptions::default()).unwrap();

        assert_eq!(fake.state(), wanted);
        let host = fake.take_tun_peer("adit0").unwrap();
        tun.send(b"packet").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(host.recv(&mut buffer).unwrap(), 6);
        host.send(b"answer!").unwrap();
        assert_eq!(tun.recv(&mut buffer).unwrap(), 7);
        assert_eq!(fake.udp_address(address), Some(udp.local_addr()));
        assert_eq!(fake.tcp_address(address), tcp.local_addr().ok());
        assert_eq!(fake.requests().len(), 4);
        assert_eq!(fake.requests()[1], Request::OpenTun(TunOptions::new("adit0")));
        assert!(fake.take_tun_peer("adit0").is_none());
    }

    #[test]
    fn a_failure_can_be_ordered() {
        let mut fake = FakePlumbing::new();
        fake.fail_next("no such luck");

        assert_eq!(fake.apply(&HostState::default()).unwrap_err().to_string(), "no such luck");
        fake.undo().unwrap();
        assert_eq!(fake.requests(), [Request::Apply(HostState::default()), Request::Undo]);
    }

    #[test]
    fn elements_and_connections_are_kept() {
        let fake = FakePlumbing::new();
        let mut plumbing = fake.clone();
        let add = |data: &[u8]| ElementChange {
            table: "adit_nat".into(),
            set: "blocks".into(),
            change: Change::Add { key: vec![10, 0, 0, 2], data: data.to_vec() },
        };
        let between = |source: &str, destination: &str| Direction {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        let begun = Tracked {
            protocol: 17,
            original: between("10.0.0.2:7", "198.51.100.1:53"),
            reply: between("198.51.100.1:53", "192.0.2.1:40000"),
        };
        let forwarded = Tracked {
            protocol: 6,
            original: between("198.51.100.1:9", "192.0.2.1:80"),
            reply: between("10.0.0.3:8080", "198.51.100.1:9"),
        };
        fake.set_connections(vec![begun, forwarded]);

        plumbing.change_elements(&[add(&[1]), add(&[2])]).unwrap();
        assert_eq!(plumbing.connection_usage().unwrap().count, 2);
        plumbing.forget_connections(&["10.0.0.3".parse().unwrap()]).unwrap();

        let there = plumbing.elements("adit_nat", "blocks").unwrap();
        assert_eq!(there.iter().map(|element| element.data.as_slice()).collect::<Vec<_>>(), [[2]]);
        assert_eq!(plumbing.elements("adit_nat", "sites").unwrap(), []);
        assert_eq!(plumbing.connections().unwrap(), [begun]);
        let forgotten = Request::ForgetConnections(vec!["10.0.0.3".parse().unwrap()]);
        assert_eq!(fake.requests(), [Request::ChangeElements(vec![add(&[1]), add(&[2])]), forgotten]);
    }
}
