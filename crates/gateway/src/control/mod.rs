//! The control thread: owns every session's control machine, its timers, and what is known of the session.
//!
//! It never waits for anything but its inbox and the next timer. What needs the disk goes to the
//! [desk](crate::desk); what needs a socket goes to the engine.

mod entry;
mod messages;
mod timers;

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use adit_engine::{Clocks, Command, Driver, Engine, Event as EngineEvent, Handle, OsEntropy, Path, Sources};
use adit_openvpn::Machine;
use adit_openvpn::data::{Channel, MAX_PEER_ID};
use adit_openvpn::gate::{Admission, IdentityId};
use adit_openvpn::machine::{Agreement, Ended, Event, Farewell, Grant, Login, Settings};
use adit_tunnel::DropReason;
use ipnet::IpNet;

pub(crate) use self::entry::Which;
use self::entry::{Entry, Live};
pub(crate) use self::messages::{Control, Message, Totals};
use self::timers::Timers;
use crate::desk::{Ask, Decision, Granted, Login as Question};

/// Rates are those of about this long.
const RATE_OVER: Duration = Duration::from_secs(10);
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Messages taken before the timers are looked at.
const AT_ONCE: usize = 16;

/// An identity as sessions use it.
#[derive(Debug, Clone)]
pub(crate) struct IdentityPlan {
    pub(crate) name: String,
    /// Its certificate, DER. Identities that are reached by the same packets are told apart by it.
    pub(crate) certificate: Vec<u8>,
    /// Settings over UDP and over TCP are the same.
    pub(crate) settings: Arc<Settings>,
}

/// What the thread is made of.
pub(crate) struct Parts {
    pub(crate) engine: Arc<Engine>,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) desk: Sender<Ask>,
    pub(crate) identities: HashMap<IdentityId, IdentityPlan>,
    pub(crate) gateway: String,
    /// Handshakes over TCP under way at most; those over UDP are bounded by the engine.
    pub(crate) max_handshakes: usize,
}

struct ControlThread {
    engine: Arc<Engine>,
    desk: Sender<Ask>,
    identities: HashMap<IdentityId, IdentityPlan>,
    gateway: String,
    entries: HashMap<Handle, Entry>,
    timers: Timers,
    /// The session that may have something to send; it does before another is looked at.
    unsent: Option<Handle>,
    /// Room for one packet.
    scratch: Vec<u8>,
    peer_ids: HashSet<u32>,
    max_handshakes: usize,
    /// Connections over TCP that carry no data yet.
    tcp_handshakes: usize,
    clocks: Clocks,
    started: u64,
    refused: u64,
    /// Bytes of sessions that are over.
    past: (u64, u64),
    samples: Vec<(Instant, u64, u64)>,
    /// When the thread is to end, once it has been told to.
    ending: Option<(Instant, tokio::sync::oneshot::Sender<()>)>,
}

/// Runs until told to shut down.
pub(crate) fn run(parts: Parts) {
    let Parts { engine, inbox, desk, identities, gateway, max_handshakes } = parts;
    ControlThread {
        engine,
        desk,
        identities,
        gateway,
        entries: HashMap::new(),
        timers: Timers::default(),
        unsent: None,
        scratch: Vec::new(),
        peer_ids: HashSet::new(),
        max_handshakes,
        tcp_handshakes: 0,
        clocks: Clocks::read(),
        started: 0,
        refused: 0,
        past: (0, 0),
        samples: Vec::new(),
        ending: None,
    }
    .run(&inbox);
}

