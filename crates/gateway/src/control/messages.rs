//! How others talk to the control thread.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use adit_engine::{Event as EngineEvent, Handle};
use adit_openvpn::gate::{Admission, IdentityId};
use adit_openvpn::machine::Farewell;
use tokio::sync::oneshot;

use super::{IdentityPlan, Which};
use crate::desk::Decision;

/// A message to the control thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// The engine has something.
    Engine(EngineEvent),
    /// A TCP connection whose first record the gate let in.
    Stream {
        admission: Box<Admission>,
        stream: TcpStream,
        /// The client, as a trusted proxy tells it where there is one.
        remote: SocketAddr,
        /// What the client dialled, likewise.
        local: SocketAddr,
        packet: Vec<u8>,
        leftover: Vec<u8>,
    },
    /// The desk has decided.
    Decided(Handle, Decision),
    /// Who is connected?
    List(oneshot::Sender<Vec<adit_api::Session>>),
    /// Close these sessions; the answer is how many there were.
    Close(Which, Farewell, oneshot::Sender<u64>),
    /// How much of everything?
    Totals(oneshot::Sender<Totals>),
    /// From now on these identities count.
    Identities(HashMap<IdentityId, IdentityPlan>),
    /// Tell every client to come again, wait at most this long for them to hear it, and end.
    Shutdown(Duration, oneshot::Sender<()>),
}

/// Figures of the moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) sessions: u64,
    pub(crate) handshakes: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_rate: u64,
    pub(crate) tx_rate: u64,
    pub(crate) started: u64,
    pub(crate) refused: u64,
}

/// The way to the control thread; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Control(SyncSender<Message>);

/// The control thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the gateway is shutting down")]
pub(crate) struct Gone;

impl Control {
    pub(crate) fn new(inbox: SyncSender<Message>) -> Self {
        Self(inbox)
    }

    /// Hands over a message if there is room.
    pub(crate) fn offer(&self, message: Message) -> bool {
        match self.0.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Hands over a message, waiting for room. Not for tasks of an async runtime.
    pub(crate) fn tell(&self, message: Message) {
        // When the thread is gone there is nobody left to tell.
        let _ = self.0.send(message);
    }

    /// Asks something and waits for the answer.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Message + Send + 'static,
    ) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        let inbox = self.0.clone();
        let message = question(reply);
        // The queue may be full for a moment; a runtime's thread must not wait for it.
        tokio::task::spawn_blocking(move || inbox.send(message).map_err(|_| Gone))
            .await
            .map_err(|_| Gone)??;
        answer.await.map_err(|_| Gone)
    }
}
