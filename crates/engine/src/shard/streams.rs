//! Sessions over TCP.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use adit_host::poll::Interest;
use adit_tunnel::{DropReason, TAILROOM};

use super::{BULK, Shard, TURNS};
use crate::stream::{Broken, Connection};
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
                let mut bytes = [leftover, &[0; TAILROOM]].concat();
                self.packets(handle, &mut bytes, leftover.len());
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
            match self
                .connections
                .get_mut(&handle)
                .map(|connection| connection.fill(bulk.get_mut(..BULK).unwrap_or_default()))
            {
                Some(Ok(Some(len))) => self.packets(handle, &mut bulk, len),
                Some(Ok(None)) | None => break,
                Some(Err(broken)) => {
                    self.break_connection(handle, &broken);
                    break;
                }
            }
        }
        self.bulk = bulk;
    }

    /// Handles the whole packets of `bytes[..len]`, and keeps the rest.
    fn packets(&mut self, handle: Handle, bytes: &mut [u8], len: usize) {
        let session = self.find(|table| table.session(handle).map(Arc::clone));
        let Some(connection) = self.connections.get(&handle) else { return };
        let path =
            Path::Stream { connection: handle, remote: connection.remote(), local: connection.local() };
        let done = match self.stream_packets(session.as_ref(), path, bytes, len) {
            Ok(done) => done,
            Err(broken) => return self.break_connection(handle, &broken),
        };
        if let Some(connection) = self.connections.get_mut(&handle) {
            connection.keep(bytes.get(done..len).unwrap_or_default());
        }
    }

    pub(super) fn write_data(&mut self, handle: Handle, packet: &[u8]) -> Result<(), DropReason> {
        if self.try_write_data(handle, packet)? {
            return Ok(());
        }
        // One superpacket may be as much as may wait: what the kernel takes goes first.
        let blocked = self.connections.get(&handle).is_some_and(|connection| connection.wants_write);
        if !blocked {
            self.write_out(handle);
            if self.try_write_data(handle, packet)? {
                return Ok(());
            }
        }
        Err(DropReason::OutputSaturation)
    }

    fn try_write_data(&mut self, handle: Handle, packet: &[u8]) -> Result<bool, DropReason> {
        let connection = self.connections.get_mut(&handle).ok_or(DropReason::SessionClosed)?;
        let queued = connection.queue_data(packet, &mut self.spare);
        if queued {
            self.mark_dirty(handle);
        }
        Ok(queued)
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
