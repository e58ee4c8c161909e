//! Packets put together into superpackets, so that a tun with offloads takes many in one write.
//!
//! The rules are those of the kernel's own receive offload: packets of one flow, in order, with equal headers and
//! equal sizes, of which only the last may be shorter or carry FIN and PSH; whatever does not fit goes out as it
//! came, behind what is held of its flow. Nothing is copied but the headers of a superpacket: payloads stay where
//! they were opened and are handed on as a list of slices for one `writev`.
//!
//! Checksums are verified before anything is merged: the receiver takes a superpacket's as right, and a packet that
//! was damaged on its way to the tunnel must not become a good one.
//!
//! ```
//! use adit_wire::{coalesce::{Allowed, Coalescer}, ip::Packet};
//!
//! # let opened: [&[u8]; 0] = [];
//! let mut coalescer = Coalescer::new(Allowed { tcp4: true, tcp6: true, udp: true });
//! let mut write = |output: adit_wire::coalesce::Output<'_>| {
//!     // tun.send_vectored(output.parts())
//! };
//! for bytes in opened {
//!     let packet = Packet::parse(bytes).unwrap();
//!     coalescer.push(&packet, &mut write);
//! }
//! coalescer.finish(&mut write);
//! ```

use std::io::IoSlice;
use std::net::IpAddr;

use crate::bytes::{array, be16, put, put16};
use crate::checksum::{self, Sum, transport_checksum_ok};
use crate::ip::{Packet, V4_HEADER, V6_HEADER, protocol};
use crate::tcp::{self, Segment};
use crate::udp;
use crate::virtio::{self, Header, kind};

/// Flows that superpackets are collected for at one time. For one more, one of them is let go.
pub const FLOWS: usize = 16;

/// The most packets in a superpacket: what every kernel takes in one run of UDP datagrams.
pub const PACKETS: usize = 64;

/// The most parts of an [`Output`].
pub const PARTS: usize = PACKETS + BEFORE;

/// Virtio header and packet headers.
const BEFORE: usize = 2;

/// The longest headers of a superpacket: IPv6 without extensions, TCP with all options.
const HEADERS: usize = V6_HEADER + 60;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What the receiver takes superpackets of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowed {
    /// TCP over IPv4.
    pub tcp4: bool,
    /// TCP over IPv6.
    pub tcp6: bool,
    /// UDP over either (Linux 6.2).
    pub udp: bool,
}

/// One packet or superpacket that is ready to be written.
#[derive(Debug, Clone, Copy)]
pub struct Output<'o> {
    parts: &'o [IoSlice<'o>],
    packets: usize,
}

impl<'o> Output<'o> {
    /// What goes out in one write: a virtio header, then the packet in at least one part.
    #[must_use]
    pub fn parts(&self) -> &'o [IoSlice<'o>] {
        self.parts
    }

    /// How many packets are in it.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.packets
    }
}

/// Collects the packets of one batch; they are borrowed until [`finish`](Self::finish).
///
/// Packets of one flow leave in the order in which they came. Dropping a coalescer drops what it holds.
#[derive(Debug)]
pub struct Coalescer<'a> {
    allowed: Allowed,
    flows: [Option<Flow<'a>>; FLOWS],
    /// The flow that makes room next.
    next: usize,
}

impl<'a> Coalescer<'a> {
    /// Holds nothing yet. Allocates nothing, but is about 20 KiB large.
    #[must_use]
    pub fn new(allowed: Allowed) -> Self {
        Self { allowed, flows: [None; FLOWS], next: 0 }
    }

    /// Takes the next packet. Whatever can go out by that goes to `write`, this packet or earlier ones.
    pub fn push(&mut self, packet: &Packet<'a>, write: &mut impl FnMut(Output<'_>)) {
        let Some(key) = Key::of(packet) else {
            // A fragment may be of any flow between its hosts.
            if packet.is_fragment() {
                self.finish(write);
            }
            return single(packet, write);
        };
        let candidate = Candidate::of(packet, &key, self.allowed);
        let held = self.flows.iter().position(|flow| flow.as_ref().is_some_and(|flow| flow.key == key));
        let Some(place) = held.and_then(|at| self.flows.get_mut(at)) else {
            match candidate.filter(|candidate| !candidate.last) {
                Some(first) => self.start(Flow::new(key, &first), write),
                None => single(packet, write),
            }
            return;
        };
        if let (Some(next), Some(flow)) = (&candidate, place.as_mut())
            && flow.accepts(next)
        {
            flow.add(next);
            if next.last || next.payload.len() < flow.first.payload.len() {
                release(place, write);
            }
            return;
        }
        release(place, write);
        match candidate.filter(|candidate| !candidate.last) {
            Some(first) => *place = Some(Flow::new(key, &first)),
            None => single(packet, write),
        }
    }

    /// Lets everything go that is held.
    pub fn finish(&mut self, write: &mut impl FnMut(Output<'_>)) {
        self.flows.iter_mut().for_each(|place| release(place, write));
    }

    fn start(&mut self, flow: Flow<'a>, write: &mut impl FnMut(Output<'_>)) {
        let free = self.flows.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.next = (self.next + 1) % FLOWS;
            self.next
        });
        if let Some(place) = self.flows.get_mut(at) {
            release(place, write);
            *place = Some(flow);
        }
    }
}

