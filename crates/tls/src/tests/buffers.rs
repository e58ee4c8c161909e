//! The contract of the control channel's trait, byte by byte.

use super::*;
use crate::client::{library_client, library_config};

fn established() -> Pair {
    let world = World::new();
    let pair = Pair::run(world.server_settings(), world.client_settings());
    pair.assert_established("P-256");
    pair
}

fn flight(tls: &mut dyn ControlTls) -> Vec<u8> {
    let mut out = Vec::new();
    tls.drain(&mut out, usize::MAX);
    out
}

#[test]
fn a_handshake_works_one_byte_at_a_time() {
    let world = World::new();
    let mut pair = Pair::new(world.server_settings(), world.client_settings());
    loop {
        let to_server = flight(pair.client.as_mut());
        to_server.chunks(1).for_each(|byte| pair.server.feed(byte).unwrap());
        let to_client = flight(pair.server.as_mut());
        to_client.chunks(1).for_each(|byte| pair.client.feed(byte).unwrap());
        if to_server.is_empty() && to_client.is_empty() {
            break;
        }
    }

    pair.assert_established("byte by byte");
    assert_eq!(exported(pair.server.as_ref()), exported(pair.client.as_ref()));
}

#[test]
fn draining_appends_up_to_the_limit_and_loses_nothing() {
    let mut pair = established();
    pair.client.write(&[7; 5000]).unwrap();
    let mut out = b"kept".to_vec();

    assert_eq!(pair.client.drain(&mut out, 0), 0);
    assert_eq!(pair.client.drain(&mut out, 100), 100);
    assert_eq!(out.len(), 104);
    while pair.client.drain(&mut out, 333) > 0 {}

    pair.server.feed(&out[4..]).unwrap();
    assert_eq!(read_all(pair.server.as_mut()), [7; 5000]);
}

#[test]
fn each_read_gives_one_record() {
    let mut pair = established();
    for record in [b"one".as_slice(), b"", b"three"] {
        pair.client.write(record).unwrap();
    }
    let bytes = flight(pair.client.as_mut());
    pair.server.feed(&bytes).unwrap();
    let mut out = b"kept ".to_vec();

    assert_eq!(pair.server.read(&mut out).unwrap(), 3);
    assert_eq!(pair.server.read(&mut out).unwrap(), 5);
    assert_eq!(pair.server.read(&mut out).unwrap(), 0);

    assert_eq!(out, b"kept onethree");
}

/// The library keeps 16 KiB of plaintext and then takes no more input; one feed may hold more than that.
#[test]
fn many_full_records_in_one_feed_all_arrive() {
    let mut pair = established();
    let record: Vec<u8> = (0..MAX).map(|at| at as u8).collect();
    for _ in 0..5 {
        pair.client.write(&record).unwrap();
    }

    let bytes = flight(pair.client.as_mut());
    pair.server.feed(&bytes).unwrap();

    for _ in 0..5 {
        let mut read = Vec::new();
        assert_eq!(pair.server.read(&mut read).unwrap(), MAX);
        assert_eq!(read, record);
    }
    assert_eq!(pair.server.read(&mut Vec::new()).unwrap(), 0);
}

const MAX: usize = 16_384;

#[test]
fn more_than_a_record_is_not_written() {
    let mut pair = established();

    assert!(matches!(pair.client.write(&[0; MAX + 1]), Err(TlsFault::Local(_))));
    assert_eq!(flight(pair.client.as_mut()), []);
}

#[test]
fn nothing_is_written_exported_or_known_before_the_handshake_is_complete() {
    let world = World::new();
    let mut pair = Pair::new(world.server_settings(), world.client_settings());

    for tls in [&mut pair.server, &mut pair.client] {
        assert!(matches!(tls.write(b"x"), Err(TlsFault::Local(_))));
        assert!(matches!(tls.export(LABEL, &mut [0; 32]), Err(TlsFault::Local(_))));
        assert!(tls.peer().chain.is_empty());
        assert_eq!(tls.read(&mut Vec::new()).unwrap(), 0);
        assert_eq!(tls.describe(), "TLS handshake not complete");
    }
}

#[test]
fn after_a_fault_only_the_alert_comes_out() {
    let mut pair = established();
    pair.client.write(b"hello").unwrap();
    let mut bytes = flight(pair.client.as_mut());
    *bytes.last_mut().unwrap() ^= 1;

    let fault = pair.server.feed(&bytes).unwrap_err();

    assert_eq!(fault, TlsFault::Peer("a TLS record of the peer does not decrypt".into()));
    assert!(!pair.server.established());
    assert!(matches!(pair.server.write(b"x"), Err(TlsFault::Local(_))));
    assert!(matches!(pair.server.feed(b"x"), Err(TlsFault::Local(_))));
    assert!(matches!(pair.server.export(LABEL, &mut [0; 32]), Err(TlsFault::Local(_))));
    let alert = flight(pair.server.as_mut());
    assert!(!alert.is_empty());
    let told = pair.client.feed(&alert).unwrap_err();
    assert_eq!(told, TlsFault::Peer("the server ended the TLS connection (alert 20)".into()));
}

#[test]
fn a_closed_connection_is_an_error_once_everything_is_read() {
    let world = World::new();
    let server = ServerTls::new(world.server_settings()).unwrap();
    let mut server = server.start().unwrap();
    let config = library_config(world.client_settings(), crate::trust::signature_schemes()).unwrap();
    let mut client = library_client(&Arc::new(config)).unwrap();
    while client.is_handshaking() || client.wants_write() {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        server.feed(&out).unwrap();
        let back = flight(server.as_mut());
        let mut back = back.as_slice();
        while !back.is_empty() {
            client.read_tls(&mut back).unwrap();
            client.process_new_packets().unwrap();
        }
    }

    std::io::Write::write_all(&mut client.writer(), b"goodbye").unwrap();
    client.send_close_notify();
    let mut out = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut out).unwrap();
    }
    server.feed(&out).unwrap();

    let mut text = Vec::new();
    assert_eq!(server.read(&mut text).unwrap(), 7);
    assert_eq!(text, b"goodbye");
    let closed = server.read(&mut text).unwrap_err();
    assert_eq!(closed, TlsFault::Peer("the peer has closed the TLS connection".into()));
    server.feed(b"more").unwrap();
}

#[test]
fn a_flood_of_handshake_bytes_is_cut_off() {
    let world = World::new();
    let mut server = ServerTls::new(world.server_settings()).unwrap().start().unwrap();
    // A client hello of 16 MiB, as its header says, in full records.
    let mut record = vec![22, 3, 1, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + MAX, 0);

    let fed = (0..10).take_while(|_| server.feed(&record).is_ok()).count();

    assert!(fed <= 4, "{fed} records were kept");
}
