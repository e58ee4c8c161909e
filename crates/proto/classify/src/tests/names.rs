//! Probes by name.

use proptest::prelude::*;

use crate::{NameFault, Probe};

fn fault(text: &str) -> String {
    text.parse::<Probe>().unwrap_err().to_string()
}

#[test]
fn every_named_probe_is_read_and_written_the_same() {
    for text in [
        "openvpn",
        "openvpn none",
        "openvpn tls-auth",
        "openvpn tls-auth auth=SHA512",
        "openvpn tls-crypt",
        "openvpn tls-crypt-v2",
        "tls",
        "tls sni=www.example.com",
        "tls sni=*.example.com alpn=h2",
        "tls alpn=http/1.1",
        "ssh",
        "http",
        "socks4",
        "socks5",
        "proxy",
        "silence",
        "wireguard",
        "quic",
        "dtls",
        "stun",
        "dns",
        "ike",
        "any",
    ] {
        assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
    }
    let spaced: Probe = "  tls   alpn=h2 sni=WWW.Example.com ".parse().unwrap();
    assert_eq!(spaced.to_string(), "tls sni=www.example.com alpn=h2");
    assert_eq!(
        "openvpn tls-auth auth=sha-512".parse::<Probe>().unwrap().to_string(),
        "openvpn tls-auth auth=SHA512"
    );
}

#[test]
fn a_wrong_name_is_answered_with_the_nearest_right_one() {
    assert_eq!(fault("opnvpn"), "\"opnvpn\" is no probe; did you mean \"openvpn\"?");
    assert_eq!(fault("https"), "\"https\" is no probe; did you mean \"http\"?");
    assert_eq!(
        fault("openvpn tls-cript"),
        "\"tls-cript\" is no protection of OpenVPN; did you mean \"tls-crypt\"?"
    );
    assert_eq!(fault("openvpn tls-auth auth=SHA521"), "\"SHA521\" is no digest; did you mean \"SHA512\"?");
    assert_eq!(fault("tls snl=a.b"), "\"snl\" is no condition of TLS; did you mean \"sni\"?");
}

#[test]
fn words_that_say_nothing_are_refused() {
    assert_eq!(fault(" "), NameFault::Empty.to_string());
    for text in [
        "ssh 2",
        "any any",
        "openvpn none none",
        "openvpn tls-crypt auth=SHA1",
        "openvpn tls-auth SHA1",
        "openvpn tls-auth auth=SHA1 x",
        "tls h2",
        "tls sni=a.b sni=c.d",
    ] {
        assert!(matches!(text.parse::<Probe>(), Err(NameFault::Extra { .. })), "{text}");
    }
    for text in
        ["tls sni=", "tls sni=*.", "tls sni=*", "tls sni=a..b", "tls sni=a.*.b", "tls sni=ä.b", "tls alpn="]
    {
        assert!(matches!(text.parse::<Probe>(), Err(NameFault::Value(..))), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_probe_or_a_clear_fault(
        text in "(openvpn|tls|ssh|.{0,9})( (tls-auth|sni=|alpn=|auth=|.{0,9})[a-zA-Z0-9.*-]{0,9}){0,3}"
    ) {
        match text.parse::<Probe>() {
            Ok(probe) => {
                let written = probe.to_string();
                prop_assert_eq!(written.parse::<Probe>().unwrap().to_string(), written);
            }
            Err(fault) => prop_assert!(!fault.to_string().is_empty()),
        }
    }
}
