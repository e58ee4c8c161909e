//! Key files of OpenVPN: static keys (tls-auth, tls-crypt) and tls-crypt-v2 server and client keys.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const STATIC_BEGIN: &str = "-----BEGIN OpenVPN Static key V1-----";
const STATIC_END: &str = "-----END OpenVPN Static key V1-----";
const V2_SERVER: &str = "OpenVPN tls-crypt-v2 server key";
const V2_CLIENT: &str = "OpenVPN tls-crypt-v2 client key";

/// Why a key file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileFault {
    /// The markers are missing.
    #[error("no \"{0}\" block in it")]
    NoBlock(&'static str),
    /// The content is not hex (static key) or base64 (tls-crypt-v2).
    #[error("the key between the markers is damaged")]
    Encoding,
    /// The content has a wrong length.
    #[error("the key has {got} bytes, {want} are needed")]
    Length {
        /// Bytes found.
        got: usize,
        /// Bytes needed (the least, for a tls-crypt-v2 client key).
        want: usize,
    },
}

/// A 2048-bit static key: four slots of 64 bytes (cipher 0, hmac 0, cipher 1, hmac 1).
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct StaticKey(Box<[u8; 256]>);

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticKey(..)")
    }
}

impl StaticKey {
    /// A key from its 256 bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 256]) -> Self {
        Self(Box::new(*bytes))
    }

    /// Reads the text form; whatever stands outside the markers is a comment.
    ///
    /// # Errors
    /// [`KeyFileFault`] saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, KeyFileFault> {
        let (_, rest) = text.split_once(STATIC_BEGIN).ok_or(KeyFileFault::NoBlock(STATIC_BEGIN))?;
        let (inner, _) = rest.split_once(STATIC_END).ok_or(KeyFileFault::NoBlock(STATIC_END))?;
        let mut hex: Zeroizing<String> = Zeroizing::new(String::with_capacity(inner.len()));
        hex.extend(inner.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()));
        let bytes = Zeroizing::new(HEXLOWER.decode(hex.as_bytes()).map_err(|_| KeyFileFault::Encoding)?);
        let bytes: &[u8; 256] =
            bytes.as_slice().try_into().map_err(|_| KeyFileFault::Length { got: bytes.len(), want: 256 })?;
        Ok(Self::new(bytes))
    }

    /// The text form.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(700));
        out.push_str(STATIC_BEGIN);
        out.push('\n');
        for line in self.0.chunks(16) {
            HEXLOWER.encode_append(line, &mut out);
            out.push('\n');
        }
        out.push_str(STATIC_END);
        out.push('\n');
        out
    }

    /// All 256 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 256] {
        &self.0
    }

    /// The cipher slot (64 bytes) of direction 0 or 1.
    #[must_use]
    pub fn cipher(&self, slot: Slot) -> &[u8] {
        &self.0[slot as usize * 128..][..64]
    }

    /// The HMAC slot (64 bytes) of direction 0 or 1.
    #[must_use]
    pub fn hmac(&self, slot: Slot) -> &[u8] {
        &self.0[slot as usize * 128 + 64..][..64]
    }
}

/// One of the two halves of a static key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Slot {
    /// Bytes 0..128.
    Zero = 0,
    /// Bytes 128..256.
    One = 1,
}

/// The server's key of tls-crypt-v2: it opens the clients' wrapped keys.
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct ServerKeyV2(Box<[u8; 128]>);

impl fmt::Debug for ServerKeyV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKeyV2(..)")
    }
}

impl ServerKeyV2 {
    /// A key from its 128 bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 128]) -> Self {
        Self(Box::new(*bytes))
    }

    /// Reads the PEM form.
    ///
    /// # Errors
    /// [`KeyFileFault`] saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, KeyFileFault> {
        let bytes = from_pem(text, V2_SERVER)?;
        let bytes: &[u8; 128] =
            bytes.as_slice().try_into().map_err(|_| KeyFileFault::Length { got: bytes.len(), want: 128 })?;
        Ok(Self::new(bytes))
    }

    /// The PEM form.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        to_pem(V2_SERVER, self.0.as_slice())
    }

    /// Key of the cipher, 32 bytes.
    #[must_use]
    pub fn cipher(&self) -> &[u8] {
        &self.0[..32]
    }

    /// Key of the HMAC, 32 bytes.
    #[must_use]
    pub fn hmac(&self) -> &[u8] {
        &self.0[64..96]
    }
}

