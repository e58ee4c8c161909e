//! Keys: deriving them, installing them, renewing them.

use std::sync::Arc;
use std::time::Instant;

use super::negotiation::Negotiation;
use super::{Agreement, Ended, Established, Event, Machine};
use crate::data::{Channel, DataKey};
use crate::keyfile::StaticKey;
use crate::keys::{DATA_LABEL, DYNAMIC_TLS_CRYPT_LABEL, Exchange, KeySource};
use crate::packet::{KeyId, Opcode};
use crate::wrap::{WrapKeys, Wrapper};

impl Machine {
    pub(super) fn start_negotiation(&mut self, now: Instant) {
        self.prepare_dynamic();
        let (key, deadline) = (self.current.key.next(), now + self.settings.hand_window);
        let mut next = Negotiation::new(self.role(), key, self.fresh_source(), deadline);
        next.send.push(Opcode::SoftResetV1, Vec::new());
        let mut old = std::mem::replace(&mut self.current, next);
        old.retire_at = now + self.settings.tran_window;
        if let (Some(oldest), Some(established)) = (self.previous.replace(old), &mut self.established) {
            established.channel.retire(oldest.key);
        }
        if let Some(established) = &mut self.established {
            established.renegotiate_at = None;
        }
    }

    /// Makes the wrapper for later negotiations out of the first one, if it was agreed and is not there yet. Most
    /// sessions end before they need it.
    pub(super) fn prepare_dynamic(&mut self) {
        let agreed = self.established.as_ref().is_some_and(|e| e.agreement.dynamic_tls_crypt);
        if !agreed || self.dynamic.is_some() || self.current.key != KeyId::FIRST {
            return;
        }
        let mut exported = zeroize::Zeroizing::new([0; 256]);
        // The first wrapper will then not do, and the renegotiation fails for want of a packet that verifies.
        if self.current.export(DYNAMIC_TLS_CRYPT_LABEL, exported.as_mut_slice()).is_ok() {
            let keys: WrapKeys = self.wrapper.keys().dynamic(&exported, self.role());
            self.dynamic = Some(Wrapper::new(keys, 1, self.unix));
        }
    }

    pub(super) fn fresh_source(&mut self) -> KeySource {
        let mut source = KeySource { pre_master: [0; 48], random1: [0; 32], random2: [0; 32] };
        if !self.is_server() {
            self.entropy.fill(&mut source.pre_master);
        }
        self.entropy.fill(&mut source.random1);
        self.entropy.fill(&mut source.random2);
        source
    }

    /// Data keys of the current negotiation, as agreed.
    pub(super) fn install_keys(
        &mut self,
        agreement: &Agreement,
        channel: &Channel,
        now: Instant,
    ) -> Result<(), Ended> {
        let material = self.key_material(agreement)?;
        let mut iv = [0; 32];
        self.entropy.fill(&mut iv);
        channel.install(DataKey::new(
            self.current.key,
            self.role(),
            agreement.cipher,
            agreement.auth,
            &material,
            self.settings.replay,
            &iv,
        ));
        self.current.keyed_at = Some(now);
        Ok(())
    }

    pub(super) fn key_material(&self, agreement: &Agreement) -> Result<StaticKey, Ended> {
        if agreement.exporter {
            let mut bytes = zeroize::Zeroizing::new([0; 256]);
            self.current.export(DATA_LABEL, bytes.as_mut_slice())?;
            return Ok(StaticKey::new(&bytes));
        }
        let missing = || Ended::Protocol("keys are due before the key exchange".into());
        let theirs = self.current.theirs.as_ref().ok_or_else(missing)?;
        let remote = self.remote.ok_or_else(missing)?;
        let ours = &self.current.ours;
        let exchange = if self.is_server() {
            Exchange { client: theirs, server: ours, client_session: remote, server_session: self.local }
        } else {
            Exchange { client: ours, server: theirs, client_session: self.local, server_session: remote }
        };
        Ok(crate::keys::derive(&exchange))
    }

    /// The first negotiation is settled.
    pub(super) fn establish(
        &mut self,
        agreement: Agreement,
        channel: Arc<Channel>,
        now: Instant,
    ) -> Result<(), Ended> {
        self.install_keys(&agreement, &channel, now)?;
        self.last_received = now;
        self.last_sent = now;
        self.established = Some(Established {
            agreement,
            channel: Arc::clone(&channel),
            renegotiate_at: self.renegotiation_time(now),
        });
        self.events.push_back(Event::Established(channel, agreement));
        Ok(())
    }

    /// A later negotiation is settled.
    pub(super) fn establish_again(&mut self, now: Instant) -> Result<(), Ended> {
        let Some(established) = &self.established else {
            return Ok(());
        };
        let (agreement, channel) = (established.agreement, Arc::clone(&established.channel));
        self.install_keys(&agreement, &channel, now)?;
        // The peer may not have its keys yet. It shows that it has by using them; without traffic, after this.
        let guard = self.settings.renegotiate.map_or(self.settings.hand_window, |r| r / 2);
        self.current.promote_at = Some(now + guard.min(self.settings.hand_window));
        let renegotiate_at = self.renegotiation_time(now);
        if let Some(established) = &mut self.established {
            established.renegotiate_at = renegotiate_at;
        }
        self.events.push_back(Event::Renegotiated);
        Ok(())
    }

    /// A server spreads its renegotiations over the last tenth of the interval.
    pub(super) fn renegotiation_time(&mut self, now: Instant) -> Option<Instant> {
        let interval = self.settings.renegotiate?;
        let mut byte = [0];
        if self.is_server() {
            self.entropy.fill(&mut byte);
        }
        Some(now + interval - interval * u32::from(byte[0]) / 2560)
    }
}
