use super::*;

fn identity(name: &str, wrap: Wrap, port: Option<u16>) -> Identity {
    Identity { name: name.into(), wrap, port }
}

/// The four identities of the published rules, on all ports.
fn published() -> Plan {
    let ports: PortSet = "1-29999".parse().unwrap();
    Plan {
        entrances: vec![Entrance { address: "192.0.2.1".parse().unwrap(), udp: ports.clone(), tcp: ports }],
        identities: vec![
            identity("rsa", Wrap::TlsAuth(64), None),
            identity("ecc", Wrap::TlsCrypt, Some(5060)),
            identity("ed25519", Wrap::TlsCrypt, Some(5061)),
            identity("ed448", Wrap::TlsCrypt, Some(5062)),
        ],
        to: None,
    }
}

fn rules(text: &str) -> Vec<String> {
    let rules = text.lines().filter_map(|line| line.strip_prefix("-A PREROUTING -d 192.0.2.1 "));
    rules.map(|rule| rule.replace("--to-destination 192.0.2.1", "--to-destination ")).collect()
}

/// A published rule, with the address left out.
fn by_port(protocol: &str, ports: &str, to: u16) -> String {
    format!("-p {protocol} -m {protocol} --dport {ports} -j DNAT --to-destination :{to}")
}

#[test]
fn the_published_stages_come_out_as_published_but_for_the_slip() {
    let stage = |others| export(&published(), Format::IptablesV1 { others }).unwrap();
    let expected = |list: &[(&str, u16)]| -> Vec<String> {
        ["tcp", "udp"]
            .iter()
            .flat_map(|protocol| list.iter().map(move |(ports, to)| by_port(protocol, ports, *to)))
            .collect()
    };
    assert_eq!(rules(&stage(Some(0))), expected(&[("1:29999", 443)]));
    assert_eq!(rules(&stage(Some(1))), expected(&[("1:5059", 443), ("5060", 5060), ("5061:29999", 443)]));
    let ten =
        expected(&[("1:5059", 443), ("5060", 5060), ("5061", 5061), ("5062", 5062), ("5063:29999", 443)]);
    assert_eq!(rules(&stage(Some(3))), ten);
    assert_eq!(stage(None), stage(Some(3)), "as many as there are identities");
    assert!(stage(None).contains("slip") && !stage(Some(1)).contains("slip"));
    assert!(stage(Some(1)).contains("no rule leads to ed25519"));
}

#[test]
fn a_stage_has_its_ports_even_without_identities_for_them() {
    let plan = Plan { identities: published().identities[..2].to_vec(), ..published() };
    let text = export(&plan, Format::IptablesV1 { others: Some(3) }).unwrap();
    assert_eq!(rules(&text).len(), 10);
    assert!(text.contains("Port 5062 is kept apart"));
    assert_eq!(rules(&export(&plan, Format::IptablesV1 { others: None }).unwrap()).len(), 6);
}

#[test]
fn udp_is_led_by_length_and_opcode_and_those_who_look_alike_by_port() {
    let text = export(&published(), Format::IptablesV2).unwrap();
    let led = |ports: &str, length: u16, to: u16| {
        format!(
            "-p udp -m udp --dport {ports} -m u32 --u32 \"0>>22&0x3C@4>>16=0x{length:X} && \
             0>>22&0x3C@5&0xFF=0x38\" -j DNAT --to-destination :{to}"
        )
    };
    assert_eq!(
        rules(&text),
        [
            by_port("tcp", "1:5060", 443),
            by_port("tcp", "5061", 5061),
            by_port("tcp", "5062", 5062),
            by_port("tcp", "5063:29999", 443),
            led("1:29999", 94, 443),
            led("1:5060", 62, 5060),
            led("5063:29999", 62, 5060),
            by_port("udp", "5061", 5061),
            by_port("udp", "5062", 5062),
        ]
    );
}

