//! Protection of control packets: none, tls-auth, tls-crypt (and tls-crypt-v2, which is tls-crypt with a key per
//! client, see [`crate::wkc`]).
//!
//! ```text
//! tls-auth : byte0 | sid 8 | HMAC | replay id 4 | time 4 | body         HMAC(id, time, byte0, sid, body)
//! tls-crypt: byte0 | sid 8 | replay id 4 | time 4 | tag 32 | AES-256-CTR(body)
//!            tag = HMAC-SHA256(first 17 bytes, body), initial counter block = tag[0..16]
//! ```
//!
//! [`WrapKeys`] is stateless and shared: the gate tries it on first packets, machines use it. [`Wrapper`] adds
//! the counters of one session.

use std::fmt;
use std::sync::Arc;

use adit_tunnel::DropReason;
use adit_tunnel::replay::ReplayWindow;
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use crate::Role;
use crate::keyfile::{Slot, StaticKey};
use crate::packet::{HEAD_LEN, Head};

mod first;

pub(crate) use first::fingerprint;

/// Digests tls-auth may use (`--auth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// SHA-1, OpenVPN's default for tls-auth.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Digest {
    /// All digests.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// Length of the HMAC in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// OpenVPN's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// The digest with this name (any case, with or without a dash); `None` when it is not one of these.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase().replace('-', "");
        Self::ALL.into_iter().find(|digest| digest.name() == name)
    }

    pub(crate) fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    /// An HMAC key of the first [`Digest::size`] bytes of a static key's slot, as OpenVPN takes them.
    pub(crate) fn key(self, slot: &[u8]) -> hmac::Key {
        hmac::Key::new(self.algorithm(), slot.get(..self.size()).unwrap_or(slot))
    }
}

/// The `key-direction` of tls-auth, as configured on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// One HMAC key for both ways.
    #[default]
    Both,
    /// `0`, by convention the server.
    Normal,
    /// `1`, by convention the client.
    Inverse,
}

/// The keys that protect control packets. No counters: any number of sessions may share it.
#[derive(Clone)]
pub struct WrapKeys {
    inner: Kind,
    /// What dynamic tls-crypt keys are mixed with.
    base: Option<StaticKey>,
}

#[derive(Clone)]
enum Kind {
    None,
    TlsAuth(Arc<AuthKeys>),
    TlsCrypt { send: Arc<SivKey>, receive: Arc<SivKey> },
}

/// HMAC keys of tls-auth, both ways.
struct AuthKeys {
    send: hmac::Key,
    receive: hmac::Key,
    len: usize,
}

impl fmt::Debug for WrapKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Replay id and time of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketNumber {
    /// Counts every transmission from 1.
    pub id: u32,
    /// When the counter was started, in Unix seconds.
    pub time: u32,
}

/// A control packet whose protection has been verified and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwrapped {
    /// The clear head.
    pub head: Head,
    /// Replay id and time; `None` without protection.
    pub number: Option<PacketNumber>,
}

impl WrapKeys {
    /// No protection.
    #[must_use]
    pub fn none() -> Self {
        Self { inner: Kind::None, base: None }
    }

    /// tls-auth.
    #[must_use]
    pub fn tls_auth(key: &StaticKey, digest: Digest, direction: Direction) -> Self {
        let (send, receive) = match direction {
            Direction::Both => (Slot::Zero, Slot::Zero),
            Direction::Normal => (Slot::Zero, Slot::One),
            Direction::Inverse => (Slot::One, Slot::Zero),
        };
        Self {
            inner: Kind::TlsAuth(Arc::new(AuthKeys {
                send: digest.key(key.hmac(send)),
                receive: digest.key(key.hmac(receive)),
                len: digest.size(),
            })),
            base: Some(key.clone()),
        }
    }

