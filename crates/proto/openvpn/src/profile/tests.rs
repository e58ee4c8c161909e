use proptest::prelude::*;

use super::*;
use crate::push::Via;

fn no_files(name: &str) -> Result<String, String> {
    Err(format!("cannot read {name}"))
}

fn parse(text: &str) -> Result<Profile, ProfileFault> {
    Profile::parse(text, &mut no_files)
}

const MINIMAL: &str = "client\nremote vpn.example.org\n<ca>\nCA\n</ca>\n";

#[test]
fn a_profile_as_other_gateways_write_it_is_understood() {
    let key = StaticKey::new(&[7; 256]);
    let text = format!(
        "client\ndev tun\nproto udp\nremote a.example 443\nremote b.example 8443 tcp4\nport 1195\nremote c.example\n\
         <connection>\nremote d.example 80\nproto tcp\n</connection>\n\
         remote-cert-tls server\nverify-x509-name \"gate way\" name\ndata-ciphers AES-128-GCM:?BF-CBC\n\
         cipher AES-256-CBC\nauth SHA512\nkey-direction 1\nreneg-sec 0\nreplay-window 512 30\nverb 3\nup /bin/evil\n\
         script-security 2\nroute 10.0.0.0 255.0.0.0\npull-filter ignore \"dhcp-option DNS\"\n\
         <ca>\nCA\n</ca>\n<cert>\nCERT\n</cert>\n<key>\nKEY\n</key>\n<tls-auth>\n{}</tls-auth>\n",
        key.to_text().as_str()
    );
    let profile = parse(&text).unwrap();
    let remotes: Vec<_> = profile
        .remotes
        .iter()
        .map(|r| format!("{} {} {:?} {:?}", r.host, r.port, r.transport, r.family))
        .collect();
    assert_eq!(
        remotes,
        ["a.example 443 Udp Any", "b.example 8443 Tcp V4", "c.example 1195 Udp Any", "d.example 80 Tcp Any"]
    );
    assert_eq!(profile.ciphers, [Cipher::Aes128Gcm]);
    assert_eq!(profile.fallback, Some(Cipher::Aes256Cbc));
    assert_eq!(profile.wrap, ProfileWrap::TlsAuth(key, Direction::Inverse));
    assert_eq!(profile.verify_name, Some(VerifyName::Name("gate way".into())));
    assert_eq!(profile.replay, ReplayOptions { packets: 512, seconds: 30 });
    assert_eq!(profile.options, [PushOption::Route("10.0.0.0/8".parse().unwrap(), Via::Tunnel)]);
    let ignored: Vec<_> = profile.notes.iter().map(Note::to_string).collect();
    assert!(ignored.contains(&"line 21: up: programs are never run".to_owned()), "{ignored:?}");
}

#[test]
fn key_exchanges_are_taken_by_either_of_their_names() {
    let groups =
        |list: &str| parse(&format!("{MINIMAL}tls-groups {list}\n")).map(|profile| profile.tls_groups);
    assert_eq!(parse(MINIMAL).unwrap().tls_groups, []);
    assert_eq!(groups("X448:prime256v1:x25519").unwrap(), [Group::P256, Group::X25519]);
    let fault = groups("X448").unwrap_err().to_string();
    assert!(fault.contains("tls-groups") && fault.contains("X25519MLKEM768"), "{fault}");
}

#[test]
fn what_is_written_is_read_back_the_same() {
    for wrap in [
        ProfileWrap::None,
        ProfileWrap::TlsAuth(StaticKey::new(&[1; 256]), Direction::Inverse),
        ProfileWrap::TlsCrypt(StaticKey::new(&[2; 256])),
        ProfileWrap::TlsCryptV2(ClientKeyV2 { key: StaticKey::new(&[3; 256]), wrapped: vec![4; 299] }),
    ] {
        let mut profile = parse(MINIMAL).unwrap();
        profile.wrap = wrap;
        profile.tls_groups = Group::ALL.to_vec();
        profile.remotes.push(Remote {
            host: "2001:db8::1".into(),
            port: 5060,
            transport: Transport::Tcp,
            family: Family::Any,
        });
        profile.cert = Some("CERT\n".into());
        profile.key = Some(Zeroizing::new("KEY\n".into()));
        profile.remote_cert_tls = true;
        profile.verify_name = Some(VerifyName::Name("adit".into()));
        profile.auth = Digest::Sha256;
        profile.fragment = Some(1300);
        profile.redirect =
            Some(Redirect { ipv4: true, ipv6: true, def1: true, block_local: false, bypass_dhcp: false });
        profile.pull_filters = vec![(FilterAction::Ignore, "redirect-gateway".into())];
        let text = render(&profile, &Rendering { comments: vec!["for ann/laptop".into()] });
        let mut again = parse(&text).unwrap();
        again.notes.clear();
        assert_eq!(again, profile, "{}", text.as_str());
    }
}

