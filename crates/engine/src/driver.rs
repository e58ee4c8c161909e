//! What control threads, the gateway's and the client's, do with a control machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_host::clock;
use adit_openvpn::Machine;
use adit_openvpn::data::Channel;
use adit_openvpn::machine::{Agreement, Carrier, Event, Farewell};
use adit_tunnel::{DropReason, Entropy, PeerFault};

use crate::{Command, Engine, Handle, Path, Session, Sources};

/// A control machine, the way to its peer, and the session once data packets may pass.
///
/// After each call that takes `now`, act on [`next_event`](Self::next_event) until there is none, then call
/// [`transmit`](Self::transmit), and [`timeout`](Self::timeout) at [`next_timeout`](Self::next_timeout).
#[derive(Debug)]
pub struct Driver {
    handle: Handle,
    machine: Machine,
    /// Where the peer was before there was a session.
    path: Path,
    session: Option<Arc<Session>>,
}

impl Driver {
    /// Drives `machine`, whose peer is reached by `path`; the engine knows them as `handle`.
    #[must_use]
    pub fn new(handle: Handle, machine: Machine, path: Path) -> Self {
        Self { handle, machine, path, session: None }
    }

    /// What the engine calls it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, for what the driver does not do.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The way to the peer: once attached, where its newest data packet came from.
    #[must_use]
    pub fn path(&self) -> Path {
        self.session.as_ref().map_or(self.path, |session| session.path())
    }

    /// The session, once [`attach`](Self::attach)ed.
    #[must_use]
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// Takes a control packet that the engine has received.
    pub fn packet(&mut self, engine: &Engine, packet: &[u8], now: Instant) {
        match self.machine.handle_datagram(packet, now) {
            // What is fatal comes as an event as well.
            Ok(()) | Err(PeerFault::Fatal(_)) => {}
            Err(PeerFault::Dropped(reason)) => {
                engine.drops().count(reason);
                // Over TCP nothing gets lost or reordered: what does not verify is no peer of ours.
                if self.path().is_stream() && reason == DropReason::ControlAuthentication {
                    self.machine.close(&Farewell::Silent, now);
                }
            }
        }
    }

    /// Does what is due at `now`.
    pub fn timeout(&mut self, clocks: &Clocks, now: Instant) {
        if let Some(session) = &self.session {
            let counters = session.counters();
            let received = clocks.instant(counters.last_received);
            self.machine.note_activity(received, clocks.instant(counters.last_sent));
        }
        self.machine.handle_timeout(now);
    }

    /// What the machine has to say.
    pub fn next_event(&mut self) -> Option<Event> {
        self.machine.poll_event()
    }

    /// Sends all that the machine has to send. `scratch` is room for one packet, to be used again and again.
    pub fn transmit(&mut self, engine: &Engine, scratch: &mut Vec<u8>, now: Instant) {
        let path = self.path();
        while self.machine.poll_transmit(scratch, now).is_some() {
            engine.transmit(path, scratch);
        }
    }

    /// When [`timeout`](Self::timeout) is due; `None` once the machine has ended.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.machine.poll_timeout().map(|(at, _)| at)
    }

    /// Lets data packets pass, as the machine has said; the peer may send from `sources`.
    pub fn attach(
        &mut self,
        engine: &Engine,
        channel: Arc<Channel>,
        agreement: &Agreement,
        sources: Sources,
    ) {
        let session = Arc::new(Session::new(self.handle, channel, agreement.peer_id, sources, self.path));
        engine.tell(Command::Attach(Arc::clone(&session)));
        self.session = Some(session);
    }

    /// Ends the session: no data packet passes from now on, and the peer is told.
    pub fn close(&mut self, farewell: &Farewell, now: Instant) {
        if let Some(session) = &self.session {
            session.close();
        }
        self.machine.close(farewell, now);
    }
}

impl Path {
    /// What carries packets on this path, as a machine wants to know it.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        Carrier { tcp: self.is_stream(), ipv6: self.remote().ip().to_canonical().is_ipv6() }
    }
}

/// The engine's clock and this thread's, read at the same moment.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    millis: u64,
    instant: Instant,
}

impl Clocks {
    /// Reads both.
    #[must_use]
    pub fn read() -> Self {
        Self { millis: clock::monotonic_ms(), instant: Instant::now() }
    }

    /// A time of the engine's clock on this thread's.
    #[must_use]
    pub fn instant(&self, millis: u64) -> Instant {
        self.instant + Duration::from_millis(millis.saturating_sub(self.millis))
    }

    /// How long ago a time of the engine's clock was.
    #[must_use]
    pub fn since(&self, millis: u64) -> Duration {
        let now = self.millis + u64::try_from(self.instant.elapsed().as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(now.saturating_sub(millis))
    }
}

/// Randomness from the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        aws_lc_rs::rand::fill(out).expect("the system gives random bytes");
    }
}
