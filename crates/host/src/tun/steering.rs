//! Which queue of an interface a packet comes out of: a hash of its destination, in the kernel and here.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use crate::bpf::asm::{Assembler, Op, Reg};
use crate::bpf::load_socket_filter;

/// Spreads what differs anywhere in an address over the bits that the remainder looks at: 2^32 less the golden
/// ratio's share of it (Knuth, multiplicative hashing), as a positive number.
const FACTOR: i32 = 0x61c8_8647;

/// The queue, of `queues`, that packets for `destination` come out of on an interface that is
/// [steered](super::Tun::steer). 0 when there is none.
///
/// Queues count in the order in which they were opened; when one closes, the last one takes its number.
#[must_use]
pub fn queue_of(destination: IpAddr, queues: usize) -> usize {
    let words = match destination {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let [a, b, c, d] = [96, 64, 32, 0].map(|shift| (v6.to_bits() >> shift) as u32);
            a ^ b ^ c ^ d
        }
    };
    let folded = words ^ (words >> 16);
    let hash = ((u64::from(folded) * u64::from(FACTOR.unsigned_abs())) >> 16) as u16;
    usize::from(hash).checked_rem(queues).unwrap_or_default()
}

/// [`queue_of`] as a program, but for the remainder, which is the kernel's.
pub(super) fn load() -> io::Result<OwnedFd> {
    load_socket_filter(&program(), b"adit_steering")
}

fn program() -> Vec<[u8; 8]> {
    let mut code = Assembler::default();
    let (v4, hash, none) = (code.label(), code.label(), code.label());
    code.copy(Reg::R6, Reg::R1);
    code.load_packet_byte(0);
    code.compute(Op::RightShift, Reg::R0, 4);
    code.jump_if_equal(Reg::R0, 4, v4);
    code.jump_unless_equal(Reg::R0, 6, none);
    code.set(Reg::R7, 0);
    for word in [24, 28, 32, 36] {
        code.load_packet32(word);
        code.combine(Op::Xor, Reg::R7, Reg::R0);
    }
    code.jump(hash);
    code.place(v4);
    code.load_packet32(16);
    code.copy(Reg::R7, Reg::R0);
    code.place(hash);
    code.copy(Reg::R8, Reg::R7);
    code.compute(Op::RightShift, Reg::R8, 16);
    code.combine(Op::Xor, Reg::R7, Reg::R8);
    code.compute(Op::Multiply, Reg::R7, FACTOR);
    code.compute(Op::RightShift, Reg::R7, 16);
    code.compute(Op::And, Reg::R7, 0xffff);
    code.copy(Reg::R0, Reg::R7);
    code.exit();
    code.place(none);
    code.set(Reg::R0, 0);
    code.exit();
    code.finish()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn neighbouring_addresses_and_networks_are_spread_evenly() {
        type Address = fn(u32) -> IpAddr;
        let kinds: [Address; 4] = [
            |n| Ipv4Addr::from_bits(0x0a58_0000 + n).into(),
            |n| Ipv4Addr::from_bits(0x0a00_0001 + (n << 16)).into(),
            |n| Ipv6Addr::from_bits((0xfd88 << 112) + u128::from(n)).into(),
            |n| Ipv6Addr::from_bits((0xfd88 << 112) + (u128::from(n) << 64) + 1).into(),
        ];
        for (kind, address) in kinds.into_iter().enumerate() {
            for queues in [2, 3, 4, 8] {
                let mut counts = vec![0; queues];
                (0..256).for_each(|n| counts[queue_of(address(n), queues)] += 1);
                let fair = 256 / queues;
                let even = counts.iter().all(|count| (fair * 3 / 4..=fair * 5 / 4 + 1).contains(count));
                assert!(even, "kind {kind}: {counts:?}");
            }
        }
        assert_eq!(queue_of(IpAddr::from([10, 0, 0, 1]), 0), 0);
    }
}
