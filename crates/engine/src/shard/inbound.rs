//! From the outside in: datagrams to inner packets.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use adit_host::udp::{Received, RecvBatch};
use adit_openvpn::gate::{Moment, Verdict};
use adit_openvpn::packet::{Opcode, SessionId};
use adit_tunnel::{DropReason, Inner};
use adit_wire::coalesce::{Allowed, Coalescer, Output};
use adit_wire::ip::Packet;

use super::{Shard, TURNS, clamp};
use crate::command::{next_handle, send_drop};
use crate::stream::{Broken, MAX_PACKET, MAX_UNPROVEN, PREFIX, next_packet};
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

/// What was in a packet of a session.
type Opened = (Arc<Session>, Inner);

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
            let mut inward = Coalescer::new(self.allowed);
            let mut datagrams = 0;
            for slot in received.iter_mut() {
                datagrams += slot.segments().count();
                self.slot(index, slot, &mut inward);
            }
            inward.finish(&mut |output| self.write_tun(output));
            self.batches.received(count as u64, datagrams as u64);
            if count < super::RECEIVED {
                return;
            }
        }
    }

    /// Takes the datagrams of a slot one after the other.
    fn slot<'b>(&mut self, socket: usize, slot: Received<'b>, inward: &mut Coalescer<'b>) {
        let from = Origin { socket, remote: slot.remote(), local: slot.local() };
        if slot.truncated() {
            return self.drops.count(DropReason::Truncated);
        }
        let segments = slot.segments();
        let mut rest = slot.into_buffer();
        for len in segments.map(|segment| segment.len()) {
            let opened = self.datagram(rest, len, from);
            let Some((datagram, behind)) = std::mem::take(&mut rest).split_at_mut_checked(len) else {
                return;
            };
            rest = behind;
            let result = match opened {
                Ok(Some(opened)) => self.pass_on(opened, datagram, inward),
                Ok(None) => Ok(()),
                Err(
                    reason @ (DropReason::Malformed | DropReason::UnknownPeer | DropReason::NoKeyVerified),
                ) => self.offer(datagram, from, reason),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = result {
                self.drops.count(reason);
            }
        }
    }

    /// Opens the datagram in `buf[..len]`, or sends it up if it is a control packet.
    fn datagram(&mut self, buf: &mut [u8], len: usize, from: Origin) -> Result<Option<Opened>, DropReason> {
        match buf.first().filter(|_| len > 0).and_then(|&byte| Opcode::split(byte)) {
            Some((Opcode::DataV2, _)) => self.data_v2(buf, len, from).map(Some),
            Some((Opcode::DataV1, _)) => self.data_v1(buf, len, from).map(Some),
            Some(_) => self.control(buf.get(..len).unwrap_or_default(), from).map(|()| None),
            None => Err(DropReason::Malformed),
        }
    }

    /// Offers a datagram that is nobody's here to others.
    fn offer(&self, datagram: &[u8], from: Origin, reason: DropReason) -> Result<(), DropReason> {
        let taken = self.foreign.as_ref().map(|foreign| foreign.take(datagram, from.remote, from.local));
        if taken.transpose()?.unwrap_or(false) { Ok(()) } else { Err(reason) }
    }

    fn data_v2(&mut self, buf: &mut [u8], len: usize, from: Origin) -> Result<Opened, DropReason> {
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
        self.open(session, buf, len, Some(from))
    }

    fn data_v1(&mut self, buf: &mut [u8], len: usize, from: Origin) -> Result<Opened, DropReason> {
        let session =
            self.find(|table| table.by_remote(from.remote).cloned()).ok_or(DropReason::UnknownPeer)?;
        self.open(session, buf, len, None)
    }

    /// Opens a data packet in place. With `from`, the session may have moved there.
    fn open(
        &mut self,
        session: Arc<Session>,
        buf: &mut [u8],
        len: usize,
        from: Option<Origin>,
    ) -> Result<Opened, DropReason> {
        if session.is_closed() {
            return Err(DropReason::SessionClosed);
        }
        let opened = session.channel().open(buf, len, self.seconds())?;
        if let Some(from) = from.filter(|_| opened.newest) {
            let old = session.path();
            let path = old.moved_to(from.path());
            if old != path && !self.table.is_taken(path.remote(), &session) {
                self.table.moved(&session, path);
                self.tell(Event::Moved { handle: session.handle(), path });
            }
        }
        if opened.backtrack > 0 {
            session.count_late(opened.backtrack);
        }
        Ok((session, opened.inner))
    }

    /// Passes on what was in `datagram`.
    fn pass_on<'b>(
        &mut self,
        (session, inner): Opened,
        datagram: &'b mut [u8],
        inward: &mut Coalescer<'b>,
    ) -> Result<(), DropReason> {
        match inner {
            Inner::Packet(range) => {
                let packet = datagram.get_mut(range).ok_or(DropReason::Malformed)?;
                session.count_received(packet.len(), self.now);
                let packet = inner_packet(&session, packet)?;
                inward.push(&packet, &mut |output| self.write_tun(output));
            }
            Inner::Assembled(mut packet) => {
                session.count_received(packet.len(), self.now);
                let packet = inner_packet(&session, &mut packet)?;
                // It does not live as long as the others, and keeps its place among them.
                let mut write = |output: Output<'_>| self.write_tun(output);
                inward.finish(&mut write);
                let mut alone = Coalescer::new(Allowed::default());
                alone.push(&packet, &mut write);
            }
            Inner::Nothing => session.count_received(0, self.now),
            Inner::Exit => {
                self.tell(Event::PeerLeft { handle: session.handle() });
            }
        }
        Ok(())
    }

    /// Writes a packet or superpacket to tun.
    fn write_tun(&self, output: Output<'_>) {
        let packets = output.packets() as u64;
        match self.tun.send_vectored(output.parts()) {
            Ok(_) => self.batches.tun_written(packets),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.drops.add(DropReason::OutputSaturation, packets);
            }
            Err(_) => self.drops.add(DropReason::TunError, packets),
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

    /// Takes the whole packets of a connection's bytes, `bytes[..len]`; how many bytes these were. There is room of
    /// [`TAILROOM`](adit_tunnel::TAILROOM) behind them.
    pub(super) fn stream_packets(
        &mut self,
        session: Option<&Arc<Session>>,
        path: Path,
        bytes: &mut [u8],
        len: usize,
    ) -> Result<usize, Broken> {
        let limit = if session.is_some() { MAX_PACKET } else { MAX_UNPROVEN };
        let mut inward = Coalescer::new(self.allowed);
        let (mut rest, mut left) = (bytes, len);
        let result = loop {
            let length = match next_packet(rest.get(..left).unwrap_or_default(), limit) {
                Ok(Some(length)) => length,
                Ok(None) => break Ok(len - left),
                Err(broken) => break Err(broken),
            };
            let Some((_, packet)) = std::mem::take(&mut rest).split_at_mut_checked(PREFIX) else {
                break Ok(len - left);
            };
            let opened = self.stream_packet(session, path, packet, length);
            let Some((packet, behind)) = packet.split_at_mut_checked(length) else { break Ok(len - left) };
            (rest, left) = (behind, left - PREFIX - length);
            let result = match opened {
                Ok(Some(opened)) => self.pass_on(opened, packet, &mut inward),
                Ok(None) => Ok(()),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = result {
                self.drops.count(reason);
            }
        };
        inward.finish(&mut |output| self.write_tun(output));
        result
    }

    /// Opens the packet of a TCP connection in `buf[..len]`, or sends it up if it is a control packet.
    fn stream_packet(
        &mut self,
        session: Option<&Arc<Session>>,
        path: Path,
        buf: &mut [u8],
        len: usize,
    ) -> Result<Option<Opened>, DropReason> {
        let Path::Stream { connection: handle, .. } = path else { return Ok(None) };
        let (opcode, _) = buf.first().and_then(|&byte| Opcode::split(byte)).ok_or(DropReason::Malformed)?;
        if opcode.is_data() {
            let session = session.ok_or(DropReason::UnknownPeer)?;
            return self.open(Arc::clone(session), buf, len, None).map(Some);
        }
        let packet = buf.get(..len).unwrap_or_default().to_vec();
        self.tell(Event::Control { handle, path, packet });
        Ok(None)
    }
}

/// The inner packet, if it comes from an address of the session; what is behind its end is left out.
fn inner_packet<'b>(session: &Session, packet: &'b mut [u8]) -> Result<Packet<'b>, DropReason> {
    let source = Packet::parse(packet).map_err(|_| DropReason::Malformed)?.source();
    if !session.sources().owns(source) {
        return Err(DropReason::BadSource);
    }
    clamp(session, packet);
    Packet::parse(packet).map_err(|_| DropReason::Malformed)
}
