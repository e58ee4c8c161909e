//! TCP connections, from the first byte to the moment it is clear whose they are.

use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use adit_engine::Engine;
use adit_openvpn::gate::{Admission, Verdict};
use adit_openvpn::packet::{KeyId, Opcode};
use adit_tunnel::DropReason;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::config::UnknownAnswer;
use crate::control::{Control, Message};
use crate::identities::SharedGate;

/// Connections that may be undecided at a time, each at most [`FIRST`] bytes of memory besides its task.
const UNDECIDED: usize = 4096;
/// Longest first record, with its length.
const FIRST: usize = 2 + 1536;
/// Shortest packet there is.
const SHORTEST: usize = 14;

/// What every listener needs.
#[derive(Clone)]
pub(crate) struct Reception {
    pub(crate) gate: SharedGate,
    pub(crate) control: Control,
    pub(crate) engine: Arc<Engine>,
    pub(crate) unknown: UnknownAnswer,
    undecided: Arc<Semaphore>,
}

impl Reception {
    pub(crate) fn new(
        gate: SharedGate,
        control: Control,
        engine: Arc<Engine>,
        unknown: UnknownAnswer,
    ) -> Self {
        Self { gate, control, engine, unknown, undecided: Arc::new(Semaphore::new(UNDECIDED)) }
    }

    /// Accepts connections for as long as the runtime lives.
    pub(crate) fn listen(&self, listener: StdListener, inspect: Duration) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let reception = self.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => reception.receive(stream, inspect),
                    Err(error) => {
                        // Out of descriptors, most likely: others are in the same position, so wait for a while.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// From now on connections are closed as soon as they come.
    pub(crate) fn close(&self) {
        self.undecided.close();
    }

    fn receive(&self, stream: TcpStream, inspect: Duration) {
        let Ok(permit) = Arc::clone(&self.undecided).try_acquire_owned() else {
            return self.engine.drops().count(DropReason::HalfOpenFull);
        };
        let reception = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // Whoever has not shown in time what he is, is nobody.
            let _ = tokio::time::timeout(inspect, reception.decide(stream)).await;
        });
    }

    async fn decide(&self, mut stream: TcpStream) {
        let mut seen = Vec::with_capacity(256);
        let found = loop {
            match judge(&seen) {
                First::NeedMore => {}
                First::Whole(len) => break self.admit(&seen, len),
                First::Unknown => break None,
            }
            match read_some(&mut stream, &mut seen).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let Some((admission, len)) = found else {
            self.engine.drops().count(DropReason::NoKeyVerified);
            return self.turn_away(stream).await;
        };
        let leftover = seen.split_off(len);
        let packet = seen.split_off(2);
        if let Ok(stream) = stream.into_std() {
            let message = Message::Stream { admission, stream, packet, leftover };
            if !self.control.offer(message) {
                self.engine.drops().count(DropReason::ControlQueueFull);
            }
        }
    }

    fn admit(&self, seen: &[u8], len: usize) -> Option<(Box<Admission>, usize)> {
        match self.gate.get().record(seen.get(2..len)?, crate::keyring::random()) {
            Verdict::Admit(admission) => Some((admission, len)),
            Verdict::Reply(_) | Verdict::Drop(_) => None,
        }
    }

    async fn turn_away(&self, mut stream: TcpStream) {
        match self.unknown {
            UnknownAnswer::Close => {}
            UnknownAnswer::Silence => {
                // Until the time for inspection is up; then the caller closes.
                let mut sink = [0; 512];
                while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
            }
        }
    }
}

async fn read_some(stream: &mut TcpStream, seen: &mut Vec<u8>) -> std::io::Result<usize> {
    let room = FIRST.saturating_sub(seen.len());
    stream.take(room as u64).read_buf(seen).await
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum First {
    NeedMore,
    /// A whole record, of this length with its prefix.
    Whole(usize),
    Unknown,
}

/// Tells by form alone whether the bytes so far can be a client's first record; its key decides then.
fn judge(seen: &[u8]) -> First {
    let Some((length, rest)) = seen.split_first_chunk() else { return First::NeedMore };
    let length = usize::from(u16::from_be_bytes(*length));
    if !(SHORTEST..=FIRST - 2).contains(&length) {
        return First::Unknown;
    }
    if let Some(&byte) = rest.first() {
        let first =
            [Opcode::HardResetClientV2, Opcode::HardResetClientV3].map(|opcode| opcode.with(KeyId::FIRST));
        if !first.contains(&byte) {
            return First::Unknown;
        }
    }
    if rest.len() < length { First::NeedMore } else { First::Whole(2 + length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_record_is_waited_for_only_while_it_can_still_become_one() {
        let record = [&[0, 14, 0x38][..], &[7; 13]].concat();
        for len in 0..record.len() {
            assert_eq!(judge(&record[..len]), First::NeedMore, "{len}");
        }
        assert_eq!(judge(&record), First::Whole(16));
        assert_eq!(judge(&[&record[..], b"more"].concat()), First::Whole(16));
        for other in
            [&b"GET / HTTP/1.1"[..], b"SSH-2.0-x", b"\x16\x03\x01", b"\0\x0d", b"\0\x0e\x20", b"\xff\xff"]
        {
            assert_eq!(judge(other), First::Unknown);
        }
    }
}
