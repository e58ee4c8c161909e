//! One attempt at a server, and the session it becomes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_engine::{Command, Driver, Engine, Handle, OsEntropy, Path};
use adit_openvpn::Machine;
use adit_openvpn::machine::{ClientWrap, Farewell, Settings};
use adit_openvpn::profile::Transport;

use crate::remotes::Candidate;
use crate::status::{State, Status};
use crate::tunnel::Tunnel;

/// How long a server may be silent before the session is up, be it that it never answers or that it goes away in the
/// middle of the handshake. The handshake as a whole may take `hand-window`.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) candidate: Candidate,
    pub(crate) driver: Driver,
    /// What the server has pushed, until data packets may pass.
    pub(crate) tunnel: Option<Tunnel>,
    /// Since when data packets pass.
    pub(crate) up: Option<Instant>,
    /// Why this side ends it.
    pub(crate) gave_up: Option<String>,
}

/// What every attempt needs.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    pub(crate) engine: Arc<Engine>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) wrap: ClientWrap,
}

impl Attempt {
    /// Begins over UDP. Sockets are those of [`Network::sockets`](crate::network::Network::sockets).
    pub(crate) fn over_udp(means: &Means, candidate: Candidate, now: Instant) -> Self {
        let remote = candidate.address;
        let (socket, any): (_, IpAddr) = match remote {
            SocketAddr::V4(_) => (0, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (1, Ipv6Addr::UNSPECIFIED.into()),
        };
        let handle = means.engine.new_handle();
        means.engine.tell(Command::Watch(remote, handle));
        Self::new(means, candidate, handle, Path::Udp { socket, remote, local: (any, 0).into() }, now)
    }

    /// Begins on a TCP connection.
    pub(crate) fn over_tcp(
        means: &Means,
        candidate: Candidate,
        stream: TcpStream,
        now: Instant,
    ) -> std::io::Result<Self> {
        let (remote, local) = (stream.peer_addr()?, stream.local_addr()?);
        let handle = means.engine.new_handle();
        means.engine.tell(Command::Adopt { handle, stream, remote, local, leftover: Vec::new() });
        Ok(Self::new(means, candidate, handle, Path::Stream { connection: handle, remote, local }, now))
    }

    fn new(means: &Means, candidate: Candidate, handle: Handle, path: Path, now: Instant) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let machine = Machine::client(
            Arc::clone(&means.settings),
            means.wrap.clone(),
            path.carrier(),
            Box::new(OsEntropy),
            now,
            // Wraps in 2106, as the protocol does.
            unix as u32,
        );
        Self { candidate, driver: Driver::new(handle, machine, path), tunnel: None, up: None, gave_up: None }
    }

    /// When something is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        [self.answer_by(), self.driver.next_timeout()].into_iter().flatten().min()
    }

    /// The server has had its time to answer, and has not.
    pub(crate) fn is_unanswered(&self, now: Instant) -> bool {
        self.answer_by().is_some_and(|at| now >= at)
    }

    fn answer_by(&self) -> Option<Instant> {
        self.up.is_none().then(|| self.driver.machine().last_received() + ANSWER)
    }

    /// What may be the reason that the server is silent.
    pub(crate) fn doubt(&self, protected: bool) -> &'static str {
        match (self.driver.machine().remote(), protected) {
            // Stock servers say nothing to those they refuse.
            (Some(_), _) => {
                " in the middle of the handshake (the server may not accept the profile's certificate; its log tells)"
            }
            (None, false) => " (a wrong port, a firewall on the way, or no server)",
            (None, true) => {
                " (a wrong port, a firewall on the way, no server, or one that has not the profile's tls-auth or \
                 tls-crypt key)"
            }
        }
    }

    /// Ends it from this side without a word; the reason is for people.
    pub(crate) fn give_up(&mut self, why: impl Into<String>, now: Instant) {
        self.gave_up.get_or_insert(why.into());
        self.driver.close(&Farewell::Silent, now);
    }

    /// A status that names its server.
    pub(crate) fn status(&self, state: State) -> Status {
        Status::at(state, self.driver.path().remote(), self.candidate.transport)
    }
}

impl Candidate {
    /// True when a TCP connection has to be made first.
    pub(crate) fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }
}
