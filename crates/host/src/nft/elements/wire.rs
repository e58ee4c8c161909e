//! Messages about elements.

use netlink_packet_core::{DecodeError, DefaultNla, Emitable};
use rustix::io::Errno;

use super::{Difference, Element, Place};
use crate::netfilter::{Message, attribute, attributes, be, find, name, nest, write};
use crate::netlink::NetlinkFault;
use crate::netlink::connection::Failure;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The part of netfilter that has tables and sets, as it is written in kinds of messages.
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
/// IPv4 and IPv6 together.
const INET: u8 = 1;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const EXPRESSION: u16 = 7;
const EXPRESSIONS: u16 = 11;
const VALUE: u16 = 1;
const INTERVAL_END: u32 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// The most bytes the kernel takes for a key or data.
const LONGEST_VALUE: usize = 64;
/// The most bytes the kernel takes for a name, with the zero at its end.
const LONGEST_NAME: usize = 256;
/// An attribute is no longer than 16 bits can say, and the list of elements is one; an interval goes in
/// whole.
const LONGEST_LIST: usize = 60_000;
/// Bytes before the attributes of a message: netlink's header and netfilter's.
const HEADERS: usize = 20;

/// One message of a batch.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) message: Message,
    pub(super) adding: bool,
    set: String,
    /// Where in the message each place begins, in bytes.
    starts: Vec<(usize, Place)>,
}

impl Part {
    /// What was attempted at a byte of the message.
    pub(super) fn about(&self, offset: usize) -> Option<String> {
        let verb = if self.adding { "add" } else { "delete" };
        let set = &self.set;
        let index = self.starts.partition_point(|(start, _)| *start <= offset).checked_sub(1);
        Some(match (index.and_then(|index| self.starts.get(index)), self.starts.as_slice()) {
            (Some((_, place)), _) | (None, [(_, place)]) => format!("nft {verb} element {set} {place}"),
            (None, [(_, place), others @ ..]) => {
                format!("nft {verb} elements {set} {place} and {} others", others.len())
            }
            (None, []) => return None,
        })
    }
}

/// The first message of a batch, or the last.
pub(super) fn batch_edge(ends: bool) -> Message {
    let kind = if ends { BATCH_END } else { BATCH_BEGIN };
    Message { kind, resource: SUBSYSTEM, ..Message::default() }
}

/// Asks for all elements of a set, or for the one a key belongs to: that begins there or before, or `ends`
/// there or behind.
pub(super) fn question(table: &str, set: &str, key: Option<(&[u8], bool)>) -> Result<Message, Failure> {
    let mut attributes = header(table, set)?;
    if let Some((key, ends)) = key {
        attributes.push(nest(LIST_ELEMENTS, &[element(key, ends, &[])?]));
    }
    Ok(Message { kind: GET_ELEMENTS, family: INET, resource: 0, attributes: write(&attributes) })
}

/// The messages that delete what is to be deleted, or add what is to be added.
pub(super) fn changes(
    table: &str,
    set: &str,
    adding: bool,
    difference: &Difference,
) -> Result<Vec<Part>, NetlinkFault> {
    let set_text = format!("inet {table} {set}");
    let fault = |failure: Failure, place: &Place| {
        let verb = if adding { "add" } else { "delete" };
        failure.about(format!("nft {verb} element {set_text} {place}"))
    };
    let places: Vec<(&Place, &[u8])> = match adding {
        true => difference.added.iter().map(|(place, data)| (place, data.as_slice())).collect(),
        false => difference.deleted.iter().map(|place| (place, &[][..])).collect(),
    };
    let mut parts = Vec::new();
    let mut rest = places.as_slice();
    while let [(first, _), ..] = rest {
        let mut attributes = header(table, set).map_err(|failure| fault(failure, first))?;
        // Behind the header of the list itself.
        let before = HEADERS + attributes.as_slice().buffer_len() + 4;
        let (mut elements, mut starts) = (Vec::new(), Vec::new());
        let mut length = 0;
        while let [(place, data), behind @ ..] = rest
            && length < LONGEST_LIST
        {
            starts.push((before + length, (*place).clone()));
            for element in of_place(place, data).map_err(|failure| fault(failure, place))? {
                length += element.buffer_len();
                elements.push(element);
            }
            rest = behind;
        }
        attributes.push(nest(LIST_ELEMENTS, &elements));
        let kind = if adding { NEW_ELEMENTS } else { DELETE_ELEMENTS };
        let message = Message { kind, family: INET, resource: 0, attributes: write(&attributes) };
        parts.push(Part { message, adding, set: set_text.clone(), starts });
    }
    Ok(parts)
}

