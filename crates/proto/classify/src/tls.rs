//! TLS's ClientHello, whole or in pieces, also over several records.

use std::fmt;

use crate::answer::Answer;

/// The most bytes of a TCP beginning that are looked at. Today's largest hellos, with post-quantum key
/// shares, have about two thousand.
pub(crate) const LOOKS_AT: usize = 3072;

const MAX_RECORD: usize = 16_384;
const SERVER_NAME: [u8; 2] = [0, 0];
const ALPN: [u8; 2] = [0, 16];

/// What is asked of a ClientHello besides being one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsCondition {
    /// The server name (SNI) the client asks for.
    pub server_name: Option<ServerName>,
    /// An application protocol (ALPN) that is among those the client offers.
    pub alpn: Option<String>,
}

/// Server names to match, without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// This name.
    Exact(String),
    /// Every name below this one, at any depth; not this one itself. Written `*.example.com`.
    Below(String),
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl fmt::Display for TlsCondition {
    /// As in a named probe.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls")?;
        if let Some(name) = &self.server_name {
            write!(f, " sni={name}")?;
        }
        if let Some(alpn) = &self.alpn {
            write!(f, " alpn={alpn}")?;
        }
        Ok(())
    }
}

impl ServerName {
    fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(own) => name.eq_ignore_ascii_case(own.as_bytes()),
            Self::Below(parent) => {
                let parent = parent.as_bytes();
                name.len().checked_sub(parent.len() + 1).is_some_and(|below| {
                    let (head, tail) = name.split_at(below);
                    below > 0
                        && !head.starts_with(b".")
                        && tail.strip_prefix(b".").is_some_and(|tail| tail.eq_ignore_ascii_case(parent))
                })
            }
        }
    }
}

impl TlsCondition {
    /// The more is asked, the less this is: exact names, then names below others with the longest first, then
    /// protocols, then anything. With a protocol before without.
    pub(crate) fn breadth(&self) -> usize {
        let name = match &self.server_name {
            Some(ServerName::Exact(_)) => 0,
            Some(ServerName::Below(name)) => 256 - name.len().min(255),
            None => 300,
        };
        2 * name + usize::from(self.alpn.is_none())
    }

    pub(crate) fn stream(&self, bytes: &[u8]) -> Answer {
        if matches!(bytes.first(), Some(byte) if *byte != 0x16) {
            return Answer::No;
        }
        let mut buffer = [0; LOOKS_AT];
        let hello = Hello::read(bytes, &mut buffer);
        let name = self
            .server_name
            .as_ref()
            .map_or(Answer::Yes, |wanted| hello.server_name.answer(|name| wanted.matches(name)));
        let alpn = self
            .alpn
            .as_ref()
            .map_or(Answer::Yes, |wanted| hello.alpn.answer(|offered| offers(offered, wanted.as_bytes())));
        match (hello.form, name, alpn) {
            (Answer::No, ..) | (_, Answer::No, _) | (.., Answer::No) => Answer::No,
            (Answer::Yes, Answer::Yes, Answer::Yes) => Answer::Yes,
            _ => Answer::More,
        }
    }
}

/// Whether a list of protocols, each behind its length, holds `wanted`.
fn offers(mut list: &[u8], wanted: &[u8]) -> bool {
    while let Some((&len, rest)) = list.split_first() {
        let Some((protocol, rest)) = rest.split_at_checked(usize::from(len)) else { return false };
        if protocol == wanted {
            return true;
        }
        list = rest;
    }
    false
}

/// A part of a hello.
enum Found<'a> {
    /// Not seen yet.
    Open,
    /// It is not there.
    Absent,
    Is(&'a [u8]),
}

impl Found<'_> {
    fn answer(&self, holds: impl Fn(&[u8]) -> bool) -> Answer {
        match self {
            Found::Open => Answer::More,
            Found::Absent => Answer::No,
            Found::Is(bytes) => Answer::whether(holds(bytes)),
        }
    }
}

/// What is known of a ClientHello.
struct Hello<'a> {
    /// Whether it is one.
    form: Answer,
    server_name: Found<'a>,
    /// The list of protocols.
    alpn: Found<'a>,
}

