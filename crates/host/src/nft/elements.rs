//! Elements of sets and maps, changed and read without a program and without touching the rules.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};
use rustix::io::Errno;

use crate::netfilter::{Message, Netfilter};
use crate::netlink::NetlinkFault;
use crate::netlink::connection::{Failure, ignore};

/// Up to so many changes of one set look first what is there of it. More of them do so when they are refused
/// only: to look takes longer than to change.
const FEW: usize = 256;

/// A change of a set or map in a table of the family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementChange {
    /// Name of the table.
    pub table: String,
    /// Name of the set or map.
    pub set: String,
    /// What is to happen.
    pub change: Change,
}

/// What is to happen to an element.
///
/// Keys and data are as the kernel has them: fields in network byte order, each filled up with zeros to a
/// multiple of four bytes, see [`fields`]. An interval of data is its first value and its last one, field by
/// field. An element of a set has no data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is to be there with this data. When it is there with other data it is replaced.
    Add {
        /// Key.
        key: Vec<u8>,
        /// What the map has for it.
        data: Vec<u8>,
    },
    /// It is to be gone; it need not be there.
    Remove {
        /// Key.
        key: Vec<u8>,
    },
    /// As [`Add`](Self::Add), but what is there is replaced even if it is the same, and its counter begins
    /// anew.
    Replace {
        /// Key.
        key: Vec<u8>,
        /// What the map has for it.
        data: Vec<u8>,
    },
    /// All keys of an interval, in a set or map with `flags interval` and keys of one field. One that
    /// overlaps another interval, and is not the same, is refused.
    AddInterval {
        /// The first key.
        from: Vec<u8>,
        /// The key behind the last one; `None` when the highest key there is belongs to the interval.
        end: Option<Vec<u8>>,
        /// What the map has for it.
        data: Vec<u8>,
    },
    /// This very interval is to be gone; it need not be there.
    RemoveInterval {
        /// The first key.
        from: Vec<u8>,
        /// The key behind the last one, or `None`.
        end: Option<Vec<u8>>,
    },
}

/// An element as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Key, or the first key of an interval.
    pub key: Vec<u8>,
    /// The key behind the last one of an interval. `None` for a single key, and when the highest key there is
    /// belongs to the interval.
    pub end: Option<Vec<u8>>,
    /// What the map has for it; empty in a set.
    pub data: Vec<u8>,
    /// Packets that met it, where the set has a counter.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A key or data of several fields.
///
/// ```
/// use adit_host::nft::fields;
///
/// assert_eq!(fields([&[6][..], &30_000u16.to_be_bytes()]), [6, 0, 0, 0, 0x75, 0x30, 0, 0]);
/// ```
#[must_use]
pub fn fields<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        bytes.extend_from_slice(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// What an element is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Key(Vec<u8>),
    Interval { from: Vec<u8>, end: Option<Vec<u8>> },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(&shown(key)),
            Self::Interval { from, end: Some(end) } => {
                write!(f, "{}-{}", shown(from), shown(&neighbour(end, u8::MAX)))
            }
            Self::Interval { from, end: None } => write!(f, "{} and above", shown(from)),
        }
    }
}

/// A single field of four bytes is most likely an address.
fn shown(key: &[u8]) -> String {
    if let &[a, b, c, d] = key {
        return Ipv4Addr::new(a, b, c, d).to_string();
    }
    key.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// The next key, for `step` 1, or the one before, for 255, which is -1.
fn neighbour(key: &[u8], step: u8) -> Vec<u8> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(step);
        // Goes on with a carry, or with a borrow.
        if *byte != if step == 1 { 0 } else { u8::MAX } {
            break;
        }
    }
    key
}

impl Change {
    fn place(&self) -> Place {
        match self {
            Self::Add { key, .. } | Self::Remove { key } | Self::Replace { key, .. } => {
                Place::Key(key.clone())
            }
            Self::AddInterval { from, end, .. } | Self::RemoveInterval { from, end } => {
                Place::Interval { from: from.clone(), end: end.clone() }
            }
        }
    }

    /// Whether what was there before goes.
    fn removes(&self) -> bool {
        matches!(self, Self::Remove { .. } | Self::Replace { .. } | Self::RemoveInterval { .. })
    }