impl ControlThread {
    fn run(mut self, inbox: &Receiver<Message>) {
        let mut sample_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= sample_at {
                self.sample(now);
                sample_at = now + SAMPLE_EVERY;
            }
            if self.ending.as_ref().is_some_and(|(at, _)| now >= *at || self.entries.is_empty()) {
                if let Some((_, done)) = self.ending.take() {
                    let _ = done.send(());
                }
                return;
            }
            let wake = self.timers.next().map_or(sample_at, |at| at.min(sample_at));
            let wake = self.ending.as_ref().map_or(wake, |(at, _)| wake.min(*at));
            match inbox.recv_timeout(wake.saturating_duration_since(now)) {
                Ok(message) => self.handle(message, Instant::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What waits already for the same session comes first, so that one packet answers all of it.
            for message in inbox.try_iter().take(AT_ONCE) {
                self.handle(message, Instant::now());
            }
            let now = Instant::now();
            while let Some(handle) = self.timers.pop(now) {
                self.timeout(handle, now);
            }
            self.transmit(None, now);
        }
    }

    fn handle(&mut self, message: Message, now: Instant) {
        match message {
            Message::Engine(event) => self.engine_event(event, now),
            Message::Stream { admission, stream, remote, local, packet, leftover } => {
                self.stream(&admission, stream, (remote, local), &packet, leftover, now);
            }
            Message::Decided(handle, decision) => self.decided(handle, decision, now),
            Message::List(reply) => {
                let _ = reply.send(self.list());
            }
            Message::Close(which, farewell, reply) => {
                let _ = reply.send(self.close(&which, &farewell, now));
            }
            Message::Totals(reply) => {
                let _ = reply.send(self.totals(now));
            }
            Message::Identities(identities) => self.identities = identities,
            Message::Shutdown(patience, done) => {
                // A client that was answered now would stay with a handshake that nobody finishes.
                self.engine.tell(Command::Gate(None));
                let handles: Vec<_> = self.entries.keys().copied().collect();
                for handle in handles {
                    self.farewell(handle, &Farewell::Restart("gateway restarts".into()), now);
                }
                self.ending = Some((now + patience, done));
            }
        }
    }

    fn engine_event(&mut self, event: EngineEvent, now: Instant) {
        match event {
            EngineEvent::Admitted { handle, admission, path, packet } => {
                if self.begin(handle, &admission, path, now) {
                    self.packet(handle, &packet, now);
                } else {
                    self.engine.tell(Command::Forget(handle, None));
                }
            }
            EngineEvent::Control { handle, packet, .. } => self.packet(handle, &packet, now),
            EngineEvent::Moved { handle, path } => {
                if let Some(entry) = self.entries.get(&handle) {
                    tracing::debug!(session = %entry.id(), remote = %path.remote(), "client moved");
                }
            }
            EngineEvent::PeerLeft { handle } => {
                if let Some(entry) = self.entries.get_mut(&handle) {
                    entry.driver.machine_mut().peer_left();
                    self.drive(handle, now);
                }
            }
            EngineEvent::StreamClosed { handle, why } => {
                if let Some(entry) = self.entries.get_mut(&handle) {
                    tracing::debug!(session = %entry.id(), why, "connection closed");
                    entry.driver.close(&Farewell::Silent, now);
                    self.drive(handle, now);
                }
            }
        }
    }

    /// Makes a session for a client the gate let in.
    fn begin(&mut self, handle: Handle, admission: &Admission, path: Path, now: Instant) -> bool {
        if self.ending.is_some() {
            return false;
        }
        let Some(identity) = self.identities.get(&admission.identity) else { return false };
        let unix = crate::clock::unix().as_secs() as u32;
        let settings = Arc::clone(&identity.settings);
        let machine = Machine::server(settings, admission, path.carrier(), Box::new(OsEntropy), now, unix);
        let driver = Driver::new(handle, machine, path);
        self.entries.insert(handle, Entry::new(driver, identity.name.clone(), now));
        true
    }

    fn stream(
        &mut self,
        admission: &Admission,
        stream: TcpStream,
        (remote, local): (SocketAddr, SocketAddr),
        packet: &[u8],
        leftover: Vec<u8>,
        now: Instant,
    ) {
        if self.tcp_handshakes >= self.max_handshakes {
            return self.engine.drops().count(DropReason::HalfOpenFull);
        }
        let handle = self.engine.new_handle();
        let path = Path::Stream { connection: handle, remote, local };
        if self.begin(handle, admission, path, now) {
            self.tcp_handshakes += 1;
            self.engine.tell(Command::Adopt { handle, stream, remote, local, leftover });
            self.packet(handle, packet, now);
        }
    }

    fn packet(&mut self, handle: Handle, packet: &[u8], now: Instant) {
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        entry.driver.packet(&self.engine, packet, now);
        self.drive(handle, now);
    }

    fn timeout(&mut self, handle: Handle, now: Instant) {
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        entry.driver.timeout(&self.clocks, now);
        self.drive(handle, now);
    }

    /// Acts on what a machine has to say; what it has to send is sent before another session is looked at.
    fn drive(&mut self, handle: Handle, now: Instant) {
        while let Some(event) = self.entries.get_mut(&handle).and_then(|entry| entry.driver.next_event()) {
            match event {
                Event::Authenticate(login) => self.ask(handle, &login, now),
                Event::Established(channel, agreement) => self.attach(handle, channel, agreement),
                Event::Renegotiated => {}
                Event::Ended(why) => return self.finish(handle, &why, now),
                Event::Pushed(_) | Event::Notice(_) => {}
            }
        }
        if let Some(entry) = self.entries.get_mut(&handle) {
            entry.note_failure();
            self.transmit(Some(handle), now);
        }
    }

    /// Sends what the session under `unsent` has to send and sets its timer, unless it is still the one to go on with.
    fn transmit(&mut self, next: Option<Handle>, now: Instant) {
        if self.unsent == next {
            return;
        }
        let Some(handle) = std::mem::replace(&mut self.unsent, next) else { return };
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        entry.driver.transmit(&self.engine, &mut self.scratch, now);
        if let Some(at) = entry.driver.next_timeout() {
            self.timers.set(handle, at);
        }
    }

    fn ask(&mut self, handle: Handle, login: &Login, now: Instant) {
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        let Some(leaf) = login.peer.chain.first().cloned() else {
            entry.driver.machine_mut().refuse("a certificate is needed", now);
            return;
        };
        let question = if login.renegotiation {
            Ask::Stay { handle, leaf }
        } else {
            let shown = |plan: &&IdentityPlan| login.own.as_ref() == Some(&plan.certificate);
            if let Some(plan) = self.identities.values().find(shown) {
                entry.identity.clone_from(&plan.name);
            }
            entry.note_login(login);
            Ask::Login(Question {
                handle,
                leaf,
                protocol: "openvpn",
                identity: entry.identity.clone(),
                tcp: entry.driver.path().is_stream(),
            })
        };
        self.tell_desk(question);
    }

    fn decided(&mut self, handle: Handle, decision: Decision, now: Instant) {
        let Some(entry) = self.entries.get_mut(&handle) else {
            // The client left meanwhile.
            if let Decision::Granted(_) = decision {
                let reason = "left before it was let in".into();
                self.tell_desk(Ask::End { handle, reason, linger: true });
            }
            return;
        };
        match decision {
            Decision::Granted(granted) => {
                let replaces = granted.replaces;
                let peer_id = new_peer_id(&mut self.peer_ids);
                let grant = Grant { peer_id, options: granted.options.clone() };
                entry.peer_id = Some(peer_id);
                entry.granted = Some(granted);
                entry.driver.machine_mut().authorize(&grant, now);
                self.drive(handle, now);
                if let Some(old) = replaces {
                    self.farewell(
                        old,
                        &Farewell::Halt("this device has connected from elsewhere".into()),
                        now,
                    );
                }
            }
            Decision::Stays => {
                entry.driver.machine_mut().authorize(&Grant { peer_id: 0, options: Vec::new() }, now);
                self.drive(handle, now);
            }
            Decision::Refused(refused) => {
                self.refused += 1;
                tracing::warn!(identity = entry.identity, remote = %entry.driver.path().remote(), "login refused: {}", refused.log());
                if refused.is_temporary() {
                    entry.driver.machine_mut().put_off(refused.tell(), 10, now);
                } else {
                    entry.driver.machine_mut().refuse(refused.tell(), now);
                }
                self.drive(handle, now);
            }
        }
    }

    /// Data packets may pass from now on.
    fn attach(&mut self, handle: Handle, channel: Arc<Channel>, agreement: Agreement) {
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        let Some(granted) = entry.granted.take() else { return };
        let sources = Sources::new(owned_networks(&granted));
        entry.driver.attach(&self.engine, channel, &agreement, sources);
        self.started += 1;
        tracing::info!(
            user = granted.user_name,
            device = granted.device_name,
            identity = entry.identity,
            inner = %granted.inner,
            cipher = agreement.cipher.name(),
            transport = if entry.driver.path().is_stream() { "tcp" } else { "udp" },
            "CONNECT"
        );
        if agreement.framed {
            tracing::warn!(
                user = granted.user_name,
                device = granted.device_name,
                "the client is set up for compression, which is never done here: it was told to send its packets \
                 uncompressed, and others are dropped (counted as compressed); take comp-lzo and compress out of \
                 its configuration"
            );
        }
        self.tcp_handshakes -= usize::from(entry.driver.path().is_stream());
        entry.live = Some(Live { granted, agreement, since: crate::clock::now() });
    }

    /// A session is over: nothing leads to it any more, and its addresses are free.
    fn finish(&mut self, handle: Handle, why: &Ended, now: Instant) {
        let Some(mut entry) = self.entries.remove(&handle) else { return };
        entry.driver.transmit(&self.engine, &mut self.scratch, now);
        self.timers.forget(handle);
        self.tcp_handshakes -= usize::from(entry.live.is_none() && entry.driver.path().is_stream());
        if let Some(peer_id) = entry.peer_id {
            self.peer_ids.remove(&peer_id);
        }
        match entry.live.as_ref().zip(entry.driver.session()) {
            Some((live, session)) => {
                session.close();
                let counters = session.counters();
                self.past.0 += counters.received_bytes;
                self.past.1 += counters.sent_bytes;
                tracing::info!(
                    user = live.granted.user_name,
                    device = live.granted.device_name,
                    rx_bytes = counters.received_bytes,
                    tx_bytes = counters.sent_bytes,
                    "DISCONNECT: {why}"
                );
            }
            None => entry.log_failure(why),
        }
        let decided = !entry.given_back && (entry.live.is_some() || entry.granted.is_some());
        if decided {
            // No packet may pass before the addresses go to somebody else.
            self.engine.forget_and_wait(handle);
            self.tell_desk(Ask::End {
                handle,
                reason: entry::short(why),
                linger: !matches!(why, Ended::Refused(_)),
            });
        } else {
            self.engine.tell(Command::Forget(handle, None));
        }
    }

    fn farewell(&mut self, handle: Handle, farewell: &Farewell, now: Instant) {
        let Some(entry) = self.entries.get_mut(&handle) else { return };
        entry.driver.close(farewell, now);
        self.drive(handle, now);
    }

    /// Closes sessions; how many there were. When this returns no packet of theirs passes.
    fn close(&mut self, which: &Which, farewell: &Farewell, now: Instant) -> u64 {
        let matching = self.entries.iter().filter(|(_, entry)| entry.is(which) && !entry.is_closed());
        let handles: Vec<_> = matching.map(|(handle, _)| *handle).collect();
        for handle in &handles {
            self.farewell(*handle, farewell, now);
        }
        if matches!(farewell, Farewell::AuthFailed(_) | Farewell::Halt(_)) && !handles.is_empty() {
            self.give_back(&handles);
        }
        handles.len() as u64
    }

    /// Gives back what clients had that are not to come again, while they are still being told.
    fn give_back(&mut self, handles: &[Handle]) {
        self.engine.wait_for_packets();
        for handle in handles {
            let Some(entry) = self.entries.get_mut(handle) else { continue };
            entry.given_back = true;
            let reason = "closed by the administrator".into();
            self.tell_desk(Ask::End { handle: *handle, reason, linger: false });
        }
    }

    fn tell_desk(&self, ask: Ask) {
        if self.desk.send(ask).is_err() {
            tracing::error!("the desk is gone; the journal is no longer written");
        }
    }

    fn list(&self) -> Vec<adit_api::Session> {
        let mut sessions: Vec<_> =
            self.entries.values().filter_map(|entry| entry.describe(&self.gateway, &self.clocks)).collect();
        sessions.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
        sessions
    }

    fn bytes(&self) -> (u64, u64) {
        let live = self.entries.values().filter_map(|entry| entry.driver.session());
        live.map(|session| session.counters())
            .fold(self.past, |(rx, tx), counters| (rx + counters.received_bytes, tx + counters.sent_bytes))
    }

    fn sample(&mut self, now: Instant) {
        let (rx, tx) = self.bytes();
        self.samples.push((now, rx, tx));
        self.samples.retain(|(at, ..)| now.saturating_duration_since(*at) <= RATE_OVER + SAMPLE_EVERY);
    }

    fn totals(&self, now: Instant) -> Totals {
        let (rx_bytes, tx_bytes) = self.bytes();
        let live = self.entries.values().filter(|entry| entry.is_live()).count() as u64;
        let handshakes = self.entries.values().filter(|entry| entry.live.is_none()).count() as u64;
        let rate = |now_bytes: u64, then: u64, since: Instant| {
            let millis = now.saturating_duration_since(since).as_millis().max(1) as u64;
            now_bytes.saturating_sub(then) * 1000 / millis
        };
        let (rx_rate, tx_rate) = self
            .samples
            .first()
            .map_or((0, 0), |(at, rx, tx)| (rate(rx_bytes, *rx, *at), rate(tx_bytes, *tx, *at)));
        Totals {
            sessions: live,
            handshakes,
            rx_bytes,
            tx_bytes,
            rx_rate,
            tx_rate,
            started: self.started,
            refused: self.refused,
        }
    }
}

/// The addresses and networks a session may send from.
fn owned_networks(granted: &Granted) -> Vec<IpNet> {
    let v4 = granted.inner.v4.map(|address| IpNet::from(std::net::IpAddr::from(address)));
    let v6 = granted.inner.v6.map(|address| IpNet::from(std::net::IpAddr::from(address)));
    v4.into_iter().chain(v6).chain(granted.prefixes.iter().copied()).collect()
}

/// A peer-id that no session has and nobody can foresee.
fn new_peer_id(taken: &mut HashSet<u32>) -> u32 {
    loop {
        let id = u32::from_be_bytes(crate::keyring::random()) & 0x00ff_ffff;
        if id <= MAX_PEER_ID && taken.insert(id) {
            return id;
        }
    }
}