#[test]
fn haproxy_leads_by_the_published_lengths() {
    let text = export(&published(), Format::Haproxy { measure: false }).unwrap();
    for line in [
        "    bind 192.0.2.1:443",
        "    tcp-request inspect-delay 2s",
        "    use_backend openvpn_rsa if !{ req.ssl_hello_type 1 } { req.len 88 } { req.payload(2,1) -m bin 38 }",
        "    use_backend openvpn_ecc if !{ req.ssl_hello_type 1 } { req.len 56 } { req.payload(2,1) -m bin 38 }",
        "    server openvpn 127.0.0.1:1194",
        "    server openvpn 127.0.0.1:5060",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("ed448 if") && !text.contains("log"));
    assert_eq!(text.matches("content accept").count(), 1, "a second rule would wait behind the first");
    let measure = export(&published(), Format::Haproxy { measure: true }).unwrap();
    assert!(measure.contains("set-var(txn.len) req.len") && measure.contains("log-format"));
}

#[test]
fn wraps_that_make_packets_of_one_length_are_told_by_their_packet_numbers() {
    let identities = vec![identity("a", Wrap::TlsAuth(32), None), identity("b", Wrap::TlsCrypt, Some(5060))];
    let plan = Plan { identities, ..published() };
    let text = export(&plan, Format::Nft).unwrap();
    let with = |bits: [u32; 3]| bits.map(|bit| format!("@th,{bit},8 0x00")).join(" ");
    assert!(
        text.contains(&format!(
            "udp length 62 @th,64,8 0x38 {} counter dnat to 192.0.2.1:443",
            with([392, 400, 408])
        )),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "udp length 62 @th,64,8 0x38 {} counter dnat to 192.0.2.1:5060",
            with([136, 144, 152])
        )),
        "{text}"
    );
}

#[test]
fn a_key_of_unknown_length_is_told_by_its_opcode() {
    let plan = Plan { identities: vec![identity("a", Wrap::TlsCryptV2, None)], ..published() };
    let text = export(&plan, Format::Nft).unwrap();
    assert!(text.contains("udp dport 1-29999 @th,64,8 0x50 counter dnat to 192.0.2.1:443"), "{text}");
}

#[test]
fn identities_without_ports_get_some_and_no_two_the_same() {
    let identities = vec![
        identity("a", Wrap::TlsCryptV2, None),
        identity("b", Wrap::TlsCrypt, None),
        identity("c", Wrap::None, Some(5060)),
    ];
    let text = export(&Plan { identities, ..published() }, Format::IptablesV1 { others: None }).unwrap();
    assert!(text.contains("b: UDP and TCP 5061 (chosen here"), "{text}");
    let same = vec![identity("a", Wrap::None, Some(443)), identity("b", Wrap::TlsCrypt, Some(443))];
    let fault = export(&Plan { identities: same, ..published() }, Format::Nft).unwrap_err();
    assert_eq!(fault, ExportFault::SamePort("a".into(), "b".into(), 443));
    let none = Plan { identities: vec![], ..published() };
    assert_eq!(export(&none, Format::Nft), Err(ExportFault::NoIdentity));
}

#[test]
fn addresses_families_and_other_hosts_are_kept_apart() {
    let ports: PortSet = "53".parse().unwrap();
    let entrance = |address: &str| Entrance {
        address: address.parse().unwrap(),
        udp: ports.clone(),
        tcp: ports.clone(),
    };
    let all =
        Plan { entrances: vec![entrance("0.0.0.0"), entrance("::"), entrance("2001:db8::1")], ..published() };
    let nft = export(&all, Format::Nft).unwrap();
    assert!(nft.contains("table ip adit_export {") && nft.contains("table ip6 adit_export {"));
    assert!(nft.contains("fib daddr type local udp dport 53") && nft.contains("dnat to :5060"));
    assert!(nft.contains("ip6 daddr 2001:db8::1") && nft.contains("dnat to [2001:db8::1]:443"));
    let iptables = export(&all, Format::IptablesV2).unwrap();
    assert!(iptables.contains("--dst-type LOCAL") && iptables.contains("# Left out"));

    let elsewhere = Plan { to: Some("198.51.100.9".parse().unwrap()), ..published() };
    let text = export(&elsewhere, Format::IptablesV2).unwrap();
    assert!(
        text.contains("--to-destination 198.51.100.9:5060")
            && text.contains("--to-destination 192.0.2.1:443")
    );
    let text = export(&elsewhere, Format::Haproxy { measure: false }).unwrap();
    assert!(text.contains("server openvpn 198.51.100.9:443"), "{text}");
    let six = Plan { entrances: vec![entrance("2001:db8::1")], ..published() };
    assert!(matches!(export(&six, Format::IptablesV2), Err(ExportFault::NoEntrance(_))));
}