    /// What is to be there afterwards.
    fn data(&self) -> Option<&Vec<u8>> {
        match self {
            Self::Add { data, .. } | Self::Replace { data, .. } | Self::AddInterval { data, .. } => {
                Some(data)
            }
            Self::Remove { .. } | Self::RemoveInterval { .. } => None,
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Change {
    /// Does to the elements of a set what the kernel would do.
    pub(crate) fn carry_out(&self, elements: &mut Vec<Element>) {
        let place = self.place();
        let (key, end) = match &place {
            Place::Key(key) => (key, &None),
            Place::Interval { from, end } => (from, end),
        };
        let found = elements.iter().position(|element| element.key == *key && element.end == *end);
        if let Some(found) = found {
            elements.remove(found);
        }
        if let Some(data) = self.data() {
            let (key, end, data) = (key.clone(), end.clone(), data.clone());
            elements.push(Element { key, end, data, packets: 0, bytes: 0 });
        }
    }
}

/// What becomes of a place by all changes of one call.
#[derive(Debug)]
struct Outcome {
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    replaced: bool,
}

/// What is to be deleted from a set and added to it then. The kernel makes all of it visible at once, so only
/// the difference between the beginning and the end counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    deleted: Vec<Place>,
    added: Vec<(Place, Vec<u8>)>,
}

fn difference(changes: &[&Change], mut present: HashMap<Place, Vec<u8>>) -> Difference {
    let mut outcomes: BTreeMap<Place, Outcome> = BTreeMap::new();
    for change in changes {
        let outcome = outcomes.entry(change.place()).or_insert_with_key(|place| {
            let before = present.remove(place);
            Outcome { after: before.clone(), before, replaced: false }
        });
        outcome.after = change.data().cloned();
        outcome.replaced |= change.removes();
    }
    let mut difference = Difference::default();
    for (place, Outcome { before, after, replaced }) in outcomes {
        if before == after && (before.is_none() || !replaced) {
            continue;
        }
        if before.is_some() {
            difference.deleted.push(place.clone());
        }
        if let Some(data) = after {
            difference.added.push((place, data));
        }
    }
    difference
}

fn has_intervals(changes: &[&Change]) -> bool {
    changes.iter().any(|change| matches!(change.place(), Place::Interval { .. }))
}

/// What is most likely there: whatever is removed by any of the changes, and nothing else. Where that is wrong the
/// kernel refuses. Not for intervals, of which the kernel takes
/// the beginning of one and the end of another for the same.
fn assume(changes: &[&Change]) -> HashMap<Place, Vec<u8>> {
    changes.iter().filter(|change| change.removes()).map(|change| (change.place(), Vec::new())).collect()
}

/// The kernel refuses a whole batch for what is gone or there already.
fn is_about_what_is_there(fault: &NetlinkFault) -> bool {
    let about = [Errno::NOENT, Errno::EXIST, Errno::BUSY, Errno::NOTEMPTY];
    matches!(fault, NetlinkFault::Refused { errno, .. } if about.contains(errno))
}

impl Netfilter {
    /// Changes elements, all of them or none. Changes of one element follow each other.
    ///
    /// # Errors
    /// What the kernel refused first; nothing is changed then. Without the table or set, whatever is to be
    /// removed from it is gone already, but adding is refused.
    pub fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), NetlinkFault> {
        let mut sets: BTreeMap<(&str, &str), Vec<&Change>> = BTreeMap::new();
        for change in changes {
            sets.entry((&change.table, &change.set)).or_default().push(&change.change);
        }
        let sure = sets.values().all(|changes| changes.len() <= FEW);
        match self.attempt(&sets, !sure) {
            Err(fault) if !sure && is_about_what_is_there(&fault) => self.attempt(&sets, false),
            result => result,
        }
    }

    /// Changes what has to be changed, in one batch. What is there is looked up, or `assumed` where that
    /// takes long.
    fn attempt(
        &mut self,
        sets: &BTreeMap<(&str, &str), Vec<&Change>>,
        assumed: bool,
    ) -> Result<(), NetlinkFault> {
        let mut batch = Vec::new();
        for (&(table, set), changes) in sets {
            let present = if changes.len() <= FEW {
                self.present(table, set, changes)?
            } else if assumed && !has_intervals(changes) {
                assume(changes)
            } else {
                self.all_present(table, set, changes)?
            };
            let difference = difference(changes, present);
            for adding in [false, true] {
                batch.extend(wire::changes(table, set, adding, &difference)?);
            }
        }
        if batch.is_empty() { Ok(()) } else { self.send(&batch) }
    }

    fn send(&mut self, batch: &[wire::Part]) -> Result<(), NetlinkFault> {
        let around = |ends| (wire::batch_edge(ends), NLM_F_REQUEST);
        let messages = batch.iter().enumerate().map(|(place, part)| {
            let flags = NLM_F_REQUEST
                | if part.adding { NLM_F_CREATE } else { 0 }
                | if place + 1 == batch.len() { NLM_F_ACK } else { 0 };
            (part.message.clone(), flags)
        });
        let messages = std::iter::once(around(false)).chain(messages).chain([around(true)]);
        let Err(failure) = self.connection.exchange(messages, ignore::<Message>) else { return Ok(()) };
        let operation = match &failure {
            // The first message only begins the batch.
            Failure::Kernel { at, .. } => {
                at.message.checked_sub(1).and_then(|place| batch.get(place)?.about(at.offset))
            }
            _ => None,
        };
        Err(failure.about(operation.unwrap_or_else(|| "nft change elements".to_owned())))
    }

    /// All elements of a set or map in a table of the family `inet`, single keys in no order.
    ///
    /// # Errors
    /// When there is no such table or set, see [`NetlinkFault::is_missing`], or without privilege.
    pub fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, NetlinkFault> {
        let listed =
            wire::question(table, set, None).and_then(|request| self.connection.list(&request, wire::take));
        listed
            .map(wire::join)
            .map_err(|failure| failure.about(format!("nft list elements inet {table} {set}")))
    }

    /// What is there of what is about to change, one by one.
    fn present(
        &mut self,
        table: &str,
        set: &str,
        changes: &[&Change],
    ) -> Result<HashMap<Place, Vec<u8>>, NetlinkFault> {
        let mut present = HashMap::new();
        for change in changes {
            let place = change.place();
            let data = self
                .data_at(table, set, &place)
                .map_err(|failure| failure.about(format!("nft get element inet {table} {set} {place}")))?;
            present.extend(data.map(|data| (place, data)));
        }
        Ok(present)
    }

    /// Everything that is there.
    fn all_present(
        &mut self,
        table: &str,
        set: &str,
        changes: &[&Change],
    ) -> Result<HashMap<Place, Vec<u8>>, NetlinkFault> {
        let elements = match self.elements(table, set) {
            Err(fault) if fault.is_missing() => return Ok(HashMap::new()),
            elements => elements?,
        };
        let intervals = has_intervals(changes);
        let place = |key, end| if intervals { Place::Interval { from: key, end } } else { Place::Key(key) };
        Ok(elements.into_iter().map(|element| (place(element.key, element.end), element.data)).collect())
    }

    /// The data of exactly this element.
    fn data_at(&mut self, table: &str, set: &str, place: &Place) -> Result<Option<Vec<u8>>, Failure> {
        let (from, end) = match place {
            Place::Key(key) => {
                let found = self.look_up(table, set, key, false)?;
                return Ok(found.filter(|found| found.key == *key).map(|found| found.data));
            }
            Place::Interval { from, end } => (from, end),
        };
        // The kernel answers with the beginning at or before a key, and with the end at or behind it.
        let Some(beginning) = self.look_up(table, set, from, false)?.filter(|found| found.key == *from)
        else {
            return Ok(None);
        };
        let found_end = self.look_up(table, set, &neighbour(from, 1), true)?.map(|found| found.key);
        Ok((found_end == *end).then_some(beginning.data))
    }

    fn look_up(
        &mut self,
        table: &str,
        set: &str,
        key: &[u8],
        ends: bool,
    ) -> Result<Option<wire::Listed>, Failure> {
        let request = wire::question(table, set, Some((key, ends)))?;
        match self.connection.request(request, wire::take) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(Failure::Kernel { errno: Errno::NOENT, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}
