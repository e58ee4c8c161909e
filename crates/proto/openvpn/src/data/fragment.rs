//! OpenVPN's own fragmentation (`--fragment`), for paths that lose large datagrams.
//!
//! ```text
//! u32: bits 0-1 type (0 whole, 1 not last, 2 last, 3 test), 2-9 sequence, 10-14 index,
//!      15-28 size of the pieces before the last, in units of 4 bytes (on the last piece)
//! ```

use adit_tunnel::DropReason;

/// Length of the header.
pub(super) const FRAGMENT_HEADER: usize = 4;

const MAX_PIECES: usize = 32;
const MAX_PARTIAL: usize = 25;
const UNIT: usize = 4;
const TTL_SECONDS: u32 = 10;
/// Larger packets do not exist inside a tunnel.
const MAX_PACKET: usize = 65_535;

const WHOLE: u32 = 0;
const NOT_LAST: u32 = 1;
const LAST: u32 = 2;

/// Header of a packet that is not cut.
pub(super) const WHOLE_HEADER: [u8; FRAGMENT_HEADER] = [0; FRAGMENT_HEADER];

/// Cuts `len` bytes into pieces of at most `limit`: the size of all but the last, a multiple of 4, and how many.
/// `None` when the packet fits or would need too many pieces.
pub(super) fn cut(len: usize, limit: usize) -> Option<(usize, usize)> {
    let limit = limit / UNIT * UNIT;
    if len <= limit || limit == 0 {
        return None;
    }
    let count = len.div_ceil(limit);
    // Even pieces: the last is not a few bytes long.
    let size = len.div_ceil(count).next_multiple_of(UNIT);
    (count <= MAX_PIECES).then_some((size, count))
}

/// The header of piece `index` of `count`.
pub(super) fn header(sequence: u8, index: usize, count: usize, size: usize) -> [u8; FRAGMENT_HEADER] {
    let last = index + 1 == count;
    let mut word = if last { LAST } else { NOT_LAST };
    word |= u32::from(sequence) << 2;
    word |= (index as u32) << 10;
    if last {
        word |= ((size / UNIT) as u32) << 15;
    }
    word.to_be_bytes()
}

#[derive(Debug)]
struct Partial {
    sequence: u8,
    born: u32,
    pieces: [Option<Vec<u8>>; MAX_PIECES],
    /// Index of the last piece and the size of the others, once known.
    end: Option<(usize, usize)>,
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The content behind the header is a whole packet.
    Whole,
    /// More pieces are needed.
    Incomplete,
    /// The packet.
    Complete(Vec<u8>),
}

/// Puts pieces together; holds at most 25 incomplete packets, the oldest gives way.
#[derive(Debug, Default)]
pub(super) struct Reassembler {
    partial: Vec<Partial>,
}

impl Reassembler {
    /// Takes the content of a data packet: header and piece. `now` in seconds.
    pub(super) fn push(&mut self, content: &[u8], now: u32) -> Result<Step, DropReason> {
        let (header, piece) = content.split_first_chunk().ok_or(DropReason::Fragment)?;
        let word = u32::from_be_bytes(*header);
        let sequence = (word >> 2) as u8;
        let index = (word >> 10 & 0x1f) as usize;
        match word & 3 {
            WHOLE => return Ok(Step::Whole),
            NOT_LAST | LAST => {}
            _ => return Err(DropReason::Fragment),
        }
        let end = (word & 3 == LAST).then_some((index, (word >> 15 & 0x3fff) as usize * UNIT));
        self.partial.retain(|p| now.saturating_sub(p.born) < TTL_SECONDS);
        let at = match self.partial.iter().position(|p| p.sequence == sequence) {
            Some(at) => at,
            None => {
                if self.partial.len() == MAX_PARTIAL {
                    self.partial.remove(0);
                }
                self.partial.push(Partial { sequence, born: now, pieces: Default::default(), end: None });
                self.partial.len() - 1
            }
        };
        let Some(partial) = self.partial.get_mut(at) else {
            return Err(DropReason::Fragment);
        };
        let Some(slot) = partial.pieces.get_mut(index) else {
            return Err(DropReason::Fragment);
        };
        *slot = Some(piece.to_vec());
        partial.end = end.or(partial.end);
        match partial.assemble() {
            Ok(None) => Ok(Step::Incomplete),
            Ok(Some(packet)) => {
                self.partial.remove(at);
                Ok(Step::Complete(packet))
            }
            Err(reason) => {
                self.partial.remove(at);
                Err(reason)
            }
        }
    }
}

