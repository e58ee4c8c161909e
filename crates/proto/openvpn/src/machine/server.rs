//! The server's part: accepting, deciding, pushing.

use std::sync::Arc;
use std::time::Instant;

use adit_tunnel::Entropy;

use super::negotiation::Negotiation;
use super::{Agreement, Carrier, Ended, Event, Farewell, Login, Machine, Origin, RoleState, Settings};
use crate::Role;
use crate::data::{Channel, ChannelOptions, Cipher, Compression};
use crate::gate::Admission;
use crate::kex::KeyMessage;
use crate::keys::KeySource;
use crate::occ;
use crate::packet::Opcode;
use crate::peer_info::{Abilities, PeerInfo};
use crate::push::{self, ProtocolFlags, PushOption};
use crate::text::Message;
use crate::tls::PeerCertificates;
use crate::wrap::Wrapper;

/// How a session begins on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The resets were exchanged without state and the client has proven its address.
    Cookie,
    /// Over TCP: the client's first packet comes next.
    Stream,
}

/// The owner's answer to [`Event::Authenticate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Identifies the session in DATA_V2 packets; unique among the server's sessions.
    pub peer_id: u32,
    /// Options to push besides those of the protocol itself.
    pub options: Vec<PushOption>,
}

#[derive(Debug)]
pub(super) struct ServerState {
    /// A decision is awaited for the current negotiation.
    deciding: bool,
    /// The first certificate chain; it may not change.
    peer: PeerCertificates,
    info: PeerInfo,
    their_options: String,
    /// The reply as sent, to be repeated when asked again.
    reply: Vec<String>,
    push_requested: bool,
    replied_at: Option<Instant>,
}

impl ServerState {
    fn new() -> Self {
        Self {
            deciding: false,
            peer: PeerCertificates::default(),
            info: PeerInfo::default(),
            their_options: String::new(),
            reply: Vec::new(),
            push_requested: false,
            replied_at: None,
        }
    }
}

const NO_CIPHER: &str = "Data channel cipher negotiation failed (no shared cipher)";
/// A reply is repeated at most this often; retransmission sees to delivery.
const REPLY_INTERVAL: std::time::Duration = std::time::Duration::from_secs(30);

impl Machine {
    /// A session for a client that the gate has admitted. The packet that was admitted is to be handed to
    /// [`handle_datagram`](Machine::handle_datagram) next. `unix` is the wall clock in seconds.
    #[must_use]
    pub fn server(
        settings: Arc<Settings>,
        admission: &Admission,
        carrier: Carrier,
        mut entropy: Box<dyn Entropy>,
        now: Instant,
        unix: u32,
    ) -> Self {
        let mut ours = KeySource { pre_master: [0; 48], random1: [0; 32], random2: [0; 32] };
        entropy.fill(&mut ours.random1);
        entropy.fill(&mut ours.random2);
        let deadline = now + settings.hand_window;
        let (current, first) = match admission.start {
            // Replay id 1 was spent on the stateless answer.
            Start::Cookie => (Negotiation::after_resets(ours, deadline), 2),
            Start::Stream => {
                let mut negotiation =
                    Negotiation::new(Role::Server, crate::packet::KeyId::FIRST, ours, deadline);
                negotiation.send.push(Opcode::HardResetServerV2, Vec::new());
                (negotiation, 1)
            }
        };
        let origin = Origin {
            wrapper: Wrapper::new(admission.keys.clone(), first, unix),
            settings,
            carrier,
            entropy,
            role: RoleState::Server(ServerState::new()),
            local: admission.local,
            remote: Some(admission.remote),
            unix,
        };
        Self::new(origin, current, now)
    }

    /// Lets the client in that [`Event::Authenticate`] told of. Without a pending question nothing happens. At a
    /// renegotiation only the permission counts: addresses and options stay.
    pub fn authorize(&mut self, grant: &Grant, now: Instant) {
        let RoleState::Server(state) = &mut self.role else {
            return;
        };
        if !std::mem::take(&mut state.deciding) || self.over || self.closing.is_some() {
            return;
        }
        let result = match self.established {
            Some(_) => self.renew(now),
            None => self.admit(grant, now),
        };
        if let Err(why) = result {
            self.fail(why, now);
        }
    }

    /// Turns the client away; it is told `reason`.
    pub fn refuse(&mut self, reason: &str, now: Instant) {
        let farewell = Farewell::AuthFailed(reason.to_owned());
        self.close_because(&farewell, Ended::Refused(reason.to_owned()), now);
    }

    /// Turns the client away for the time being; it is told `reason` and tries again after `backoff` seconds.
    pub fn put_off(&mut self, reason: &str, backoff: u32, now: Instant) {
        let RoleState::Server(state) = &self.role else { return };
        let farewell = if state.info.abilities().has(Abilities::AUTH_FAIL_TEMP) {
            Farewell::AuthFailed(format!("TEMP[backoff {backoff}]: {reason}"))
        } else {
            // Older clients would take AUTH_FAILED for final.
            Farewell::Restart(reason.to_owned())
        };
        self.close_because(&farewell, Ended::Refused(reason.to_owned()), now);
    }

