//! PROXY headers, towards back ends and from trusted proxies.

use adit_wire::proxy::{self, Kind, Preamble};

use super::*;

fn header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![0; proxy::MAX_BUILT];
    let length = proxy::build(&mut bytes, source, destination, Kind::Stream).unwrap();
    bytes.truncate(length);
    bytes
}

fn trusting(nets: &[&str]) -> Options {
    Options { trusted_proxies: nets.iter().map(|net| net.parse().unwrap()).collect(), ..Options::default() }
}

#[test]
fn a_back_end_is_told_who_the_client_is() {
    let (listener, backend) = back_end(|options| options.proxy = ProxyMode::V2);
    let stage =
        Stage::with_silent(Options::default(), Duration::from_millis(50), Some(&backend), Some(&backend));
    for first in [&b"relay"[..], b""] {
        let client = stage.client();
        send(&client, first);
        let server = accept(&listener);
        let got = receive(&server, 28 + first.len());
        let Preamble::Header { length, addresses: Some(addresses) } = proxy::parse(&got) else {
            panic!("{got:?}");
        };
        assert_eq!((addresses.source, addresses.destination), (client.local_addr().unwrap(), stage.address));
        assert_eq!(&got[length..], first);
        send(&server, b"hello");
        assert_eq!(receive(&client, 5), b"hello");
    }
}

#[test]
fn a_trusted_proxys_word_is_taken_and_stripped() {
    let stage = Stage::new(trusting(&["10.0.0.0/8", "127.0.0.0/8"]), LONG, None);
    let (remote, dialled) = ("[2001:db8::9]:4660".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
    let v2 = header(remote, dialled);
    let v1 = b"PROXY TCP6 2001:db8::9 2001:db8::1 4660 443\r\n".to_vec();
    for preamble in [v2, v1] {
        let client = stage.client();
        for byte in preamble.iter().chain(b"native") {
            send(&client, &[*byte]);
        }
        let taken = stage.taken();
        assert_eq!(taken.seen, b"native");
        assert_eq!(taken.flow, Flow { remote, dialled, listener: 7 });
    }
    // It may speak for itself, or come without a header.
    for preamble in [&b"PROXY UNKNOWN\r\n"[..], b""] {
        let client = stage.client();
        send(&client, &[preamble, b"native"].concat());
        let taken = stage.taken();
        assert_eq!((&taken.seen[..], taken.flow.remote), (&b"native"[..], client.local_addr().unwrap()));
    }
}

#[test]
fn what_a_stranger_says_of_himself_is_bytes_like_any() {
    let stage = Stage::new(Options { unknown: Unknown::Close, ..trusting(&["10.0.0.0/8"]) }, LONG, None);
    let client = stage.client();
    send(&client, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nnative");
    assert!(rest(&client).map_or(true, |bytes| bytes.is_empty()));
    assert_eq!((stage.reception.counts().unknown, stage.reception.counts().native), (1, 0));
}

#[test]
fn a_trusted_proxy_may_have_more_undecided_than_a_network() {
    let stage =
        Stage::new(Options { max_undecided_per_network: 1, ..trusting(&["127.0.0.1/32"]) }, LONG, None);
    let clients: Vec<TcpStream> = (0..5).map(|_| stage.client()).collect();
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == 5);
    drop(clients);
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == 0);
}
