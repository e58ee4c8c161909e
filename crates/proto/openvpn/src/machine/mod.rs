//! The control machine of one session, for either role: reliability, TLS, key exchange, push, renegotiation.
//!
//! It follows the shape of [`adit_tunnel::Machine`]. Call [`poll_event`](Machine::poll_event) before
//! [`poll_transmit`](Machine::poll_transmit): an event may make ready what the peer is about to be told of.
//! Data packets do not pass through here; they go through the [`Channel`] that [`Event::Established`] hands
//! out, whose keys the machine changes as they are renegotiated.

mod client;
mod closing;
mod inbound;
mod keying;
mod negotiation;
mod server;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_tunnel::{DropReason, Entropy, PeerFault};

use self::client::ClientState;
pub use self::client::ClientWrap;
pub use self::server::{Grant, Start};
pub use self::settings::{Agreement, Carrier, Settings};

use self::negotiation::Negotiation;
use self::server::ServerState;
use crate::Role;
use crate::data::Channel;
use crate::kex::Credentials;
use crate::packet::{Body, HEAD_LEN, Head, KeyId, MAX_ACKS, Opcode, SessionId};
use crate::peer_info::PeerInfo;
use crate::push::PushReply;
use crate::text::{Message, Stop};
use crate::tls::{PeerCertificates, TlsFault};
use crate::wrap::Wrapper;

/// Largest control datagram sent: with IPv6 and UDP headers it stays below 1250 bytes, OpenVPN's own limit.
const MAX_DATAGRAM: usize = 1200;
/// How long a farewell is repeated until the peer has acknowledged it.
const LINGER: Duration = Duration::from_secs(15);
/// The same for a client after something went wrong.
const CLIENT_LINGER: Duration = Duration::from_secs(2);
/// A peer may renegotiate no more often than this.
const MIN_RENEGOTIATION: Duration = Duration::from_secs(1);

/// A peer that has proven who it is, as far as the protocol goes; the owner decides whether it may come in.
#[derive(Debug, Clone)]
pub struct Login {
    /// The verified certificates.
    pub peer: PeerCertificates,
    /// The certificate this side has shown, DER. Where one TLS source has several, it tells which.
    pub own: Option<Vec<u8>>,
    /// User name and password, when the client sent them.
    pub credentials: Option<Credentials>,
    /// What the client says of itself.
    pub peer_info: PeerInfo,
    /// TLS version and cipher suite.
    pub tls: String,
    /// False at the beginning of the session.
    pub renegotiation: bool,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// This side ended it.
    #[error("ended by this side")]
    Local,
    /// This side refused the peer.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer said that it leaves.
    #[error("the peer left")]
    PeerLeft,
    /// Nothing came from the peer for `ping-restart`.
    #[error("nothing received for {0:?} (ping-restart)")]
    Silent(Duration),
    /// The negotiation took longer than `hand-window`.
    #[error("{0} did not complete within {1:?} (hand-window)")]
    Timeout(&'static str, Duration),
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(#[from] TlsFault),
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The server refused this client, with its reason.
    #[error("the server refused: AUTH_FAILED {0}")]
    AuthFailed(String),
    /// The server told this client to restart or stop, with its words.
    #[error("the server said {0:?}: {1}")]
    Told(Stop, String),
}

/// What a machine tells its owner.
#[derive(Debug)]
pub enum Event {
    /// Server: answer with [`Machine::authorize`] or [`Machine::refuse`]. The peer waits meanwhile.
    Authenticate(Box<Login>),
    /// Client: what the server wants; comes before `Established`.
    Pushed(Box<PushReply>),
    /// Data packets may pass through this channel from now on.
    Established(Arc<Channel>, Agreement),
    /// A renegotiation is complete.
    Renegotiated,
    /// Words of the server for the user.
    Notice(String),
    /// It is over; the machine does nothing more.
    Ended(Ended),
}

/// What to tell the peer when a session is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Farewell {
    /// Nothing.
    Silent,
    /// Server: connect again (`RESTART`).
    Restart(String),
    /// Server: stay away (`HALT`).
    Halt(String),
    /// Server: the credentials are no longer good (`AUTH_FAILED`).
    AuthFailed(String),
    /// Client: leaving (`EXIT`).
    Exit,
}

#[derive(Debug)]
struct Closing {
    deadline: Instant,
    why: Ended,
}

#[derive(Debug)]
enum RoleState {
    Server(ServerState),
    Client(ClientState),
}

/// See the module's text.
pub struct Machine {
    settings: Arc<Settings>,
    carrier: Carrier,
    entropy: Box<dyn Entropy>,
    role: RoleState,
    local: SessionId,
    remote: Option<SessionId>,
    wrapper: Wrapper,
    dynamic: Option<Wrapper>,
    /// Unix time when the machine was made, for wrappers made later.
    unix: u32,
    current: Negotiation,
    previous: Option<Negotiation>,
    established: Option<Established>,
    last_received: Instant,
    last_sent: Instant,
    ping: Option<Duration>,
    ping_restart: Option<Duration>,
    closing: Option<Closing>,
    over: bool,
    events: VecDeque<Event>,
    raw: VecDeque<Vec<u8>>,
    body: Vec<u8>,
}

/// What the first negotiation settled.
#[derive(Debug)]
struct Established {
    agreement: Agreement,
    channel: Arc<Channel>,
    renegotiate_at: Option<Instant>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("local", &self.local)
            .field("current", &self.current)
            .finish_non_exhaustive()
    }
}

