//! The front door: decides what becomes of packets that belong to no session, without keeping memory for sources
//! that have proven nothing.
//!
//! Over UDP, a client's first packet is answered with a reset whose session id is a cookie: a keyed hash of
//! time, addresses, identity and the client's own session id. Only a second packet that acknowledges it proves
//! that the client receives what is sent to its address, and becomes an [`Admission`]. No answer is given
//! unless a key of an identity has verified the packet; for identities without a key, answers are rationed.
//!
//! Why no two identities can both accept a packet: each has its own key (configuration refuses two with the same
//! one), and a packet verifies under one key only. At most one identity has none, and it is asked last, for
//! packets of its exact form.
//!
//! Clients of OpenVPN 2.5 with tls-crypt-v2 do not repeat their wrapped key with the second packet. For them a
//! fixed number of unwrapped keys is kept; newer ones push older ones out.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use adit_tunnel::DropReason;
use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;

use crate::Role;
use crate::budget::{Bucket, PrefixBudget};
use crate::keyfile::StaticKey;
use crate::machine::Start;
use crate::packet::{Acks, Body, Head, Opcode, SessionId, resend_wkc_payload};
use crate::wkc::{self, Unwrapper};
use crate::wrap::{PacketNumber, WrapKeys, announces_cookie_support};

/// How an identity's control packets are protected.
#[derive(Debug, Clone)]
pub enum IdentityWrap {
    /// None, tls-auth or tls-crypt: one key for all clients.
    Shared(WrapKeys),
    /// tls-crypt-v2: a key for each client, wrapped with this server's key.
    PerClient(Unwrapper),
}

/// Names an identity; the owner of the gate chooses the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdentityId(pub u32);

/// A client that may have a session.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The identity whose key verified the packet.
    pub identity: IdentityId,
    /// The keys that protect the session's control packets.
    pub keys: WrapKeys,
    /// This side's session id.
    pub local: SessionId,
    /// The client's session id.
    pub remote: SessionId,
    /// How the session begins.
    pub start: Start,
}

/// What is to be done with a packet.
#[derive(Debug)]
pub enum Verdict {
    /// Send these bytes back and forget about it.
    Reply(Vec<u8>),
    /// Make a session and hand it the packet.
    Admit(Box<Admission>),
    /// Nothing.
    Drop(DropReason),
}

/// When a packet came, on two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Seconds of a steady clock.
    pub steady: u64,
    /// Unix seconds.
    pub unix: u32,
}

/// Limits of the gate.
#[derive(Debug, Clone, Copy)]
pub struct GateOptions {
    /// First packets per second and source network (IPv4 /24, IPv6 /56) that are looked at; ten times as many
    /// in a burst.
    pub per_network: u32,
    /// Answers per ten seconds to clients that showed no key (`connect-freq-initial`).
    pub unkeyed_replies: u32,
    /// Keys kept for clients that cannot repeat them; 0 refuses such clients.
    pub old_clients: usize,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self { per_network: 200, unkeyed_replies: 100, old_clients: 64 }
    }
}

/// Cookies are good for two to three of these, in seconds.
const SLOT: u64 = 30;
/// Nothing a client sends first is longer.
const MAX_FIRST: usize = 2048;

/// See the module's text. Shared by threads.
#[derive(Debug)]
pub struct Gate {
    identities: Vec<(IdentityId, IdentityWrap)>,
    secret: hmac::Key,
    budget: Mutex<PrefixBudget>,
    unkeyed: Mutex<Bucket>,
    old_clients: Mutex<VecDeque<OldClient>>,
    options: GateOptions,
}

#[derive(Debug)]
struct OldClient {
    from: SocketAddr,
    session: SessionId,
    identity: IdentityId,
    keys: WrapKeys,
}

impl Gate {
    /// A gate for these identities; `secret` is random, and new at each start of the program.
    #[must_use]
    pub fn new(identities: Vec<(IdentityId, IdentityWrap)>, secret: &[u8; 32], options: GateOptions) -> Self {
        Self {
            identities,
            secret: hmac::Key::new(hmac::HMAC_SHA256, secret),
            budget: Mutex::new(PrefixBudget::new(options.per_network, secret)),
            unkeyed: Mutex::new(Bucket::full(options.unkeyed_replies)),
            old_clients: Mutex::default(),
            options,
        }
    }

    /// Judges a datagram `from` a client `to` an address of ours that no session claims. It counts as one that its
    /// network [may ask](Self::may_ask), whatever it is.
    #[must_use]
    pub fn datagram(&self, packet: &[u8], from: SocketAddr, to: SocketAddr, now: Moment) -> Verdict {
        if !self.may_ask(from.ip(), now.steady) {
            return Verdict::Drop(DropReason::SourceBudget);
        }
        let Some(head) =
            Head::parse(packet).filter(|head| head.key.index() == 0 && packet.len() <= MAX_FIRST)
        else {
            return Verdict::Drop(DropReason::NoKeyVerified);
        };
        let ends = Ends { from, to };
        match head.opcode {
            Opcode::HardResetClientV2 => self.first(packet, &ends, now),
            Opcode::HardResetClientV3 => self.first_wrapped(packet, &ends, now),
            Opcode::ControlV1 | Opcode::AckV1 => self.second(packet, &ends, now),
            Opcode::ControlWkcV1 => self.second_wrapped(packet, &ends, now),
            _ => Verdict::Drop(DropReason::NoKeyVerified),
        }
    }