/// Lets go what a place holds; it is free then.
fn release(place: &mut Option<Flow<'_>>, write: &mut impl FnMut(Output<'_>)) {
    if let Some(flow) = place {
        flow.write(write);
        *place = None;
    }
}

/// Writes a packet as it is.
fn single(packet: &Packet<'_>, write: &mut impl FnMut(Output<'_>)) {
    let parts = [IoSlice::new(&[0; virtio::LEN]), IoSlice::new(packet.bytes())];
    write(Output { parts: &parts, packets: 1 });
}

/// What tells one flow from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    ports: [u8; 4],
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
}

impl Key {
    /// `None` for a fragment, for what is neither TCP nor UDP, and where there are no ports.
    fn of(packet: &Packet<'_>) -> Option<Self> {
        let (protocol, transport) = (packet.protocol(), packet.transport());
        if packet.is_fragment() || !matches!(protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let (source, destination) = (packet.source(), packet.destination());
        Some(Self { ports: array(transport, 0)?, protocol, source, destination })
    }
}

/// A packet that may be merged with others: plain headers, payload, a right checksum.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    /// TCP's sequence number.
    sequence: u32,
    /// Nothing may follow it: FIN or PSH.
    last: bool,
    /// Only the first of a superpacket may say so.
    reduced: bool,
}

impl<'a> Candidate<'a> {
    fn of(packet: &Packet<'a>, key: &Key, allowed: Allowed) -> Option<Self> {
        let (v4, tcp) = (packet.version() == 4, key.protocol == protocol::TCP);
        let wanted = match (tcp, v4) {
            (true, true) => allowed.tcp4,
            (true, false) => allowed.tcp6,
            (false, _) => allowed.udp,
        };
        let plain = if v4 { V4_HEADER } else { V6_HEADER };
        if !wanted || packet.transport_offset() != plain {
            return None;
        }
        let (bytes, transport) = (packet.bytes(), packet.transport());
        let (own, sequence, flags) = if tcp {
            let segment = Segment::parse(transport).ok()?;
            let flags = segment.flags().bits();
            if flags & !(ACK | PSH | FIN | ECE | CWR) != 0 || flags & ACK == 0 {
                return None;
            }
            (segment.data_offset(), segment.sequence(), flags)
        } else {
            // Without a checksum there is nothing to verify.
            let whole = usize::from(be16(transport, 4)?) == transport.len();
            if !whole || be16(transport, udp::CHECKSUM)? == 0 {
                return None;
            }
            (udp::HEADER_LEN, 0, 0)
        };
        let (headers, payload) = bytes.split_at_checked(plain + own)?;
        let right = !payload.is_empty()
            && (!v4 || Sum::new().with(headers.get(..V4_HEADER)?).fold() == 0xffff)
            && transport_checksum_ok(packet) == Some(true);
        let (last, reduced) = (flags & (FIN | PSH) != 0, flags & CWR != 0);
        right.then_some(Self { headers, payload, sequence, last, reduced })
    }

    fn flags(&self, transport: usize) -> u8 {
        self.headers.get(transport + 13).copied().unwrap_or_default()
    }
}

/// A superpacket under way.
#[derive(Debug, Clone, Copy)]
struct Flow<'a> {
    key: Key,
    /// Packets in it.
    count: usize,
    first: Candidate<'a>,
    /// Flags of the last packet that the first may lack.
    last_flags: u8,
    /// Bytes of headers and payloads together.
    total: usize,
    /// The payloads, behind room for what goes before them.
    parts: [IoSlice<'a>; PARTS],
}

impl<'a> Flow<'a> {
    fn new(key: Key, first: &Candidate<'a>) -> Self {
        let total = first.headers.len() + first.payload.len();
        let parts = [IoSlice::new(&[]); PARTS];
        let mut flow = Self { key, count: 0, first: *first, last_flags: 0, total, parts };
        flow.put(first.payload);
        flow
    }

    fn put(&mut self, payload: &'a [u8]) {
        if let Some(place) = self.parts.get_mut(BEFORE + self.count) {
            *place = IoSlice::new(payload);
        }
        self.count += 1;
    }

    fn v4(&self) -> bool {
        self.key.source.is_ipv4()
    }

