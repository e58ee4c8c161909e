//! What arrives: from a datagram to the messages inside TLS.

use std::time::Instant;

use adit_tunnel::{DropReason, PeerFault};

use super::{Ended, MIN_RENEGOTIATION, Machine, RoleState};
use crate::Role;
use crate::kex::KeyMessage;
use crate::packet::{Body, Head, Opcode};
use crate::reliable::Received;
use crate::text::{MAX_MESSAGE, Message};
use crate::wkc;

impl Machine {
    pub(super) fn accept(
        &mut self,
        datagram: &[u8],
        body: &mut Vec<u8>,
        now: Instant,
    ) -> Result<(), PeerFault> {
        let head = Head::parse(datagram).ok_or(DropReason::Malformed)?;
        let packet = match (head.opcode.carries_wkc(), self.is_server()) {
            (false, _) => datagram,
            (true, true) => wkc::split(datagram).ok_or(DropReason::Malformed)?.0,
            (true, false) => return Err(DropReason::Malformed.into()),
        };
        self.wrapper_for(head.key).unwrap(packet, body)?;
        let body = Body::parse(head.opcode, body).ok_or(DropReason::Malformed)?;
        if body.payload.len() > MAX_MESSAGE {
            return Err(DropReason::Malformed.into());
        }
        self.check_sender(&head, &body)?;
        self.last_received = self.last_received.max(now);
        if head.opcode == Opcode::SoftResetV1 && head.key == self.current.key.next() {
            self.peer_renegotiates(now)?;
        }
        let is_current = head.key == self.current.key;
        let negotiation = match &mut self.previous {
            _ if is_current => &mut self.current,
            Some(previous) if previous.key == head.key => previous,
            _ => return Err(DropReason::NoKey.into()),
        };
        if body.acked_session == Some(self.local) {
            negotiation.send.acknowledge(&body.acks, now);
        }
        if let Some(id) = body.id
            && negotiation.receive.receive(id, body.payload, now) == Received::Beyond
        {
            return Err(DropReason::ControlWindow.into());
        }
        if self.closing.is_some() {
            // There may be room now for what the farewell had to wait for.
            self.pump(is_current);
            self.finish_closing(now);
            return Ok(());
        }
        let result = self.progress(is_current, now);
        result.map_err(|why| {
            let text = why.to_string();
            self.fail(why, now);
            PeerFault::Fatal(text)
        })
    }

    /// Whose packet it is, and whether this kind may come now.
    pub(super) fn check_sender(&mut self, head: &Head, body: &Body<'_>) -> Result<(), DropReason> {
        let expected = match head.opcode {
            Opcode::HardResetClientV2 | Opcode::HardResetClientV3 | Opcode::ControlWkcV1 => self.is_server(),
            Opcode::HardResetServerV2 => !self.is_server(),
            _ => true,
        };
        let first = matches!(
            head.opcode,
            Opcode::HardResetClientV2 | Opcode::HardResetClientV3 | Opcode::HardResetServerV2
        );
        if !expected || first && head.key.index() != 0 {
            return Err(DropReason::Malformed);
        }
        match self.remote {
            Some(remote) if remote == head.session => Ok(()),
            Some(_) => Err(DropReason::UnknownPeer),
            None => {
                // Only the answer to our own first packet tells who the server is.
                if head.opcode != Opcode::HardResetServerV2 || body.acked_session != Some(self.local) {
                    return Err(DropReason::UnknownPeer);
                }
                self.remote = Some(head.session);
                Ok(())
            }
        }
    }

    pub(super) fn peer_renegotiates(&mut self, now: Instant) -> Result<(), DropReason> {
        let keyed = self.current.keyed_at.is_some_and(|at| now >= at + MIN_RENEGOTIATION);
        if self.established.is_none() || !keyed || self.closing.is_some() {
            // Not acknowledged, so the peer will try again.
            return Err(DropReason::NoKey);
        }
        self.start_negotiation(now);
        Ok(())
    }

    /// Moves messages that have arrived in order through TLS and acts on what comes out.
    pub(super) fn progress(&mut self, is_current: bool, now: Instant) -> Result<(), Ended> {
        loop {
            let negotiation = match (is_current, &mut self.previous) {
                (true, _) => &mut self.current,
                (false, Some(previous)) => previous,
                (false, None) => return Ok(()),
            };
            let Some(message) = negotiation.receive.pop() else {
                break;
            };
            if !negotiation.reset_seen {
                negotiation.reset_seen = true;
                self.reset_arrived(&message)?;
            } else if !message.is_empty() {
                let fed = negotiation.feed(&message, self.settings.tls.as_ref());
                if let Err(fault) = fed {
                    self.pump(is_current);
                    return Err(fault.into());
                }
            }
            self.converse(is_current, now)?;
            if self.over || self.closing.is_some() {
                return Ok(());
            }
        }
        self.converse(is_current, now)?;
        self.pump(is_current);
        Ok(())
    }

    pub(super) fn reset_arrived(&mut self, payload: &[u8]) -> Result<(), Ended> {
        let RoleState::Client(client) = &mut self.role else {
            return Ok(());
        };
        client.server_reset(payload)?;
        self.current.begin(self.settings.tls.as_ref())?;
        Ok(())
    }

    /// Key messages and control messages of one negotiation.
    pub(super) fn converse(&mut self, is_current: bool, now: Instant) -> Result<(), Ended> {
        if is_current && !self.is_server() && self.current.established() && !self.current.said {
            self.send_key_message()?;
        }
        loop {
            let negotiation = match (is_current, &mut self.previous) {
                (true, _) => &mut self.current,
                (false, Some(previous)) => previous,
                (false, None) => return Ok(()),
            };
            if !negotiation.read()? {
                return Ok(());
            }
            if negotiation.theirs.is_none() {
                let sender =
                    if matches!(self.role, RoleState::Server(_)) { Role::Client } else { Role::Server };
                let parsed = KeyMessage::parse(&negotiation.plain, sender);
                let Some((message, used)) = parsed.map_err(|f| Ended::Protocol(f.to_string()))? else {
                    continue;
                };
                negotiation.consume(used);
                negotiation.theirs = Some(message.source.clone());
                self.key_message(message, now)?;
                continue;
            }
            let messages = negotiation.take_messages().map_err(|f| Ended::Protocol(f.to_string()))?;
            for message in messages {
                self.message(message, now)?;
                if self.over || self.closing.is_some() {
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn key_message(&mut self, message: KeyMessage, now: Instant) -> Result<(), Ended> {
        match self.role {
            RoleState::Server(_) => self.client_key_message(message, now),
            RoleState::Client(_) => self.server_key_message(now),
        }
    }

    pub(super) fn message(&mut self, message: Message, now: Instant) -> Result<(), Ended> {
        match self.role {
            RoleState::Server(_) => self.client_says(&message, now),
            RoleState::Client(_) => self.server_says(message, now),
        }
    }
}