    /// tls-crypt for this side's `role`.
    #[must_use]
    pub fn tls_crypt(key: &StaticKey, role: Role) -> Self {
        let (send, receive) = match role {
            Role::Server => (Slot::Zero, Slot::One),
            Role::Client => (Slot::One, Slot::Zero),
        };
        let siv = |slot| Arc::new(SivKey::new(key.cipher(slot), key.hmac(slot)));
        Self { inner: Kind::TlsCrypt { send: siv(send), receive: siv(receive) }, base: Some(key.clone()) }
    }

    /// The key of dynamic tls-crypt: exporter output mixed with the configured key, if there is one.
    #[must_use]
    pub fn dynamic(&self, exported: &[u8; 256], role: Role) -> Self {
        let mut mixed = zeroize::Zeroizing::new(*exported);
        if let Some(base) = &self.base {
            mixed.iter_mut().zip(base.bytes()).for_each(|(a, b)| *a ^= b);
        }
        Self::tls_crypt(&StaticKey::new(&mixed), role)
    }

    /// `none`, `tls-auth` or `tls-crypt`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.inner {
            Kind::None => "none",
            Kind::TlsAuth(_) => "tls-auth",
            Kind::TlsCrypt { .. } => "tls-crypt",
        }
    }

    /// True when packets are authenticated by a key.
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        !matches!(self.inner, Kind::None)
    }

    /// Bytes this protection adds to a packet.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match &self.inner {
            Kind::None => 0,
            Kind::TlsAuth(keys) => keys.len + 8,
            Kind::TlsCrypt { .. } => 40,
        }
    }

    /// Verifies `packet` and writes its body to `body` (cleared first). `None` when no part of it may be
    /// believed.
    #[must_use]
    pub fn unwrap(&self, packet: &[u8], body: &mut Vec<u8>) -> Option<Unwrapped> {
        body.clear();
        let head = Head::parse(packet)?;
        let (clear, rest) = packet.split_at_checked(HEAD_LEN)?;
        match &self.inner {
            Kind::None => {
                body.extend_from_slice(rest);
                Some(Unwrapped { head, number: None })
            }
            Kind::TlsAuth(keys) => {
                let (tag, rest) = rest.split_at_checked(keys.len)?;
                let (number, content) = rest.split_first_chunk::<8>()?;
                // The MAC covers the replay fields first, then the head, then the rest.
                body.extend_from_slice(number);
                body.extend_from_slice(clear);
                body.extend_from_slice(content);
                hmac::verify(&keys.receive, body, tag).ok()?;
                body.drain(..number.len() + clear.len());
                Some(Unwrapped { head, number: Some(PacketNumber::parse(number)) })
            }
            Kind::TlsCrypt { receive, .. } => {
                let (number, rest) = rest.split_first_chunk::<8>()?;
                let (tag, sealed) = rest.split_first_chunk::<TAG_LEN>()?;
                body.extend_from_slice(sealed);
                receive.crypt(tag, body);
                let mut mac = hmac::Context::with_key(&receive.mac);
                mac.update(clear);
                mac.update(number);
                mac.update(body);
                if !bool::from(subtle::ConstantTimeEq::ct_eq(mac.sign().as_ref(), tag.as_slice())) {
                    body.clear();
                    return None;
                }
                Some(Unwrapped { head, number: Some(PacketNumber::parse(number)) })
            }
        }
    }

    /// Writes the protected packet to `out` (cleared first).
    pub fn wrap(&self, head: &Head, number: PacketNumber, body: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let clear = head.bytes();
        let number = number.bytes();
        match &self.inner {
            Kind::None => {
                out.extend_from_slice(&clear);
                out.extend_from_slice(body);
            }
            Kind::TlsAuth(keys) => {
                let mut mac = hmac::Context::with_key(&keys.send);
                mac.update(&number);
                mac.update(&clear);
                mac.update(body);
                out.extend_from_slice(&clear);
                out.extend_from_slice(mac.sign().as_ref());
                out.extend_from_slice(&number);
                out.extend_from_slice(body);
            }
            Kind::TlsCrypt { send, .. } => {
                let mut mac = hmac::Context::with_key(&send.mac);
                mac.update(&clear);
                mac.update(&number);
                mac.update(body);
                let tag = mac.sign();
                out.extend_from_slice(&clear);
                out.extend_from_slice(&number);
                out.extend_from_slice(tag.as_ref());
                let start = out.len();
                out.extend_from_slice(body);
                if let (Some(tag), Some(body)) = (tag.as_ref().first_chunk(), out.get_mut(start..)) {
                    send.crypt(tag, body);
                }
            }
        }
    }
}

