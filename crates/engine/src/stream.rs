//! A TCP connection that carries packets: `u16 length | packet`, again and again.
//!
//! A tunnel in TCP must not become a buffer: what waits here is bounded, and the kernel is told to take little
//! more than it can send. Data packets that find the queue full are dropped, as a full link would drop them, so
//! that the TCP inside notices at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use adit_host::tcp;

/// Bytes of data packets that may wait.
const DATA_LIMIT: usize = 64 * 1024;
/// Bytes that may wait in all; control packets are worth keeping longer.
const TOTAL_LIMIT: usize = 256 * 1024;
/// Bytes not yet sent that the kernel takes from us.
const NOT_SENT: u32 = 128 * 1024;
/// Longest packet of a peer that has not authenticated; longest of one that has.
pub(crate) const MAX_UNPROVEN: usize = 2048;
pub(crate) const MAX_PACKET: usize = 16 * 1024;

/// See the module's text. Between bursts a connection holds hardly any buffers.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    remote: SocketAddr,
    local: SocketAddr,
    /// The beginning of a packet whose rest has not arrived.
    partial: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// The poller is to tell when there is room to write.
    pub(crate) wants_write: bool,
}

/// Output buffers that no connection needs at the moment.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<Vec<u8>>);

impl Spare {
    const MOST: usize = 64;

    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(DATA_LIMIT))
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        if self.0.len() < Self::MOST && buffer.capacity() <= 2 * DATA_LIMIT {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The peer closed it.
    Closed,
    /// A length that no packet has; there is no way to find the next packet.
    Length(usize),
    /// Too much waits.
    Full,
    /// The system says so.
    Io(io::Error),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the peer"),
            Self::Length(len) => write!(f, "a packet of {len} bytes was announced"),
            Self::Full => f.write_str("the peer takes no more data"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl Connection {
    /// `remote` and `local` as [`Command::Adopt`](crate::Command::Adopt) has them.
    pub(crate) fn new(stream: TcpStream, (remote, local): (SocketAddr, SocketAddr)) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        tcp::set_no_delay(&stream, true)?;
        tcp::set_not_sent_low_water(&stream, NOT_SENT)?;
        Ok(Self {
            stream,
            remote,
            local,
            partial: Vec::new(),
            output: Vec::new(),
            sent: 0,
            wants_write: false,
        })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Puts what is left of earlier bytes at the beginning of `bulk` and reads what is there behind it; how many
    /// bytes that makes, `None` when nothing new has arrived.
    pub(crate) fn fill(&mut self, bulk: &mut [u8]) -> Result<Option<usize>, Broken> {
        let old = self.partial.len();
        bulk.get_mut(..old).ok_or(Broken::Length(old))?.copy_from_slice(&self.partial);
        loop {
            return match self.stream.read(bulk.get_mut(old..).unwrap_or_default()) {
                Ok(0) => Err(Broken::Closed),
                Ok(n) => {
                    self.partial.clear();
                    Ok(Some(old + n))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(Broken::Io(error)),
            };
        }
    }

    /// Keeps the bytes of a packet whose rest has not arrived.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.partial.clear();
        if rest.is_empty() && self.partial.capacity() > MAX_UNPROVEN {
            // An idle connection is not to keep the room of its busiest moment.
            self.partial = Vec::new();
        }
        self.partial.extend_from_slice(rest);
    }

    /// Queues a data packet; false when there is no room for it.
    pub(crate) fn queue_data(&mut self, packet: &[u8], spare: &mut Spare) -> bool {
        if self.output.len() - self.sent + packet.len() > DATA_LIMIT {
            return false;
        }
        self.append(packet, spare);
        true
    }

    /// Queues a control packet.
    pub(crate) fn queue_control(&mut self, packet: &[u8], spare: &mut Spare) -> Result<(), Broken> {
        if self.output.len() - self.sent + packet.len() > TOTAL_LIMIT {
            return Err(Broken::Full);
        }
        self.append(packet, spare);
        Ok(())
    }

    /// Writes what the kernel takes; true when nothing is left.
    pub(crate) fn flush(&mut self, spare: &mut Spare) -> Result<bool, Broken> {
        while self.sent < self.output.len() {
            match self.stream.write(self.output.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(Broken::Closed),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.output.drain(..self.sent);
                    self.sent = 0;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Io(error)),
            }
        }
        self.sent = 0;
        spare.give(std::mem::take(&mut self.output));
        Ok(true)
    }

    fn append(&mut self, packet: &[u8], spare: &mut Spare) {
        if self.output.capacity() == 0 {
            self.output = spare.take();
        }
        self.output.extend_from_slice(&(packet.len() as u16).to_be_bytes());
        self.output.extend_from_slice(packet);
    }
}

/// The next whole packet of `bytes` from `*at` on, copied to the beginning of `out`; its length, `None` when its rest
/// has not arrived. A length that is 0, more than `limit` or more than `out` holds breaks the connection.
pub(crate) fn next_packet(
    bytes: &[u8],
    at: &mut usize,
    out: &mut [u8],
    limit: usize,
) -> Result<Option<usize>, Broken> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length == 0 || length > limit {
        return Err(Broken::Length(length));
    }
    let Some(packet) = rest.get(..length) else { return Ok(None) };
    out.get_mut(..length).ok_or(Broken::Length(length))?.copy_from_slice(packet);
    *at += 2 + length;
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, remote) = listener.accept().unwrap();
        (Connection::new(stream, (remote, listener.local_addr().unwrap())).unwrap(), peer)
    }

    /// What one read brings, as packets.
    fn packets(connection: &mut Connection, limit: usize) -> Result<Vec<Vec<u8>>, Broken> {
        let mut bulk = [0; 4096];
        let Some(len) = connection.fill(&mut bulk)? else { return Ok(Vec::new()) };
        let (mut at, mut out, mut found) = (0, [0; 4096], Vec::new());
        while let Some(len) = next_packet(&bulk[..len], &mut at, &mut out, limit)? {
            found.push(out[..len].to_vec());
        }
        connection.keep(&bulk[at..len]);
        Ok(found)
    }

    /// Loopback delivers at once, but not within the call.
    fn wait_until_readable(connection: &Connection) {
        let poller = adit_host::poll::Poller::new().unwrap();
        poller.add(connection.stream(), 0, adit_host::poll::Interest::READ).unwrap();
        let mut events = adit_host::poll::Events::with_capacity(1);
        poller.wait(&mut events, Some(std::time::Duration::from_secs(5))).unwrap();
    }

    #[test]
    fn packets_come_out_whole_however_the_bytes_arrive() {
        let (mut connection, mut peer) = pair();
        peer.set_nodelay(true).unwrap();
        let stream: Vec<u8> = [b"\0\x03abc".as_slice(), b"\0\x01d", b"\0\x04efgh"].concat();
        let mut got = Vec::new();
        for byte in stream {
            peer.write_all(&[byte]).unwrap();
            wait_until_readable(&connection);
            got.extend(packets(&mut connection, 100).unwrap());
        }
        assert_eq!(got, [b"abc".to_vec(), b"d".to_vec(), b"efgh".to_vec()]);
        assert!(connection.partial.capacity() <= MAX_UNPROVEN, "an idle connection holds little");
    }

    #[test]
    fn lengths_no_packet_has_break_the_connection() {
        for (bytes, limit) in [([0, 0], 100), ([1, 0], 100), ([0xff, 0xff], MAX_PACKET)] {
            let (mut at, mut out) = (0, [0; 100]);
            assert!(matches!(next_packet(&bytes, &mut at, &mut out, limit), Err(Broken::Length(_))));
        }
    }

    #[test]
    fn a_peer_that_does_not_read_gets_no_queue_of_data() {
        let (mut connection, _peer) = pair();
        let (mut spare, packet) = (Spare::default(), [7; 1400]);
        let mut taken = 0;
        while connection.queue_data(&packet, &mut spare) {
            connection.flush(&mut spare).unwrap();
            taken += 1;
            assert!(taken < 100_000, "never full");
        }
        assert!(connection.output.len() <= DATA_LIMIT);
        assert!(connection.queue_control(&packet, &mut spare).is_ok(), "control packets still find room");
        while connection.queue_control(&packet, &mut spare).is_ok() {}
        assert!(connection.output.len() <= TOTAL_LIMIT);
    }

    #[test]
    fn a_connection_gives_its_buffer_back_when_all_is_sent() {
        let (mut connection, _peer) = pair();
        let mut spare = Spare::default();
        assert!(connection.queue_data(&[7; 1400], &mut spare));
        assert!(connection.flush(&mut spare).unwrap());
        assert_eq!((connection.output.capacity(), spare.0.len()), (0, 1));
    }
}
