//! What a client says of itself in the key exchange: `KEY=VALUE` lines.

use crate::data::Cipher;

/// Lines kept at most.
const MAX_LINES: usize = 64;

/// Abilities a client announces in `IV_PROTO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities(u32);

impl Abilities {
    /// DATA_V2 packets with a peer-id.
    pub const DATA_V2: Self = Self(1 << 1);
    /// A push reply may come unasked.
    pub const REQUEST_PUSH: Self = Self(1 << 2);
    /// Data keys from the TLS exporter.
    pub const TLS_KEY_EXPORT: Self = Self(1 << 3);
    /// AUTH_PENDING with keywords.
    pub const AUTH_PENDING_KEYWORDS: Self = Self(1 << 4);
    /// EXIT as a control message.
    pub const CC_EXIT: Self = Self(1 << 7);
    /// AUTH_FAILED,TEMP.
    pub const AUTH_FAIL_TEMP: Self = Self(1 << 8);
    /// tls-crypt with fresh keys for renegotiations.
    pub const DYNAMIC_TLS_CRYPT: Self = Self(1 << 9);

    /// From the number in `IV_PROTO`.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The number in `IV_PROTO`.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// True when all of `other` are among these.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and the `other` ones.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The lines, sanitised: keys of `[A-Za-z0-9_]`, values of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerInfo {
    lines: Vec<(String, String)>,
}

impl PeerInfo {
    /// Reads the text; lines that are not `KEY=VALUE` are left out, characters that could disturb a log or a
    /// script become `_`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(key, _)| {
                (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            })
            .take(MAX_LINES)
            .map(|(key, value)| (key.to_owned(), crate::text::printable(value, 256)))
            .collect();
        Self { lines }
    }

    /// Adds a line.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.lines.push((key.to_owned(), value.into()));
        self
    }

    /// The text as sent.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    /// The value of `key`; the last one counts.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All lines.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The abilities in `IV_PROTO`; none when it is absent.
    #[must_use]
    pub fn abilities(&self) -> Abilities {
        Abilities(self.get("IV_PROTO").and_then(|v| v.parse().ok()).unwrap_or(0))
    }

    /// The data ciphers the client accepts: `IV_CIPHERS`, or what `IV_NCP=2` stands for; `None` for clients
    /// that do not negotiate.
    #[must_use]
    pub fn ciphers(&self) -> Option<Vec<Cipher>> {
        if let Some(list) = self.get("IV_CIPHERS") {
            return Some(list.split(':').filter_map(Cipher::named).collect());
        }
        (self.get("IV_NCP") == Some("2")).then(|| vec![Cipher::Aes256Gcm, Cipher::Aes128Gcm])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "IV_VER=2.6.14\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
        IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=990\nIV_LZO_STUB=1\n";

    #[test]
    fn a_stock_client_is_understood() {
        let info = PeerInfo::parse(STOCK);
        assert_eq!(info.get("IV_VER"), Some("2.6.14"));
        let abilities = info.abilities();
        assert!(abilities.has(Abilities::DATA_V2.with(Abilities::DYNAMIC_TLS_CRYPT)));
        assert!(abilities.has(Abilities::TLS_KEY_EXPORT.with(Abilities::CC_EXIT)));
        assert_eq!(info.ciphers().unwrap(), [Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305]);
        assert_eq!(info.to_text(), STOCK);
    }

    #[test]
    fn old_clients_negotiate_little_or_nothing() {
        let ncp = PeerInfo::parse("IV_NCP=2\nIV_PROTO=2\n");
        assert_eq!(ncp.ciphers().unwrap(), [Cipher::Aes256Gcm, Cipher::Aes128Gcm]);
        assert_eq!(PeerInfo::parse("IV_VER=2.3\n").ciphers(), None);
    }

    #[test]
    fn hostile_lines_are_dropped_or_made_harmless() {
        let info = PeerInfo::parse("IV_X=\u{1b}[2Jgone\nLD_PRELOAD;x=1\n=5\nnoequals\nIV_Y=caf\u{e9}\n");
        assert_eq!(info.get("IV_X"), Some("_[2Jgone"));
        assert_eq!(info.get("IV_Y"), Some("caf_"));
        assert_eq!(info.iter().count(), 2);
        let many = "A=1\n".repeat(1000);
        assert_eq!(PeerInfo::parse(&many).iter().count(), MAX_LINES);
    }
}