    /// Judges the first record of a TCP connection. The connection itself proves the address, so there is no
    /// cookie; `random` becomes this side's session id.
    #[must_use]
    pub fn record(&self, packet: &[u8], random: [u8; 8]) -> Verdict {
        let admit = |identity, keys, remote| {
            let local = SessionId::from_random(random);
            Verdict::Admit(Box::new(Admission { identity, keys, local, remote, start: Start::Stream }))
        };
        let Some(head) = Head::parse(packet).filter(|head| head.key.index() == 0) else {
            return Verdict::Drop(DropReason::NoKeyVerified);
        };
        match head.opcode {
            Opcode::HardResetClientV2 => match self.verify_first(packet) {
                Some((identity, keys)) => admit(identity, keys.clone(), head.session),
                None => Verdict::Drop(DropReason::NoKeyVerified),
            },
            Opcode::HardResetClientV3 => match self.unwrap_first(packet) {
                Some((identity, keys, _)) => admit(identity, keys, head.session),
                None => Verdict::Drop(DropReason::NoKeyVerified),
            },
            _ => Verdict::Drop(DropReason::NoKeyVerified),
        }
    }

    /// Whether somebody with this address may have a first packet looked at, at this second of a steady clock; it
    /// counts as one.
    pub fn may_ask(&self, from: IpAddr, steady: u64) -> bool {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(from, steady)
    }

    /// Gives an answer back to the ration of unkeyed ones: its handshake was completed.
    pub fn completed(&self) {
        self.unkeyed.lock().unwrap_or_else(PoisonError::into_inner).give_back();
    }

    /// Identities with one key for all clients, those without any last.
    fn shared(&self) -> impl Iterator<Item = (IdentityId, &WrapKeys)> {
        let all = self.identities.iter().filter_map(|(id, wrap)| match wrap {
            IdentityWrap::Shared(keys) => Some((*id, keys)),
            IdentityWrap::PerClient(_) => None,
        });
        let unkeyed = all.clone().filter(|(_, keys)| !keys.is_keyed());
        all.filter(|(_, keys)| keys.is_keyed()).chain(unkeyed)
    }

    /// A client's wrapped key, opened.
    fn open_wrapped(&self, wrapped: &[u8]) -> Option<(IdentityId, WrapKeys)> {
        self.identities.iter().find_map(|(id, wrap)| match wrap {
            IdentityWrap::Shared(_) => None,
            IdentityWrap::PerClient(unwrapper) => {
                let (key, _): (StaticKey, _) = unwrapper.open(wrapped)?;
                Some((*id, WrapKeys::tls_crypt(&key, Role::Server)))
            }
        })
    }

    fn verify_first(&self, packet: &[u8]) -> Option<(IdentityId, &WrapKeys)> {
        self.shared().find(|(_, keys)| keys.verify_first(Opcode::HardResetClientV2, packet).is_some())
    }

    fn unwrap_first(&self, packet: &[u8]) -> Option<(IdentityId, WrapKeys, PacketNumber)> {
        self.identities.iter().find_map(|(id, wrap)| match wrap {
            IdentityWrap::Shared(_) => None,
            IdentityWrap::PerClient(unwrapper) => {
                let (keys, number) = unwrapper.verify_first(packet)?;
                Some((*id, keys, number))
            }
        })
    }

    fn first(&self, packet: &[u8], ends: &Ends, now: Moment) -> Verdict {
        let Some((identity, keys)) = self.verify_first(packet) else {
            return Verdict::Drop(DropReason::NoKeyVerified);
        };
        if !keys.is_keyed() {
            let mut unkeyed = self.unkeyed.lock().unwrap_or_else(PoisonError::into_inner);
            if !unkeyed.take(now.steady, self.options.unkeyed_replies, 10) {
                return Verdict::Drop(DropReason::ReplyBudget);
            }
        }
        self.answer(packet, identity, keys, &[], ends, now)
    }

    fn first_wrapped(&self, packet: &[u8], ends: &Ends, now: Moment) -> Verdict {
        let Some((identity, keys, number)) = self.unwrap_first(packet) else {
            return Verdict::Drop(DropReason::NoKeyVerified);
        };
        if announces_cookie_support(number.id) {
            return self.answer(packet, identity, &keys, &resend_wkc_payload(), ends, now);
        }
        let Some(session) = SessionId::of_packet(packet).filter(|_| self.options.old_clients > 0) else {
            return Verdict::Drop(DropReason::BadCookie);
        };
        let reply = self.answer(packet, identity, &keys, &[], ends, now);
        let mut old = self.old_clients.lock().unwrap_or_else(PoisonError::into_inner);
        old.retain(|client| client.from != ends.from || client.session != session);
        if old.len() >= self.options.old_clients {
            old.pop_front();
        }
        old.push_back(OldClient { from: ends.from, session, identity, keys });
        reply
    }

