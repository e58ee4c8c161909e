//! The program that chooses the socket.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::bpf::asm::{Assembler, Helper, Label, Op, Reg};
use crate::services::Transport;

/// Places in the map of sockets: a family and a protocol, added.
pub(super) const IPV4: u32 = 0;
pub(super) const IPV6: u32 = 2;
pub(super) const TCP: u32 = 0;
pub(super) const UDP: u32 = 1;

/// The number that keys and places are made with.
pub(super) fn number_of(transport: Transport) -> u32 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    }
}

/// What a program takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Only {
    Everything,
    AllIpv4,
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
    Interface(u32),
}

/// What a program is made of; maps by their descriptors.
pub(super) struct Parts {
    pub(super) only: Only,
    pub(super) ports: i32,
    pub(super) spared: i32,
    pub(super) sockets: i32,
}

/// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;
const INTERFACE: i16 = 64;

/// Places on the stack: the key of a service, and an index.
const KEY: i16 = -24;
const INDEX: i16 = -4;

/// `::ffff:0:0`, its third word.
const MAPPED: i32 = i32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Whatever the program says, the packet passes; it only says to which socket.
const PASS: i32 = 1;

/// Captures nothing.
pub(super) fn nothing() -> Vec<[u8; 8]> {
    let mut code = Assembler::default();
    code.set(Reg::R0, PASS);
    code.exit();
    code.finish()
}

/// R6 is the context, R7 the place of the socket, R8 the dialled port.
pub(super) fn build(parts: &Parts) -> Vec<[u8; 8]> {
    let mut code = Assembler::default();
    let (pass, chosen) = (code.label(), code.label());
    code.copy(Reg::R6, Reg::R1);
    if let Only::Interface(index) = parts.only {
        code.load32(Reg::R2, Reg::R6, INTERFACE);
        code.jump_unless_equal(Reg::R2, index.cast_signed(), pass);
    }
    family_and_address(&mut code, parts.only, pass);

    let (known, udp) = (code.label(), code.label());
    code.load32(Reg::R2, Reg::R6, PROTOCOL);
    code.jump_if_equal(Reg::R2, libc::IPPROTO_UDP, udp);
    code.jump_unless_equal(Reg::R2, libc::IPPROTO_TCP, pass);
    code.jump(known);
    code.place(udp);
    code.compute(Op::Add, Reg::R7, UDP.cast_signed());
    code.place(known);

    // Is it captured? 64 ports share an entry; the protocols follow each other.
    code.load32(Reg::R8, Reg::R6, LOCAL_PORT);
    code.copy(Reg::R2, Reg::R7);
    code.compute(Op::And, Reg::R2, 1);
    code.compute(Op::LeftShift, Reg::R2, super::WORDS.trailing_zeros().cast_signed());
    code.copy(Reg::R3, Reg::R8);
    code.compute(Op::RightShift, Reg::R3, super::WORD.trailing_zeros().cast_signed());
    code.combine(Op::Add, Reg::R2, Reg::R3);
    code.store32(Reg::R10, INDEX, Reg::R2);
    look_up(&mut code, parts.ports, INDEX);
    code.jump_if_null(Reg::R0, pass);
    code.load64(Reg::R1, Reg::R0, 0);
    code.load64(Reg::R9, Reg::R0, 8);
    code.copy(Reg::R2, Reg::R8);
    code.compute(Op::And, Reg::R2, i32::from(super::WORD) - 1);
    code.combine(Op::RightShift, Reg::R1, Reg::R2);
    code.compute(Op::And, Reg::R1, 1);
    code.jump_if_equal(Reg::R1, 0, pass);
    code.combine(Op::RightShift, Reg::R9, Reg::R2);
    code.compute(Op::And, Reg::R9, 1);
    code.jump_if_equal(Reg::R9, 0, chosen);

    spared(&mut code, parts.spared, pass);

    code.place(chosen);
    code.store32(Reg::R10, INDEX, Reg::R7);
    look_up(&mut code, parts.sockets, INDEX);
    code.jump_if_null(Reg::R0, pass);
    code.copy(Reg::R9, Reg::R0);
    code.copy(Reg::R1, Reg::R6);
    code.copy(Reg::R2, Reg::R0);
    code.set(Reg::R3, 0);
    code.call(Helper::SocketAssign);
    code.copy(Reg::R1, Reg::R9);
    code.call(Helper::SocketRelease);
    code.place(pass);
    code.set(Reg::R0, PASS);
    code.exit();
    code.finish()
}