/// Where a new machine stands, and in what surroundings.
struct Origin {
    settings: Arc<Settings>,
    carrier: Carrier,
    entropy: Box<dyn Entropy>,
    role: RoleState,
    local: SessionId,
    remote: Option<SessionId>,
    wrapper: Wrapper,
    unix: u32,
}

impl Machine {
    fn new(origin: Origin, current: Negotiation, now: Instant) -> Self {
        let Origin { settings, carrier, entropy, role, local, remote, wrapper, unix } = origin;
        Self {
            ping: settings.ping,
            ping_restart: settings.ping_restart,
            settings,
            carrier,
            entropy,
            role,
            local,
            remote,
            wrapper,
            dynamic: None,
            unix,
            current,
            previous: None,
            established: None,
            last_received: now,
            last_sent: now,
            closing: None,
            over: false,
            events: VecDeque::new(),
            raw: VecDeque::new(),
            body: Vec::new(),
        }
    }

    /// This side's session id.
    #[must_use]
    pub fn local(&self) -> SessionId {
        self.local
    }

    /// The peer's session id, once known.
    #[must_use]
    pub fn remote(&self) -> Option<SessionId> {
        self.remote
    }

    /// When the last packet of the peer was accepted; before the first one, when the machine was made.
    #[must_use]
    pub fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Tells the machine when data packets were last received and sent; it pings and gives up by that.
    pub fn note_activity(&mut self, received: Instant, sent: Instant) {
        self.last_received = self.last_received.max(received);
        self.last_sent = self.last_sent.max(sent);
    }

    /// The peer said on the data channel that it leaves.
    pub fn peer_left(&mut self) {
        self.end(Ended::PeerLeft);
    }

    /// Starts a renegotiation now, unless one is under way.
    pub fn renegotiate(&mut self, now: Instant) {
        if self.established.is_some() && self.current.is_keyed() && self.closing.is_none() && !self.over {
            self.start_negotiation(now);
        }
    }

    /// Why the session is about to end: the peer is still being told. [`Event::Ended`] follows.
    #[must_use]
    pub fn closing(&self) -> Option<&Ended> {
        self.closing.as_ref().map(|closing| &closing.why)
    }