/// A client's key of tls-crypt-v2: its own static key, and the same wrapped for the server.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKeyV2 {
    /// The key used like a tls-crypt key.
    pub key: StaticKey,
    /// The wrapped form, opaque to the client.
    pub wrapped: Vec<u8>,
}

impl fmt::Debug for ClientKeyV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKeyV2(.., {} wrapped)", self.wrapped.len())
    }
}

impl ClientKeyV2 {
    /// Reads the PEM form.
    ///
    /// # Errors
    /// [`KeyFileFault`] saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, KeyFileFault> {
        let bytes = from_pem(text, V2_CLIENT)?;
        let short = KeyFileFault::Length { got: bytes.len(), want: 256 + crate::wkc::MIN_LEN };
        let (key, wrapped) = bytes.split_first_chunk::<256>().ok_or(short.clone())?;
        if !(crate::wkc::MIN_LEN..=crate::wkc::MAX_LEN).contains(&wrapped.len()) {
            return Err(short);
        }
        Ok(Self { key: StaticKey::new(key), wrapped: wrapped.to_vec() })
    }

    /// The PEM form.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(self.key.bytes().to_vec());
        bytes.extend_from_slice(&self.wrapped);
        to_pem(V2_CLIENT, &bytes)
    }
}

fn from_pem(text: &str, label: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyFileFault> {
    let missing = KeyFileFault::NoBlock(label);
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----")).ok_or(missing.clone())?;
    let (inner, _) = rest.split_once(&format!("-----END {label}-----")).ok_or(missing)?;
    let mut base64: Zeroizing<String> = Zeroizing::new(String::with_capacity(inner.len()));
    base64.extend(inner.chars().filter(|c| !c.is_whitespace()));
    BASE64.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|_| KeyFileFault::Encoding)
}

fn to_pem(label: &str, bytes: &[u8]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(bytes.len() * 3 / 2 + 128));
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in bytes.chunks(48) {
        BASE64.encode_append(line, &mut out);
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counting() -> StaticKey {
        StaticKey::new(&std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn slots_are_where_openvpn_has_them() {
        let key = counting();
        assert_eq!(key.cipher(Slot::Zero)[0], 0x00);
        assert_eq!(key.hmac(Slot::Zero)[0], 0x40);
        assert_eq!(key.cipher(Slot::One)[0], 0x80);
        assert_eq!(key.hmac(Slot::One)[63], 0xff);
    }

    #[test]
    fn comments_and_spaces_around_a_static_key_do_not_matter() {
        let text = format!("#\n# 2048 bit OpenVPN static key\n#\n{}trailing", counting().to_text().as_str());
        let spaced = text.replace("0f10", "0f 10").replace('\n', "\r\n").to_uppercase();
        assert_eq!(StaticKey::parse(&text).unwrap(), counting());
        assert!(StaticKey::parse(&spaced).is_err(), "the markers are case sensitive");
    }

    #[test]
    fn damaged_static_keys_are_refused_with_the_reason() {
        let good = counting().to_text();
        assert_eq!(
            StaticKey::parse("nothing").unwrap_err(),
            KeyFileFault::NoBlock("-----BEGIN OpenVPN Static key V1-----")
        );
        assert_eq!(StaticKey::parse(&good.replace("0001", "zz01")).unwrap_err(), KeyFileFault::Encoding);
        assert_eq!(
            StaticKey::parse(&good.replace("0001", "")).unwrap_err(),
            KeyFileFault::Length { got: 254, want: 256 }
        );
    }

    #[test]
    fn version_two_keys_survive_their_text_form() {
        let server = ServerKeyV2::new(&std::array::from_fn(|i| 255 - i as u8));
        assert_eq!(ServerKeyV2::parse(&server.to_text()).unwrap(), server);
        let client = ClientKeyV2 { key: counting(), wrapped: vec![5; 299] };
        assert_eq!(ClientKeyV2::parse(&client.to_text()).unwrap(), client);
        assert!(ClientKeyV2::parse(&server.to_text()).is_err());
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", counting()), "StaticKey(..)");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_panic(text in ".{0,200}") {
            let _ = StaticKey::parse(&text);
            let _ = StaticKey::parse(&format!("{STATIC_BEGIN}{text}{STATIC_END}"));
            let _ = ClientKeyV2::parse(&format!("-----BEGIN {V2_CLIENT}-----{text}-----END {V2_CLIENT}-----"));
        }
    }
}
