//! The client's part: asking, and taking what is pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_tunnel::Entropy;

use super::negotiation::Negotiation;
use super::{Agreement, Carrier, Ended, Event, Machine, Origin, RoleState, Settings};
use crate::Role;
use crate::data::{Channel, ChannelOptions, Cipher, Compression};
use crate::kex::KeyMessage;
use crate::keyfile::ClientKeyV2;
use crate::keys::KeySource;
use crate::occ;
use crate::packet::{KeyId, Opcode, SessionId, asks_for_wkc};
use crate::peer_info::{Abilities, PeerInfo};
use crate::push::{Collector, PushOption, PushReply};
use crate::text::Message;
use crate::wrap::{EARLY_NEGOTIATION_START, WrapKeys, Wrapper};

/// How long after the last request another is sent.
const REQUEST_INTERVAL: Duration = Duration::from_secs(5);

/// How a client's control packets are protected.
#[derive(Debug, Clone)]
pub enum ClientWrap {
    /// None, tls-auth or tls-crypt.
    Shared(WrapKeys),
    /// tls-crypt-v2.
    Own(ClientKeyV2),
}

/// What only a client has.
#[derive(Debug)]
pub(super) struct ClientState {
    wrapped: Vec<u8>,
    /// The server asked for the wrapped key once more.
    resend_wrapped: bool,
    request_at: Option<Instant>,
    collector: Collector,
}

impl ClientState {
    pub(super) fn wrapped_key(&self) -> &[u8] {
        &self.wrapped
    }

    pub(super) fn wrapped_key_due(&self) -> Option<usize> {
        self.resend_wrapped.then_some(self.wrapped.len())
    }

    pub(super) fn next_push_request(&self) -> Option<Instant> {
        self.request_at
    }

    pub(super) fn server_reset(&mut self, payload: &[u8]) -> Result<(), Ended> {
        let malformed = || Ended::Protocol("the server's first packet is malformed".into());
        self.resend_wrapped |= asks_for_wkc(payload).ok_or_else(malformed)?;
        Ok(())
    }
}

impl Machine {
    /// A session towards a server; its first packet is ready at once. `unix` is the wall clock in seconds.
    #[must_use]
    pub fn client(
        settings: Arc<Settings>,
        wrap: ClientWrap,
        carrier: Carrier,
        mut entropy: Box<dyn Entropy>,
        now: Instant,
        unix: u32,
    ) -> Self {
        let mut id = [0; 8];
        entropy.fill(&mut id);
        let mut ours = KeySource { pre_master: [0; 48], random1: [0; 32], random2: [0; 32] };
        entropy.fill(&mut ours.pre_master);
        entropy.fill(&mut ours.random1);
        entropy.fill(&mut ours.random2);
        let (keys, first, wrapped, opcode) = match wrap {
            ClientWrap::Shared(keys) => (keys, 1, Vec::new(), Opcode::HardResetClientV2),
            ClientWrap::Own(own) => (
                WrapKeys::tls_crypt(&own.key, Role::Client),
                EARLY_NEGOTIATION_START,
                own.wrapped,
                Opcode::HardResetClientV3,
            ),
        };
        let deadline = now + settings.hand_window;
        let mut negotiation = Negotiation::new(Role::Client, KeyId::FIRST, ours, deadline);
        negotiation.send.push(opcode, Vec::new());
        let state =
            ClientState { wrapped, resend_wrapped: false, request_at: None, collector: Collector::default() };
        let origin = Origin {
            settings,
            carrier,
            entropy,
            role: RoleState::Client(state),
            local: SessionId::from_random(id),
            remote: None,
            wrapper: Wrapper::new(keys, first, unix),
            unix,
        };
        Self::new(origin, negotiation, now)
    }

    /// Writes this side's key message: the first thing said inside TLS.
    pub(super) fn send_key_message(&mut self) -> Result<(), Ended> {
        let role = self.role();
        let settings = Arc::clone(&self.settings);
        let message = KeyMessage {
            source: self.current.ours.clone(),
            options: occ::write(&occ::Options {
                role,
                tcp: self.carrier.tcp,
                tun_mtu: settings.tun_mtu,
                compression: false,
                fragment: settings.fragment.is_some() && !self.carrier.tcp,
                cipher: settings.fallback.unwrap_or(Cipher::Aes256Gcm),
                auth: settings.auth,
                tls_auth: settings.tls_auth.is_some(),
                key_direction: settings.tls_auth.flatten(),
            }),
            credentials: settings.credentials.clone().filter(|_| role == Role::Client),
            peer_info: if role == Role::Client { self.own_peer_info() } else { PeerInfo::default() },
        };
        self.current.begin(settings.tls.as_ref())?.write(&message.to_bytes(role))?;
        self.current.said = true;
        Ok(())
    }

    fn own_peer_info(&self) -> PeerInfo {
        let abilities = Abilities::DATA_V2
            .with(Abilities::REQUEST_PUSH)
            .with(Abilities::TLS_KEY_EXPORT)
            .with(Abilities::AUTH_PENDING_KEYWORDS)
            .with(Abilities::CC_EXIT)
            .with(Abilities::AUTH_FAIL_TEMP)
            .with(Abilities::DYNAMIC_TLS_CRYPT);
        let ciphers: Vec<&str> = self.settings.ciphers.iter().map(|cipher| cipher.name()).collect();
        let mut info = PeerInfo::default()
            .with("IV_VER", concat!("adit_", env!("CARGO_PKG_VERSION")))
            .with("IV_PLAT", "linux")
            .with("IV_TCPNL", "1")
            .with("IV_MTU", "1600")
            .with("IV_NCP", "2")
            .with("IV_CIPHERS", ciphers.join(":"))
            .with("IV_PROTO", abilities.bits().to_string())
            .with("IV_LZO_STUB", "1")
            .with("IV_COMP_STUB", "1")
            .with("IV_COMP_STUBv2", "1");
        for (key, value) in self.settings.peer_info.iter() {
            info = info.with(key, value);
        }
        info
    }

