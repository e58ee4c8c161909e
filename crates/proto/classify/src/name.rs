//! Probes by name, as the configuration has them.

use std::str::FromStr;

use adit_openvpn::wrap::Digest;

use crate::openvpn::OpenVpnForm;
use crate::probe::{Probe, Protocol};
use crate::tls::{ServerName, TlsCondition};

/// A text that names no probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// No such probe, or no such word after its name.
    #[error("\"{wrong}\" is no {what}; did you mean \"{nearest}\"?")]
    Unknown {
        /// What was read.
        wrong: String,
        /// What it should have been: "probe", "protection", …
        what: &'static str,
        /// The nearest right word.
        nearest: &'static str,
    },
    /// A word that a probe takes no more of.
    #[error("\"{probe}\" takes no \"{word}\"; {hint}")]
    Extra {
        /// The probe's name.
        probe: &'static str,
        /// What was read.
        word: String,
        /// What can stand there.
        hint: &'static str,
    },
    /// A server name or protocol that no client can ask for.
    #[error("\"{0}\" is no {1}")]
    Value(String, &'static str),
    /// No text.
    #[error(
        "an empty text names no probe; write for instance \"openvpn\", \"tls sni=www.example.com\" or \"ssh\""
    )]
    Empty,
}

/// First words besides the names of [`Protocol`]s.
const OTHERS: [&str; 4] = ["openvpn", "tls", "silence", "any"];
const WRAPS: [&str; 4] = ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"];
const DIGESTS: [&str; 4] = ["SHA1", "SHA256", "SHA384", "SHA512"];
const TLS_KEYS: [&str; 2] = ["sni", "alpn"];

impl FromStr for Probe {
    type Err = NameFault;

    /// Reads a named probe: `openvpn`, `openvpn none|tls-auth [auth=SHA512]|tls-crypt|tls-crypt-v2`,
    /// `tls [sni=NAME|sni=*.NAME] [alpn=PROTOCOL]`, the name of a [`Protocol`], `silence` or `any`.
    ///
    /// # Errors
    /// [`NameFault`] that names the nearest right word.
    fn from_str(text: &str) -> Result<Self, NameFault> {
        let mut words = text.split_whitespace();
        let name = words.next().ok_or(NameFault::Empty)?;
        let words: Vec<&str> = words.collect();
        let plain = |probe: Self, name| match words.first() {
            Some(word) => {
                Err(NameFault::Extra { probe: name, word: (*word).to_owned(), hint: "leave it out" })
            }
            None => Ok(probe),
        };
        match name {
            "openvpn" => openvpn(&words).map(Self::OpenVpn),
            "tls" => tls(&words).map(Self::Tls),
            "silence" => plain(Self::Silence, "silence"),
            "any" => plain(Self::Any, "any"),
            _ => match Protocol::ALL.into_iter().find(|protocol| protocol.name() == name) {
                Some(protocol) => plain(Self::Form(protocol), protocol.name()),
                None => {
                    let names = OTHERS.into_iter().chain(Protocol::ALL.map(Protocol::name));
                    Err(unknown(name, "probe", &names.collect::<Vec<_>>()))
                }
            },
        }
    }
}

fn unknown(wrong: &str, what: &'static str, right: &[&'static str]) -> NameFault {
    let distance = |name: &&str| strsim::damerau_levenshtein(wrong, name);
    let nearest = right.iter().copied().min_by_key(distance).unwrap_or_default();
    NameFault::Unknown { wrong: wrong.to_owned(), what, nearest }
}

fn openvpn(words: &[&str]) -> Result<OpenVpnForm, NameFault> {
    let extra = |word: &str, hint| Err(NameFault::Extra { probe: "openvpn", word: word.to_owned(), hint });
    let (form, rest) = match words {
        [] => return Ok(OpenVpnForm::Any),
        ["none", rest @ ..] => (OpenVpnForm::Plain, rest),
        ["tls-crypt", rest @ ..] => (OpenVpnForm::TlsCrypt, rest),
        ["tls-crypt-v2", rest @ ..] => (OpenVpnForm::TlsCryptV2, rest),
        ["tls-auth"] => (OpenVpnForm::TlsAuth(None), [].as_slice()),
        ["tls-auth", word, rest @ ..] => {
            let Some(name) = word.strip_prefix("auth=") else {
                return extra(word, "only auth=DIGEST can follow tls-auth");
            };
            let digest = Digest::named(name).ok_or_else(|| unknown(name, "digest", &DIGESTS))?;
            (OpenVpnForm::TlsAuth(Some(digest)), rest)
        }
        [word, ..] => return Err(unknown(word, "protection of OpenVPN", &WRAPS)),
    };
    match rest {
        [] => Ok(form),
        [word, ..] => extra(word, "write one protection, and auth=DIGEST only after tls-auth"),
    }
}

fn tls(words: &[&str]) -> Result<TlsCondition, NameFault> {
    let mut condition = TlsCondition::default();
    for word in words {
        let extra = |hint| NameFault::Extra { probe: "tls", word: (*word).to_owned(), hint };
        let (key, value) = word.split_once('=').ok_or_else(|| extra("write sni=NAME or alpn=PROTOCOL"))?;
        let twice = match key {
            "sni" => condition.server_name.replace(server_name(value)?).is_some(),
            "alpn" => condition.alpn.replace(alpn(value)?).is_some(),
            _ => return Err(unknown(key, "condition of TLS", &TLS_KEYS)),
        };
        if twice {
            return Err(extra("each condition is written once; make a second rule for the other"));
        }
    }
    Ok(condition)
}

fn server_name(text: &str) -> Result<ServerName, NameFault> {
    let (name, make): (_, fn(String) -> ServerName) = match text.strip_prefix("*.") {
        Some(name) => (name, ServerName::Below),
        None => (text, ServerName::Exact),
    };
    let good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if name.len() > 253 || !name.split('.').all(good) {
        return Err(NameFault::Value(text.to_owned(), "server name: write www.example.com or *.example.com"));
    }
    Ok(make(name.to_ascii_lowercase()))
}

fn alpn(text: &str) -> Result<String, NameFault> {
    if !(1..=255).contains(&text.len()) {
        return Err(NameFault::Value(
            text.to_owned(),
            "application protocol: they have 1 to 255 bytes, as in h2",
        ));
    }
    Ok(text.to_owned())
}
