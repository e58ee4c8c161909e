//! The UDP sockets of one family, and which of them a packet comes to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::CaptureOptions;
use crate::socket::{BindFault, choose_by};
use crate::udp::{Answering, UdpOptions, UdpSocket};

/// OpenVPN's P_DATA_V2, five bits before the number of the key.
const DATA_V2: u8 = 9;
/// WireGuard's types that name a receiver, and where its index is: response, cookie, data.
const RECEIVER_AT: [(u8, usize); 3] = [(2, 8), (3, 4), (4, 4)];

/// As many sockets as there are shards. The choice among them is the kernel's, by [`program`].
pub(super) fn open(
    address: IpAddr,
    options: &CaptureOptions,
    answering: &Arc<Answering>,
) -> Result<Vec<UdpSocket>, BindFault> {
    let count = options.shards.max(1);
    let udp = UdpOptions { reuse_port: count > 1, ..options.udp };
    let first = UdpSocket::capturing(SocketAddr::new(address, 0), &udp, Arc::clone(answering))?;
    let place = first.local_addr();
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(UdpSocket::capturing(place, &udp, Arc::clone(answering))?);
    }
    if let Some(first) = sockets.first().filter(|_| count > 1) {
        choose_by(first, &mut program(count as u32)).map_err(|errno| BindFault::new(place, "udp", errno))?;
    }
    Ok(sockets)
}

/// The shard that `datagram` comes to, of `shards`: peer-id or receiver index modulo their number. `None` when it has
/// neither.
#[must_use]
pub fn shard_of(datagram: &[u8], shards: usize) -> Option<usize> {
    let kind = *datagram.first()?;
    let number = if kind >> 3 == DATA_V2 {
        u32::from_be_bytes(*datagram.first_chunk()?) & 0x00ff_ffff
    } else {
        let (_, at) = RECEIVER_AT.into_iter().find(|(known, _)| *known == kind)?;
        u32::from_le_bytes(*datagram.get(at..)?.first_chunk()?)
    };
    (number as usize).checked_rem(shards)
}

// Instructions of classic BPF (linux/bpf_common.h); A is the accumulator, X the index register.
const LOAD_LENGTH: u16 = 0x80;
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const SHIFT_RIGHT: u16 = 0x74;
const MODULO: u16 = 0x94;
const OR_X: u16 = 0x4c;
const A_TO_X: u16 = 0x07;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const RETURN_A: u16 = 0x16;

/// No socket's number: the kernel chooses.
const KERNEL: u32 = u32::MAX;

/// [`shard_of`] in the kernel. Loads beyond a datagram's end would choose socket 0, so lengths are looked at first.
fn program(shards: u32) -> Vec<libc::sock_filter> {
    let op = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut code = vec![
        op(LOAD_LENGTH, 0),
        jump(IF_AT_LEAST, 4, 1, 0),
        op(RETURN, KERNEL),
        op(LOAD_BYTE, 0),
        op(SHIFT_RIGHT, 3),
        jump(IF_EQUAL, DATA_V2.into(), 0, 4),
        op(LOAD_WORD, 0),
        op(AND, 0x00ff_ffff),
        op(MODULO, shards),
        op(RETURN_A, 0),
    ];
    for (kind, at) in RECEIVER_AT {
        let at = at as u32;
        let mut index = vec![op(LOAD_BYTE, at + 3)];
        for byte in [at + 2, at + 1, at] {
            index.extend([op(SHIFT_LEFT, 8), op(A_TO_X, 0), op(LOAD_BYTE, byte), op(OR_X, 0)]);
        }
        index.extend([op(MODULO, shards), op(RETURN_A, 0)]);
        // To the next kind, past the index and the question whether it is there.
        let past = index.len() as u8 + 3;
        code.extend([op(LOAD_BYTE, 0), jump(IF_EQUAL, kind.into(), 0, past)]);
        code.extend([op(LOAD_LENGTH, 0), jump(IF_AT_LEAST, at + 4, 1, 0), op(RETURN, KERNEL)]);
        code.extend(index);
    }
    code.push(op(RETURN, KERNEL));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_receiver_says_which_shard() {
        assert_eq!(shard_of(&[0x48, 0, 1, 2, 7], 4), Some(0x102 % 4));
        assert_eq!(shard_of(&[0x4f, 0, 0, 7], 4), Some(3));
        assert_eq!(shard_of(&[4, 0, 0, 0, 5, 0, 0, 0], 4), Some(1));
        assert_eq!(shard_of(&[2, 0, 0, 0, 9, 9, 9, 9, 6, 0, 0, 0], 4), Some(2));
        for other in [&[][..], &[0x48, 0, 1], &[0x38, 0, 0, 1], &[4, 0, 0, 0, 5], &[1, 0, 0, 0, 5, 0, 0, 0]] {
            assert_eq!(shard_of(other, 4), None, "{other:?}");
        }
    }
}