    pub(super) fn server_key_message(&mut self, now: Instant) -> Result<(), Ended> {
        if self.established.is_some() {
            return self.establish_again(now);
        }
        self.ask_for_options(now);
        Ok(())
    }

    pub(super) fn resend_push_request(&mut self, now: Instant) {
        let RoleState::Client(client) = &self.role else {
            return;
        };
        if client.request_at.is_some_and(|at| now >= at) {
            self.ask_for_options(now);
        }
    }

    fn ask_for_options(&mut self, now: Instant) {
        self.say(&Message::PushRequest);
        if let RoleState::Client(client) = &mut self.role {
            client.request_at = Some(now + REQUEST_INTERVAL);
        }
    }

    pub(super) fn server_says(&mut self, message: Message, now: Instant) -> Result<(), Ended> {
        match message {
            Message::PushReply(text) => self.take_reply(&text, now)?,
            Message::AuthFailed(reason) => self.end(Ended::AuthFailed(reason)),
            Message::Stop(stop, words) => self.end(Ended::Told(stop, words)),
            Message::AuthPending(keywords) => self.wait_longer(&keywords, now),
            Message::Info(text) => self.events.push_back(Event::Notice(text)),
            Message::Exit => self.end(Ended::PeerLeft),
            Message::PushRequest | Message::Other(_) => {}
        }
        Ok(())
    }

    /// The server asks for patience: `timeout N`.
    fn wait_longer(&mut self, keywords: &str, now: Instant) {
        const MOST: u64 = 600;
        let mut words = keywords.split([' ', ',']).skip_while(|word| *word != "timeout").skip(1);
        let seconds = words.next().and_then(|n| n.parse().ok()).unwrap_or(60).min(MOST);
        self.current.deadline = self.current.deadline.max(now + Duration::from_secs(seconds));
    }

    fn take_reply(&mut self, text: &str, now: Instant) -> Result<(), Ended> {
        let RoleState::Client(client) = &mut self.role else {
            return Ok(());
        };
        if self.established.is_some() {
            return Ok(());
        }
        let Some(reply) = client.collector.push(text) else {
            return Ok(());
        };
        client.request_at = None;
        let (agreement, compression) = self.read_agreement(&reply)?;
        for option in &reply.options {
            match option {
                PushOption::Ping(0) => self.ping = None,
                PushOption::Ping(s) => self.ping = Some(Duration::from_secs(u64::from(*s))),
                PushOption::PingRestart(0) => self.ping_restart = None,
                PushOption::PingRestart(s) | PushOption::PingExit(s) => {
                    self.ping_restart = Some(Duration::from_secs(u64::from(*s)));
                }
                _ => {}
            }
        }
        let channel = Arc::new(Channel::new(ChannelOptions {
            peer_id: agreement.peer_id,
            compression,
            fragment: self.settings.fragment.filter(|_| !self.carrier.tcp),
            mssfix: self.settings.mssfix,
            outer: self.carrier.overhead(),
        }));
        self.events.push_back(Event::Pushed(Box::new(reply)));
        self.establish(agreement, channel, now)
    }

    fn read_agreement(&self, reply: &PushReply) -> Result<(Agreement, Compression), Ended> {
        let mut agreement = Agreement {
            cipher: self.settings.fallback.unwrap_or(Cipher::Aes256Gcm),
            auth: self.settings.auth,
            exporter: false,
            cc_exit: false,
            dynamic_tls_crypt: false,
            peer_id: None,
            framed: false,
        };
        let mut compression = Compression::None;
        for option in &reply.options {
            match option {
                PushOption::Cipher(name) => {
                    let known = Cipher::named(name).filter(|c| self.settings.ciphers.contains(c));
                    agreement.cipher = known.ok_or_else(|| {
                        Ended::Protocol(format!(
                            "the server wants data cipher {name}, which is not allowed here"
                        ))
                    })?;
                }
                PushOption::PeerId(id) => agreement.peer_id = Some(*id),
                PushOption::KeyDerivationExporter => agreement.exporter = true,
                PushOption::ProtocolFlags(flags) => {
                    agreement.exporter |= flags.tls_ekm;
                    agreement.cc_exit = flags.cc_exit;
                    agreement.dynamic_tls_crypt = flags.dyn_tls_crypt;
                }
                PushOption::CompLzoNo => compression = Compression::Lzo,
                PushOption::CompressStubV2 => compression = Compression::StubV2,
                PushOption::Compress(algorithm) => {
                    compression = frame_of(algorithm).ok_or_else(|| {
                        Ended::Protocol(format!(
                            "the server wants compression ({algorithm}), which adit never does"
                        ))
                    })?;
                }
                _ => {}
            }
        }
        agreement.framed = compression != Compression::None;
        Ok((agreement, compression))
    }
}

/// Frames whose sender may leave packets uncompressed.
fn frame_of(algorithm: &str) -> Option<Compression> {
    match algorithm {
        "stub" | "lz4" => Some(Compression::Stub),
        "stub-v2" | "lz4-v2" | "migrate" => Some(Compression::StubV2),
        "lzo" => Some(Compression::Lzo),
        _ => None,
    }
}
