//! A [`Profile`] as text that stock clients take unchanged.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{FilterAction, Profile, ProfileWrap, Transport, VerifyName};
use crate::wrap::Direction;

/// What is written besides the profile.
#[derive(Debug, Clone, Default)]
pub struct Rendering {
    /// Comment lines at the top, without `#`.
    pub comments: Vec<String>,
}

/// Writes the profile. Every client understands what is in it: a line that only newer versions know is marked as
/// optional.
#[must_use]
pub fn render(profile: &Profile, rendering: &Rendering) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(16 * 1024));
    // Writing to a string cannot fail.
    let _ = write_all(profile, rendering, &mut out);
    out
}

fn write_all(profile: &Profile, rendering: &Rendering, out: &mut String) -> std::fmt::Result {
    for comment in &rendering.comments {
        writeln!(out, "# {comment}")?;
    }
    writeln!(out, "client\ndev {}\nnobind\npersist-tun", profile.dev.as_deref().unwrap_or("tun"))?;
    for remote in &profile.remotes {
        let line = format!("remote {} {} {}", remote.host, remote.port, remote.transport.name());
        match (profile.fragment, remote.transport) {
            (None, _) => writeln!(out, "{line}")?,
            // Stock clients refuse `fragment` together with TCP, so each remote says for itself.
            (Some(size), Transport::Udp) => {
                writeln!(out, "<connection>\n{line}\nfragment {size}\n</connection>")?;
            }
            (Some(_), Transport::Tcp) => writeln!(out, "<connection>\n{line}\n</connection>")?,
        }
    }
    if profile.remote_random {
        writeln!(out, "remote-random")?;
    }
    writeln!(out, "resolv-retry infinite\nserver-poll-timeout 10")?;
    if profile.remote_cert_tls {
        writeln!(out, "remote-cert-tls server")?;
    }
    match &profile.verify_name {
        Some(VerifyName::Subject(name)) => writeln!(out, "verify-x509-name \"{name}\"")?,
        Some(VerifyName::Name(name)) => writeln!(out, "verify-x509-name \"{name}\" name")?,
        Some(VerifyName::NamePrefix(name)) => writeln!(out, "verify-x509-name \"{name}\" name-prefix")?,
        None => {}
    }
    writeln!(out, "tls-version-min {}", if profile.tls13_only { "1.3" } else { "1.2" })?;
    if !profile.tls_groups.is_empty() {
        let names: Vec<_> = profile.tls_groups.iter().map(|group| group.name()).collect();
        writeln!(out, "tls-groups {}", names.join(":"))?;
    }
    let ciphers: Vec<&str> = profile.ciphers.iter().map(|cipher| cipher.name()).collect();
    writeln!(out, "data-ciphers {}", ciphers.join(":"))?;
    if let Some(cipher) = profile.fallback {
        writeln!(out, "data-ciphers-fallback {}", cipher.name())?;
    }
    writeln!(out, "auth {}", profile.auth.name())?;
    for (name, value) in [("tun-mtu", profile.tun_mtu), ("mssfix", profile.mssfix)] {
        if let Some(value) = value {
            // A plain `mssfix n` counts the UDP payload; the outer packet is meant.
            let unit = if name == "mssfix" && value > 0 { " mtu" } else { "" };
            writeln!(out, "{name} {value}{unit}")?;
        }
    }
    if let Some(seconds) = profile.reneg_sec {
        writeln!(out, "reneg-sec {seconds}")?;
    }
    if profile.replay != super::ReplayOptions::default() {
        writeln!(out, "replay-window {} {}", profile.replay.packets, profile.replay.seconds)?;
    }
    if let Some(redirect) = &profile.redirect {
        writeln!(out, "{redirect}")?;
    }
    for option in &profile.options {
        writeln!(out, "{option}")?;
    }
    for (action, text) in &profile.pull_filters {
        let action = match action {
            FilterAction::Accept => "accept",
            FilterAction::Ignore => "ignore",
            FilterAction::Reject => "reject",
        };
        writeln!(out, "pull-filter {action} \"{text}\"")?;
    }
    if profile.ask_credentials {
        writeln!(out, "auth-user-pass")?;
    }
    writeln!(out, "verb 3")?;
    block(out, "ca", profile.ca.as_deref())?;
    block(out, "cert", profile.cert.as_deref())?;
    block(out, "key", profile.key.as_ref().map(|key| key.as_str()))?;
    match &profile.wrap {
        ProfileWrap::None => {}
        ProfileWrap::TlsAuth(key, direction) => {
            match direction {
                Direction::Both => {}
                Direction::Normal => writeln!(out, "key-direction 0")?,
                Direction::Inverse => writeln!(out, "key-direction 1")?,
            }
            block(out, "tls-auth", Some(&key.to_text()))?;
        }
        ProfileWrap::TlsCrypt(key) => block(out, "tls-crypt", Some(&key.to_text()))?,
        ProfileWrap::TlsCryptV2(key) => block(out, "tls-crypt-v2", Some(&key.to_text()))?,
    }
    Ok(())
}

fn block(out: &mut String, name: &str, text: Option<&str>) -> std::fmt::Result {
    match text {
        Some(text) => writeln!(out, "<{name}>\n{}\n</{name}>", text.trim_end()),
        None => Ok(()),
    }
}