pub(crate) const TAG_LEN: usize = 32;

/// A key pair of tls-crypt's construction: the HMAC tag is the initial counter block.
pub(crate) struct SivKey {
    cipher: EncryptingKey,
    pub(crate) mac: hmac::Key,
}

impl SivKey {
    /// Takes the first 32 bytes of each slot.
    pub(crate) fn new(cipher: &[u8], mac: &[u8]) -> Self {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        key.copy_from_slice(&cipher[..32]);
        let unbound = UnboundCipherKey::new(&AES_256, key.as_slice()).expect("32 bytes are an AES-256 key");
        Self {
            cipher: EncryptingKey::ctr(unbound).expect("counter mode takes any AES key"),
            mac: hmac::Key::new(hmac::HMAC_SHA256, &mac[..32]),
        }
    }

    /// Encrypts or decrypts in place; counter mode is its own inverse.
    pub(crate) fn crypt(&self, tag: &[u8; TAG_LEN], text: &mut [u8]) {
        let mut block = [0; 16];
        block.copy_from_slice(&tag[..16]);
        let context = EncryptionContext::Iv128(FixedLength::from(block));
        self.cipher.less_safe_encrypt(text, context).expect("counter mode takes any length");
    }
}

impl PacketNumber {
    fn parse(bytes: &[u8; 8]) -> Self {
        let n = u64::from_be_bytes(*bytes);
        Self { id: (n >> 32) as u32, time: n as u32 }
    }

    fn bytes(self) -> [u8; 8] {
        (u64::from(self.id) << 32 | u64::from(self.time)).to_be_bytes()
    }
}

/// First replay id of a tls-crypt-v2 client that understands the cookie exchange.
pub const EARLY_NEGOTIATION_START: u32 = 0x0f00_0001;

/// True when a first packet's replay id says that the client understands the cookie exchange.
#[must_use]
pub fn announces_cookie_support(id: u32) -> bool {
    id & 0xff00_0000 == 0x0f00_0000
}

/// [`WrapKeys`] with the counters of one session, one per direction.
#[derive(Debug)]
pub struct Wrapper {
    keys: WrapKeys,
    next: PacketNumber,
    window: ReplayWindow,
    window_time: u32,
}

/// Control packets are few; this much disorder is more than a path produces.
const WINDOW: u32 = 128;

