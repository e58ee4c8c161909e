//! Sessions over TCP.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use adit_host::poll::Interest;
use adit_tunnel::DropReason;

use super::{Shard, TURNS};
use crate::stream::{Broken, Connection, MAX_PACKET, MAX_UNPROVEN, next_packet};
use crate::{Event, Handle, Path};

impl Shard {
    pub(super) fn adopt(
        &mut self,
        handle: Handle,
        stream: TcpStream,
        ends: (SocketAddr, SocketAddr),
        leftover: &[u8],
    ) {
        let adopted = Connection::new(stream, ends).and_then(|connection| {
            self.poller.add(connection.stream(), handle.number(), Interest::READ)?;
            Ok(connection)
        });
        match adopted {
            Ok(connection) => {
                self.connections.insert(handle, connection);
                self.packets(handle, leftover);
            }
            Err(error) => {
                self.tell(Event::StreamClosed { handle, why: error.to_string() });
            }
        }
    }

    pub(super) fn serve_stream(&mut self, handle: Handle, readable: bool, writable: bool) {
        if writable {
            self.write_out(handle);
        }
        if !readable {
            return;
        }
        let mut bulk = std::mem::take(&mut self.bulk);
        for _ in 0..TURNS {
            match self.connections.get_mut(&handle).map(|connection| connection.fill(&mut bulk)) {
                Some(Ok(Some(len))) => self.packets(handle, bulk.get(..len).unwrap_or_default()),
                Some(Ok(None)) | None => break,
                Some(Err(broken)) => {
                    self.break_connection(handle, &broken);
                    break;
                }
            }
        }
        self.bulk = bulk;
    }

    /// Handles the whole packets of `bytes`, and keeps the rest.
    fn packets(&mut self, handle: Handle, bytes: &[u8]) {
        let session = self.find(|table| table.session(handle).map(Arc::clone));
        let limit = if session.is_some() { MAX_PACKET } else { MAX_UNPROVEN };
        let Some(connection) = self.connections.get(&handle) else { return };
        let path =
            Path::Stream { connection: handle, remote: connection.remote(), local: connection.local() };
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut at = 0;
        let result = loop {
            match next_packet(bytes, &mut at, &mut scratch, limit) {
                Ok(Some(len)) => {
                    if let Err(reason) = self.stream_packet(session.as_ref(), path, &mut scratch, len) {
                        self.drops.count(reason);
                    }
                }
                Ok(None) => break Ok(()),
                Err(broken) => break Err(broken),
            }
        };
        self.scratch = scratch;
        if let Err(broken) = result {
            return self.break_connection(handle, &broken);
        }
        if let Some(connection) = self.connections.get_mut(&handle) {
            connection.keep(bytes.get(at..).unwrap_or_default());
        }
    }

    pub(super) fn write_data(&mut self, handle: Handle, packet: &[u8]) -> Result<(), DropReason> {
        let connection = self.connections.get_mut(&handle).ok_or(DropReason::SessionClosed)?;
        if !connection.queue_data(packet, &mut self.spare) {
            return Err(DropReason::OutputSaturation);
        }
        self.mark_dirty(handle);
        Ok(())
    }

    pub(super) fn write_control(&mut self, handle: Handle, packet: &[u8]) {
        match self
            .connections
            .get_mut(&handle)
            .map(|connection| connection.queue_control(packet, &mut self.spare))
        {
            Some(Ok(())) => self.mark_dirty(handle),
            Some(Err(broken)) => self.break_connection(handle, &broken),
            None => {}
        }
    }

    fn mark_dirty(&mut self, handle: Handle) {
        if self.dirty.last() != Some(&handle) {
            self.dirty.push(handle);
        }
    }

    pub(super) fn flush_streams(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for handle in dirty.drain(..) {
            self.write_out(handle);
        }
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
    }

    fn write_out(&mut self, handle: Handle) {
        let Some(connection) = self.connections.get_mut(&handle) else { return };
        match connection.flush(&mut self.spare) {
            Ok(done) => {
                if connection.wants_write == done {
                    connection.wants_write = !done;
                    let interest = if done { Interest::READ } else { Interest::READ_WRITE };
                    let _ = self.poller.modify(connection.stream(), handle.number(), interest);
                }
            }
            Err(broken) => self.break_connection(handle, &broken),
        }
    }

    fn break_connection(&mut self, handle: Handle, why: &Broken) {
        if self.drop_connection(handle) {
            self.tell(Event::StreamClosed { handle, why: why.to_string() });
        }
    }

    pub(super) fn drop_connection(&mut self, handle: Handle) -> bool {
        let Some(connection) = self.connections.remove(&handle) else { return false };
        // Closing removes it as well; this keeps the order clear.
        let _ = self.poller.remove(connection.stream());
        true
    }
}
