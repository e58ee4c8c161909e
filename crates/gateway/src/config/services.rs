//! `[[service]]`: foreign back ends on the same ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use adit_classify::{OpenVpnForm, OpenVpnKey, Pattern, PatternFault, Probe};
use adit_plan::ports::PortSet;
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Deserializer};

use super::model::ports;

/// `[[service]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// What its clients say first.
    #[serde(default, rename = "match")]
    pub matches: Option<MatchConfig>,
    /// File with the server's key, which its clients' first packets are verified with; relative to the configuration.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Only clients that dialled one of these.
    #[serde(default, deserialize_with = "some_ports")]
    pub port: Option<PortSet>,
    /// Where it listens.
    pub to: SocketAddr,
    /// How it learns who the client is.
    #[serde(default)]
    pub proxy: ProxyConfig,
}

/// How a back end learns who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyConfig {
    /// Not at all.
    #[default]
    None,
    /// By a PROXY header of version 2.
    V2,
    /// By the source address.
    Transparent,
}

/// What clients say first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum MatchConfig {
    /// A named probe, such as `openvpn tls-auth` or `tls sni=*.example.org`.
    Named(String),
    /// Lengths and bytes.
    Pattern(PatternConfig),
}

/// Lengths and bytes of a first packet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PatternConfig {
    /// Bytes of the first record, with its two bytes of length.
    pub tcp_length: Option<usize>,
    /// Bytes of the first datagram.
    pub udp_length: Option<usize>,
    /// The packet's first byte; over TCP the one after the length.
    pub first: Option<u8>,
    /// Bytes elsewhere.
    pub bytes: Vec<BytesConfig>,
}

/// Bytes at a place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesConfig {
    /// From the flow's first byte.
    pub offset: usize,
    /// What they are, in hexadecimal.
    pub value: String,
    /// Which of their bits count; all, if not given.
    #[serde(default)]
    pub mask: Option<String>,
}

fn some_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PortSet>, D::Error> {
    ports(deserializer).map(Some)
}

impl ServiceConfig {
    /// What is asked of first packets. Reads the key file, if there is one; `base` is where relative paths begin.
    ///
    /// # Errors
    /// What is wrong, with the service's name.
    pub fn probe(&self, base: &Path) -> Result<Probe, String> {
        let fault = |why: String| format!("service {}: {why}", self.name);
        let probe = match &self.matches {
            Some(MatchConfig::Named(name)) => {
                name.parse::<Probe>().map_err(|why| fault(format!("match: {why}")))?
            }
            Some(MatchConfig::Pattern(pattern)) => {
                Probe::Pattern(pattern.read().map_err(|why| fault(format!("match: {why}")))?)
            }
            None if self.key.is_some() => Probe::OpenVpn(OpenVpnForm::Any),
            None => Probe::Any,
        };
        let Some(key) = &self.key else { return Ok(probe) };
        let Probe::OpenVpn(form) = probe else {
            let why = "key is for match = \"openvpn …\"; leave one of the two out";
            return Err(fault(why.into()));
        };
        let path = base.join(key);
        let text = adit_pki::files::read_secret(&path).map_err(|error| fault(error.to_string()))?;
        let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
        let key =
            OpenVpnKey::from_file(&text, form).map_err(|why| fault(format!("{}: {why}", path.display())))?;
        Ok(Probe::OpenVpnKey(key))
    }

    /// What serde cannot see.
    pub(super) fn validate(&self) -> Result<(), String> {
        let name = &self.name;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
            return Err(format!("service \"{name}\": a name is 1 to 64 letters, digits or dashes"));
        }
        if ["silence", "close"].contains(&name.as_str()) {
            return Err(format!("service \"{name}\": [unknown] has this word for something else"));
        }
        if self.matches.is_none() && self.key.is_none() && self.port.is_none() {
            return Err(format!(
                "service {name} has neither match nor key nor port: which clients are for it? For all that nobody else \
                 knows write match = \"any\""
            ));
        }
        if self.proxy == ProxyConfig::Transparent && self.to.ip().is_loopback() {
            return Err(format!(
                "service {name}: proxy = \"transparent\" is for back ends on other machines, whose answers come by here; \
                 for {} use \"v2\"",
                self.to
            ));
        }
        if self.to.port() == 0 || self.to.ip().is_unspecified() {
            return Err(format!("service {name}: to = \"{}\" is not where anything listens", self.to));
        }
        Ok(())
    }
}

impl PatternConfig {
    fn read(&self) -> Result<Pattern, String> {
        let words = |fault: PatternFault| fault.to_string();
        let mut pattern = match (self.tcp_length, self.udp_length) {
            (Some(_), Some(_)) => {
                return Err("either tcp-length or udp-length; write a service for each".into());
            }
            (Some(length), None) => Pattern::tcp_length(length).map_err(words)?,
            (None, Some(length)) => Pattern::udp_length(length).map_err(words)?,
            (None, None) if self.first.is_none() && self.bytes.is_empty() => {
                return Err("an empty pattern: give tcp-length, udp-length, first or bytes".into());
            }
            (None, None) => Pattern::default(),
        };
        if let Some(first) = self.first {
            pattern = pattern.with_first(first).map_err(words)?;
        }
        for bytes in &self.bytes {
            let value = hex(&bytes.value)?;
            let mask = bytes.mask.as_deref().map_or_else(|| Ok(vec![0xff; value.len()]), hex)?;
            pattern = pattern.with_bytes(bytes.offset, &mask, &value).map_err(words)?;
        }
        Ok(pattern)
    }
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .map_err(|_| format!("\"{text}\": bytes in hexadecimal, such as \"38ff\""))
}

#[cfg(test)]
mod tests {
    use adit_classify::{Answer, Transport};

    use super::*;

    fn service(text: &str) -> Result<Probe, String> {
        let service: ServiceConfig =
            toml::from_str(&format!("name = \"a\"\nto = \"127.0.0.1:1194\"\n{text}")).unwrap();
        service.validate()?;
        service.probe(Path::new("/"))
    }

    #[test]
    fn matches_are_names_patterns_keys_or_ports() {
        let first = [&[0x38][..], &[7; 85]].concat();
        let says = |text: &str| service(text).unwrap().answer(Transport::Udp, &first, true);
        assert_eq!(says("match = { udp-length = 86, first = 0x38 }"), Answer::Yes);
        assert_eq!(says("match = { udp-length = 86, first = 0x50 }"), Answer::No);
        assert_eq!(
            says("match = { bytes = [{ offset = 1, value = \"0702\", mask = \"ff0f\" }] }"),
            Answer::No
        );
        assert_eq!(says("match = { bytes = [{ offset = 1, value = \"0707\" }] }"), Answer::Yes);
        assert_eq!(says("port = \"5061\""), Answer::Yes);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, part) in [
            ("", "neither match nor key nor port"),
            ("match = \"opnvpn\"", "openvpn"),
            ("match = \"ssh\"\nproxy = \"transparent\"", "on other machines"),
            ("match = {}", "an empty pattern"),
            ("match = { tcp-length = 88, udp-length = 86 }", "either tcp-length or udp-length"),
            ("match = { bytes = [{ offset = 1, value = \"xy\" }] }", "hexadecimal"),
            ("match = \"ssh\"\nkey = \"ta.key\"", "leave one of the two out"),
            ("key = \"no/such/file\"", "no/such/file"),
        ] {
            let why = service(text).unwrap_err();
            assert!(why.starts_with("service a") && why.contains(part), "{why}");
        }
    }
}