impl Wrapper {
    /// Starts counting at `first` (1, or [`EARLY_NEGOTIATION_START`], or 2 after a stateless reply) with the
    /// Unix time `unix`.
    #[must_use]
    pub fn new(keys: WrapKeys, first: u32, unix: u32) -> Self {
        Self {
            keys,
            next: PacketNumber { id: first, time: unix },
            window: ReplayWindow::new(WINDOW, 0),
            window_time: 0,
        }
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &WrapKeys {
        &self.keys
    }

    /// Verifies a packet and that it is fresh; its body is in `body`.
    ///
    /// # Errors
    /// [`DropReason::ControlAuthentication`] or [`DropReason::ControlReplay`].
    pub fn unwrap(&mut self, packet: &[u8], body: &mut Vec<u8>) -> Result<Unwrapped, DropReason> {
        let unwrapped = self.keys.unwrap(packet, body).ok_or(DropReason::ControlAuthentication)?;
        if let Some(number) = unwrapped.number {
            self.check_fresh(number).ok_or(DropReason::ControlReplay)?;
        }
        Ok(unwrapped)
    }

    /// Wraps a packet under the next number.
    pub fn wrap(&mut self, head: &Head, body: &[u8], out: &mut Vec<u8>) {
        self.keys.wrap(head, self.next, body, out);
        self.next.id = self.next.id.wrapping_add(1);
        if self.next.id == 0 {
            self.next = PacketNumber { id: 1, time: self.next.time.wrapping_add(1) };
        }
    }

    /// A later time starts a new sequence; an earlier one is stale (`packet id long form`).
    fn check_fresh(&mut self, number: PacketNumber) -> Option<()> {
        if number.time < self.window_time {
            return None;
        }
        if number.time > self.window_time {
            self.window = ReplayWindow::new(WINDOW, 0);
            self.window_time = number.time;
        }
        self.window.accept(u64::from(number.id), 0).ok().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{KeyId, Opcode, SessionId};

    /// Bytes 00..ff, the key of the golden packets.
    pub(crate) fn counting() -> StaticKey {
        StaticKey::new(&std::array::from_fn(|i| i as u8))
    }

    fn first_packet_head() -> Head {
        Head {
            opcode: Opcode::HardResetClientV2,
            key: KeyId::FIRST,
            session: SessionId::new([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]).unwrap(),
        }
    }

    const NUMBER: PacketNumber = PacketNumber { id: 1, time: 0x6500_0000 };
    const BODY: [u8; 5] = [0; 5];

    /// Captured from a stock client with the same keys.
    const GOLDEN: [(&str, &str); 4] = [
        ("SHA1", "3811223344556677882c7bb9da07fd0a89febdc46658de7c996e7ea22300000001650000000000000000"),
        (
            "SHA256",
            "3811223344556677881f25598369494a005be356b9c79cebe87ce76db39d078960151e06516b36425b0000000165000000\
             0000000000",
        ),
        (
            "SHA512",
            "38112233445566778883a4cea73b76675ab28ae63bb54b3213de8c1e17771b8582bd18f062d226de28426fcace56226512\
             8087304f1c557e389b6f1cb30ef85ac1ee170bd1bc0259b200000001650000000000000000",
        ),
        (
            "tls-crypt",
            "3811223344556677880000000165000000badc0f958c1412f5923c69ca369b5c88aafee696226d1306297a298121e91b1e\
             9b586c6f74",
        ),
    ];

    fn client_keys(name: &str) -> WrapKeys {
        match Digest::named(name) {
            Some(digest) => WrapKeys::tls_auth(&counting(), digest, Direction::Inverse),
            None => WrapKeys::tls_crypt(&counting(), Role::Client),
        }
    }

    fn server_keys(name: &str) -> WrapKeys {
        match Digest::named(name) {
            Some(digest) => WrapKeys::tls_auth(&counting(), digest, Direction::Normal),
            None => WrapKeys::tls_crypt(&counting(), Role::Server),
        }
    }

    #[test]
    fn first_packets_are_byte_for_byte_those_of_a_stock_client() {
        for (name, hex) in GOLDEN {
            let golden = HEXLOWER.decode(hex.as_bytes()).unwrap();
            let mut out = Vec::new();
            client_keys(name).wrap(&first_packet_head(), NUMBER, &BODY, &mut out);
            assert_eq!(out, golden, "{name}");
            let mut body = Vec::new();
            let unwrapped = server_keys(name).unwrap(&golden, &mut body).unwrap();
            assert_eq!(unwrapped, Unwrapped { head: first_packet_head(), number: Some(NUMBER) });
            assert_eq!(body, BODY);
        }
    }

    #[test]
    fn a_wrong_key_direction_does_not_verify() {
        let mut out = Vec::new();
        let mut body = Vec::new();
        for (name, _) in GOLDEN {
            client_keys(name).wrap(&first_packet_head(), NUMBER, &BODY, &mut out);
            assert!(client_keys(name).unwrap(&out, &mut body).is_none(), "{name}");
        }
        let both = WrapKeys::tls_auth(&counting(), Digest::Sha1, Direction::Both);
        both.wrap(&first_packet_head(), NUMBER, &BODY, &mut out);
        assert!(both.unwrap(&out, &mut body).is_some());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        for (name, hex) in GOLDEN {
            let golden = HEXLOWER.decode(hex.as_bytes()).unwrap();
            for bit in 0..golden.len() * 8 {
                let mut bad = golden.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(server_keys(name).unwrap(&bad, &mut Vec::new()).is_none(), "{name} bit {bit}");
            }
        }
    }

    #[test]
    fn packets_of_one_sequence_are_accepted_once_and_older_sequences_never() {
        let mut sender = Wrapper::new(client_keys("tls-crypt"), 1, 100);
        let mut receiver = Wrapper::new(server_keys("tls-crypt"), 1, 0);
        let mut body = Vec::new();
        let mut packets = vec![Vec::new(); 3];
        for packet in &mut packets {
            sender.wrap(&first_packet_head(), &BODY, packet);
        }
        for order in [1, 0, 2] {
            assert!(receiver.unwrap(&packets[order], &mut body).is_ok());
        }
        assert_eq!(receiver.unwrap(&packets[0], &mut body), Err(DropReason::ControlReplay));
        let mut later = Vec::new();
        Wrapper::new(client_keys("tls-crypt"), 1, 200).wrap(&first_packet_head(), &BODY, &mut later);
        assert!(receiver.unwrap(&later, &mut body).is_ok());
        let mut older = Vec::new();
        sender.wrap(&first_packet_head(), &BODY, &mut older);
        assert_eq!(receiver.unwrap(&older, &mut body), Err(DropReason::ControlReplay));
    }

    #[test]
    fn a_forged_packet_does_not_move_the_window() {
        let mut sender = Wrapper::new(client_keys("SHA256"), 1, 100);
        let mut receiver = Wrapper::new(server_keys("SHA256"), 1, 0);
        let mut good = Vec::new();
        sender.wrap(&first_packet_head(), &BODY, &mut good);
        let mut forged = good.clone();
        forged[45] = 0xff;
        assert_eq!(receiver.unwrap(&forged, &mut Vec::new()), Err(DropReason::ControlAuthentication));
        assert!(receiver.unwrap(&good, &mut Vec::new()).is_ok());
    }

    #[test]
    fn dynamic_keys_depend_on_both_the_export_and_the_configured_key() {
        let mut body = Vec::new();
        let mut out = Vec::new();
        let client = client_keys("tls-crypt").dynamic(&[1; 256], Role::Client);
        client.wrap(&first_packet_head(), NUMBER, &BODY, &mut out);
        assert!(server_keys("tls-crypt").dynamic(&[1; 256], Role::Server).unwrap(&out, &mut body).is_some());
        assert!(server_keys("tls-crypt").dynamic(&[2; 256], Role::Server).unwrap(&out, &mut body).is_none());
        assert!(WrapKeys::none().dynamic(&[1; 256], Role::Server).unwrap(&out, &mut body).is_none());
    }

    proptest! {
        #[test]
        fn strangers_bytes_never_verify_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut body = Vec::new();
            for (name, _) in GOLDEN {
                prop_assert!(server_keys(name).unwrap(&bytes, &mut body).is_none());
            }
            let _ = WrapKeys::none().unwrap(&bytes, &mut body);
        }

        #[test]
        fn whatever_is_wrapped_unwraps(content in proptest::collection::vec(any::<u8>(), 0..1300), id: u32) {
            let mut out = Vec::new();
            let mut body = Vec::new();
            for (name, _) in GOLDEN {
                let number = PacketNumber { id, time: 9 };
                client_keys(name).wrap(&first_packet_head(), number, &content, &mut out);
                prop_assert_eq!(out.len(), HEAD_LEN + content.len() + client_keys(name).overhead());
                let unwrapped = server_keys(name).unwrap(&out, &mut body).unwrap();
                prop_assert_eq!(unwrapped.number, Some(number));
                prop_assert_eq!(&body, &content);
            }
        }
    }
}
