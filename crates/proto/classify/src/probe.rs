//! Everything a rule can ask, under one type.

use std::fmt;

use crate::answer::Answer;
use crate::keyed::{OpenVpnKey, WireGuardKey};
use crate::openvpn::OpenVpnForm;
use crate::pattern::Pattern;
use crate::tls::TlsCondition;
use crate::{Transport, datagram, openvpn, stream, tls};

/// A protocol that is known by its form, and nothing more is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// SSH's identification line (TCP).
    Ssh,
    /// An HTTP/1 request, or the preface of HTTP/2 (TCP).
    Http,
    /// A SOCKS4 or SOCKS4a request (TCP).
    Socks4,
    /// A SOCKS5 greeting (TCP).
    Socks5,
    /// The preamble of the PROXY protocol, version 1 or 2 (TCP).
    Proxy,
    /// WireGuard's handshake initiation, to whomever (UDP).
    WireGuard,
    /// A QUIC Initial packet (UDP).
    Quic,
    /// A DTLS ClientHello (UDP).
    Dtls,
    /// A STUN request with magic cookie (UDP).
    Stun,
    /// A DNS query (UDP).
    Dns,
    /// The first message of IKE, version 1 or 2 (UDP).
    Ike,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Ssh,
        Self::Http,
        Self::Socks4,
        Self::Socks5,
        Self::Proxy,
        Self::WireGuard,
        Self::Quic,
        Self::Dtls,
        Self::Stun,
        Self::Dns,
        Self::Ike,
    ];

    /// The name of the probe.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Http => "http",
            Self::Socks4 => "socks4",
            Self::Socks5 => "socks5",
            Self::Proxy => "proxy",
            Self::WireGuard => "wireguard",
            Self::Quic => "quic",
            Self::Dtls => "dtls",
            Self::Stun => "stun",
            Self::Dns => "dns",
            Self::Ike => "ike",
        }
    }

    fn transport(self) -> Transport {
        match self {
            Self::Ssh | Self::Http | Self::Socks4 | Self::Socks5 | Self::Proxy => Transport::Tcp,
            Self::WireGuard | Self::Quic | Self::Dtls | Self::Stun | Self::Dns | Self::Ike => Transport::Udp,
        }
    }

    fn answer(self, transport: Transport, bytes: &[u8]) -> Answer {
        match (transport, self) {
            (Transport::Tcp, Self::Ssh) => stream::ssh(bytes),
            (Transport::Tcp, Self::Http) => stream::http(bytes),
            (Transport::Tcp, Self::Socks4) => stream::socks4(bytes),
            (Transport::Tcp, Self::Socks5) => stream::socks5(bytes),
            (Transport::Tcp, Self::Proxy) => stream::proxy(bytes),
            (Transport::Udp, Self::WireGuard) => Answer::whether(datagram::wireguard(bytes)),
            (Transport::Udp, Self::Quic) => Answer::whether(datagram::quic(bytes)),
            (Transport::Udp, Self::Dtls) => Answer::whether(datagram::dtls(bytes)),
            (Transport::Udp, Self::Stun) => Answer::whether(datagram::stun(bytes)),
            (Transport::Udp, Self::Dns) => Answer::whether(datagram::dns(bytes)),
            (Transport::Udp, Self::Ike) => Answer::whether(datagram::ike(bytes)),
            _ => Answer::No,
        }
    }

    fn looks_at(self) -> usize {
        match self {
            Self::Ssh => stream::SSH_LOOKS_AT,
            Self::Http => stream::HTTP_LOOKS_AT,
            Self::Socks4 => stream::SOCKS4_LOOKS_AT,
            Self::Socks5 => stream::SOCKS5_LOOKS_AT,
            Self::Proxy => stream::PROXY_LOOKS_AT,
            Self::WireGuard | Self::Quic | Self::Dtls | Self::Stun | Self::Dns | Self::Ike => {
                datagram::LOOKS_AT
            }
        }
    }
}

/// What a rule asks of a flow's first bytes. [`std::str::FromStr`] reads the named ones.
#[derive(Debug, Clone)]
pub enum Probe {
    /// An OpenVPN client that has this server's key.
    OpenVpnKey(OpenVpnKey),
    /// A WireGuard client that knows this server's public key.
    WireGuardKey(WireGuardKey),
    /// An OpenVPN client, by form.
    OpenVpn(OpenVpnForm),
    /// A TLS client (TCP).
    Tls(TlsCondition),
    /// Another protocol, by form.
    Form(Protocol),
    /// Lengths and bytes.
    Pattern(Pattern),
    /// A client that waits for the server to speak first (TCP).
    Silence,
    /// Whatever comes, or does not come.
    Any,
}

/// Why a rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// A key verified the first packet; how it is used.
    Key(&'static str),
    /// The form of this protocol.
    Form(&'static str),
    /// A pattern.
    Pattern,
    /// Nothing came.
    Silence,
    /// Nothing else matched.
    Fallback,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(usage) => write!(f, "{usage} key verified"),
            Self::Form(protocol) => write!(f, "form of {protocol}"),
            Self::Pattern => f.write_str("pattern"),
            Self::Silence => f.write_str("silence"),
            Self::Fallback => f.write_str("nothing else matched"),
        }
    }
}

