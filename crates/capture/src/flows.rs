//! Flows: who spoke with whom, and what the client said first.

mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use adit_wire::ip::{self, Packet};
use adit_wire::tcp::Segment;
use adit_wire::udp::Datagram;

use crate::capture::{Capture, CaptureFault, Frame};
use stream::Stream;

/// The most bytes kept of what a TCP client says first.
pub const MAX_FIRST: usize = 3072;
/// The most flows of a capture; packets of further ones are counted in [`Flows::left_out`].
pub const MAX_FLOWS: usize = 1 << 18;
/// Silence after which datagrams between the same two sockets are a new flow: a client that binds its port has the
/// same socket again after a restart. As long as Linux remembers a flow that was not answered
/// (`nf_conntrack_udp_timeout`).
pub const UDP_IDLE: Duration = Duration::from_secs(30);

/// What carries a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Udp { "udp" } else { "tcp" })
    }
}

/// A UDP flow or a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// What carries it.
    pub transport: Transport,
    /// Who opened it: the sender of the SYN, or of the first datagram.
    pub client: SocketAddr,
    /// Whom the client dialled.
    pub server: SocketAddr,
    /// When its first packet was captured, since the Unix epoch.
    pub time: Duration,
    /// UDP: the payload of the first datagram. TCP: what the client says first, in order and without
    /// retransmissions, at most [`MAX_FIRST`] bytes; empty when it said nothing, or its handshake is not captured.
    pub first: Vec<u8>,
    /// Payload bytes of the packet that `first` begins with: for TCP the client's first segment.
    pub first_length: usize,
    /// Total length of that IP packet, header included; 0 when there is none.
    pub ip_length: usize,
    /// Type of service (traffic class) of that packet.
    pub tos: u8,
    /// The flow was seen from its beginning: always for UDP, with the handshake for TCP.
    pub from_start: bool,
    /// Packets both ways.
    pub packets: u64,
    /// Payload bytes from the client; retransmissions count.
    pub sent: u64,
    /// Payload bytes from the server; retransmissions count.
    pub received: u64,
}

/// What a capture has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flows {
    /// The flows, in the order in which they begin.
    pub flows: Vec<Flow>,
    /// All packets.
    pub packets: u64,
    /// Packets that are no whole UDP datagram or TCP segment over IP: other protocols, fragments, damage.
    pub ignored: u64,
    /// Packets that were cut when they were captured, and so cannot be used: `tcpdump -s 0` cuts none.
    pub cut: u64,
    /// Packets of flows beyond [`MAX_FLOWS`].
    pub left_out: u64,
    /// Offset of a last packet that is not all there.
    pub truncated: Option<usize>,
}

impl IntoIterator for Flows {
    type Item = Flow;
    type IntoIter = std::vec::IntoIter<Flow>;

    fn into_iter(self) -> Self::IntoIter {
        self.flows.into_iter()
    }
}

impl<'a> IntoIterator for &'a Flows {
    type Item = &'a Flow;
    type IntoIter = std::slice::Iter<'a, Flow>;

    fn into_iter(self) -> Self::IntoIter {
        self.flows.iter()
    }
}

/// Groups the packets of a capture into flows.
///
/// # Errors
/// The file is no capture, or is damaged; the fault says where.
pub fn flows(bytes: &[u8]) -> Result<Flows, CaptureFault> {
    let mut capture = Capture::open(bytes)?;
    let mut gatherer = Gatherer::default();
    for frame in &mut capture {
        gatherer.add(&frame?);
    }
    let mut flows = gatherer.finish();
    flows.truncated = capture.truncated();
    Ok(flows)
}

/// A packet with what a flow wants to know of it.
struct Heard<'a> {
    transport: Transport,
    from: SocketAddr,
    to: SocketAddr,
    time: Duration,
    ip_length: usize,
    tos: u8,
    payload: &'a [u8],
    segment: Option<Segment<'a>>,
}

impl<'a> Heard<'a> {
    fn parse(time: Duration, bytes: &'a [u8]) -> Option<Self> {
        let packet = Packet::parse(bytes).ok().filter(|packet| !packet.is_fragment())?;
        let (transport, ports, payload, segment) = match packet.protocol() {
            ip::protocol::UDP => {
                let datagram = Datagram::parse(packet.transport()).ok()?;
                let ports = (datagram.source_port(), datagram.destination_port());
                (Transport::Udp, ports, datagram.payload(), None)
            }
            ip::protocol::TCP => {
                let segment = Segment::parse(packet.transport()).ok()?;
                let ports = (segment.source_port(), segment.destination_port());
                (Transport::Tcp, ports, segment.payload(), Some(segment))
            }
            _ => return None,
        };
        Some(Self {
            transport,
            from: SocketAddr::new(packet.source(), ports.0),
            to: SocketAddr::new(packet.destination(), ports.1),
            time,
            ip_length: packet.total_len(),
            tos: packet.dscp() << 2 | packet.ecn(),
            payload,
            segment,
        })
    }