fn header(table: &str, set: &str) -> Result<Vec<DefaultNla>, Failure> {
    if table.len() >= LONGEST_NAME || set.len() >= LONGEST_NAME {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(vec![name(LIST_TABLE, table), name(LIST_SET, set)])
}

/// An interval is two elements, its beginning and its end.
fn of_place(place: &Place, data: &[u8]) -> Result<Vec<DefaultNla>, Failure> {
    match place {
        Place::Key(key) => Ok(vec![element(key, false, data)?]),
        Place::Interval { from, end } => {
            let mut elements = vec![element(from, false, data)?];
            if let Some(end) = end {
                elements.push(element(end, true, &[])?);
            }
            Ok(elements)
        }
    }
}

fn element(key: &[u8], ends: bool, data: &[u8]) -> Result<DefaultNla, Failure> {
    if key.len() > LONGEST_VALUE || data.len() > LONGEST_VALUE {
        return Err(Errno::MSGSIZE.into());
    }
    let mut inner = vec![nest(KEY, &[attribute(VALUE, key)])];
    if !data.is_empty() {
        inner.push(nest(DATA, &[attribute(VALUE, data)]));
    }
    if ends {
        inner.push(attribute(FLAGS, INTERVAL_END.to_be_bytes()));
    }
    Ok(nest(LIST_ELEMENT, &inner))
}

/// An element as it is listed: a key, or one end of an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: Vec<u8>,
    pub(super) data: Vec<u8>,
    ends: bool,
    packets: u64,
    bytes: u64,
}

/// The elements in an answer.
#[expect(clippy::needless_pass_by_value, reason = "what takes answers is given them")]
pub(super) fn take(message: Message, all: &mut Vec<Listed>) -> Result<(), DecodeError> {
    if message.kind != NEW_ELEMENTS {
        return Ok(());
    }
    for next in attributes(find(&message.attributes, LIST_ELEMENTS)?.unwrap_or_default()) {
        let (kind, element) = next?;
        if kind == LIST_ELEMENT {
            all.push(listed(element)?);
        }
    }
    Ok(())
}

fn listed(element: &[u8]) -> Result<Listed, DecodeError> {
    let mut listed = Listed { key: Vec::new(), data: Vec::new(), ends: false, packets: 0, bytes: 0 };
    for next in attributes(element) {
        let (kind, value) = next?;
        match kind {
            KEY => listed.key = find(value, VALUE)?.unwrap_or_default().to_vec(),
            DATA => listed.data = find(value, VALUE)?.unwrap_or_default().to_vec(),
            FLAGS => listed.ends = u32::from_be_bytes(be(value)?) & INTERVAL_END != 0,
            EXPRESSION => count(value, &mut listed)?,
            // A set may have several expressions for its elements.
            EXPRESSIONS => {
                for expression in attributes(value) {
                    count(expression?.1, &mut listed)?;
                }
            }
            _ => {}
        }
    }
    Ok(listed)
}

/// Reads an element's expression, if it is a counter.
fn count(expression: &[u8], listed: &mut Listed) -> Result<(), DecodeError> {
    if find(expression, EXPRESSION_NAME)? != Some(b"counter\0") {
        return Ok(());
    }
    for next in attributes(find(expression, EXPRESSION_DATA)?.unwrap_or_default()) {
        match next? {
            (COUNTER_BYTES, value) => listed.bytes = u64::from_be_bytes(be(value)?),
            (COUNTER_PACKETS, value) => listed.packets = u64::from_be_bytes(be(value)?),
            _ => {}
        }
    }
    Ok(())
}

/// Puts the two ends of intervals together.
pub(super) fn join(mut listed: Vec<Listed>) -> Vec<Element> {
    if listed.iter().any(|listed| listed.ends) {
        // Where one interval ends and another begins at the same key, the end comes first.
        listed.sort_by(|one, other| (&one.key, !one.ends).cmp(&(&other.key, !other.ends)));
    }
    let mut elements: Vec<Element> = Vec::new();
    for Listed { key, data, ends, packets, bytes } in listed {
        match (ends, elements.last_mut()) {
            (false, _) => elements.push(Element { key, end: None, data, packets, bytes }),
            (true, Some(begun)) if begun.end.is_none() => begun.end = Some(key),
            // An end without a beginning, which nft puts before the first interval.
            (true, _) => {}
        }
    }
    elements
}