/// Before which others a probe is asked: by rank, then the narrower first.
pub(crate) type Precedence = (u8, usize);

impl Probe {
    /// What this probe says of the bytes there are: of a datagram, all of it; of a connection, all that has
    /// come. `silent`: nothing more will come.
    #[must_use]
    pub fn answer(&self, transport: Transport, bytes: &[u8], silent: bool) -> Answer {
        match self.evidence(transport, bytes, silent) {
            Ok(_) => Answer::Yes,
            Err(answer) => answer,
        }
    }

    /// The evidence for Yes, or the other answer.
    pub(crate) fn evidence(
        &self,
        transport: Transport,
        bytes: &[u8],
        silent: bool,
    ) -> Result<Evidence, Answer> {
        let (answer, evidence) = match (self, transport) {
            (Self::OpenVpnKey(key), Transport::Udp) => {
                return key.datagram(bytes).map(Evidence::Key).ok_or(Answer::No);
            }
            (Self::OpenVpnKey(key), Transport::Tcp) => return key.stream(bytes).map(Evidence::Key),
            (Self::WireGuardKey(key), _) => {
                let yes = transport == Transport::Udp && key.datagram(bytes);
                (Answer::whether(yes), Evidence::Key("wireguard"))
            }
            (Self::OpenVpn(form), Transport::Udp) => {
                (Answer::whether(form.datagram(bytes)), Evidence::Form("openvpn"))
            }
            (Self::OpenVpn(form), Transport::Tcp) => (form.stream(bytes), Evidence::Form("openvpn")),
            (Self::Tls(condition), Transport::Tcp) => (condition.stream(bytes), Evidence::Form("tls")),
            (Self::Form(protocol), _) => (protocol.answer(transport, bytes), Evidence::Form(protocol.name())),
            (Self::Pattern(pattern), Transport::Udp) => {
                (Answer::whether(pattern.datagram(bytes)), Evidence::Pattern)
            }
            (Self::Pattern(pattern), Transport::Tcp) => (pattern.stream(bytes), Evidence::Pattern),
            (Self::Silence, Transport::Tcp) if bytes.is_empty() => {
                (if silent { Answer::Yes } else { Answer::More }, Evidence::Silence)
            }
            (Self::Silence, _) | (Self::Tls(_), Transport::Udp) => (Answer::No, Evidence::Silence),
            (Self::Any, _) => (Answer::Yes, Evidence::Fallback),
        };
        if answer == Answer::Yes { Ok(evidence) } else { Err(answer) }
    }

    /// How many bytes of a flow are looked at, at most. Of a datagram, its length too.
    #[must_use]
    pub fn looks_at(&self) -> usize {
        match self {
            Self::OpenVpnKey(_) | Self::OpenVpn(_) => openvpn::LOOKS_AT,
            Self::WireGuardKey(_) => datagram::WIREGUARD_LEN,
            Self::Tls(_) => tls::LOOKS_AT,
            Self::Form(protocol) => protocol.looks_at(),
            Self::Pattern(pattern) => pattern.looks_at(),
            Self::Silence => 1,
            Self::Any => 0,
        }
    }

    /// The only transport this can be said of; `None` when it can be of both.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        match self {
            Self::WireGuardKey(_) => Some(Transport::Udp),
            Self::Tls(_) | Self::Silence => Some(Transport::Tcp),
            Self::Form(protocol) => Some(protocol.transport()),
            Self::Pattern(pattern) => pattern.transport(),
            Self::OpenVpnKey(_) | Self::OpenVpn(_) | Self::Any => None,
        }
    }

    pub(crate) fn precedence(&self) -> Precedence {
        match self {
            Self::OpenVpnKey(_) | Self::WireGuardKey(_) => (0, 0),
            Self::OpenVpn(OpenVpnForm::TlsAuth(Some(_))) => (1, 0),
            Self::OpenVpn(OpenVpnForm::Any) => (1, 2),
            Self::OpenVpn(_) => (1, 1),
            Self::Tls(condition) => (1, condition.breadth()),
            Self::Form(_) => (1, 0),
            Self::Pattern(_) => (2, 0),
            Self::Silence => (3, 0),
            Self::Any => (4, 0),
        }
    }
}

impl fmt::Display for Probe {
    /// The name of a named probe; others in words, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenVpnKey(key) => key.fmt(f),
            Self::WireGuardKey(_) => f.write_str("wireguard key"),
            Self::OpenVpn(form) => form.fmt(f),
            Self::Tls(condition) => condition.fmt(f),
            Self::Form(protocol) => f.write_str(protocol.name()),
            Self::Pattern(pattern) => pattern.fmt(f),
            Self::Silence => f.write_str("silence"),
            Self::Any => f.write_str("any"),
        }
    }
}
