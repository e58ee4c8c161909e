//! Directives into a [`Profile`].

use std::str::FromStr;

use zeroize::Zeroizing;

use super::lexer::{self, Directive, LexFault};
use super::{Family, FilterAction, Note, Profile, ProfileWrap, Remote, Transport, VerifyName};
use crate::data::{Cipher, ReplayOptions};
use crate::kex::Credentials;
use crate::keyfile::{ClientKeyV2, StaticKey};
use crate::push::{DhcpOption, PushOption};
use crate::tls::Group;
use crate::wrap::{Digest, Direction};

/// Why a profile cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileFault {
    /// A directive makes no sense, or asks for something that is not done here.
    #[error("line {line}: {directive}: {what}")]
    Directive {
        /// Line number, from 1.
        line: usize,
        /// The directive.
        directive: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Something needed is not there.
    #[error("the profile has no {0}")]
    Missing(&'static str),
}

const RUNS_PROGRAMS: &[&str] = &[
    "up",
    "down",
    "up-restart",
    "up-delay",
    "down-pre",
    "ipchange",
    "route-up",
    "route-pre-down",
    "tls-verify",
    "auth-user-pass-verify",
    "client-connect",
    "client-disconnect",
    "client-crresponse",
    "learn-address",
    "tls-crypt-v2-verify",
    "plugin",
    "script-security",
    "iproute",
    "tls-export-cert",
];
const HAS_NO_MEANING_HERE: &[&str] = &[
    "persist-key",
    "persist-tun",
    "nobind",
    "resolv-retry",
    "verb",
    "mute",
    "mute-replay-warnings",
    "daemon",
    "log",
    "log-append",
    "status",
    "writepid",
    "user",
    "group",
    "chroot",
    "nice",
    "cd",
    "management",
    "management-hold",
    "management-query-passwords",
    "auth-nocache",
    "auth-retry",
    "connect-retry",
    "connect-retry-max",
    "connect-timeout",
    "server-poll-timeout",
    "explicit-exit-notify",
    "float",
    "fast-io",
    "mlock",
    "sndbuf",
    "rcvbuf",
    "txqueuelen",
    "socket-flags",
    "mtu-disc",
    "allow-compression",
    "push-peer-info",
    "setenv",
    "setenv-safe",
    "ignore-unknown-option",
    "tls-cert-profile",
    "tls-cipher",
    "tls-ciphersuites",
    "ecdh-curve",
    "route-delay",
    "route-method",
    "route-metric",
    "register-dns",
    "ip-win32",
    "win-sys",
    "tap-sleep",
    "block-outside-dns",
    "disable-dco",
    "dev-node",
    "dev-type",
    "machine-readable-output",
    "ncp-disable",
    "ncp-ciphers",
    "keysize",
    "tran-window",
    "tls-timeout",
    "suppress-timestamps",
    "lport",
    "local",
    "compat-mode",
    "remote-random-hostname",
    "static-challenge",
    "auth-token-user",
    "service",
    "echo",
    "parameter",
    "tls-client",
    "pull",
    "key-direction",
    "max-routes",
    "bcast-buffers",
];

struct Reader<'a> {
    profile: Profile,
    load: &'a mut dyn FnMut(&str) -> Result<String, String>,
    /// Defaults for remotes that do not say.
    transport: (Transport, Family),
    port: u16,
    direction: Option<Direction>,
    wrap: Option<(WrapKind, String, usize)>,
}

#[derive(Clone, Copy, PartialEq)]
enum WrapKind {
    Auth,
    Crypt,
    CryptV2,
}

