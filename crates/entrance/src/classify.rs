//! Who decides whose a connection is.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use crate::Backend;

/// From where to where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The client; as a trusted proxy tells it, where there is one. IPv4 never stands in its IPv6 form.
    pub remote: SocketAddr,
    /// What the client dialled, likewise.
    pub dialled: SocketAddr,
    /// Which listener took it, see [`Reception::listen`](crate::Reception::listen).
    pub listener: usize,
}

/// Whose a connection is.
#[derive(Debug)]
pub enum Judgement<N> {
    /// More bytes are needed.
    More,
    /// This process's: [`Classify::take`] is called next.
    Native(N),
    /// A foreign back end's.
    Relay(Arc<Backend>),
    /// Nobody's.
    Unknown,
}

/// Decides whose a connection is. Called by all threads of the reception, which wait meanwhile: neither method may block.
pub trait Classify: Send + Sync + 'static {
    /// What was found out about a connection of this process.
    type Native: Send;

    /// Judges a connection by the bytes `seen` so far, none of which will change. With `last` there will be no more: the
    /// time for inspection is up, the client has ended its side, or no more are kept; [`Judgement::More`] then is as good
    /// as [`Judgement::Unknown`].
    fn judge(&self, seen: &[u8], flow: &Flow, last: bool) -> Judgement<Self::Native>;

    /// Takes over a connection; `stream` does not block, and `seen` are the bytes that were read from it.
    fn take(&self, native: Self::Native, stream: TcpStream, seen: Vec<u8>, flow: Flow);
}