#[test]
fn fragment_is_said_of_udp_alone_because_stock_clients_refuse_it_with_tcp() {
    let mut profile = parse(&format!("{MINIMAL}remote vpn.example.org 443 tcp\n")).unwrap();
    profile.fragment = Some(1300);
    let text = render(&profile, &Rendering::default());
    let expected = "<connection>\nremote vpn.example.org 1194 udp\nfragment 1300\n</connection>\n\
                    <connection>\nremote vpn.example.org 443 tcp\n</connection>\n";
    assert!(text.contains(expected), "{}", text.as_str());
    assert_eq!(text.matches("fragment").count(), 1);
}

#[test]
fn mistakes_are_named_with_line_and_remedy() {
    for (line, expected) in [
        ("dev tap0", "line 6: dev: only tun interfaces are supported, not tap"),
        ("auth MD5", "line 6: auth: not one of SHA1, SHA256, SHA384, SHA512"),
        ("data-ciphers BF-CBC", "line 6: data-ciphers: BF-CBC is not a cipher adit uses"),
        ("remote x 70000", "line 6: remote: the port is not a number from 1 to 65535"),
        ("tls-crypt ta.key", "line 6: tls-crypt: cannot read ta.key"),
        ("remot x", "line 6: remot: unknown directive; remove it, or check its spelling"),
        ("secret s.key", "line 6: secret: static-key mode has no forward secrecy and is not supported"),
        ("verb \"3", "line 6: : a quote is not closed"),
        ("<key>", "line 6: <key>: the block is not closed"),
    ] {
        let fault = parse(&format!("{MINIMAL}{line}\n")).unwrap_err();
        assert_eq!(fault.to_string(), expected);
    }
    assert_eq!(
        parse("client\nremote a\n").unwrap_err().to_string(),
        "the profile has no <ca> block: the server could not be verified"
    );
    assert!(
        parse(&format!("{MINIMAL}<cert>\nx\n</cert>\n")).unwrap_err().to_string().contains("<key> block")
    );
}

#[test]
fn files_are_asked_for_by_the_name_in_the_profile() {
    let mut asked = Vec::new();
    let text = "client\nremote a\nca \"my ca.crt\"\nauth-user-pass up.txt\n";
    let profile = Profile::parse(text, &mut |name| {
        asked.push(name.to_owned());
        Ok(if name == "up.txt" { "ann\nsecret\n".into() } else { "CA".into() })
    });
    assert_eq!(profile.unwrap().credentials.unwrap().password, "secret");
    assert_eq!(asked, ["my ca.crt", "up.txt"]);
}

#[test]
fn filters_apply_in_order_and_route_nopull_leaves_routes_out() {
    let text = format!(
        "{MINIMAL}pull-filter accept \"route 10.\"\npull-filter reject \"route 11.\"\nroute-nopull\n"
    );
    let profile = parse(&text).unwrap();
    let action = |text: &str| profile.filter(&text.parse().unwrap());
    assert_eq!(action("route 10.1.0.0 255.255.0.0"), FilterAction::Accept);
    assert_eq!(action("route 11.1.0.0 255.255.0.0"), FilterAction::Reject);
    assert_eq!(action("route 12.1.0.0 255.255.0.0"), FilterAction::Ignore);
    assert_eq!(action("dhcp-option DNS 10.0.0.1"), FilterAction::Ignore);
    assert_eq!(action("ping 10"), FilterAction::Accept);
}

proptest! {
    #[test]
    fn any_text_is_a_profile_or_a_clear_error(text in "(client|remote|<ca>|</ca>|route|\"|\\\\| |\n|[a-z0-9./-]{1,8}){0,60}") {
        if let Err(fault) = parse(&text) {
            prop_assert!(!fault.to_string().is_empty());
        }
    }
}