pub(super) fn parse(
    text: &str,
    load: &mut dyn FnMut(&str) -> Result<String, String>,
) -> Result<Profile, ProfileFault> {
    let directives = lexer::directives(text).map_err(|fault| match fault {
        LexFault::Quote(line) => fault_at(line, "", "a quote is not closed"),
        LexFault::Block(line, name) => fault_at(line, &format!("<{name}>"), "the block is not closed"),
    })?;
    let mut reader = Reader {
        profile: Profile {
            remotes: Vec::new(),
            remote_random: false,
            ca: None,
            cert: None,
            key: None,
            crl: None,
            peer_fingerprints: Vec::new(),
            wrap: ProfileWrap::None,
            auth: Digest::Sha1,
            ciphers: vec![Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305],
            fallback: None,
            remote_cert_tls: false,
            verify_name: None,
            tls13_only: false,
            tls_groups: Vec::new(),
            credentials: None,
            ask_credentials: false,
            dev: None,
            tun_mtu: None,
            mssfix: None,
            fragment: None,
            replay: ReplayOptions::default(),
            reneg_sec: None,
            hand_window: None,
            ping: None,
            ping_restart: None,
            redirect: None,
            options: Vec::new(),
            route_nopull: false,
            pull_filters: Vec::new(),
            notes: Vec::new(),
        },
        load,
        transport: (Transport::Udp, Family::Any),
        port: 1194,
        direction: None,
        wrap: None,
    };
    // Defaults first: `proto` and `port` count for remotes above them too.
    for directive in &directives {
        reader.default(directive)?;
    }
    for directive in &directives {
        reader.apply(directive)?;
    }
    reader.finish()
}

fn fault_at(line: usize, directive: &str, what: &str) -> ProfileFault {
    ProfileFault::Directive { line, directive: directive.to_owned(), what: what.to_owned() }
}