    pub(super) fn client_key_message(&mut self, message: KeyMessage, now: Instant) -> Result<(), Ended> {
        let peer = self.current.peer();
        let tls = self.current.describe();
        let renegotiation = self.established.is_some();
        let RoleState::Server(state) = &mut self.role else {
            return Ok(());
        };
        if renegotiation {
            if peer.chain.first() != state.peer.chain.first() {
                self.refuse("the certificate changed within the session", now);
                return Ok(());
            }
        } else {
            state.peer = peer.clone();
            state.info = message.peer_info.clone();
            state.their_options = message.options;
        }
        state.deciding = true;
        self.events.push_back(Event::Authenticate(Box::new(Login {
            peer,
            own: self.current.own_certificate(),
            credentials: message.credentials,
            peer_info: message.peer_info,
            tls,
            renegotiation,
        })));
        Ok(())
    }

    /// A renegotiation is settled. The client may send under the new keys as soon as it has our key message, so
    /// that must not leave before we have them.
    fn renew(&mut self, now: Instant) -> Result<(), Ended> {
        self.establish_again(now)?;
        self.send_key_message()?;
        self.pump(true);
        Ok(())
    }

    pub(super) fn client_says(&mut self, message: &Message, now: Instant) -> Result<(), Ended> {
        match message {
            Message::PushRequest => {
                if let RoleState::Server(state) = &mut self.role {
                    state.push_requested = true;
                }
                self.reply(now);
            }
            Message::Exit => self.end(Ended::PeerLeft),
            _ => {}
        }
        Ok(())
    }

    fn admit(&mut self, grant: &Grant, now: Instant) -> Result<(), Ended> {
        let RoleState::Server(state) = &self.role else {
            return Ok(());
        };
        let abilities = state.info.abilities();
        let Some(cipher) = self.choose_cipher(&state.info, &state.their_options) else {
            self.refuse(NO_CIPHER, now);
            return Ok(());
        };
        let (compression, compression_option) = frame_for(&state.info, &state.their_options);
        let agreement = Agreement {
            cipher,
            // The client uses what it is configured with, whatever that is; there is nothing to negotiate.
            auth: occ::auth(&state.their_options).unwrap_or(self.settings.auth),
            exporter: abilities.has(Abilities::TLS_KEY_EXPORT),
            cc_exit: abilities.has(Abilities::CC_EXIT),
            dynamic_tls_crypt: abilities.has(Abilities::DYNAMIC_TLS_CRYPT.with(Abilities::CC_EXIT)),
            peer_id: abilities.has(Abilities::DATA_V2).then_some(grant.peer_id),
            framed: compression != Compression::None,
        };
        let negotiates = state.info.ciphers().is_some();
        let channel = Arc::new(Channel::new(ChannelOptions {
            peer_id: agreement.peer_id,
            compression,
            fragment: self.settings.fragment.filter(|_| !self.carrier.tcp),
            mssfix: self.settings.mssfix,
            outer: self.carrier.overhead(),
        }));
        let mut options = grant.options.clone();
        options.extend(compression_option);
        options.extend(agreement.peer_id.map(PushOption::PeerId));
        if negotiates {
            options.push(PushOption::Cipher(cipher.name().to_owned()));
        }
        if agreement.cc_exit {
            options.push(PushOption::ProtocolFlags(ProtocolFlags {
                cc_exit: true,
                tls_ekm: agreement.exporter,
                dyn_tls_crypt: agreement.dynamic_tls_crypt,
            }));
        } else if agreement.exporter {
            options.push(PushOption::KeyDerivationExporter);
        }
        let (reply, _) = push::bundle(&options);
        if let RoleState::Server(state) = &mut self.role {
            state.reply = reply;
        }
        self.establish(agreement, channel, now)?;
        // Now that it can, the reply goes with it.
        self.send_key_message()?;
        self.reply(now);
        self.pump(true);
        Ok(())
    }

    /// Sends the reply when it is ready and wanted.
    fn reply(&mut self, now: Instant) {
        let RoleState::Server(state) = &mut self.role else {
            return;
        };
        let wanted = state.push_requested || state.info.abilities().has(Abilities::REQUEST_PUSH);
        let recent = state.replied_at.is_some_and(|at| now < at + REPLY_INTERVAL);
        if state.reply.is_empty() || !wanted || recent {
            return;
        }
        state.replied_at = Some(now);
        for part in state.reply.clone() {
            self.say(&Message::PushReply(part));
        }
    }

    /// This side's first cipher that the client has; for clients that do not negotiate, the one they name if it
    /// is listed, else the fallback.
    pub(super) fn choose_cipher(&self, info: &PeerInfo, options: &str) -> Option<Cipher> {
        match info.ciphers() {
            Some(theirs) => self.settings.ciphers.iter().copied().find(|cipher| theirs.contains(cipher)),
            None => {
                let named = occ::cipher(options);
                named.filter(|cipher| self.settings.ciphers.contains(cipher)).or(self.settings.fallback)
            }
        }
    }
}

/// How a client's packets are framed when it is set up for compression, and what to push so that it frames them
/// in the cheapest way it knows.
pub(super) fn frame_for(info: &PeerInfo, options: &str) -> (Compression, Option<PushOption>) {
    if !occ::compression(options) {
        (Compression::None, None)
    } else if info.get("IV_COMP_STUBv2") == Some("1") {
        (Compression::StubV2, Some(PushOption::CompressStubV2))
    } else {
        (Compression::Lzo, Some(PushOption::CompLzoNo))
    }
}
