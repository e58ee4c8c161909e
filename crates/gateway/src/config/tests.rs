use super::*;

const MINIMAL: &str = "[tunnel]\npool4 = [\"10.88.0.0/16\"]\n";

fn parsed(text: &str) -> Result<Config, String> {
    parse(text, Path::new("adit.toml")).map_err(|fault| fault.to_string())
}

#[test]
fn what_init_writes_is_valid_and_says_what_it_was_told() {
    let options = InitOptions {
        public: vec!["vpn.example.org".into(), "192.0.2.1".into()],
        name: Some("north".into()),
        pool4: vec!["10.9.0.0/24".parse().unwrap()],
        pool6: vec![],
        exit: None,
    };
    let config = parsed(&render(&options)).unwrap();
    assert_eq!((config.name.as_str(), config.public.len()), ("north", 2));
    assert_eq!(config.tunnel.pool4, ["10.9.0.0/24".parse().unwrap()]);
    assert_eq!(config.tunnel.pool6, ["fd88::/64".parse().unwrap()]);
    let identities: Vec<_> = config.identity.iter().map(|i| (i.name.as_str(), i.wrap)).collect();
    assert_eq!(identities, [("default", WrapKind::TlsCryptV2), ("compat", WrapKind::TlsCrypt)]);
    assert_eq!(config.api.socket, Path::new("adit.sock"));
}