impl Reader<'_> {
    fn default(&mut self, directive: &Directive) -> Result<(), ProfileFault> {
        match directive.name.as_str() {
            "proto" => self.transport = transport(directive, directive.args.first())?,
            "port" | "rport" => self.port = number(directive)?,
            "key-direction" => self.direction = Some(direction(directive, directive.args.first())?),
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, directive: &Directive) -> Result<(), ProfileFault> {
        let args: Vec<&str> = directive.args.iter().map(String::as_str).collect();
        let profile = &mut self.profile;
        match directive.name.as_str() {
            "client" | "tls-client" | "pull" | "proto" | "port" | "rport" | "key-direction" => {}
            "connection" => self.connection(directive)?,
            "remote" => {
                let remote = remote(directive, self.transport, self.port)?;
                profile.remotes.push(remote);
            }
            "remote-random" => profile.remote_random = true,
            "dev" => match args.as_slice() {
                [name] if name.starts_with("tun") => {
                    profile.dev = Some((*name).to_owned()).filter(|n| n != "tun");
                }
                _ => return Err(wrong(directive, "only tun interfaces are supported, not tap")),
            },
            "ca" => self.profile.ca = Some(self.content(directive)?),
            "cert" => self.profile.cert = Some(self.content(directive)?),
            "key" => self.profile.key = Some(Zeroizing::new(self.content(directive)?)),
            "crl-verify" => self.profile.crl = Some(self.content(directive)?),
            "tls-auth" | "tls-crypt" | "tls-crypt-v2" => self.wrap(directive)?,
            "peer-fingerprint" => {
                let text = directive.inline.clone().unwrap_or_else(|| args.join(" "));
                for print in text.split_whitespace() {
                    profile.peer_fingerprints.push(fingerprint(directive, print)?);
                }
            }
            "auth" => {
                let digest = args.first().and_then(|name| Digest::named(name));
                profile.auth =
                    digest.ok_or_else(|| wrong(directive, "not one of SHA1, SHA256, SHA384, SHA512"))?;
            }
            "data-ciphers" => profile.ciphers = ciphers(directive)?,
            "cipher" => {
                // Only a hint since 2.6; what is unknown may still be negotiated away.
                match args.first().and_then(|name| Cipher::named(name)) {
                    Some(cipher) => profile.fallback = profile.fallback.or(Some(cipher)),
                    None => self.note(directive, "an unknown or insecure cipher is never used"),
                }
            }
            "data-ciphers-fallback" => {
                let cipher = args.first().and_then(|name| Cipher::named(name));
                profile.fallback = Some(cipher.ok_or_else(|| wrong(directive, "not a cipher adit uses"))?);
            }
            "remote-cert-tls" => match args.as_slice() {
                ["server"] => profile.remote_cert_tls = true,
                _ => return Err(wrong(directive, "a client's profile says \"remote-cert-tls server\"")),
            },
            "ns-cert-type" => profile.remote_cert_tls = true,
            "verify-x509-name" => profile.verify_name = Some(verify_name(directive)?),
            "tls-version-min" => profile.tls13_only = args.first() == Some(&"1.3"),
            "tls-version-max" => {
                if matches!(args.first(), Some(&"1.0" | &"1.1")) {
                    return Err(wrong(directive, "TLS below 1.2 is not spoken here"));
                }
            }
            "tls-groups" => profile.tls_groups = groups(directive)?,
            "auth-user-pass" => self.credentials(directive)?,
            "tun-mtu" => profile.tun_mtu = Some(number(directive)?),
            "mssfix" => profile.mssfix = Some(if args.is_empty() { 1492 } else { number(directive)? }),
            "fragment" => profile.fragment = Some(number(directive)?).filter(|&n| n > 0),
            "replay-window" => profile.replay = replay(directive)?,
            "reneg-sec" => profile.reneg_sec = Some(number(directive)?),
            "hand-window" => profile.hand_window = Some(number(directive)?),
            "ping" => profile.ping = Some(number(directive)?),
            "ping-restart" | "ping-exit" => profile.ping_restart = Some(number(directive)?),
            "keepalive" => match args.as_slice() {
                [ping, restart] => {
                    profile.ping = ping.parse().ok();
                    profile.ping_restart = restart.parse().ok();
                }
                _ => return Err(wrong(directive, "two numbers of seconds are needed")),
            },
            "redirect-gateway" | "redirect-private" => match pushable(directive)? {
                PushOption::RedirectGateway(redirect) => profile.redirect = Some(redirect),
                _ => return Err(wrong(directive, "malformed")),
            },
            "route" | "route-ipv6" | "block-ipv6" => profile.options.push(pushable(directive)?),
            "dhcp-option" => match pushable(directive)? {
                PushOption::Dhcp(DhcpOption::Other(_)) => self.note(directive, "not a resolver setting"),
                option => profile.options.push(option),
            },
            "route-nopull" => profile.route_nopull = true,
            "pull-filter" => match args.as_slice() {
                [action, text] => {
                    let action = match *action {
                        "accept" => FilterAction::Accept,
                        "ignore" => FilterAction::Ignore,
                        "reject" => FilterAction::Reject,
                        _ => return Err(wrong(directive, "accept, ignore or reject is needed")),
                    };
                    profile.pull_filters.push((action, (*text).to_owned()));
                }
                _ => return Err(wrong(directive, "an action and a text are needed")),
            },
            "topology" | "ifconfig" | "ifconfig-ipv6" | "dns" => {
                self.note(directive, "the server's setting counts");
            }
            "comp-lzo" | "compress" | "comp-noadapt" => {
                self.note(directive, "adit never compresses; packets are framed as the server says");
            }
            "pkcs12" | "askpass" | "pkcs11-id" | "pkcs11-providers" | "cryptoapicert" => {
                return Err(wrong(directive, "keep the key in the profile as an unencrypted <key> block"));
            }
            "secret" => {
                return Err(wrong(directive, "static-key mode has no forward secrecy and is not supported"));
            }
            "http-proxy" | "socks-proxy" => return Err(wrong(directive, "proxies are not supported")),
            "dh" | "server" | "tls-server" | "mode" | "ifconfig-pool" | "client-to-client" => {
                return Err(wrong(
                    directive,
                    "this belongs into a server's configuration, not into a profile",
                ));
            }
            name if RUNS_PROGRAMS.contains(&name) => self.note(directive, "programs are never run"),
            name if HAS_NO_MEANING_HERE.contains(&name) => self.note(directive, "has no effect here"),
            _ => return Err(wrong(directive, "unknown directive; remove it, or check its spelling")),
        }
        Ok(())
    }

    fn note(&mut self, directive: &Directive, why: &'static str) {
        self.profile.notes.push(Note { line: directive.line, directive: directive.name.clone(), why });
    }

    /// Content of a block, or of the file a directive names.
    fn content(&mut self, directive: &Directive) -> Result<String, ProfileFault> {
        if let Some(text) = &directive.inline {
            return Ok(text.clone());
        }
        let name = directive.args.first().ok_or_else(|| wrong(directive, "a file name is needed"))?;
        (self.load)(name).map_err(|why| wrong(directive, &why))
    }

    fn wrap(&mut self, directive: &Directive) -> Result<(), ProfileFault> {
        let kind = match directive.name.as_str() {
            "tls-auth" => WrapKind::Auth,
            "tls-crypt" => WrapKind::Crypt,
            _ => WrapKind::CryptV2,
        };
        if self.wrap.as_ref().is_some_and(|(other, ..)| *other != kind) {
            return Err(wrong(directive, "a profile has one of tls-auth, tls-crypt and tls-crypt-v2"));
        }
        if kind == WrapKind::Auth && directive.args.len() > 1 {
            self.direction = Some(direction(directive, directive.args.get(1))?);
        }
        let text = self.content(directive)?;
        self.wrap = Some((kind, text, directive.line));
        Ok(())
    }

    fn credentials(&mut self, directive: &Directive) -> Result<(), ProfileFault> {
        if directive.inline.is_none() && directive.args.is_empty() {
            self.profile.ask_credentials = true;
            return Ok(());
        }
        let text = Zeroizing::new(self.content(directive)?);
        let mut lines = text.lines();
        let username = lines.next().filter(|name| !name.is_empty());
        let username = username.ok_or_else(|| wrong(directive, "a user name is needed on the first line"))?;
        match lines.next() {
            Some(password) => {
                self.profile.credentials =
                    Some(Credentials { username: username.to_owned(), password: password.to_owned() });
            }
            None => self.profile.ask_credentials = true,
        }
        Ok(())
    }

    fn connection(&mut self, directive: &Directive) -> Result<(), ProfileFault> {
        let text = directive.inline.clone().unwrap_or_default();
        let inner = lexer::directives(&text).map_err(|_| wrong(directive, "the block cannot be read"))?;
        let mut defaults = (self.transport, self.port);
        for entry in &inner {
            match entry.name.as_str() {
                "proto" => defaults.0 = transport(entry, entry.args.first())?,
                "port" | "rport" => defaults.1 = number(entry)?,
                _ => {}
            }
        }
        for mut entry in inner {
            entry.line += directive.line;
            match entry.name.as_str() {
                "remote" => {
                    let remote = remote(&entry, defaults.0, defaults.1)?;
                    self.profile.remotes.push(remote);
                }
                "proto" | "port" | "rport" => {}
                // Only UDP has fragments, so that it does no harm at the other remotes.
                "fragment" => self.profile.fragment = Some(number(&entry)?).filter(|&n| n > 0),
                _ => self.note(&entry, "has no effect within a connection block here"),
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Profile, ProfileFault> {
        if let Some((kind, text, line)) = self.wrap.take() {
            let fault =
                |why: crate::keyfile::KeyFileFault| fault_at(line, "control channel key", &format!("{why}"));
            let text = Zeroizing::new(text);
            self.profile.wrap = match kind {
                WrapKind::Auth => ProfileWrap::TlsAuth(
                    StaticKey::parse(&text).map_err(fault)?,
                    self.direction.unwrap_or_default(),
                ),
                WrapKind::Crypt => ProfileWrap::TlsCrypt(StaticKey::parse(&text).map_err(fault)?),
                WrapKind::CryptV2 => ProfileWrap::TlsCryptV2(ClientKeyV2::parse(&text).map_err(fault)?),
            };
        }
        let profile = self.profile;
        if profile.remotes.is_empty() {
            return Err(ProfileFault::Missing("\"remote\" line: it names no server"));
        }
        if profile.ca.is_none() && profile.peer_fingerprints.is_empty() {
            return Err(ProfileFault::Missing("<ca> block: the server could not be verified"));
        }
        if profile.cert.is_some() != profile.key.is_some() {
            return Err(ProfileFault::Missing(if profile.key.is_none() {
                "<key> block for its certificate"
            } else {
                "<cert> block for its key"
            }));
        }
        Ok(profile)
    }
}

fn wrong(directive: &Directive, what: &str) -> ProfileFault {
    fault_at(directive.line, &directive.name, what)
}

fn number<T: FromStr>(directive: &Directive) -> Result<T, ProfileFault> {
    let number = directive.args.first().and_then(|text| text.parse().ok());
    number.ok_or_else(|| wrong(directive, "a number is needed, or it is too large"))
}

fn transport(directive: &Directive, name: Option<&String>) -> Result<(Transport, Family), ProfileFault> {
    Ok(match name.map(String::as_str) {
        Some("udp") => (Transport::Udp, Family::Any),
        Some("udp4") => (Transport::Udp, Family::V4),
        Some("udp6") => (Transport::Udp, Family::V6),
        Some("tcp" | "tcp-client") => (Transport::Tcp, Family::Any),
        Some("tcp4" | "tcp4-client") => (Transport::Tcp, Family::V4),
        Some("tcp6" | "tcp6-client") => (Transport::Tcp, Family::V6),
        _ => return Err(wrong(directive, "not one of udp, udp4, udp6, tcp, tcp4, tcp6")),
    })
}

fn remote(directive: &Directive, defaults: (Transport, Family), port: u16) -> Result<Remote, ProfileFault> {
    let host = directive.args.first().ok_or_else(|| wrong(directive, "a host is needed"))?;
    let port = match directive.args.get(1) {
        Some(text) => text.parse().ok().filter(|&port| port > 0),
        None => Some(port),
    };
    let port = port.ok_or_else(|| wrong(directive, "the port is not a number from 1 to 65535"))?;
    let (transport, family) = match directive.args.get(2) {
        Some(name) => transport(directive, Some(name))?,
        None => defaults,
    };
    Ok(Remote { host: host.clone(), port, transport, family })
}

fn direction(directive: &Directive, text: Option<&String>) -> Result<Direction, ProfileFault> {
    match text.map(String::as_str) {
        Some("0") => Ok(Direction::Normal),
        Some("1") => Ok(Direction::Inverse),
        _ => Err(wrong(directive, "the key direction is 0 or 1")),
    }
}

/// Those of a list that are known. A stock client, too, goes on without the others.
fn groups(directive: &Directive) -> Result<Vec<Group>, ProfileFault> {
    let list = directive.args.first().map_or("", String::as_str);
    let groups: Vec<_> = list.split(':').filter_map(Group::named).collect();
    if groups.is_empty() {
        let known = Group::ALL.map(Group::name).join(", ");
        return Err(wrong(directive, &format!("none of these is supported; known are {known}")));
    }
    Ok(groups)
}

fn ciphers(directive: &Directive) -> Result<Vec<Cipher>, ProfileFault> {
    let list = directive.args.first().map_or("", String::as_str);
    let mut ciphers = Vec::new();
    for name in list.split(':') {
        let optional = name.strip_prefix('?');
        match (Cipher::named(optional.unwrap_or(name)), optional) {
            (Some(cipher), _) if !ciphers.contains(&cipher) => ciphers.push(cipher),
            (Some(_), _) | (None, Some(_)) => {}
            (None, None) if name.eq_ignore_ascii_case("DEFAULT") => {
                ciphers.extend([Cipher::Aes256Gcm, Cipher::Aes128Gcm, Cipher::ChaCha20Poly1305]);
            }
            (None, None) => {
                return Err(wrong(
                    directive,
                    &format!("{} is not a cipher adit uses", crate::text::printable(name, 40)),
                ));
            }
        }
    }
    if ciphers.is_empty() {
        return Err(wrong(directive, "no cipher of the list is one adit uses"));
    }
    Ok(ciphers)
}

fn verify_name(directive: &Directive) -> Result<VerifyName, ProfileFault> {
    let name = directive.args.first().ok_or_else(|| wrong(directive, "a name is needed"))?.clone();
    match directive.args.get(1).map_or("subject", String::as_str) {
        "subject" => Ok(VerifyName::Subject(name)),
        "name" => Ok(VerifyName::Name(name)),
        "name-prefix" => Ok(VerifyName::NamePrefix(name)),
        _ => Err(wrong(directive, "the type is subject, name or name-prefix")),
    }
}

fn replay(directive: &Directive) -> Result<ReplayOptions, ProfileFault> {
    let mut options = ReplayOptions::default();
    let limit = |text: &String, most: u32| text.parse().ok().filter(|&n| n <= most);
    let malformed = || wrong(directive, "needs packets (at most 65536) and seconds (at most 600)");
    if let Some(packets) = directive.args.first() {
        options.packets = limit(packets, adit_tunnel::replay::MAX_SIZE).ok_or_else(malformed)?;
    }
    if let Some(seconds) = directive.args.get(1) {
        options.seconds = limit(seconds, 600).ok_or_else(malformed)?;
    }
    Ok(options)
}

fn fingerprint(directive: &Directive, text: &str) -> Result<String, ProfileFault> {
    let hex: String = text.chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(hex);
    }
    Err(wrong(directive, "a fingerprint is 32 hex bytes (SHA-256)"))
}

/// A directive that has the form of a pushed option.
fn pushable(directive: &Directive) -> Result<PushOption, ProfileFault> {
    let text = format!("{} {}", directive.name, directive.args.join(" "));
    text.parse().map_err(|_| wrong(directive, "its parameters make no sense"))
}