    fn second(&self, packet: &[u8], ends: &Ends, now: Moment) -> Verdict {
        let mut body = Vec::new();
        let mut verified = false;
        for (identity, keys) in self.shared() {
            if keys.unwrap(packet, &mut body).is_none() {
                continue;
            }
            if let Some(admission) = self.check_cookie(packet, &body, identity, keys, ends, now) {
                return Verdict::Admit(Box::new(admission));
            }
            verified |= keys.is_keyed();
        }
        let session = SessionId::of_packet(packet);
        let old = self.old_clients.lock().unwrap_or_else(PoisonError::into_inner);
        let client = old.iter().find(|client| client.from == ends.from && Some(client.session) == session);
        if let Some(client) = client.filter(|client| client.keys.unwrap(packet, &mut body).is_some()) {
            return match self.check_cookie(packet, &body, client.identity, &client.keys, ends, now) {
                Some(admission) => Verdict::Admit(Box::new(admission)),
                None => Verdict::Drop(DropReason::BadCookie),
            };
        }
        Verdict::Drop(if verified { DropReason::BadCookie } else { DropReason::NoKeyVerified })
    }

    fn second_wrapped(&self, packet: &[u8], ends: &Ends, now: Moment) -> Verdict {
        let mut body = Vec::new();
        let opened = wkc::split(packet).and_then(|(rest, wrapped)| {
            let (identity, keys) = self.open_wrapped(wrapped)?;
            keys.unwrap(rest, &mut body)?;
            Some((identity, keys))
        });
        let Some((identity, keys)) = opened else {
            return Verdict::Drop(DropReason::NoKeyVerified);
        };
        match self.check_cookie(packet, &body, identity, &keys, ends, now) {
            Some(admission) => Verdict::Admit(Box::new(admission)),
            None => Verdict::Drop(DropReason::BadCookie),
        }
    }

    /// The stateless answer to a first packet.
    fn answer(
        &self,
        packet: &[u8],
        identity: IdentityId,
        keys: &WrapKeys,
        payload: &[u8],
        ends: &Ends,
        now: Moment,
    ) -> Verdict {
        let Some(client) = SessionId::of_packet(packet) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let session = self.cookie(now.steady / SLOT, identity, ends, client);
        let head = Head { opcode: Opcode::HardResetServerV2, key: crate::packet::KeyId::FIRST, session };
        let body = Body { acks: Acks::from_iter([0]), acked_session: Some(client), id: Some(0), payload };
        let mut bytes = Vec::with_capacity(32);
        body.write(&mut bytes);
        let mut out = Vec::with_capacity(128);
        keys.wrap(&head, PacketNumber { id: 1, time: now.unix }, &bytes, &mut out);
        Verdict::Reply(out)
    }

    /// The admission, if the packet acknowledges an answer of ours and fits right after it.
    fn check_cookie(
        &self,
        packet: &[u8],
        body: &[u8],
        identity: IdentityId,
        keys: &WrapKeys,
        ends: &Ends,
        now: Moment,
    ) -> Option<Admission> {
        let head = Head::parse(packet)?;
        let body = Body::parse(head.opcode, body)?;
        // At this point the client knows one message of ours and has sent at most its second.
        if body.acks.as_slice().iter().any(|&id| id > 1) || body.id.is_some_and(|id| id > 1) {
            return None;
        }
        let claimed = body.acked_session?;
        let slot = now.steady / SLOT;
        let genuine = [slot, slot.wrapping_sub(1), slot.wrapping_sub(2)].into_iter().any(|slot| {
            let cookie = self.cookie(slot, identity, ends, head.session);
            bool::from(cookie.bytes().ct_eq(claimed.bytes()))
        });
        genuine.then(|| Admission {
            identity,
            keys: keys.clone(),
            local: claimed,
            remote: head.session,
            start: Start::Cookie,
        })
    }

    fn cookie(&self, slot: u64, identity: IdentityId, ends: &Ends, client: SessionId) -> SessionId {
        let mut mac = hmac::Context::with_key(&self.secret);
        mac.update(&slot.to_be_bytes());
        mac.update(&identity.0.to_be_bytes());
        for end in [ends.from, ends.to] {
            match end.ip() {
                IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
                IpAddr::V6(ip) => mac.update(&ip.octets()),
            }
            mac.update(&end.port().to_be_bytes());
        }
        mac.update(client.bytes());
        let tag = mac.sign();
        SessionId::from_random(tag.as_ref().first_chunk().copied().unwrap_or_default())
    }
}

/// The flow a packet belongs to.
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
}

#[cfg(test)]
mod tests;
