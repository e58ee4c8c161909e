//! The array of message headers that `recvmmsg` and `sendmmsg` take.
#![expect(unsafe_code, reason = "message headers hold pointers")]

use std::net::{IpAddr, SocketAddr};

use super::ancillary::{Control, Name};

/// Headers for a fixed number of messages, with room for their addresses and control messages.
pub(super) struct Messages {
    pub(super) names: Box<[Name]>,
    pub(super) controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    pub(super) headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the raw pointers in `vectors` and `headers` are written by `point` right before each system call
// and never followed outside of one, so they may be stale whenever this value changes threads.
unsafe impl Send for Messages {}

impl Messages {
    pub(super) fn new(count: usize) -> Self {
        // SAFETY: all fields are numbers and pointers, for which all bits zero is a value: no data, no name.
        let header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            names: vec![Name::EMPTY; count].into(),
            controls: vec![Control::EMPTY; count].into(),
            vectors: vec![vector; count].into(),
            headers: vec![header; count].into(),
        }
    }

    /// Points one header after the other at the given datagrams; returns how many there are.
    pub(super) fn point<'a>(&mut self, parts: impl Iterator<Item = Part<'a>>) -> usize {
        let slots = self.headers.iter_mut().zip(&mut self.vectors);
        let slots = slots.zip(self.names.iter_mut().zip(&mut self.controls));
        let mut count = 0;
        for (((header, vector), (name, control)), part) in slots.zip(parts) {
            let (name_len, control_len) = match part.envelope {
                Envelope::Receive => (Name::LEN, Control::LEN),
                Envelope::Peer => (0, 0),
                Envelope::To(address) => address.write(name, control),
            };
            *vector = libc::iovec { iov_base: part.bytes.as_mut_ptr().cast(), iov_len: part.bytes.len() };
            let message = &mut header.msg_hdr;
            message.msg_iov = vector;
            message.msg_iovlen = 1;
            // A name or control message of no length is none, wherever it points.
            message.msg_name = std::ptr::from_mut(name).cast();
            message.msg_namelen = name_len as libc::socklen_t;
            message.msg_control = std::ptr::from_mut(control).cast();
            message.msg_controllen = control_len as _;
            message.msg_flags = 0;
            count += 1;
        }
        count
    }

    /// Bytes of the message number `index`, as it was pointed to.
    pub(super) fn length(&self, index: usize) -> usize {
        self.vectors.get(index).map_or(0, |vector| vector.iov_len)
    }
}

/// One message for [`Messages::point`].
pub(super) struct Part<'a> {
    /// The datagram, or the room for one.
    pub(super) bytes: &'a mut [u8],
    pub(super) envelope: Envelope,
}

/// What stands on a message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Envelope {
    /// Nothing yet: there is room for what the kernel writes on it.
    Receive,
    /// It goes to the peer that the socket is connected to.
    Peer,
    /// It goes there.
    To(Address),
}

/// From where to where a datagram is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) remote: SocketAddr,
    pub(super) local: Option<IpAddr>,
    pub(super) v6_socket: bool,
    /// ECN bits.
    pub(super) ecn: u8,
    /// Bytes of each datagram that the kernel is to make of it; 0: it is one.
    pub(super) segment: u16,
}

impl Address {
    /// Writes name and control messages; returns their lengths.
    pub(super) fn write(&self, name: &mut Name, control: &mut Control) -> (usize, usize) {
        (name.write(self.remote, self.v6_socket), control.write(self))
    }
}
