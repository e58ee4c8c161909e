//! From the inside out: inner packets to datagrams.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::ops::Range;

use adit_host::tun::VNET_HEADER_LEN;
use adit_tunnel::{DropReason, HEADROOM, Row, TAILROOM};
use adit_wire::segment::Superpacket;
use adit_wire::virtio::Header;

use super::outgoing::{Exit, Outgoing, Parcel};
use super::{Shard, clamp};
use crate::{Path, Session};

/// Reads from tun before others have their turn.
const READS: usize = 256;
/// Bytes from tun before others have their turn.
const TURN_BYTES: usize = 1024 * 1024;

impl Shard {
    pub(super) fn read_tun(&mut self) {
        let mut inner = std::mem::take(&mut self.inner);
        let mut bytes = 0;
        for _ in 0..READS {
            let len = match self.tun.recv(&mut inner) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.tun_is_gone(&error);
                    break;
                }
            };
            if let Err(reason) = self.superpacket(inner.get(..len).unwrap_or_default()) {
                self.drops.count(reason);
            }
            bytes += len;
            if bytes > TURN_BYTES {
                break;
            }
        }
        self.inner = inner;
    }

    /// Seals each packet of what tun gave, for the session that owns the destination. The error is about all of them.
    fn superpacket(&mut self, bytes: &[u8]) -> Result<(), DropReason> {
        let (header, bytes) = bytes.split_first_chunk::<VNET_HEADER_LEN>().ok_or(DropReason::Malformed)?;
        let packet = Superpacket::new(&Header::parse(header), bytes).map_err(|_| DropReason::Malformed)?;
        let count = packet.count();
        let destination = packet.packet().destination();
        let found = self.find(|table| table.owner(destination).cloned()).ok_or(DropReason::NoRoute);
        let session =
            found.and_then(
                |session| {
                    if session.is_closed() { Err(DropReason::SessionClosed) } else { Ok(session) }
                },
            );
        let session = match session {
            Ok(session) => session,
            Err(reason) => {
                self.drops.add(reason, count as u64 - 1);
                return Err(reason);
            }
        };
        self.batches.tun_read(count as u64);
        let path = session.path();
        let row = session.channel().row();
        let (mut packets, mut bytes) = (0, 0);
        for index in 0..count {
            let sealed = match (path, row) {
                (Path::Udp { socket, remote, local }, Some(row)) => {
                    self.seal_in_place(&session, (socket, remote, local), row, &packet, index)
                }
                _ => self.seal_apart(&session, path, &packet, index),
            };
            match sealed {
                Ok(len) => {
                    packets += 1;
                    bytes += len;
                }
                Err(reason) => self.drops.count(reason),
            }
        }
        if packets > 0 {
            session.count_sent(packets, bytes as u64, self.now);
        }
        Ok(())
    }

    /// Writes packet number `index` behind the datagrams that wait for the same peer, and seals it there; its length.
    fn seal_in_place(
        &mut self,
        session: &Session,
        (socket, remote, local): (usize, SocketAddr, SocketAddr),
        row: Row,
        packet: &Superpacket<'_>,
        index: usize,
    ) -> Result<usize, DropReason> {
        let len = packet.length(index).ok_or(DropReason::Malformed)?;
        let (outgoing, exit) = self.exit(socket)?;
        let parcel = Parcel { remote, local, len: row.before + len, joins: len <= row.longest };
        outgoing.push(exit, parcel, |buffer, place| {
            let inner = place.start + row.before..place.end;
            let out = buffer.get_mut(inner.clone()).ok_or(DropReason::TooBig)?;
            packet.write_segment(index, out).ok_or(DropReason::Malformed)?;
            if index == 0 {
                clamp(session, out);
            }
            // A key with another cipher than the last one's: no channel has that, but nothing may go out that is not
            // where it belongs.
            let sealed = session.channel().seal(buffer, inner)?;
            if sealed == place { Ok(()) } else { Err(DropReason::TooBig) }
        })?;
        Ok(len)
    }

    /// Seals packet number `index` in a buffer of its own and queues what becomes of it; its length.
    fn seal_apart(
        &mut self,
        session: &Session,
        path: Path,
        packet: &Superpacket<'_>,
        index: usize,
    ) -> Result<usize, DropReason> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.seal_in(&mut scratch, session, path, packet, index);
        self.scratch = scratch;
        result
    }

    fn seal_in(
        &mut self,
        scratch: &mut [u8],
        session: &Session,
        path: Path,
        packet: &Superpacket<'_>,
        index: usize,
    ) -> Result<usize, DropReason> {
        let room = scratch.len().saturating_sub(TAILROOM);
        let out = scratch.get_mut(HEADROOM..room).ok_or(DropReason::TooBig)?;
        let len = packet.write_segment(index, out).ok_or(DropReason::TooBig)?;
        let inner: Range<usize> = HEADROOM..HEADROOM + len;
        let out = scratch.get_mut(inner.clone()).ok_or(DropReason::TooBig)?;
        clamp(session, out);
        match path {
            Path::Udp { socket, remote, local } => {
                let mut send_piece = |datagram: &[u8]| {
                    if let Err(reason) = self.queue_copy(socket, remote, local, datagram) {
                        self.drops.count(reason);
                    }
                };
                if let Some(result) = session.channel().seal_cut(out, &mut send_piece) {
                    return result.map(|()| len);
                }
                let sealed = session.channel().seal(scratch, inner)?;
                self.queue_copy(socket, remote, local, scratch.get(sealed).ok_or(DropReason::TooBig)?)?;
            }
            Path::Stream { connection, .. } => {
                let sealed = session.channel().seal(scratch, inner)?;
                self.write_data(connection, scratch.get(sealed).ok_or(DropReason::TooBig)?)?;
            }
        }
        Ok(len)
    }

    /// Queues a datagram that is complete.
    fn queue_copy(
        &mut self,
        socket: usize,
        remote: SocketAddr,
        local: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let (outgoing, exit) = self.exit(socket)?;
        let parcel = Parcel { remote, local, len: datagram.len(), joins: false };
        outgoing.push(exit, parcel, |buffer, place| {
            buffer.get_mut(place).ok_or(DropReason::TooBig)?.copy_from_slice(datagram);
            Ok(())
        })
    }

    fn exit(&mut self, socket: usize) -> Result<(&mut Outgoing, Exit<'_>), DropReason> {
        let found = self.sockets.get(socket).zip(self.outgoing.get_mut(socket));
        let (through, outgoing) = found.ok_or(DropReason::SendError)?;
        Ok((outgoing, Exit { socket: through, drops: &self.drops, batches: &self.batches }))
    }

    fn tun_is_gone(&mut self, error: &std::io::Error) {
        // Else the loop would spin on the error.
        let _ = self.poller.remove(&self.tun);
        self.fail(format!("the tun interface is gone: {error}"));
    }
}
