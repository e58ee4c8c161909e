//! The options string each side quotes in the key exchange. Since OpenVPN 2.4 it is cosmetic (a mismatch is a
//! warning), except that it names the cipher of clients that do not negotiate, and whether a client frames its
//! packets for compression.

use crate::Role;
use crate::data::Cipher;
use crate::wrap::Digest;

/// What goes into the string.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Who says it.
    pub role: Role,
    /// Carried over TCP.
    pub tcp: bool,
    /// MTU of the tun interface.
    pub tun_mtu: u16,
    /// Packets carry a compression byte.
    pub compression: bool,
    /// Packets carry a fragment header.
    pub fragment: bool,
    /// The data cipher that is assumed before negotiation.
    pub cipher: Cipher,
    /// The data digest, for ciphers that need one.
    pub auth: Digest,
    /// tls-auth is in use.
    pub tls_auth: bool,
    /// `key-direction`, when one is set.
    pub key_direction: Option<u8>,
}

/// Writes the string.
#[must_use]
pub fn write(options: &Options) -> String {
    let Options { role, tcp, tun_mtu, compression, fragment, cipher, auth, tls_auth, key_direction } =
        *options;
    let mut out = String::from("V4,dev-type tun");
    let crypto = if cipher.is_aead() { 48 } else { 4 + 16 + 16 + auth.size() };
    let link_mtu = usize::from(tun_mtu)
        + 1
        + if tcp { 2 } else { 0 }
        + usize::from(compression)
        + if fragment { 4 } else { 0 }
        + crypto;
    out += &format!(",link-mtu {link_mtu},tun-mtu {tun_mtu}");
    out += match (tcp, role) {
        (false, _) => ",proto UDPv4",
        (true, Role::Server) => ",proto TCPv4_SERVER",
        (true, Role::Client) => ",proto TCPv4_CLIENT",
    };
    if compression {
        out += ",comp-lzo";
    }
    if fragment {
        out += ",mtu-dynamic";
    }
    if let Some(direction) = key_direction {
        out += &format!(",keydir {direction}");
    }
    let auth = if cipher.is_aead() { "[null-digest]" } else { auth.name() };
    out += &format!(",cipher {},auth {auth},keysize {}", cipher.name(), cipher.key_len() * 8);
    if tls_auth {
        out += ",tls-auth";
    }
    out += match role {
        Role::Server => ",key-method 2,tls-server",
        Role::Client => ",key-method 2,tls-client",
    };
    out
}

/// The cipher a peer's string names.
#[must_use]
pub fn cipher(text: &str) -> Option<Cipher> {
    text.split(',').find_map(|item| Cipher::named(item.strip_prefix("cipher ")?))
}

/// The data digest a peer's string names; `None` for AEAD ciphers, which need none.
#[must_use]
pub fn auth(text: &str) -> Option<Digest> {
    text.split(',').find_map(|item| Digest::named(item.strip_prefix("auth ")?))
}

/// True when the peer's string says that its packets are framed for compression.
#[must_use]
pub fn compression(text: &str) -> bool {
    text.split(',').any(|item| item == "comp-lzo")
}

/// True when the peer's string says that its packets carry a fragment header.
#[must_use]
pub fn fragment(text: &str) -> bool {
    text.split(',').any(|item| item == "mtu-dynamic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_those_of_a_stock_peer() {
        let options = Options {
            role: Role::Client,
            tcp: true,
            tun_mtu: 1500,
            compression: true,
            fragment: false,
            cipher: Cipher::Aes256Cbc,
            auth: Digest::Sha256,
            tls_auth: true,
            key_direction: Some(1),
        };
        assert_eq!(
            write(&options),
            "V4,dev-type tun,link-mtu 1572,tun-mtu 1500,proto TCPv4_CLIENT,comp-lzo,keydir 1,\
             cipher AES-256-CBC,auth SHA256,keysize 256,tls-auth,key-method 2,tls-client"
        );
        let aead = Options {
            role: Role::Server,
            tcp: false,
            compression: false,
            cipher: Cipher::Aes256Gcm,
            tls_auth: false,
            key_direction: None,
            ..options
        };
        assert_eq!(
            write(&aead),
            "V4,dev-type tun,link-mtu 1549,tun-mtu 1500,proto UDPv4,cipher AES-256-GCM,auth [null-digest],\
             keysize 256,key-method 2,tls-server"
        );
    }

    #[test]
    fn what_matters_is_read_back() {
        let text = "V4,dev-type tun,comp-lzo,mtu-dynamic,cipher AES-192-CBC,auth SHA1";
        assert_eq!(cipher(text), Some(Cipher::Aes192Cbc));
        assert_eq!((auth(text), auth("V4,auth [null-digest]")), (Some(Digest::Sha1), None));
        assert!(compression(text) && fragment(text));
        assert_eq!(cipher("V4,cipher BF-CBC"), None);
        assert!(!compression("V4,xcomp-lzo"));
    }
}