    /// Ends the session: the data channel at once, the control channel when the peer has acknowledged the
    /// farewell, or after 15 seconds; at once with [`Farewell::Silent`], whatever was begun before.
    pub fn close(&mut self, farewell: &Farewell, now: Instant) {
        self.close_because(farewell, Ended::Local, now);
    }

    /// Takes one datagram from the peer (a record's content, over TCP).
    ///
    /// # Errors
    /// [`PeerFault::Dropped`] is to be counted; [`PeerFault::Fatal`] comes with [`Event::Ended`].
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant) -> Result<(), PeerFault> {
        if self.over {
            return Err(DropReason::SessionClosed.into());
        }
        let mut body = std::mem::take(&mut self.body);
        let result = self.accept(datagram, &mut body, now);
        self.body = body;
        result
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.over {
            return;
        }
        if self.closing.is_some() {
            self.finish_closing(now);
            return;
        }
        if !self.current.is_keyed() && now >= self.current.deadline {
            let what = if self.established.is_some() { "the renegotiation" } else { "the handshake" };
            self.fail(Ended::Timeout(what, self.settings.hand_window), now);
            return;
        }
        if let RoleState::Client(_) = self.role {
            self.resend_push_request(now);
        }
        let Some(established) = &self.established else {
            return;
        };
        if let Some(limit) = self.ping_restart.filter(|&limit| now >= self.last_received + limit) {
            self.end(Ended::Silent(limit));
            return;
        }
        if self.ping.is_some_and(|ping| now >= self.last_sent + ping) {
            self.last_sent = now;
            if let Ok(datagram) = established.channel.seal_ping() {
                self.raw.push_back(datagram);
            }
        }
        if self.current.promote_at.is_some_and(|at| now >= at) {
            self.current.promote_at = None;
            established.channel.promote(self.current.key);
        }
        if let Some(previous) = self.previous.take_if(|p| now >= p.retire_at) {
            established.channel.retire(previous.key);
        }
        let spent = established.channel.sending_key().is_some_and(|key| key.wants_renewal());
        let due = established.renegotiate_at.is_some_and(|at| now >= at);
        if self.current.is_keyed() && (due || spent) {
            self.start_negotiation(now);
        }
    }

    /// Writes the next datagram for the peer into `out` (cleared first).
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<()> {
        out.clear();
        if let Some(datagram) = self.raw.pop_front() {
            out.extend_from_slice(&datagram);
            return Some(());
        }
        if self.over {
            return None;
        }
        let found = Self::next_packet(&mut self.current, now).map(|packet| (self.current.key, packet));
        let found = found.or_else(|| {
            let previous = self.previous.as_mut()?;
            Some((previous.key, Self::next_packet(previous, now)?))
        });
        let (key, packet) = found?;
        self.write_packet(key, &packet, out);
        Some(())
    }

    /// Writes a control packet under its protection.
    fn write_packet(&mut self, key: KeyId, packet: &Packet, out: &mut Vec<u8>) {
        let head = Head { opcode: packet.opcode, key, session: self.local };
        let body =
            Body { acks: packet.acks, acked_session: self.remote, id: packet.id, payload: &packet.payload };
        let mut bytes = std::mem::take(&mut self.body);
        bytes.clear();
        body.write(&mut bytes);
        self.wrapper_for(key).wrap(&head, &bytes, out);
        self.body = bytes;
        if let (true, RoleState::Client(client)) = (packet.opcode.carries_wkc(), &self.role) {
            out.extend_from_slice(client.wrapped_key());
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) or poll for transmissions, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.over {
            return None;
        }
        let send = self.current.next_due();
        let send_previous = self.previous.as_ref().and_then(Negotiation::next_due);
        let mut due = [(None, ""); 9];
        due[0] = (send, "acknowledgement or retransmission");
        due[1] = (send_previous, "acknowledgement or retransmission");
        if let Some(closing) = &self.closing {
            due[2] = (Some(closing.deadline), "end of farewell");
        } else {
            if !self.current.is_keyed() {
                due[2] = (Some(self.current.deadline), "hand-window");
            }
            if let RoleState::Client(client) = &self.role {
                due[3] = (client.next_push_request(), "push request");
            }
            if let Some(established) = &self.established {
                due[4] = (self.ping_restart.map(|limit| self.last_received + limit), "ping-restart");
                due[5] = (self.ping.map(|ping| self.last_sent + ping), "ping");
                due[6] = (self.current.promote_at, "use of new keys");
                due[7] = (self.previous.as_ref().map(|p| p.retire_at), "end of old keys");
                due[8] = (established.renegotiate_at.filter(|_| self.current.is_keyed()), "renegotiation");
            }
        }
        due.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at)
    }

    fn is_server(&self) -> bool {
        matches!(self.role, RoleState::Server(_))
    }

    fn role(&self) -> Role {
        if self.is_server() { Role::Server } else { Role::Client }
    }

    /// Leftovers of the first negotiation stay under the first wrapper; key id tells.
    fn wrapper_for(&mut self, key: KeyId) -> &mut Wrapper {
        if key.index() == 0 {
            return &mut self.wrapper;
        }
        self.prepare_dynamic();
        self.dynamic.as_mut().unwrap_or(&mut self.wrapper)
    }

    fn next_packet(negotiation: &mut Negotiation, now: Instant) -> Option<Packet> {
        if let Some(message) = negotiation.send.poll(now) {
            return Some(Packet {
                opcode: message.opcode,
                id: Some(message.id),
                payload: message.payload.to_vec(),
                acks: negotiation.receive.take_acks(true),
            });
        }
        negotiation.receive.acknowledge_at().filter(|&at| at <= now).map(|_| Packet {
            opcode: Opcode::AckV1,
            id: None,
            payload: Vec::new(),
            acks: negotiation.receive.take_acks(false),
        })
    }

    /// Moves TLS output into the send window as far as there is room.
    fn pump(&mut self, is_current: bool) {
        let overhead = HEAD_LEN + self.wrapper.keys().overhead().max(40) + 1 + 4 * MAX_ACKS + 8 + 4;
        let wrapped = match &self.role {
            RoleState::Client(client) => client.wrapped_key_due(),
            RoleState::Server(_) => None,
        };
        let negotiation = match (is_current, &mut self.previous) {
            (true, _) => &mut self.current,
            (false, Some(previous)) => previous,
            (false, None) => return,
        };
        negotiation.pump(MAX_DATAGRAM - overhead, wrapped);
    }

    /// Says something on the newest negotiation that has got as far as talking.
    fn say(&mut self, message: &Message) {
        // A client whose renegotiation is being decided takes nothing else before that.
        if self.is_server() && self.current.theirs.is_some() && !self.current.said {
            // If that fails, the former negotiation still talks.
            let _ = self.send_key_message();
        }
        let talks = |n: &Negotiation| n.said && n.theirs.is_some();
        let is_current = talks(&self.current);
        let negotiation = match &mut self.previous {
            _ if is_current => &mut self.current,
            Some(previous) if talks(previous) => previous,
            _ => return,
        };
        negotiation.write(&message.to_bytes());
        self.pump(is_current);
    }
}

struct Packet {
    opcode: Opcode,
    id: Option<u32>,
    payload: Vec<u8>,
    acks: crate::packet::Acks,
}

impl adit_tunnel::Machine for Machine {
    type Event = Event;

    fn handle_datagram(&mut self, datagram: &[u8], now: Instant) -> Result<(), PeerFault> {
        Self::handle_datagram(self, datagram, now)
    }

    fn handle_timeout(&mut self, now: Instant) {
        Self::handle_timeout(self, now);
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<()> {
        Self::poll_transmit(self, out, now)
    }

    fn poll_event(&mut self) -> Option<Event> {
        Self::poll_event(self)
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        Self::poll_timeout(self)
    }
}
