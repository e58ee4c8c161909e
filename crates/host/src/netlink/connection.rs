//! Questions to a part of the kernel that speaks netlink, whichever messages it speaks in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL,
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::NetlinkFault;
use crate::errno::uninterrupted;
use crate::socket::{set_int, set_send_buffer};

/// The kernel fills datagrams of a list up to the room it was last given, and to no more than this.
const DUMP_ROOM: usize = 32 << 10;

/// Adds to what was gathered what one message of an answer says.
pub(crate) trait Take<M, T>: FnMut(M, &mut Vec<T>) -> Result<(), DecodeError> {}
impl<M, T, F: FnMut(M, &mut Vec<T>) -> Result<(), DecodeError>> Take<M, T> for F {}

/// A socket to one part of the kernel, in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    sequence: u32,
}

/// What the kernel said to a request.
#[derive(Debug)]
pub(crate) enum Failure {
    Kernel {
        errno: Errno,
        /// The kernel's own words in brackets, or nothing.
        detail: String,
        at: Spot,
    },
    Answer(String),
    /// What was listed changed meanwhile.
    Interrupted,
}

/// What the kernel's complaint is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Spot {
    /// The place of the message among those sent together, from 0.
    pub(crate) message: usize,
    /// The byte in it at which the attribute begins, or 0.
    pub(crate) offset: usize,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Kernel { errno, detail: String::new(), at: Spot::default() }
    }
}

impl Failure {
    pub(crate) fn about(self, operation: String) -> NetlinkFault {
        match self {
            Self::Kernel { errno, detail, .. } => NetlinkFault::Refused { operation, errno, detail },
            Self::Answer(problem) => NetlinkFault::Answer { operation, problem },
            Self::Interrupted => {
                NetlinkFault::Answer { operation, problem: "it kept changing while it was read".to_owned() }
            }
        }
    }
}

