//! Blocks of pcapng.

use std::time::Duration;

use crate::capture::{CaptureFault, Frame, MAX_PACKET, Order};
use crate::link::Link;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type, length, and the length again.
const AROUND: usize = 12;
/// The longest block that can be read: others are skipped, but not into nowhere.
const MAX_BLOCK: usize = 1 << 24;
/// Interfaces of a section at most.
const MAX_INTERFACES: usize = 4096;

const OPTION_END: u16 = 0;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

/// What is known of the current section.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link: Option<Link>,
    /// The most captured bytes of a packet; 0 stands for all.
    snap: u32,
    /// Units of a second.
    resolution: u128,
    /// Seconds to add.
    offset: i64,
}

/// A block with what it contains.
struct Block<'a> {
    kind: u32,
    body: &'a [u8],
    len: usize,
}

impl Section {
    /// Checks the section header at the start of a file.
    pub(crate) fn open(bytes: &[u8]) -> Result<Self, CaptureFault> {
        // A file that ends within its first block has nothing that could be read.
        let short = CaptureFault::Short(bytes.len());
        let order = order(bytes.get(8..).ok_or(short)?).ok_or(CaptureFault::Unknown)?;
        let version = |at| order.u16(bytes, at).ok_or(short);
        match (version(12)?, version(14)?) {
            (1, _) => Ok(Self { order, interfaces: Vec::new() }),
            (major, minor) => Err(CaptureFault::Version(major, minor)),
        }
    }

    /// The next packet; `None` at the end of the file. `at` moves on; `truncated` becomes the offset of a last
    /// block that is not all there.
    pub(crate) fn next<'a>(
        &mut self,
        bytes: &'a [u8],
        at: &mut usize,
        truncated: &mut Option<usize>,
    ) -> Option<Result<Frame<'a>, CaptureFault>> {
        loop {
            let offset = *at;
            let rest = bytes.get(offset..).filter(|rest| !rest.is_empty())?;
            let block = match self.block(rest, offset) {
                Ok(Some(block)) => block,
                Ok(None) => {
                    *truncated = Some(offset);
                    return None;
                }
                Err(fault) => return Some(Err(fault)),
            };
            *at += block.len;
            let damaged = |why| CaptureFault::Block { offset, why };
            let read = match block.kind {
                SECTION_HEADER => Self::open(rest).map(|section| {
                    *self = section;
                    None
                }),
                INTERFACE => self.interface(block.body).map_err(damaged).map(|()| None),
                ENHANCED_PACKET => self.enhanced(block.body).map_err(damaged).map(Some),
                SIMPLE_PACKET => self.simple(block.body).map_err(damaged).map(Some),
                // Names, statistics, secrets, and whatever will be invented.
                _ => Ok(None),
            };
            match read {
                Ok(None) => {}
                Ok(Some(frame)) => return Some(Ok(frame)),
                Err(fault) => return Some(Err(fault)),
            }
        }
    }

    /// The block at the start of `rest`; `None` when it is not all there.
    fn block<'a>(&self, rest: &'a [u8], offset: usize) -> Result<Option<Block<'a>>, CaptureFault> {
        let damaged = |why| CaptureFault::Block { offset, why };
        let Some(kind) = self.order.u32(rest, 0) else { return Ok(None) };
        // A section may have another byte order than the one before; its header reads the same in both.
        let order = if kind == SECTION_HEADER {
            let Some(magic) = rest.get(8..12) else { return Ok(None) };
            order(magic).ok_or(damaged("no byte order"))?
        } else {
            self.order
        };
        let Some(length) = order.u32(rest, 4) else { return Ok(None) };
        let len = length as usize;
        if len < AROUND || !len.is_multiple_of(4) || len > MAX_BLOCK {
            return Err(damaged("its length cannot be"));
        }
        let Some(block) = rest.get(..len) else { return Ok(None) };
        if order.u32(block, len - 4) != Some(length) {
            return Err(damaged("its two lengths differ"));
        }
        let body = block.get(8..len - 4).unwrap_or_default();
        Ok(Some(Block { kind, body, len }))
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), &'static str> {
        let short = "an interface that is too short";
        let mut interface = Interface {
            link: Link::from_number(self.order.u16(body, 0).ok_or(short)?.into()),
            snap: self.order.u32(body, 4).ok_or(short)?,
            resolution: 1_000_000,
            offset: 0,
        };
        let mut options = body.get(8..).unwrap_or_default();
        while let (Some(code), Some(len)) = (self.order.u16(options, 0), self.order.u16(options, 2)) {
            let len = usize::from(len);
            let value = options.get(4..4 + len).ok_or("an option that is too long")?;
            match (code, value) {
                (OPTION_END, _) => break,
                (OPTION_RESOLUTION, [exponent]) => {
                    let base: u128 = if exponent & 0x80 == 0 { 10 } else { 2 };
                    interface.resolution = base
                        .checked_pow(u32::from(exponent & 0x7f))
                        .ok_or("a time resolution that cannot be")?;
                }
                (OPTION_OFFSET, value) if len == 8 => {
                    interface.offset = self.order.u64(value, 0).unwrap_or_default().cast_signed();
                }
                _ => {}
            }
            options = options.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        }
        if self.interfaces.len() == MAX_INTERFACES {
            return Err("too many interfaces");
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn enhanced<'a>(&self, body: &'a [u8]) -> Result<Frame<'a>, &'static str> {
        let field = |at| self.order.u32(body, at).ok_or("a packet without its fields");
        let interface = self.interfaces.get(field(0)? as usize).ok_or("a packet of no interface")?;
        let units = u64::from(field(4)?) << 32 | u64::from(field(8)?);
        let length = field(12)? as usize;
        if length > MAX_PACKET {
            return Err("a packet that is too long");
        }
        let bytes = body.get(20..20 + length).ok_or("a packet that is longer than its block")?;
        Ok(Frame { time: interface.time(units), link: interface.link, wire_length: field(16)?, bytes })
    }

    fn simple<'a>(&self, body: &'a [u8]) -> Result<Frame<'a>, &'static str> {
        let interface = self.interfaces.first().ok_or("a packet of no interface")?;
        let wire_length = self.order.u32(body, 0).ok_or("a packet without its fields")?;
        let content = body.get(4..).unwrap_or_default();
        let snap = if interface.snap == 0 { u32::MAX } else { interface.snap };
        let length = wire_length.min(snap) as usize;
        if length > MAX_PACKET {
            return Err("a packet that is too long");
        }
        let bytes = content.get(..length).ok_or("a packet that is longer than its block")?;
        Ok(Frame { time: Duration::ZERO, link: interface.link, wire_length, bytes })
    }
}

impl Interface {
    fn time(&self, units: u64) -> Duration {
        let units = u128::from(units);
        let seconds = u64::try_from(units / self.resolution).unwrap_or(u64::MAX);
        // The rest has 64 bits at most, so that nothing overflows; the quotient is less than a second.
        let nanos = units % self.resolution * 1_000_000_000 / self.resolution;
        let nanos = u32::try_from(nanos).unwrap_or_default();
        Duration::new(seconds.saturating_add_signed(self.offset), nanos)
    }
}

/// The byte order that a section header's magic number shows.
fn order(magic: &[u8]) -> Option<Order> {
    match magic {
        [0x1a, 0x2b, 0x3c, 0x4d, ..] => Some(Order::Big),
        [0x4d, 0x3c, 0x2b, 0x1a, ..] => Some(Order::Little),
        _ => None,
    }
}