impl Partial {
    fn assemble(&self) -> Result<Option<Vec<u8>>, DropReason> {
        let Some((last, size)) = self.end else {
            return Ok(None);
        };
        let pieces = self.pieces.get(..=last).ok_or(DropReason::Fragment)?;
        if pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let mut packet = Vec::with_capacity((last + 1) * size);
        for (index, piece) in pieces.iter().flatten().enumerate() {
            if index < last && piece.len() != size || packet.len() + piece.len() > MAX_PACKET {
                return Err(DropReason::Fragment);
            }
            packet.extend_from_slice(piece);
        }
        Ok(Some(packet))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(packet: &[u8], limit: usize, sequence: u8) -> Vec<Vec<u8>> {
        let Some((size, count)) = cut(packet.len(), limit) else {
            return vec![[&WHOLE_HEADER, packet].concat()];
        };
        packet
            .chunks(size)
            .enumerate()
            .map(|(index, piece)| [&header(sequence, index, count, size), piece].concat())
            .collect()
    }

    #[test]
    fn incomplete_packets_are_bounded_and_forgotten() {
        let mut reassembler = Reassembler::default();
        for sequence in 0..=255u8 {
            let first = &pieces(&[7; 3000], 1000, sequence)[0];
            assert_eq!(reassembler.push(first, 0), Ok(Step::Incomplete));
        }
        assert_eq!(reassembler.partial.len(), MAX_PARTIAL);
        let _ = reassembler.push(&pieces(&[7; 3000], 1000, 9)[0], 11);
        assert_eq!(reassembler.partial.len(), 1);
    }

    #[test]
    fn pieces_of_wrong_size_do_not_make_a_packet() {
        let mut reassembler = Reassembler::default();
        let mut parts = pieces(&[7; 2500], 1000, 1);
        parts[1].pop();
        reassembler.push(&parts[0], 0).unwrap();
        reassembler.push(&parts[1], 0).unwrap();
        assert_eq!(reassembler.push(&parts[2], 0), Err(DropReason::Fragment));
        assert!(reassembler.partial.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_cut_comes_back_together_in_any_order(
            packet in proptest::collection::vec(any::<u8>(), 1..9000),
            limit in 300usize..1500,
            swaps in proptest::collection::vec((0usize..40, 0usize..40), 0..40),
        ) {
            prop_assume!(packet.len().div_ceil(limit / 4 * 4) <= MAX_PIECES);
            let mut parts = pieces(&packet, limit, 3);
            prop_assert!(parts.iter().all(|p| p.len() <= limit + FRAGMENT_HEADER));
            let count = parts.len();
            for (a, b) in swaps {
                parts.swap(a % count, b % count);
            }
            let mut reassembler = Reassembler::default();
            let steps: Vec<_> = parts.iter().map(|p| reassembler.push(p, 0).unwrap()).collect();
            match steps.last().unwrap() {
                Step::Whole => prop_assert_eq!(&parts[0][FRAGMENT_HEADER..], &packet[..]),
                Step::Complete(got) => prop_assert_eq!(got, &packet),
                Step::Incomplete => prop_assert!(false, "not complete"),
            }
        }

        #[test]
        fn any_content_is_survived(contents in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..60), 0..40))
        {
            let mut reassembler = Reassembler::default();
            for (now, content) in contents.iter().enumerate() {
                let _ = reassembler.push(content, now as u32);
            }
            prop_assert!(reassembler.partial.len() <= MAX_PARTIAL);
        }
    }
}
