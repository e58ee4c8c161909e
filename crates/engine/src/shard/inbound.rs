//! From the outside in: datagrams to inner packets.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use adit_host::udp::RecvBatch;
use adit_openvpn::gate::{Moment, Verdict};
use adit_openvpn::packet::{Opcode, SessionId};
use adit_tunnel::{DropReason, Inner};
use adit_wire::ip::Packet;
use adit_wire::tcp::clamp_mss;

use super::{Shard, TURNS};
use crate::command::{next_handle, send_drop};
use crate::table::Table;
use crate::{Event, Path, Session};

/// A datagram with where it came from.
#[derive(Clone, Copy)]
struct Origin {
    socket: usize,
    remote: SocketAddr,
    local: SocketAddr,
}

impl Origin {
    fn path(self) -> Path {
        Path::Udp { socket: self.socket, remote: self.remote, local: self.local }
    }
}

impl Shard {
    pub(super) fn read_socket(&mut self, index: usize, received: &mut RecvBatch) {
        for _ in 0..TURNS {
            let Some(socket) = self.sockets.get(index) else { return };
            let count = match socket.recv_batch(received) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What ICMP reports about an earlier datagram; anyone can forge it.
                Err(_) => continue,
            };
            for datagram in received.iter_mut() {
                self.datagram(index, datagram);
            }
            if count < super::BATCH {
                return;
            }
        }
    }

    fn datagram(&mut self, socket: usize, mut datagram: adit_host::udp::Received<'_>) {
        let from = Origin { socket, remote: datagram.remote(), local: datagram.local() };
        if datagram.truncated() {
            return self.drops.count(DropReason::Truncated);
        }
        for segment in datagram.segments() {
            let Some(buf) = datagram.buffer().get_mut(segment.start..) else { continue };
            let len = segment.len();
            let result = match buf.first().filter(|_| len > 0).and_then(|&byte| Opcode::split(byte)) {
                Some((Opcode::DataV2, _)) => self.data_v2(buf, len, from),
                Some((Opcode::DataV1, _)) => self.data_v1(buf, len, from),
                Some(_) => self.control(buf.get(..len).unwrap_or_default(), from),
                None => Err(DropReason::Malformed),
            };
            let result = match result {
                Err(
                    reason @ (DropReason::Malformed | DropReason::UnknownPeer | DropReason::NoKeyVerified),
                ) => self.offer(datagram.buffer().get(segment).unwrap_or_default(), from, reason),
                result => result,
            };
            if let Err(reason) = result {
                self.drops.count(reason);
            }
        }
    }

    /// Offers a datagram that is nobody's here to others.
    fn offer(&self, datagram: &[u8], from: Origin, reason: DropReason) -> Result<(), DropReason> {
        let taken = self.foreign.as_ref().map(|foreign| foreign.take(datagram, from.remote, from.local));
        if taken.transpose()?.unwrap_or(false) { Ok(()) } else { Err(reason) }
    }

    fn data_v2(&mut self, buf: &mut [u8], len: usize, from: Origin) -> Result<(), DropReason> {
        let peer = buf
            .get(..len)
            .and_then(|packet| packet.first_chunk())
            .map(|bytes| u32::from_be_bytes(*bytes) & 0x00ff_ffff);
        let peer = peer.ok_or(DropReason::Malformed)?;
        // A server's packets need not carry the id that it gave out.
        let find = |table: &Table| table.by_peer(peer).or_else(|| table.by_remote(from.remote)).cloned();
        let session = self.find(find).ok_or(DropReason::UnknownPeer)?;
        if session.path().is_stream() {
            return Err(DropReason::UnknownPeer);
        }
        self.data(&session, buf, len, Some(from))
    }

    fn data_v1(&mut self, buf: &mut [u8], len: usize, from: Origin) -> Result<(), DropReason> {
        let session =
            self.find(|table| table.by_remote(from.remote).cloned()).ok_or(DropReason::UnknownPeer)?;
        self.data(&session, buf, len, None)
    }

    /// Opens a data packet and passes on what is in it. With `from`, the session may have moved there.
    fn data(
        &mut self,
        session: &Arc<Session>,
        buf: &mut [u8],
        len: usize,
        from: Option<Origin>,
    ) -> Result<(), DropReason> {
        if session.is_closed() {
            return Err(DropReason::SessionClosed);
        }
        let opened = session.channel().open(buf, len, self.seconds())?;
        if let Some(path) = from.map(|from| session.path().moved_to(from.path()))
            && opened.newest
            && session.path() != path
            && !self.table.is_taken(path.remote(), session)
        {
            self.table.moved(session, path);
            self.tell(Event::Moved { handle: session.handle(), path });
        }
        if opened.backtrack > 0 {
            session.count_late(opened.backtrack);
        }
        match opened.inner {
            Inner::Packet(range) => {
                let packet = buf.get_mut(range).ok_or(DropReason::Malformed)?;
                session.count_received(packet.len(), self.now);
                self.write_tun(session, packet)
            }
            Inner::Assembled(mut packet) => {
                session.count_received(packet.len(), self.now);
                self.write_tun(session, &mut packet)
            }
            Inner::Nothing => {
                session.count_received(0, self.now);
                Ok(())
            }
            Inner::Exit => {
                self.tell(Event::PeerLeft { handle: session.handle() });
                Ok(())
            }
        }
    }

    /// Writes an inner packet to tun, if it comes from an address of the session.
    fn write_tun(&mut self, session: &Session, packet: &mut [u8]) -> Result<(), DropReason> {
        let view = Packet::parse(packet).map_err(|_| DropReason::Malformed)?;
        if !session.sources().owns(view.source()) {
            return Err(DropReason::BadSource);
        }
        let len = view.total_len();
        if let Some((v4, v6)) = session.channel().max_segment() {
            clamp_mss(packet, v4, v6);
        }
        let packet = packet.get(..len).ok_or(DropReason::Malformed)?;
        match self.tun.send(packet) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(DropReason::OutputSaturation),
            Err(_) => Err(DropReason::TunError),
        }
    }

    fn control(&mut self, packet: &[u8], from: Origin) -> Result<(), DropReason> {
        let id = SessionId::of_packet(packet);
        if let Some(handle) = self.find(|table| table.control(from.remote, id)) {
            self.tell(Event::Control { handle, path: from.path(), packet: packet.to_vec() });
            return Ok(());
        }
        let gate = self.gate.as_ref().ok_or(DropReason::UnknownPeer)?;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let moment = Moment { steady: self.now / 1000, unix: unix as u32 };
        match gate.datagram(packet, from.remote, from.local, moment) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Reply(reply) => {
                let socket = self.sockets.get(from.socket).ok_or(DropReason::SendError)?;
                socket.send_once(&reply, from.remote, from.local).map_err(|error| send_drop(&error))
            }
            Verdict::Admit(_) if self.table.half_open() >= self.max_half_open => {
                Err(DropReason::HalfOpenFull)
            }
            Verdict::Admit(admission) => {
                let handle = next_handle(&self.handles);
                let remote = admission.remote;
                let event = Event::Admitted { handle, admission, path: from.path(), packet: packet.to_vec() };
                if self.tell(event) {
                    self.table.admit(handle, from.remote, remote);
                }
                Ok(())
            }
        }
    }

    /// A packet of a TCP connection, in `buf[..len]`.
    pub(super) fn stream_packet(
        &mut self,
        session: Option<&Arc<Session>>,
        path: Path,
        buf: &mut [u8],
        len: usize,
    ) -> Result<(), DropReason> {
        let Path::Stream { connection: handle, .. } = path else { return Ok(()) };
        let (opcode, _) = buf.first().and_then(|&byte| Opcode::split(byte)).ok_or(DropReason::Malformed)?;
        if opcode.is_data() {
            let session = session.ok_or(DropReason::UnknownPeer)?;
            return self.data(session, buf, len, None);
        }
        let packet = buf.get(..len).unwrap_or_default().to_vec();
        self.tell(Event::Control { handle, path, packet });
        Ok(())
    }
}
