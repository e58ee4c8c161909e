//! How a session ends.

use std::time::Instant;

use super::negotiation::Negotiation;
use super::{CLIENT_LINGER, Closing, Ended, Event, Farewell, LINGER, Machine, Packet};
use crate::packet::Opcode;
use crate::text::{Message, Stop};

impl Machine {
    pub(super) fn close_because(&mut self, farewell: &Farewell, why: Ended, now: Instant) {
        if self.over {
            return;
        }
        if let Some(closing) = self.closing.take_if(|_| *farewell == Farewell::Silent) {
            // Whoever leaves without a word does not wait either.
            self.end(closing.why);
            return;
        }
        if self.closing.is_some() {
            return;
        }
        let exit_by_message = self.established.as_ref().is_some_and(|e| e.agreement.cc_exit);
        match farewell {
            Farewell::Silent => {}
            Farewell::Restart(text) => self.say(&Message::Stop(Stop::Restart, text.clone())),
            Farewell::Halt(text) => self.say(&Message::Stop(Stop::Halt, text.clone())),
            Farewell::AuthFailed(text) => self.say(&Message::AuthFailed(text.clone())),
            Farewell::Exit if exit_by_message => self.say(&Message::Exit),
            Farewell::Exit => {
                self.raw.extend(self.established.as_ref().and_then(|e| e.channel.seal_exit().ok()));
            }
        }
        if let Some(established) = &self.established {
            established.channel.close();
        }
        self.closing = Some(Closing { deadline: now + LINGER, why });
        if *farewell == Farewell::Silent {
            self.finish_closing(now + LINGER);
        } else {
            self.finish_closing(now);
        }
    }

    /// Something went wrong. After a timeout nobody listens; else an alert that is under way is still delivered.
    pub(super) fn fail(&mut self, why: Ended, now: Instant) {
        if self.over || self.closing.is_some() {
            return;
        }
        if matches!(why, Ended::Timeout(..)) {
            self.end(why);
            return;
        }
        if let Some(established) = &self.established {
            established.channel.close();
        }
        // The alert tells a client why, but only the log of a server, and servers often do not acknowledge it.
        let linger = if self.is_server() { LINGER } else { CLIENT_LINGER };
        self.closing = Some(Closing { deadline: now + linger, why });
        self.finish_closing(now);
    }

    pub(super) fn finish_closing(&mut self, now: Instant) {
        let quiet = self.current.is_quiet() && self.previous.as_ref().is_none_or(Negotiation::is_quiet);
        if let Some(closing) = self.closing.take_if(|closing| quiet || now >= closing.deadline) {
            self.end(closing.why);
        }
    }

    pub(super) fn end(&mut self, why: Ended) {
        if !self.over {
            // So that the peer need not repeat what made this the end.
            self.last_acknowledgement();
            self.over = true;
            if let Some(established) = &self.established {
                established.channel.close();
            }
            self.events.push_back(Event::Ended(why));
        }
    }

    fn last_acknowledgement(&mut self) {
        if self.remote.is_none() || !self.current.receive.owes() {
            return;
        }
        let packet = Packet {
            opcode: Opcode::AckV1,
            id: None,
            payload: Vec::new(),
            acks: self.current.receive.take_acks(false),
        };
        let mut out = Vec::new();
        self.write_packet(self.current.key, &packet, &mut out);
        self.raw.push_back(out);
    }
}
