//! Stand-ins for tests: a TLS that is no TLS, quick and the same each time.
//!
//! It keeps the shape of the real thing: a hello each way with a certificate (any bytes), a finished message,
//! records, an exporter that depends on both sides' randomness.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use adit_tunnel::testing::TestRng;
use adit_tunnel::{Entropy, PeerFault};
use aws_lc_rs::hmac;

use crate::Role;
use crate::gate::{Gate, GateOptions, IdentityId, IdentityWrap, Moment, Verdict};
use crate::machine::{Carrier, Event, Grant, Machine, Settings};
use crate::packet::SessionId;
use crate::push::PushOption;
use crate::tls::{ControlTls, PeerCertificates, TlsFault, TlsSource};

/// Makes [`FakeTls`] connections.
#[derive(Debug)]
pub struct FakeTlsSource {
    role: Role,
    certificate: Mutex<Vec<u8>>,
    rng: Mutex<TestRng>,
    refuse_peers: AtomicBool,
    hello_padding: usize,
}

impl FakeTlsSource {
    /// A source for this role that shows `certificate` (any bytes).
    #[must_use]
    pub fn new(role: Role, certificate: &[u8], seed: u64) -> Self {
        Self {
            role,
            certificate: Mutex::new(certificate.to_vec()),
            rng: Mutex::new(TestRng::new(seed)),
            refuse_peers: AtomicBool::new(false),
            hello_padding: 900,
        }
    }

    /// Makes hellos this many bytes longer, to need more packets.
    #[must_use]
    pub fn padded(mut self, bytes: usize) -> Self {
        self.hello_padding = bytes;
        self
    }

    /// Later connections show another certificate.
    pub fn set_certificate(&self, certificate: &[u8]) {
        *self.certificate.lock().expect("not poisoned") = certificate.to_vec();
    }

    /// Later connections refuse every peer's certificate.
    pub fn refuse_peers(&self) {
        self.refuse_peers.store(true, Ordering::Relaxed);
    }
}

impl TlsSource for FakeTlsSource {
    fn start(&self) -> Result<Box<dyn ControlTls>, TlsFault> {
        let mut random = [0; 16];
        self.rng.lock().expect("not poisoned").fill(&mut random);
        let mut tls = FakeTls {
            role: self.role,
            hello: [random.as_slice(), &self.certificate.lock().expect("not poisoned")].concat(),
            padding: self.hello_padding,
            refuse: self.refuse_peers.load(Ordering::Relaxed),
            input: Vec::new(),
            output: Vec::new(),
            plain: VecDeque::new(),
            peer: None,
            finished: false,
        };
        if self.role == Role::Client {
            tls.send_hello();
        }
        Ok(Box::new(tls))
    }
}

const HELLO: u8 = 1;
const FINISHED: u8 = 2;
const DATA: u8 = 3;
const ALERT: u8 = 4;

/// See the module's text.
#[derive(Debug)]
pub struct FakeTls {
    role: Role,
    hello: Vec<u8>,
    padding: usize,
    refuse: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    plain: VecDeque<Vec<u8>>,
    peer: Option<Vec<u8>>,
    finished: bool,
}

impl FakeTls {
    fn record(&mut self, kind: u8, content: &[u8]) {
        self.output.push(kind);
        self.output.extend_from_slice(&(content.len() as u16).to_be_bytes());
        self.output.extend_from_slice(content);
    }

    fn send_hello(&mut self) {
        let mut hello = (self.hello.len() as u16).to_be_bytes().to_vec();
        hello.extend_from_slice(&self.hello);
        hello.resize(hello.len() + self.padding, 0xaa);
        self.record(HELLO, &hello);
    }

    fn take(&mut self, kind: u8, content: &[u8]) -> Result<(), TlsFault> {
        match (kind, self.finished) {
            (HELLO, false) if self.peer.is_none() => {
                let malformed = || TlsFault::Peer("malformed hello".into());
                let (len, rest) = content.split_first_chunk().ok_or_else(malformed)?;
                let hello = rest.get(..usize::from(u16::from_be_bytes(*len))).ok_or_else(malformed)?;
                self.peer = Some(hello.to_vec());
                if self.role == Role::Server {
                    self.send_hello();
                }
                if self.refuse {
                    self.record(ALERT, &[42]);
                    return Err(TlsFault::Peer("certificate revoked".into()));
                }
                if self.role == Role::Client {
                    self.record(FINISHED, &[]);
                    self.finished = true;
                }
                Ok(())
            }
            (FINISHED, false) if self.role == Role::Server && self.peer.is_some() => {
                self.finished = true;
                Ok(())
            }
            (DATA, true) => {
                self.plain.push_back(content.to_vec());
                Ok(())
            }
            (ALERT, _) => Err(TlsFault::Peer("received an alert".into())),
            _ => Err(TlsFault::Peer("unexpected record".into())),
        }
    }
}

impl ControlTls for FakeTls {
    fn feed(&mut self, ciphertext: &[u8]) -> Result<(), TlsFault> {
        self.input.extend_from_slice(ciphertext);
        loop {
            let Some((&kind, rest)) = self.input.split_first() else {
                return Ok(());
            };
            let Some((len, rest)) = rest.split_first_chunk() else {
                return Ok(());
            };
            let Some(content) = rest.get(..usize::from(u16::from_be_bytes(*len))) else {
                return Ok(());
            };
            let content = content.to_vec();
            self.input.drain(..3 + content.len());
            self.take(kind, &content)?;
        }
    }

    fn drain(&mut self, out: &mut Vec<u8>, limit: usize) -> usize {
        let n = limit.min(self.output.len());
        out.extend(self.output.drain(..n));
        n
    }

