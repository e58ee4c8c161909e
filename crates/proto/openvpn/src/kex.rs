//! The key-method-2 message: the first thing each side says inside TLS.
//!
//! ```text
//! zero 4 | method 1 | [pre_master 48, client only] | random1 32 | random2 32
//!   | options | [username | password | [peer info]]        each: length 2 (with its NUL), bytes, NUL
//! ```

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Role;
use crate::keys::KeySource;
use crate::peer_info::PeerInfo;

/// Longest options string, as in OpenVPN.
pub const MAX_OPTIONS: usize = 512;
/// Longest user name or password, with its NUL.
pub const MAX_CREDENTIAL: usize = 4096;
/// Longest peer info; OpenVPN's limit of a control message.
pub const MAX_PEER_INFO: usize = 2048;

const METHOD: u8 = 2;

/// User name and password of a client.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Credentials {
    /// The user name, valid UTF-8 without control characters.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// One side's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyMessage {
    /// Random input to the key derivation.
    pub source: KeySource,
    /// The options string, see [`crate::occ`].
    pub options: String,
    /// What a client authenticates with besides its certificate.
    pub credentials: Option<Credentials>,
    /// What a client says of itself.
    pub peer_info: PeerInfo,
}

/// Why a message is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyMessageFault {
    /// It does not start with four zero bytes.
    #[error("key exchange message does not start with zeros")]
    Start,
    /// Another key method than 2.
    #[error("peer uses key method {0}; only method 2 is supported (OpenVPN 2.0 or newer)")]
    Method(u8),
    /// A field is longer than allowed.
    #[error("key exchange message: the {0} field is too long")]
    TooLong(&'static str),
    /// A field is not text.
    #[error("key exchange message: the {0} field is not text")]
    NotText(&'static str),
}

impl KeyMessage {
    /// Parses a message sent by `sender` from the start of `bytes`. `Ok(None)`: more bytes are needed. On
    /// success the number of bytes used is returned too; what follows are text messages.
    ///
    /// The end of the message is not marked: optional fields may be missing, and upstream always writes the
    /// message as one record. So call this with whole records, and pass all that has arrived.
    ///
    /// # Errors
    /// [`KeyMessageFault`] when it can never become a valid message.
    pub fn parse(bytes: &[u8], sender: Role) -> Result<Option<(Self, usize)>, KeyMessageFault> {
        let mut reader = Reader { rest: bytes };
        let Some(head) = reader.take(5) else {
            return Ok(None);
        };
        let Some((&method, zeros)) = head.split_last() else {
            return Ok(None);
        };
        if zeros != [0; 4] {
            return Err(KeyMessageFault::Start);
        }
        if method & 0x0f != METHOD {
            return Err(KeyMessageFault::Method(method & 0x0f));
        }
        let mut source = KeySource { pre_master: [0; 48], random1: [0; 32], random2: [0; 32] };
        if sender == Role::Client && reader.array(&mut source.pre_master).is_none() {
            return Ok(None);
        }
        if reader.array(&mut source.random1).is_none() || reader.array(&mut source.random2).is_none() {
            return Ok(None);
        }
        let Some(options) = reader.text("options", MAX_OPTIONS)? else {
            return Ok(None);
        };
        let username = reader.text("username", MAX_CREDENTIAL)?;
        let password = reader.text("password", MAX_CREDENTIAL)?;
        let peer_info = reader.text("peer info", MAX_PEER_INFO)?;
        let credentials = match (username, password) {
            (Some(username), Some(password)) if !username.is_empty() || !password.is_empty() => {
                Some(Credentials { username: username.to_string(), password: password.to_string() })
            }
            _ => None,
        };
        let peer_info = PeerInfo::parse(peer_info.as_deref().map_or("", |text| text.as_str()));
        let used = bytes.len() - reader.rest.len();
        Ok(Some((Self { source, options: options.to_string(), credentials, peer_info }, used)))
    }

    /// The message as `sender` writes it: one TLS record.
    #[must_use]
    pub fn to_bytes(&self, sender: Role) -> Zeroizing<Vec<u8>> {
        // Sized ahead, so that no copy of the secrets is left behind by growth.
        let mut out = Zeroizing::new(Vec::with_capacity(4096 + 2 * MAX_CREDENTIAL));
        out.extend_from_slice(&[0, 0, 0, 0, METHOD]);
        if sender == Role::Client {
            out.extend_from_slice(&self.source.pre_master);
        }
        out.extend_from_slice(&self.source.random1);
        out.extend_from_slice(&self.source.random2);
        write_text(&mut out, &self.options);
        match (&self.credentials, sender) {
            (Some(credentials), _) => {
                write_text(&mut out, &credentials.username);
                write_text(&mut out, &credentials.password);
            }
            // Upstream writes absent credentials as two empty fields without a NUL.
            (None, _) => out.extend_from_slice(&[0; 4]),
        }
        if sender == Role::Client {
            write_text(&mut out, &self.peer_info.to_text());
        }
        out
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&((text.len() + 1) as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self, out: &mut [u8; N]) -> Option<()> {
        out.copy_from_slice(self.take(N)?);
        Some(())
    }

    /// A counted string; `None` when it is missing or not all there, which ends the message.
    fn text(
        &mut self,
        field: &'static str,
        limit: usize,
    ) -> Result<Option<Zeroizing<String>>, KeyMessageFault> {
        let Some((len, rest)) = self.rest.split_first_chunk() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > limit {
            return Err(KeyMessageFault::TooLong(field));
        }
        let Some((bytes, rest)) = rest.split_at_checked(len) else {
            return Ok(None);
        };
        self.rest = rest;
        // Whatever follows an early NUL is not part of the string and must not reach anyone.
        let text = bytes.split(|&b| b == 0).next().unwrap_or(&[]);
        let text = std::str::from_utf8(text).map_err(|_| KeyMessageFault::NotText(field))?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(credentials: Option<Credentials>) -> KeyMessage {
        KeyMessage {
            source: KeySource { pre_master: [1; 48], random1: [2; 32], random2: [3; 32] },
            options: "V4,dev-type tun".into(),
            credentials,
            peer_info: PeerInfo::parse("IV_VER=2.6.14\nIV_PROTO=990\n"),
        }
    }

    #[test]
    fn messages_survive_the_wire_in_both_directions() {
        let credentials = Credentials { username: "ann".into(), password: "s3cret".into() };
        for credentials in [None, Some(credentials)] {
            let sent = message(credentials);
            let bytes = sent.to_bytes(Role::Client);
            assert_eq!(KeyMessage::parse(&bytes, Role::Client).unwrap(), Some((sent, bytes.len())));
        }
        let mut sent = message(None);
        sent.source.pre_master = [0; 48];
        let bytes = sent.to_bytes(Role::Server);
        sent.peer_info = PeerInfo::default();
        assert_eq!(KeyMessage::parse(&bytes, Role::Server).unwrap(), Some((sent, bytes.len())));
    }

    #[test]
    fn absent_and_lone_nul_credentials_are_the_same() {
        let mut bytes = vec![0, 0, 0, 0, 2];
        bytes.extend([9; 64]);
        bytes.extend([0, 3, b'V', b'4', 0]);
        let short = KeyMessage::parse(&bytes, Role::Server).unwrap().unwrap();
        bytes.extend([0, 1, 0, 0, 1, 0]);
        let (long, used) = KeyMessage::parse(&bytes, Role::Server).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        assert_eq!(short.0, long);
    }

    #[test]
    fn control_text_behind_a_nul_is_not_part_of_a_field() {
        let sent = message(Some(Credentials { username: "ann\0root".into(), password: "x".into() }));
        let (got, _) = KeyMessage::parse(&sent.to_bytes(Role::Client), Role::Client).unwrap().unwrap();
        assert_eq!(got.credentials.unwrap().username, "ann");
    }

    #[test]
    fn other_methods_and_oversized_fields_are_refused() {
        assert_eq!(KeyMessage::parse(&[0, 0, 0, 0, 1], Role::Client), Err(KeyMessageFault::Method(1)));
        assert_eq!(KeyMessage::parse(&[0, 0, 1, 0, 2], Role::Client), Err(KeyMessageFault::Start));
        let mut bytes = message(None).to_bytes(Role::Server).to_vec();
        bytes[69] = 0xff;
        assert_eq!(KeyMessage::parse(&bytes, Role::Server), Err(KeyMessageFault::TooLong("options")));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = KeyMessage::parse(&bytes, Role::Server);
            let mut framed = vec![0, 0, 0, 0, 2];
            framed.extend_from_slice(&bytes);
            for role in [Role::Server, Role::Client] {
                if let Ok(Some((_, used))) = KeyMessage::parse(&framed, role) {
                    prop_assert!(used <= framed.len());
                }
            }
        }
    }
}