#[test]
fn unknown_keys_are_errors_with_line_and_the_nearest_right_name() {
    for (text, expected) in [
        ("pool = 1\n", "adit.toml:1: "),
        (
            "[tunnel]\npool4 = [\"10.8.0.0/24\"]\nmssfx = 3\n",
            "adit.toml:3: unknown key `mssfx`; did you mean `mssfix`?",
        ),
        (
            "[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[[entrance]]\nadress = \"::\"\n",
            "adit.toml:4: unknown key `adress`; did you mean `address`?",
        ),
        (
            "[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[[identity]]\nname = \"a\"\nkey = \"P-256\"\nwrap = \"tls-cript\"\n",
            "adit.toml:6: unknown value `tls-cript`; did you mean `tls-crypt`?",
        ),
    ] {
        let message = parsed(text).unwrap_err();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn values_that_make_no_sense_are_named_with_the_remedy() {
    for (lines, expected) in [
        ("name = \"a b\"\n[tunnel]\npool4 = [\"10.8.0.0/24\"]", "without spaces"),
        ("[tunnel]\n", "clients need addresses"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\", \"10.8.0.0/25\"]", "overlap"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nmtu = 900", "between 1280 and 9000"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nroutes = \"half\"", "\"full\", or a list"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nping = \"10s\"", "ping_restart longer"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nreneg = 9000000000000000000", "more than 1000 years"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nmax_handshakes = 0", "nobody could connect"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nciphers = [\"BF-CBC\"]", "not one of AES-256-GCM"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\nsearch = [\"a,b\"]", "not a domain name"),
        (
            "[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[[entrance]]\naddress = \"192.0.2.1\"\ninterface = \"eth0\"",
            "one of the two",
        ),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[[service]]\nname = \"a\"", "missing field `to`"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[[entrance]]\nudp = \"0\"", "is not a set of ports"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[ca]\nkey = \"DSA\"", "Ed448"),
        ("[tunnel]\npool4 = [\"10.8.0.0/24\"]\n[store]\nurl = \"mysql://\"", "knows only"),
        ("[tunnel]\npool4 = [\"10.8.0.0/33\"]", "adit.toml:2: invalid IP address syntax: \"10.8.0.0/33\""),
    ] {
        let message = parsed(lines).unwrap_err();
        assert!(message.contains(expected), "{lines}: {message}");
    }
    let message = parsed("[tunnel]\n").unwrap_err();
    assert!(message.starts_with("adit.toml: [tunnel]"), "a file as a whole has no line: {message}");
}

#[test]
fn tables_of_the_port_plan_are_read_with_their_defaults() {
    let nat = "[nat]\naddresses = [\"192.0.2.1\"]\n";
    let config = parsed(&format!("{MINIMAL}{nat}[forward]\n")).unwrap();
    assert_eq!(config.host, HostConfig { ephemeral: None, manage_sysctl: true });
    let nat = config.nat.as_ref().unwrap();
    assert_eq!((nat.ports.to_string().as_str(), nat.block), ("40000-64511", Block::Ports(64)));
    assert_eq!(nat.retention.as_secs(), 30 * 86_400);
    let forward = config.forward.as_ref().unwrap();
    assert_eq!((forward.ports.to_string().as_str(), forward.per_user), ("30000-39999", 5));

    let host =
        "[host]\nephemeral = \"50000-60001\"\nmanage_sysctl = false\n[[entrance]]\nudp = \"1-29999\"\n";
    let config = parsed(&format!("{MINIMAL}{host}")).unwrap();
    assert_eq!(config.host, HostConfig { ephemeral: Some(50_000..=60_001), manage_sysctl: false });
    assert_eq!(config.entrance[0].udp.count(), 29_999);
}

#[test]
fn ports_that_make_no_sense_are_named_with_the_remedy() {
    for (lines, expected) in [
        ("[host]\nephemeral = \"60000-50000\"", "is not a set of ports"),
        ("[host]\nephemeral = 50000", "one range of at least two ports"),
        ("[host]\nephemeral = \"50000-50009,50020-50029\"", "one range of at least two ports"),
        ("[host]\nephemral = \"50000-60000\"", "did you mean `ephemeral`"),
        ("[nat]\nblock = 64", "[nat] has no addresses"),
        ("[nat]\naddresses = [\"0.0.0.0\"]", "0.0.0.0 is no address of this machine"),
        ("[nat]\naddresses = [\"192.0.2.1\", \"192.0.2.1\"]", "192.0.2.1 is there twice"),
        ("[nat]\naddresses = [\"2001:db8::1\"]", "invalid IPv4 address"),
        ("[nat]\naddresses = [\"192.0.2.1\"]\nports = \"1-9,20-90\"", "one range, such as"),
        ("[nat]\naddresses = [\"192.0.2.1\"]\nports = \"40000-40062\"", "holds no block of 64"),
        ("[nat]\naddresses = [\"192.0.2.1\"]\nblock = 60", "block = 60: a power of two"),
        ("[nat]\naddresses = [\"192.0.2.1\"]\nblock = \"small\"", "block = \"small\": a power of two"),
        ("[nat]\naddresses = [\"192.0.2.1\"]\nretention = 0", "nothing could be traced"),
        ("[forward]\nports = \"\"", "[forward] ports is empty"),
        ("[forward]\nper_user = 0", "per_user = 0: at least 1"),
        ("[forward]\naddresses = [\"127.0.0.1\"]", "127.0.0.1 is no address of this machine"),
    ] {
        let message = parsed(&format!("{MINIMAL}{lines}\n")).unwrap_err();
        assert!(message.contains(expected), "{lines}: {message}");
    }
    let auto = parsed(&format!("{MINIMAL}[nat]\naddresses = [\"192.0.2.1\"]\nblock = \"auto\"\n")).unwrap();
    assert_eq!(auto.nat.unwrap().block, Block::Auto);
}

#[test]
fn identities_that_nothing_tells_apart_are_refused() {
    let identity = |name: &str, key: &str, wrap: &str| {
        format!("[[identity]]\nname = \"{name}\"\nkey = \"{key}\"\nwrap = \"{wrap}\"\n")
    };
    let with = |identities: &[String]| parsed(&format!("{MINIMAL}{}", identities.concat()));
    assert!(with(&[identity("a", "P-256", "none"), identity("b", "Ed25519", "none")]).is_ok());
    let same = with(&[identity("a", "P-256", "none"), identity("b", "P-256", "none")]).unwrap_err();
    assert!(same.contains("identities a and b"), "{same}");
    let twice = with(&[identity("a", "P-256", "none"), identity("a", "Ed25519", "tls-crypt")]).unwrap_err();
    assert!(twice.contains("two identities named a"), "{twice}");
}

#[test]
fn a_missing_file_says_how_to_make_one() {
    let fault = Loaded::read(Path::new("/nonexistent/adit.toml")).unwrap_err();
    assert!(fault.to_string().contains("adit init --dir DIR"));
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = parsed(&render(&InitOptions::default())).unwrap();
    let loaded = Loaded { path: "/srv/vpn/adit.toml".into(), config };
    assert_eq!(loaded.state(), Path::new("/srv/vpn/state"));
    assert_eq!(loaded.socket(), Path::new("/srv/vpn/adit.sock"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_clear_error(text in "[a-z0-9_\\[\\]=\", \n.]{0,200}") {
        if let Err(message) = parsed(&text) {
            proptest::prop_assert!(message.len() > "adit.toml: ".len());
        }
    }
}
