//! Data-channel key material: from the TLS exporter or from the key-method-2 exchange.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keyfile::StaticKey;
use crate::packet::SessionId;

/// Exporter label of data-channel keys.
pub const DATA_LABEL: &str = "EXPORTER-OpenVPN-datakeys";
/// Exporter label of the key that protects renegotiations.
pub const DYNAMIC_TLS_CRYPT_LABEL: &str = "EXPORTER-OpenVPN-dynamic-tls-crypt";

/// Random input of one side to the key derivation; only clients have a pre-master secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
pub struct KeySource {
    /// 48 bytes, sent by the client alone.
    pub pre_master: [u8; 48],
    /// Goes into the master secret.
    pub random1: [u8; 32],
    /// Goes into the key expansion.
    pub random2: [u8; 32],
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySource(..)")
    }
}

/// Both sides' input.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// The client's random input.
    pub client: &'a KeySource,
    /// The server's random input.
    pub server: &'a KeySource,
    /// The client's session id.
    pub client_session: SessionId,
    /// The server's session id.
    pub server_session: SessionId,
}

/// The 256 bytes of key material for peers without an exporter:
///
/// ```text
/// master = PRF10(pre_master, "OpenVPN master secret" | client.random1 | server.random1)      48 bytes
/// keys   = PRF10(master, "OpenVPN key expansion" | client.random2 | server.random2 | client sid | server sid)
/// ```
#[must_use]
pub fn derive(exchange: &Exchange<'_>) -> StaticKey {
    let Exchange { client, server, client_session, server_session } = exchange;
    let mut master = Zeroizing::new([0; 48]);
    let seed = [b"OpenVPN master secret".as_slice(), &client.random1, &server.random1];
    prf10(&client.pre_master, &seed, master.as_mut_slice());
    let mut keys = Zeroizing::new([0; 256]);
    let seed = [
        b"OpenVPN key expansion".as_slice(),
        &client.random2,
        &server.random2,
        client_session.bytes(),
        server_session.bytes(),
    ];
    prf10(master.as_slice(), &seed, keys.as_mut_slice());
    StaticKey::new(&keys)
}

/// The pseudo-random function of TLS 1.0 (RFC 2246 §5): P_MD5 of the first half of the secret XOR P_SHA1 of the
/// second half.
fn prf10(secret: &[u8], seed: &[&[u8]], out: &mut [u8]) {
    let half = secret.len().div_ceil(2);
    out.fill(0);
    p_hash::<Hmac<Md5>>(&secret[..half], seed, out);
    p_hash::<Hmac<Sha1>>(&secret[secret.len() - half..], seed, out);
}

/// P_hash of RFC 2246 §5, XORed onto `out`.
fn p_hash<M: Mac + KeyInit + Clone>(secret: &[u8], seed: &[&[u8]], out: &mut [u8]) {
    let keyed = <M as KeyInit>::new_from_slice(secret).expect("HMAC takes a key of any length");
    let mac = |parts: &[&[u8]]| {
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes()
    };
    let mut a = mac(seed);
    for block in out.chunks_mut(a.len()) {
        let mut parts = vec![a.as_slice()];
        parts.extend_from_slice(seed);
        let mut bytes = mac(&parts);
        block.iter_mut().zip(&bytes).for_each(|(out, byte)| *out ^= byte);
        bytes.zeroize();
        a = mac(&[a.as_slice()]);
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest;
    use data_encoding::HEXLOWER;

    use super::*;
    use crate::keyfile::Slot;

    #[test]
    fn the_derivation_agrees_with_known_answers() {
        let client = KeySource {
            pre_master: std::array::from_fn(|i| i as u8),
            random1: [0x11; 32],
            random2: [0x22; 32],
        };
        let server = KeySource { pre_master: [0; 48], random1: [0x33; 32], random2: [0x44; 32] };
        let keys = derive(&Exchange {
            client: &client,
            server: &server,
            client_session: SessionId::new([0xc1; 8]).unwrap(),
            server_session: SessionId::new([0x51; 8]).unwrap(),
        });
        let hex = |bytes: &[u8]| HEXLOWER.encode(&bytes[..32]);
        assert_eq!(
            hex(keys.cipher(Slot::Zero)),
            "3d006d3ef2f75704b1d112ee8c177c5afa911a61c3a7ff9b4114c2a956cbd45c"
        );
        assert_eq!(
            hex(keys.hmac(Slot::Zero)),
            "06c3ba47442af5d950be07007a2765052813d56c0cb804d0ac3a1dafe6ce5f7c"
        );
        assert_eq!(
            hex(keys.cipher(Slot::One)),
            "895f3150f6d34ebd2732a22dea51467017b45f142448b39a7dde78e0b3afec45"
        );
        assert_eq!(
            hex(keys.hmac(Slot::One)),
            "c7d672021a9c92c999a3fceee14b7a663dc9e9de7ab6972c1f47601f6d269449"
        );
        assert_eq!(
            HEXLOWER.encode(digest::digest(&digest::SHA256, keys.bytes()).as_ref()),
            "abeae96006213eaa8272c5f2db6a655ee6d2aefd92ba1384672c8c7bf1346968"
        );
    }
}