    fn write(&mut self, plaintext: &[u8]) -> Result<(), TlsFault> {
        if !self.finished {
            return Err(TlsFault::Local("handshake not complete".into()));
        }
        self.record(DATA, plaintext);
        Ok(())
    }

    fn read(&mut self, out: &mut Vec<u8>) -> Result<usize, TlsFault> {
        let record = self.plain.pop_front().unwrap_or_default();
        out.extend_from_slice(&record);
        Ok(record.len())
    }

    fn established(&self) -> bool {
        self.finished
    }

    fn export(&self, label: &str, out: &mut [u8]) -> Result<(), TlsFault> {
        let not_yet = || TlsFault::Local("handshake not complete".into());
        let peer = self.peer.as_ref().filter(|_| self.finished).ok_or_else(not_yet)?;
        let (client, server) =
            if self.role == Role::Client { (&self.hello, peer) } else { (peer, &self.hello) };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[client.as_slice(), server.as_slice()].concat());
        for (index, chunk) in out.chunks_mut(32).enumerate() {
            let tag = hmac::sign(&key, &[label.as_bytes(), &[index as u8]].concat());
            chunk.copy_from_slice(&tag.as_ref()[..chunk.len()]);
        }
        Ok(())
    }

    fn peer(&self) -> PeerCertificates {
        let chain = self.peer.iter().filter_map(|hello| hello.get(16..)).map(<[u8]>::to_vec).collect();
        PeerCertificates { chain }
    }

    fn describe(&self) -> String {
        "fake".into()
    }
}

/// A gate and the session it admits: the server's end of a pair. Lets every client in, unless told otherwise.
pub struct Server {
    /// Judges packets while there is no session.
    pub gate: Gate,
    /// The session, once there is one.
    pub machine: Option<Machine>,
    /// Whether logins are answered at once, and how; `None` leaves them to the test.
    pub decision: Option<Result<Grant, String>>,
    /// Sessions admitted so far.
    pub admitted: usize,
    settings: Arc<Settings>,
    from: SocketAddr,
    replies: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    rng: TestRng,
    started: Instant,
    tcp: bool,
}

impl Server {
    /// A server with one identity.
    #[must_use]
    pub fn new(settings: Arc<Settings>, wrap: IdentityWrap, now: Instant, seed: u64) -> Self {
        let options = GateOptions { per_network: 100_000, ..GateOptions::default() };
        Self {
            gate: Gate::new(vec![(IdentityId(0), wrap)], &[seed as u8; 32], options),
            machine: None,
            decision: Some(Ok(Grant {
                peer_id: 7,
                options: vec![PushOption::Ping(10), PushOption::PingRestart(60)],
            })),
            admitted: 0,
            settings,
            from: SocketAddr::from(([192, 0, 2, 1], 4242)),
            replies: VecDeque::new(),
            events: VecDeque::new(),
            rng: TestRng::new(seed),
            started: now,
            tcp: false,
        }
    }

    /// The same over TCP: without the cookie exchange.
    #[must_use]
    pub fn over_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Clients come from another address from now on.
    pub fn client_moves(&mut self) {
        self.from.set_port(self.from.port() + 1);
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment { steady: now.duration_since(self.started).as_secs(), unix: UNIX }
    }

    fn collect(&mut self, now: Instant) {
        let Some(machine) = &mut self.machine else { return };
        while let Some(event) = machine.poll_event() {
            if let (Event::Authenticate(_), Some(decision)) = (&event, &self.decision) {
                match decision {
                    Ok(grant) => machine.authorize(grant, now),
                    Err(reason) => machine.refuse(reason, now),
                }
            }
            self.events.push_back(event);
        }
    }
}

/// The wall clock of tests.
pub const UNIX: u32 = 1_800_000_000;

impl adit_tunnel::Machine for Server {
    type Event = Event;

    fn handle_datagram(&mut self, datagram: &[u8], now: Instant) -> Result<(), PeerFault> {
        // As the engine does it: packets of the session's own client go to the session.
        let session = SessionId::of_packet(datagram);
        if let Some(machine) = self.machine.as_mut().filter(|machine| machine.remote() == session) {
            let result = machine.handle_datagram(datagram, now);
            self.collect(now);
            return result;
        }
        let to = SocketAddr::from(([198, 51, 100, 1], 1194));
        let mut random = [0; 8];
        self.rng.fill(&mut random);
        let verdict = if self.tcp {
            self.gate.record(datagram, random)
        } else {
            self.gate.datagram(datagram, self.from, to, self.moment(now))
        };
        match verdict {
            Verdict::Drop(reason) => Err(reason.into()),
            Verdict::Reply(bytes) => {
                self.replies.push_back(bytes);
                Ok(())
            }
            Verdict::Admit(admission) => {
                self.admitted += 1;
                let carrier = Carrier { tcp: self.tcp, ipv6: false };
                let entropy = Box::new(TestRng::new(self.rng.next_u64()));
                let settings = Arc::clone(&self.settings);
                let machine =
                    self.machine.insert(Machine::server(settings, &admission, carrier, entropy, now, UNIX));
                let result = machine.handle_datagram(datagram, now);
                self.collect(now);
                result
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(machine) = &mut self.machine {
            machine.handle_timeout(now);
        }
        self.collect(now);
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<()> {
        if let Some(reply) = self.replies.pop_front() {
            out.clear();
            out.extend_from_slice(&reply);
            return Some(());
        }
        self.machine.as_mut()?.poll_transmit(out, now)
    }

    fn poll_event(&mut self) -> Option<Event> {
        if let Some(machine) = &mut self.machine {
            self.events.extend(std::iter::from_fn(|| machine.poll_event()));
        }
        self.events.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.machine.as_ref()?.poll_timeout()
    }
}