impl Connection {
    /// Opens a connection to the calling thread's network namespace; no protocol is protocol 0, rtnetlink.
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkFault> {
        let connect = || {
            let socket = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                protocol,
            )?;
            // Error messages with the kernel's words, and without a copy of the request. Both are a courtesy.
            let _ = set_int(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
            let _ = set_int(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
            Ok(socket)
        };
        let socket = connect()
            .map_err(|errno: Errno| Failure::from(errno).about("open a netlink socket".to_owned()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Lists things; starts again when they change meanwhile.
    pub(crate) fn list<M, T>(&mut self, request: &M, mut take: impl Take<M, T>) -> Result<Vec<T>, Failure>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let mut attempts = 0;
        loop {
            match self.exchange([(request.clone(), NLM_F_REQUEST | NLM_F_DUMP)], &mut take) {
                Err(Failure::Interrupted) if attempts < 10 => attempts += 1,
                result => return result,
            }
        }
    }

    /// Asks for or changes one thing.
    pub(crate) fn request<M, T>(&mut self, request: M, take: impl Take<M, T>) -> Result<Vec<T>, Failure>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.exchange([(request, NLM_F_REQUEST | NLM_F_ACK)], take)
    }

    /// Adds one thing that must not be there.
    pub(crate) fn create<M>(&mut self, request: M) -> Result<(), Failure>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.exchange([(request, flags)], ignore).map(drop)
    }

    /// Sends messages with their flags in one datagram, and gathers the answers up to the one that ends them:
    /// the first refusal of any message, or what ends the last one that asks for an answer.
    pub(crate) fn exchange<M, T>(
        &mut self,
        messages: impl IntoIterator<Item = (M, u16)>,
        mut take: impl Take<M, T>,
    ) -> Result<Vec<T>, Failure>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut bytes = Vec::new();
        let mut expected = Expected { first: self.sequence.wrapping_add(1), sent: 0, last: 0 };
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if flags & (NLM_F_ACK | NLM_F_DUMP) != 0 {
                expected.last = expected.sent;
            }
            expected.sent += 1;
            append(&mut bytes, message, flags, self.sequence);
        }
        self.send(&bytes)?;
        let mut gathered = Gathered { answers: Vec::new(), interrupted: false };
        let ended = loop {
            match self.receive(RecvFlags::empty()).map_err(Failure::from) {
                Err(failure) => break Err(failure),
                Ok(datagram) => match read(&datagram, &expected, &mut gathered, &mut take) {
                    Ok(false) => {}
                    Ok(true) => break Ok(gathered.answers),
                    Err(failure) => break Err(failure),
                },
            }
        };
        if ended.is_err() {
            self.drain();
        }
        ended
    }

    /// A datagram the socket has no room for gets it, as far as this process may.
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let send = || uninterrupted(|| rustix::net::send(&self.socket, bytes, SendFlags::empty()));
        match send() {
            Err(Errno::MSGSIZE) => {
                set_send_buffer(&self.socket, bytes.len())?;
                send().map(drop)
            }
            result => result.map(drop),
        }
    }

    /// One datagram from the kernel, however long.
    fn receive(&self, flags: RecvFlags) -> Result<Vec<u8>, Errno> {
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC | flags;
        let (_, length) = uninterrupted(|| rustix::net::recv(&self.socket, &mut [0; 0][..], peek))?;
        let mut buffer = vec![0; length.max(DUMP_ROOM)];
        let (_, length) = uninterrupted(|| rustix::net::recv(&self.socket, &mut buffer[..], flags))?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Throws away the rest of an exchange that is given up: a list has to be read to its end before the
    /// kernel begins another, and what is left of many refusals would keep out the next answer.
    fn drain(&self) {
        loop {
            match self.receive(RecvFlags::DONTWAIT) {
                // Something was lost, and something may be left.
                Ok(_) | Err(Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes nothing from answers, where only their end counts.
pub(crate) fn ignore<M>(_: M, _: &mut Vec<()>) -> Result<(), DecodeError> {
    Ok(())
}

fn append<M: NetlinkSerializable>(bytes: &mut Vec<u8>, message: M, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut own = vec![0; message.buffer_len()];
    message.serialize(&mut own);
    bytes.extend_from_slice(&own);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Whose answers are waited for.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// The sequence number of the first message.
    first: u32,
    /// How many messages there are.
    sent: u32,
    /// The place of the one whose answer is the last.
    last: u32,
}

#[derive(Debug)]
struct Gathered<T> {
    answers: Vec<T>,
    interrupted: bool,
}

/// Reads a datagram; says whether it has the end of the exchange.
fn read<M: NetlinkDeserializable, T>(
    datagram: &[u8],
    expected: &Expected,
    gathered: &mut Gathered<T>,
    take: &mut impl Take<M, T>,
) -> Result<bool, Failure> {
    let unreadable = |error: DecodeError| Failure::Answer(error.to_string());
    let mut rest = datagram;
    while !rest.is_empty() {
        let answer = NetlinkMessage::<M>::deserialize(rest).map_err(unreadable)?;
        let length = (answer.header.length as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
        let place = answer.header.sequence_number.wrapping_sub(expected.first);
        if place >= expected.sent {
            // The end of an exchange that was given up.
            continue;
        }
        gathered.interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => take(inner, &mut gathered.answers).map_err(unreadable)?,
            NetlinkPayload::Error(error) => match error.code {
                Some(code) => return Err(refusal(code.get(), &error, place)),
                None if place == expected.last => return Ok(true),
                None => {}
            },
            NetlinkPayload::Done(_) if gathered.interrupted => return Err(Failure::Interrupted),
            NetlinkPayload::Done(done) if done.code < 0 => return Err(errno(done.code).into()),
            NetlinkPayload::Done(_) => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

/// The error of a code as messages have it, which is negative and one that exists.
fn errno(code: i32) -> Errno {
    match code.unsigned_abs() {
        known @ 1..=4095 => Errno::from_raw_os_error(known.cast_signed()),
        _ => Errno::IO,
    }
}

fn refusal(code: i32, error: &ErrorMessage, place: u32) -> Failure {
    const MESSAGE: u16 = 1;
    const OFFSET: u16 = 2;
    let mut at = Spot { message: place as usize, offset: 0 };
    let mut detail = String::new();
    // Behind the request's header.
    for attribute in NlasIterator::new(error.header.get(16..).unwrap_or_default()).flatten() {
        match (attribute.kind(), attribute.value()) {
            (MESSAGE, value) => {
                let text = String::from_utf8_lossy(value);
                let text = text.trim_end_matches(['\0', '.']);
                if !text.is_empty() {
                    detail = format!(" ({text})");
                }
            }
            (OFFSET, &[a, b, c, d]) => at.offset = u32::from_ne_bytes([a, b, c, d]) as usize,
            _ => {}
        }
    }
    Failure::Kernel { errno: errno(code), detail, at }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    use super::*;
    use crate::netfilter::{Message, Netfilter, attribute};
    use crate::netns::TemporaryNetns;
    use crate::testing::hostile;

    const EXPECTED: Expected = Expected { first: 7, sent: 3, last: 1 };

    /// A message as the kernel writes it: kind, sequence number, what follows the header.
    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        header.flags = flags;
        header.sequence_number = sequence;
        header.length = u32::try_from(header.buffer_len() + body.len()).unwrap();
        let mut bytes = vec![0; header.buffer_len()];
        header.emit(&mut bytes);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn read_all(datagram: &[u8]) -> Result<(bool, usize), Failure> {
        let mut gathered = Gathered { answers: Vec::new(), interrupted: false };
        let mut take = |message: Message, all: &mut Vec<Message>| {
            all.push(message);
            Ok(())
        };
        let ended = read(datagram, &EXPECTED, &mut gathered, &mut take)?;
        Ok((ended, gathered.answers.len()))
    }

    /// An error or an acknowledgement, with the header it is about and attributes.
    fn error(code: i32, sequence: u32, attributes: &[u8]) -> Vec<u8> {
        message(2, 0, sequence, &[&code.to_ne_bytes()[..], &[0; 16], attributes].concat())
    }

    #[test]
    fn only_the_awaited_acknowledgement_ends_an_exchange() {
        let answer = message(0xa0c, 0, 8, &[1, 0, 0, 0]);
        let others = [error(0, 7, &[]), error(-5, 6, &[]), error(0, 10, &[]), answer].concat();

        assert_eq!(read_all(&others).unwrap(), (false, 1));
        assert_eq!(read_all(&[others, error(0, 8, &[])].concat()).unwrap(), (true, 1));
    }

    #[test]
    fn a_refusal_says_which_message_and_where_and_why() {
        let attributes = [attribute(1, *b"No.\0"), attribute(2, 44u32.to_ne_bytes())];
        let attributes = crate::netfilter::write(&attributes);

        let failure = read_all(&error(-17, 9, &attributes)).unwrap_err();

        let Failure::Kernel { errno, detail, at } = failure else { panic!("{failure:?}") };
        assert_eq!((errno, detail.as_str(), at), (Errno::EXIST, " (No)", Spot { message: 2, offset: 44 }));
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_not_taken() {
        let datagram =
            [message(0xa0c, NLM_F_DUMP_INTR, 8, &[1, 0, 0, 0]), message(3, 0, 8, &0i32.to_ne_bytes())];
        assert!(matches!(read_all(&datagram.concat()), Err(Failure::Interrupted)));
    }

    #[test]
    fn what_was_given_up_does_not_hinder_the_next_exchange() {
        TemporaryNetns::create("adit-connection").unwrap().run_in(|| {
            let mut netfilter = Netfilter::open().unwrap();
            // Refused a thousand times, which is more than the socket has room for.
            let unknown = Message { kind: 10 << 8 | 200, family: 1, ..Message::default() };
            let many = (0..1000).map(|_| (unknown.clone(), NLM_F_REQUEST | NLM_F_ACK));
            let refused = netfilter.connection.exchange(many, ignore);
            assert!(matches!(refused, Err(Failure::Kernel { .. })), "{refused:?}");

            // The answer is understood, and what is made of it is not.
            let misread = netfilter.connection.exchange(
                [(Message { kind: 1 << 8 | 5, ..Message::default() }, NLM_F_REQUEST | NLM_F_ACK)],
                |_: Message, _: &mut Vec<()>| Err("no".into()),
            );
            assert!(matches!(misread, Err(Failure::Answer(_))), "{misread:?}");

            assert_eq!(netfilter.connection_usage().unwrap().count, 0);
        });
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic(
            kinds in prop::collection::vec((0u16..5, any::<i32>(), 5u32..12), 0..4),
            body in hostile::bytes(),
            flips in hostile::flips(),
        ) {
            let datagram: Vec<u8> = kinds
                .into_iter()
                .flat_map(|(kind, code, sequence)| {
                    message(kind, 0, sequence, &[&code.to_ne_bytes()[..], &[0; 16], &body].concat())
                })
                .collect();
            let _ = read_all(&datagram);
            let _ = read_all(&hostile::changed(datagram, &flips));
            let _ = read_all(&body);
        }
    }
}
