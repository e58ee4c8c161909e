//! Sockets that only send: what a capturing socket answers through, one for each dialled address and port in use.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{SocketType, sockopt};

use super::{UdpOptions, configure};
use crate::socket::{drop_everything, open};

/// At most a fixed number of sockets, by the address and port they send from. They never receive: what is sent to
/// their port is captured before the kernel comes to them, and what is not is filtered out.
#[derive(Debug)]
pub(crate) struct Answering {
    options: UdpOptions,
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    sockets: HashMap<SocketAddr, Entry>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    socket: Arc<OwnedFd>,
    used: u64,
}

impl Answering {
    /// `options` are for each socket; `limit` of them stay open, at least one.
    pub(crate) fn new(options: UdpOptions, limit: usize) -> Self {
        // What a socket that never receives may hold is of no use to anybody.
        let options = UdpOptions { recv_buffer: None, transparent: true, v6_only: true, ..options };
        Self { options, limit: limit.max(1), open: Mutex::default() }
    }

    /// The socket that sends from `local`, made if need be; the one unused for longest makes room.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn socket(&self, local: SocketAddr) -> io::Result<Arc<OwnedFd>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.clock += 1;
        let now = open.clock;
        if let Some(entry) = open.sockets.get_mut(&local) {
            entry.used = now;
            return Ok(Arc::clone(&entry.socket));
        }
        let socket = Arc::new(self.make(local)?);
        if open.sockets.len() >= self.limit
            && let Some(oldest) =
                open.sockets.iter().min_by_key(|(_, entry)| entry.used).map(|(local, _)| *local)
        {
            open.sockets.remove(&oldest);
        }
        open.sockets.insert(local, Entry { socket: Arc::clone(&socket), used: now });
        Ok(socket)
    }

    /// The same without keeping a socket that is new.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn socket_for_once(&self, local: SocketAddr) -> io::Result<Arc<OwnedFd>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.sockets.get(&local) {
            Some(entry) => Ok(Arc::clone(&entry.socket)),
            None => Ok(Arc::new(self.make(local)?)),
        }
    }

    /// Closes all of them; they are made anew when they are needed.
    pub(crate) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).sockets.clear();
    }

    fn make(&self, local: SocketAddr) -> io::Result<OwnedFd> {
        let socket = open(local.ip(), SocketType::DGRAM)?;
        drop_everything(&socket)?;
        configure(&socket, local.ip(), &self.options)?;
        // Two of them may be on one port for a moment: one is still in use somewhere when it has been replaced.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &local)?;
        Ok(socket)
    }
}
