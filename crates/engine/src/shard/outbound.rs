//! From the inside out: inner packets to datagrams.

use std::io::ErrorKind;

use adit_tunnel::{DropReason, HEADROOM, TAILROOM};
use adit_wire::ip::Packet;
use adit_wire::tcp::clamp_mss;

use super::{BATCH, Shard, TURNS};
use crate::{Path, Session};

impl Shard {
    pub(super) fn read_tun(&mut self) {
        for _ in 0..BATCH * TURNS {
            let room = self.scratch.len() - TAILROOM;
            let Some(place) = self.scratch.get_mut(HEADROOM..room) else { return };
            let len = match self.tun.recv(place) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.tun_is_gone(&error),
            };
            let mut scratch = std::mem::take(&mut self.scratch);
            if let Err(reason) = self.inner_packet(&mut scratch, len) {
                self.drops.count(reason);
            }
            self.scratch = scratch;
        }
    }

    /// Seals the inner packet in `buf[HEADROOM..][..len]` for the session that owns its destination.
    fn inner_packet(&mut self, buf: &mut [u8], len: usize) -> Result<(), DropReason> {
        let packet = buf.get_mut(HEADROOM..HEADROOM + len).ok_or(DropReason::Malformed)?;
        let view = Packet::parse(packet).map_err(|_| DropReason::Malformed)?;
        let destination = view.destination();
        let session = self.find(|table| table.owner(destination).cloned()).ok_or(DropReason::NoRoute)?;
        if session.is_closed() {
            return Err(DropReason::SessionClosed);
        }
        if let Some((v4, v6)) = session.channel().max_segment() {
            clamp_mss(packet, v4, v6);
        }
        match session.path() {
            Path::Udp { .. } => self.seal_datagram(&session, buf, len)?,
            Path::Stream { connection, .. } => {
                let range = session.channel().seal(buf, HEADROOM..HEADROOM + len)?;
                let sealed = buf.get(range).ok_or(DropReason::TooBig)?;
                self.write_data(connection, sealed)?;
            }
        }
        session.count_sent(len, self.now);
        Ok(())
    }

    fn seal_datagram(&mut self, session: &Session, buf: &mut [u8], len: usize) -> Result<(), DropReason> {
        let Path::Udp { socket, remote, local } = session.path() else { return Ok(()) };
        let packet = buf.get(HEADROOM..HEADROOM + len).ok_or(DropReason::TooBig)?;
        let mut send_piece = |datagram: &[u8]| self.queue_copy(socket, remote, local, datagram);
        if let Some(result) = session.channel().seal_cut(packet, &mut send_piece) {
            return result;
        }
        self.queue(socket, remote, local, |slot| {
            let start = slot.headroom();
            slot.payload().get_mut(..len).ok_or(DropReason::TooBig)?.copy_from_slice(packet);
            session.channel().seal(slot.buffer(), start..start + len)
        })
    }

    fn tun_is_gone(&mut self, error: &std::io::Error) {
        // Else the loop would spin on the error.
        let _ = self.poller.remove(&self.tun);
        self.fail(format!("the tun interface is gone: {error}"));
    }
}