    /// The packet opens a connection.
    fn opens(&self) -> bool {
        self.segment.is_some_and(|segment| segment.flags().syn() && !segment.flags().ack())
    }
}

/// A flow under way.
struct Slot<'a> {
    flow: Flow,
    last: Duration,
    stream: Stream<'a>,
}

/// Both sockets of a flow, the smaller first: the same for both directions.
type Key = (Transport, SocketAddr, SocketAddr);

#[derive(Default)]
struct Gatherer<'a> {
    slots: Vec<Slot<'a>>,
    open: HashMap<Key, usize>,
    counts: Flows,
}

impl<'a> Gatherer<'a> {
    fn add(&mut self, frame: &Frame<'a>) {
        self.counts.packets += 1;
        if (frame.bytes.len() as u64) < u64::from(frame.wire_length) {
            self.counts.cut += 1;
            return;
        }
        let ip = frame.link.and_then(|link| link.ip(frame.bytes));
        let Some(heard) = ip.and_then(|bytes| Heard::parse(frame.time, bytes)) else {
            self.counts.ignored += 1;
            return;
        };
        let key = (heard.transport, heard.from.min(heard.to), heard.from.max(heard.to));
        let known = self.open.get(&key).copied();
        let known =
            known.filter(|index| self.slots.get(*index).is_some_and(|slot| !slot.begins_anew(&heard)));
        let index = known.unwrap_or(self.slots.len());
        if index == MAX_FLOWS {
            self.counts.left_out += 1;
            return;
        }
        if known.is_none() {
            self.open.insert(key, index);
            self.slots.push(Slot::new(&heard));
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.take(&heard);
        }
    }

    fn finish(self) -> Flows {
        let flows = self.slots.into_iter().map(|slot| {
            let mut flow = slot.flow;
            if flow.transport == Transport::Tcp {
                flow.first = slot.stream.into_bytes();
            }
            flow
        });
        Flows { flows: flows.collect(), ..self.counts }
    }
}

impl<'a> Slot<'a> {
    fn new(heard: &Heard<'a>) -> Self {
        let flags = heard.segment.map(|segment| segment.flags());
        // The answer to a SYN that was not captured still says who asked.
        let answered = flags.is_some_and(|flags| flags.syn() && flags.ack());
        let (client, server) = if answered { (heard.to, heard.from) } else { (heard.from, heard.to) };
        let start = heard.segment.filter(|segment| segment.flags().syn()).map(|segment| {
            if answered { segment.acknowledgement() } else { segment.sequence().wrapping_add(1) }
        });
        let flow = Flow {
            transport: heard.transport,
            client,
            server,
            time: heard.time,
            first: Vec::new(),
            first_length: 0,
            ip_length: 0,
            tos: 0,
            from_start: heard.segment.is_none() || start.is_some(),
            packets: 0,
            sent: 0,
            received: 0,
        };
        Self { flow, last: heard.time, stream: Stream::new(start) }
    }

    /// The packet belongs to a later flow between the same two sockets.
    fn begins_anew(&self, heard: &Heard<'a>) -> bool {
        match heard.segment {
            None => heard.time.saturating_sub(self.last) > UDP_IDLE,
            // A SYN with the number of the one before is that one again.
            Some(segment) => heard.opens() && self.stream.start() != Some(segment.sequence().wrapping_add(1)),
        }
    }

    fn take(&mut self, heard: &Heard<'a>) {
        let flow = &mut self.flow;
        flow.packets += 1;
        self.last = heard.time;
        let length = heard.payload.len() as u64;
        if heard.from != flow.client {
            flow.received += length;
            return;
        }
        flow.sent += length;
        let is_first = match heard.segment {
            None => {
                if flow.packets == 1 {
                    flow.first = heard.payload.to_vec();
                }
                flow.packets == 1
            }
            Some(segment) => {
                // Data in a SYN comes behind the number that the SYN takes.
                let sequence = segment.sequence().wrapping_add(u32::from(segment.flags().syn()));
                self.stream.add(sequence, heard.payload)
            }
        };
        if is_first {
            flow.first_length = heard.payload.len();
            flow.ip_length = heard.ip_length;
            flow.tos = heard.tos;
        }
    }
}
