//! Tells by the first bytes what a UDP flow or a TCP connection is, and whose.
//!
//! Pure: no sockets, no clock, no memory of earlier flows. A [`Probe`] looks at a beginning and says No, More
//! or Yes ([`Answer`]). A [`Table`] of [`Rule`]s turns that into a [`Verdict`].
//!
//! # Order
//!
//! | rank | probes | within the rank |
//! |---|---|---|
//! | 1 | keys: OpenVPN, WireGuard | a packet verifies under one key only |
//! | 2 | protocols by form | forms do not overlap (below); of one protocol, the narrower first: a digest before tls-auth before `openvpn`; an exact server name before `*.` names, the longest first, before ALPN, before `tls` |
//! | 3 | patterns | |
//! | 4 | silence | |
//! | 5 | any | |
//!
//! Then a rule for some ports goes before a rule for all, and an earlier before a later one. Ports never do
//! more than that: a rule is not asked about other ports. A rule decides only when none before it still says
//! More, so the verdict does not depend on how TCP cut the stream.
//!
//! # How much is looked at
//!
//! Content is tested before length: a probe says No as soon as a byte that is there speaks against it. Of a
//! TCP beginning no probe looks at more than this; then it has decided:
//!
//! | probe | bytes | probe | bytes |
//! |---|---|---|---|
//! | OpenVPN, key or form | 1080 | HTTP | 24 |
//! | TLS, the largest hellos with key shares | 3072 | SSH | 9 |
//! | SOCKS4, a user name of 255 bytes | 264 | PROXY | 13 |
//! | SOCKS5, 255 methods | 257 | pattern | its own length, at most 3072 |
//!
//! Datagrams are whole, so nothing says More of them.
//!
//! # Why no two protocols can both say Yes
//!
//! UDP, where a row and a column meet: which bytes cannot be both. Where protocols leave an overlap, one of
//! them is made narrower, at the price of one genuine datagram in 2⁴⁰ or fewer (marked *).
//!
//! | | first bytes | OpenVPN | WireGuard | QUIC | DTLS | STUN | DNS |
//! |---|---|---|---|---|---|---|---|
//! | OpenVPN | `38` or `50` | | | | | | |
//! | WireGuard | `01 00 00 00` | byte 0 | | | | | |
//! | QUIC | `c0`–`ff`, version | byte 0 | byte 0 | | | | |
//! | DTLS | `16 fe fd` or `ff` | byte 0 | byte 0 | byte 0 | | | |
//! | STUN | `00` or `02`, cookie at 4 | byte 0 | byte 0 | byte 0 | byte 0 | | |
//! | DNS | any id; `00 01 00 00 00 00` at 4 | 4–9* | 4–9* | version: byte 4 is not `00` | byte 2 | cookie | |
//! | IKE | any id; zeros at 8–15 | 9–15: number or HMAC* | 8–15* | 8–15* | byte 13 | 8–15* | zeros: a query of 17 bytes |
//! | IKE at port 4500 | `00 00 00 00` | byte 0 | byte 0 | byte 0 | byte 0 | a request of 20 bytes | 12–19: class 0 |
//!
//! TCP:
//!
//! | | first bytes | apart from the others by |
//! |---|---|---|
//! | OpenVPN | `00`–`04`, length | byte 0; from SOCKS4: lengths `0401` and `0402` are never taken by form |
//! | SOCKS4 | `04 01` or `04 02` | byte 0, and see OpenVPN (a tls-crypt-v2 key does wait for such a record: then requests for ports 20480 to 20735 are decided when no more comes) |
//! | SOCKS5 | `05` | byte 0 |
//! | TLS | `16 03` | byte 0 |
//! | PROXY 2 | `0d 0a` | byte 0 |
//! | SSH, HTTP, PROXY 1 | words | no word begins with another |
//! | silence | none | it is Yes of no bytes, the others never are |
//!
//! Forms of one protocol overlap where one includes another (`openvpn` the others, `tls` any condition), and
//! there the order decides; tls-crypt and tls-auth with SHA256 have first packets of one length, and a table
//! with both is refused.
#![forbid(unsafe_code)]

mod answer;
mod datagram;
mod keyed;
mod name;
mod openvpn;
mod pattern;
mod probe;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;

pub use answer::Answer;
pub use keyed::{KeyFault, OpenVpnKey, WireGuardKey};
pub use name::NameFault;
pub use openvpn::OpenVpnForm;
pub use pattern::{Pattern, PatternFault};
pub use probe::{Evidence, Probe, Protocol};
pub use table::{Counts, Match, Rule, Table, TableFault, Verdict};
pub use tls::{ServerName, TlsCondition};

/// The most bytes of a TCP beginning that any probe looks at; who keeps them needs to keep no more.
pub const LOOKS_AT: usize = tls::LOOKS_AT;

/// What carries a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream.
    Tcp,
}

impl Transport {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Udp, Self::Tcp];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}