    fn tcp(&self) -> bool {
        self.key.protocol == protocol::TCP
    }

    /// Bytes before TCP or UDP.
    fn transport(&self) -> usize {
        if self.v4() { V4_HEADER } else { V6_HEADER }
    }

    /// Whether `next` may go behind what is there.
    fn accepts(&self, next: &Candidate<'_>) -> bool {
        // The largest length that both versions' fields hold.
        let fits = self.count < PACKETS
            && next.payload.len() <= self.first.payload.len()
            && self.total + next.payload.len() <= usize::from(u16::MAX);
        fits && !next.reduced && self.same_ip(next.headers) && (!self.tcp() || self.follows(next))
    }

    /// The IP headers are equal in what each segment will have of the first.
    fn same_ip(&self, next: &[u8]) -> bool {
        let first = self.first.headers;
        if !self.v4() {
            // Version, traffic class and flow label; next header and hop limit. Addresses are in the key.
            return first.get(..4) == next.get(..4) && first.get(6..8) == next.get(6..8);
        }
        let identification = |header| be16(header, 4).unwrap_or_default();
        // RFC 6864 §4.1: that of a packet which is never fragmented has no meaning.
        let atomic = first.get(6).is_some_and(|flags| flags & 0x40 != 0);
        let in_order = identification(next) == identification(first).wrapping_add(self.count as u16);
        (atomic || in_order) && first.get(..2) == next.get(..2) && first.get(6..10) == next.get(6..10)
    }

    /// `next` is the same stream's next bytes, and says nothing else that is new.
    fn follows(&self, next: &Candidate<'_>) -> bool {
        let at = self.transport();
        let sent = (self.total - self.first.headers.len()) as u32;
        let same =
            |range: std::ops::Range<usize>| self.first.headers.get(range.clone()) == next.headers.get(range);
        next.sequence == self.first.sequence.wrapping_add(sent)
            && next.headers.len() == self.first.headers.len()
            // Acknowledgement, offset and reserved bits; flags; window; urgent pointer and options.
            && same(at + 8..at + 13)
            && (self.first.flags(at) ^ next.flags(at)) & !(CWR | FIN | PSH) == 0
            && same(at + 14..at + 16)
            && same(at + 18..self.first.headers.len())
    }

    fn add(&mut self, next: &Candidate<'a>) {
        self.put(next.payload);
        self.total += next.payload.len();
        if next.last {
            self.last_flags = next.flags(self.transport()) & (FIN | PSH);
        }
    }

    fn write(&self, write: &mut impl FnMut(Output<'_>)) {
        let (mut virtio, mut head) = ([0; virtio::LEN], [0; HEADERS]);
        let headers = head.get_mut(..self.first.headers.len()).unwrap_or_default();
        headers.copy_from_slice(self.first.headers);
        if self.count > 1 {
            virtio = self.rewrite(headers).unwrap_or_default().bytes();
        }
        let mut parts: [IoSlice<'_>; PARTS] = self.parts;
        let [first, second, ..] = &mut parts;
        (*first, *second) = (IoSlice::new(&virtio), IoSlice::new(headers));
        let parts = parts.get(..BEFORE + self.count).unwrap_or_default();
        write(Output { parts, packets: self.count });
    }

    /// Makes the first packet's headers the superpacket's, and says how it is to be cut.
    fn rewrite(&self, headers: &mut [u8]) -> Option<Header> {
        let transport = self.transport();
        let length = (self.total - transport) as u16;
        if self.v4() {
            put16(headers, 2, self.total as u16)?;
            put16(headers, 10, 0)?;
            let sum = checksum::checksum(headers.get(..V4_HEADER)?);
            put16(headers, 10, sum)?;
        } else {
            put16(headers, 4, length)?;
        }
        let (mut kind, checksum_offset) = if self.tcp() {
            let flags = headers.get_mut(transport + 13)?;
            *flags |= self.last_flags;
            (if self.v4() { kind::TCP4 } else { kind::TCP6 }, tcp::CHECKSUM)
        } else {
            put(headers, transport + 4, &length.to_be_bytes())?;
            (kind::UDP, udp::CHECKSUM)
        };
        if self.first.reduced {
            kind |= kind::ECN;
        }
        // The device sums the rest; the pseudo header's sum goes in as it is.
        let Key { source, destination, protocol, .. } = self.key;
        let pseudo = Sum::new().with_pseudo_header(source, destination, protocol, length.into()).fold();
        put16(headers, transport + checksum_offset, pseudo)?;
        Some(Header {
            flags: virtio::NEEDS_CHECKSUM,
            kind,
            header_len: headers.len() as u16,
            segment_size: self.first.payload.len() as u16,
            checksum_start: transport as u16,
            checksum_offset: checksum_offset as u16,
        })
    }
}
