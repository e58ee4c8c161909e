//! One key negotiation: its message windows and its TLS connection.

use std::fmt;
use std::time::Instant;

use zeroize::Zeroizing;

use super::Ended;
use crate::Role;
use crate::keys::KeySource;
use crate::packet::{KeyId, Opcode};
use crate::reliable::{Acknowledge, ReceiveWindow, SendWindow};
use crate::text::{Message, Oversized, Splitter};
use crate::tls::{ControlTls, PeerCertificates, TlsFault, TlsSource};

/// Most plaintext that may wait to become a key message.
const MAX_PLAIN: usize = 16 * 1024;
/// A wrapped key must leave this much of the packet, else it goes alone.
const MIN_BESIDE_WRAPPED: usize = 64;

pub(super) struct Negotiation {
    pub(super) key: KeyId,
    pub(super) send: SendWindow,
    pub(super) receive: ReceiveWindow,
    tls: Option<Box<dyn ControlTls>>,
    pub(super) ours: KeySource,
    pub(super) theirs: Option<KeySource>,
    /// Our key message is written.
    pub(super) said: bool,
    /// The peer's reset has arrived.
    pub(super) reset_seen: bool,
    pub(super) deadline: Instant,
    /// When data keys were installed.
    pub(super) keyed_at: Option<Instant>,
    pub(super) promote_at: Option<Instant>,
    pub(super) retire_at: Instant,
    /// What the peer has said and nobody has read: secrets at first.
    pub(super) plain: Zeroizing<Vec<u8>>,
    splitter: Splitter,
}

/// A server has an answer to most of what it receives.
fn acknowledge(role: Role) -> Acknowledge {
    match role {
        Role::Server => Acknowledge::Lazily,
        Role::Client => Acknowledge::AtOnce,
    }
}

impl fmt::Debug for Negotiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Negotiation")
            .field("key", &self.key)
            .field("keyed", &self.is_keyed())
            .finish_non_exhaustive()
    }
}

impl Negotiation {
    pub(super) fn new(role: Role, key: KeyId, ours: KeySource, deadline: Instant) -> Self {
        Self {
            key,
            send: SendWindow::new(0),
            receive: ReceiveWindow::new(0, acknowledge(role)),
            tls: None,
            ours,
            theirs: None,
            said: false,
            reset_seen: false,
            deadline,
            keyed_at: None,
            promote_at: None,
            retire_at: deadline,
            plain: Zeroizing::default(),
            splitter: Splitter::default(),
        }
    }

    /// A server's negotiation whose resets were exchanged without state.
    pub(super) fn after_resets(ours: KeySource, deadline: Instant) -> Self {
        Self {
            send: SendWindow::new(1),
            receive: ReceiveWindow::new(1, acknowledge(Role::Server)),
            reset_seen: true,
            ..Self::new(Role::Server, KeyId::FIRST, ours, deadline)
        }
    }

    pub(super) fn is_keyed(&self) -> bool {
        self.keyed_at.is_some()
    }

    /// When there is something to send next: a message once more, or acknowledgements.
    pub(super) fn next_due(&self) -> Option<Instant> {
        [self.send.next_due(), self.receive.acknowledge_at()].into_iter().flatten().min()
    }

    /// Nothing is left to deliver.
    pub(super) fn is_quiet(&self) -> bool {
        self.send.is_empty()
    }

    pub(super) fn established(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.established())
    }

    /// Starts TLS, once.
    pub(super) fn begin(&mut self, source: &dyn TlsSource) -> Result<&mut Box<dyn ControlTls>, TlsFault> {
        if self.tls.is_none() {
            self.tls = Some(source.start()?);
        }
        self.tls.as_mut().ok_or_else(|| TlsFault::Local("TLS did not start".into()))
    }

    pub(super) fn feed(&mut self, ciphertext: &[u8], source: &dyn TlsSource) -> Result<(), TlsFault> {
        self.begin(source)?.feed(ciphertext)
    }

    /// Adds the content of the next decrypted record to `plain`; false when there is none.
    pub(super) fn read(&mut self) -> Result<bool, Ended> {
        let Some(tls) = &mut self.tls else {
            return Ok(false);
        };
        if self.plain.len() > MAX_PLAIN {
            return Err(Ended::Protocol("too much data before the key exchange".into()));
        }
        Ok(tls.read(&mut self.plain)? > 0)
    }

    /// Takes the key message, of this length, out of `plain`, and leaves no copy of its secrets.
    pub(super) fn consume(&mut self, used: usize) {
        let used = used.min(self.plain.len());
        let rest = self.plain.split_off(used);
        self.plain = Zeroizing::new(rest);
    }

    /// The control messages that are complete.
    pub(super) fn take_messages(&mut self) -> Result<Vec<Message>, Oversized> {
        let messages = self.splitter.push(&self.plain);
        self.plain.clear();
        messages
    }

    pub(super) fn write(&mut self, plaintext: &[u8]) {
        // A connection that cannot be written to any more has already been reported by feed or read.
        if let Some(tls) = &mut self.tls {
            let _ = tls.write(plaintext);
        }
    }

    /// Moves TLS output into the send window: pieces of at most `limit` bytes. With a wrapped key of the given
    /// length due, message 1 carries it and is shorter.
    pub(super) fn pump(&mut self, limit: usize, wrapped: Option<usize>) {
        let Some(tls) = &mut self.tls else { return };
        while self.send.has_room() {
            let wrapped = wrapped.filter(|_| self.send.next_id() == 1);
            let (opcode, limit) = match wrapped {
                Some(len) => (Opcode::ControlWkcV1, limit.saturating_sub(len)),
                None => (Opcode::ControlV1, limit),
            };
            let mut piece = Vec::new();
            if wrapped.is_none() || limit >= MIN_BESIDE_WRAPPED {
                tls.drain(&mut piece, limit);
                if piece.is_empty() {
                    return;
                }
            }
            self.send.push(opcode, piece);
        }
    }

    pub(super) fn export(&self, label: &str, out: &mut [u8]) -> Result<(), TlsFault> {
        let tls = self.tls.as_ref().ok_or_else(|| TlsFault::Local("TLS has not started".into()))?;
        tls.export(label, out)
    }

    pub(super) fn peer(&self) -> PeerCertificates {
        self.tls.as_ref().map(|tls| tls.peer()).unwrap_or_default()
    }

    pub(super) fn own_certificate(&self) -> Option<Vec<u8>> {
        self.tls.as_ref().and_then(|tls| tls.own_certificate())
    }

    pub(super) fn describe(&self) -> String {
        self.tls.as_ref().map(|tls| tls.describe()).unwrap_or_default()
    }
}