/// Lets pass what is not for the wanted address, puts the family into R7 and the address into the key.
fn family_and_address(code: &mut Assembler, only: Only, pass: Label) {
    code.load32(Reg::R2, Reg::R6, FAMILY);
    match only {
        Only::Ipv4(address) => {
            code.jump_unless_equal(Reg::R2, libc::AF_INET, pass);
            ipv4(code, Some(address), pass);
        }
        Only::AllIpv4 => {
            code.jump_unless_equal(Reg::R2, libc::AF_INET, pass);
            ipv4(code, None, pass);
        }
        Only::Ipv6(address) => {
            code.jump_unless_equal(Reg::R2, libc::AF_INET6, pass);
            ipv6(code, Some(address), pass);
        }
        Only::Everything | Only::Interface(_) => {
            let (v4, done) = (code.label(), code.label());
            code.jump_if_equal(Reg::R2, libc::AF_INET, v4);
            code.jump_unless_equal(Reg::R2, libc::AF_INET6, pass);
            ipv6(code, None, pass);
            code.jump(done);
            code.place(v4);
            ipv4(code, None, pass);
            code.place(done);
        }
    }
}

fn ipv4(code: &mut Assembler, wanted: Option<Ipv4Addr>, pass: Label) {
    code.set(Reg::R7, IPV4.cast_signed());
    code.load32(Reg::R2, Reg::R6, LOCAL_IP4);
    if let Some(address) = wanted {
        code.jump_unless_equal(Reg::R2, i32::from_ne_bytes(address.octets()), pass);
    }
    code.store32_number(Reg::R10, KEY, 0);
    code.store32_number(Reg::R10, KEY + 4, 0);
    code.store32_number(Reg::R10, KEY + 8, MAPPED);
    code.store32(Reg::R10, KEY + 12, Reg::R2);
}

fn ipv6(code: &mut Assembler, wanted: Option<Ipv6Addr>, pass: Label) {
    code.set(Reg::R7, IPV6.cast_signed());
    let wanted = wanted.map(words);
    for (word, offset) in [0, 4, 8, 12].into_iter().enumerate() {
        code.load32(Reg::R2, Reg::R6, LOCAL_IP6 + offset);
        if let Some(value) = wanted.and_then(|words| words.get(word).copied()) {
            code.jump_unless_equal(Reg::R2, value, pass);
        }
        code.store32(Reg::R10, KEY + offset, Reg::R2);
    }
}

/// Lets pass what a service of this machine is bound to, by its address or by all of them.
fn spared(code: &mut Assembler, map: i32, pass: Label) {
    code.copy(Reg::R2, Reg::R7);
    code.compute(Op::And, Reg::R2, 1);
    code.compute(Op::LeftShift, Reg::R2, 16);
    code.combine(Op::Add, Reg::R2, Reg::R8);
    code.store32(Reg::R10, KEY + 16, Reg::R2);
    look_up(code, map, KEY);
    code.jump_unless_null(Reg::R0, pass);
    // The first two words of a mapped address are zero as they are, and the third stays.
    let v4 = code.label();
    code.store32_number(Reg::R10, KEY + 12, 0);
    code.copy(Reg::R2, Reg::R7);
    code.compute(Op::And, Reg::R2, IPV6.cast_signed());
    code.jump_if_equal(Reg::R2, 0, v4);
    for word in 0..3 {
        code.store32_number(Reg::R10, KEY + 4 * word, 0);
    }
    code.place(v4);
    look_up(code, map, KEY);
    code.jump_unless_null(Reg::R0, pass);
}

/// R0 = what `map` has for the key on the stack.
fn look_up(code: &mut Assembler, map: i32, key: i16) {
    code.load_map(Reg::R1, map);
    code.copy(Reg::R2, Reg::R10);
    code.compute(Op::Add, Reg::R2, key.into());
    code.call(Helper::MapLookup);
}

fn words(address: Ipv6Addr) -> [i32; 4] {
    let octets = address.octets();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = bytes.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    }
    words
}