impl<'a> Hello<'a> {
    fn read(bytes: &[u8], buffer: &'a mut [u8; LOOKS_AT]) -> Self {
        let mut hello = Hello { form: Answer::More, server_name: Found::Open, alpn: Found::Open };
        let mut reader = join_records(bytes, buffer);
        let ended = match hello.fill(&mut reader) {
            Ok(()) => true,
            Err(End::Malformed) => true,
            Err(End::Waits) => !reader.more,
        };
        if ended {
            if hello.form == Answer::More {
                hello.form = Answer::No;
            }
            for part in [&mut hello.server_name, &mut hello.alpn] {
                if matches!(part, Found::Open) {
                    *part = Found::Absent;
                }
            }
        }
        hello
    }

    fn fill(&mut self, reader: &mut Reader<'a>) -> Result<(), End> {
        let &[kind] = reader.array()?;
        ensure(kind == 1)?;
        let &[high, middle, low] = reader.array()?;
        let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        // Version, random, and at least one suite and one compression method.
        ensure((41..=0xffff).contains(&len))?;
        let &[major] = reader.array()?;
        ensure(major == 3)?;
        let &[minor] = reader.array()?;
        ensure(minor <= 3)?;
        self.form = Answer::Yes;
        let mut body = reader.within(len - 2);
        body.take(32)?;
        let session = body.u8()?;
        body.take(session)?;
        let suites = body.u16()?;
        body.take(suites)?;
        let compression = body.u8()?;
        body.take(compression)?;
        let extensions = body.u16()?;
        let mut extensions = body.within(extensions);
        while extensions.room > 0 {
            let kind = *extensions.array::<2>()?;
            let len = extensions.u16()?;
            let mut extension = Reader { bytes: extensions.take(len)?, more: false, room: len };
            match kind {
                SERVER_NAME if matches!(self.server_name, Found::Open) => {
                    // A list that in practice has one entry: type 0, a host name.
                    let _list = extension.u16()?;
                    ensure(extension.u8()? == 0)?;
                    let len = extension.u16()?;
                    self.server_name = Found::Is(extension.take(len)?);
                }
                ALPN if matches!(self.alpn, Found::Open) => {
                    let len = extension.u16()?;
                    self.alpn = Found::Is(extension.take(len)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Why reading stopped.
enum End {
    /// The bytes are used up.
    Waits,
    /// They are no ClientHello.
    Malformed,
}

fn ensure(good: bool) -> Result<(), End> {
    if good { Ok(()) } else { Err(End::Malformed) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// More bytes may come after these.
    more: bool,
    /// How many bytes, there or not, belong to what is read.
    room: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], End> {
        ensure(n <= self.room)?;
        let (head, tail) = self.bytes.split_at_checked(n).ok_or(End::Waits)?;
        self.bytes = tail;
        self.room -= n;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], End> {
        self.take(N)?.try_into().map_err(|_| End::Malformed)
    }

    fn u8(&mut self) -> Result<usize, End> {
        self.array::<1>().map(|&[n]| usize::from(n))
    }

    fn u16(&mut self) -> Result<usize, End> {
        self.array().map(|n| usize::from(u16::from_be_bytes(*n)))
    }

    /// A reader of the next `room` bytes.
    fn within(&self, room: usize) -> Self {
        Reader { bytes: self.bytes, more: self.more, room: room.min(self.room) }
    }
}

/// The content of the handshake records that `bytes` begin with, up to the first that is none.
fn join_records<'a>(bytes: &[u8], buffer: &'a mut [u8; LOOKS_AT]) -> Reader<'a> {
    let mut rest = bytes.get(..LOOKS_AT).unwrap_or(bytes);
    let mut more = bytes.len() < LOOKS_AT;
    let mut used = 0;
    while !rest.is_empty() {
        let [kind, major, minor, len @ ..] = rest.get(..5).unwrap_or(rest) else {
            more &= b"\x16\x03".starts_with(rest);
            break;
        };
        let len = match len {
            &[high, low] => usize::from(u16::from_be_bytes([high, low])),
            _ => 1,
        };
        if (*kind, *major) != (0x16, 3) || *minor > 4 || !(1..=MAX_RECORD).contains(&len) {
            more = false;
            break;
        }
        let Some(content) = rest.get(5..) else { break };
        let (content, tail) = content.split_at_checked(len).unwrap_or((content, &[]));
        if let Some(room) = buffer.get_mut(used..used + content.len()) {
            room.copy_from_slice(content);
            used += content.len();
        }
        rest = tail;
    }
    Reader { bytes: buffer.get(..used).unwrap_or_default(), more, room: usize::MAX }
}
