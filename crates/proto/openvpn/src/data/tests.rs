use adit_tunnel::{DataChannel, DropReason, HEADROOM, Inner, TAILROOM};
use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::Role;
use crate::keyfile::StaticKey;
use crate::packet::KeyId;
use crate::wrap::Digest;

fn counting() -> StaticKey {
    StaticKey::new(&std::array::from_fn(|i| i as u8))
}

fn key(role: Role, cipher: Cipher, id: u8) -> DataKey {
    let iv = [id; 32];
    DataKey::new(KeyId::new(id), role, cipher, Digest::Sha256, &counting(), ReplayOptions::default(), &iv)
}

fn channel(role: Role, cipher: Cipher, options: ChannelOptions) -> Channel {
    let channel = Channel::new(options);
    channel.install(key(role, cipher, 0));
    channel
}

fn pair(cipher: Cipher, options: ChannelOptions) -> (Channel, Channel) {
    (channel(Role::Client, cipher, options), channel(Role::Server, cipher, options))
}

fn seal(channel: &Channel, packet: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; HEADROOM];
    buf.extend_from_slice(packet);
    buf.resize(buf.len() + TAILROOM, 0xee);
    let range = channel.seal(&mut buf, HEADROOM..HEADROOM + packet.len()).unwrap();
    buf[range].to_vec()
}

fn open(channel: &Channel, datagram: &[u8], now: u32) -> Result<Option<Vec<u8>>, DropReason> {
    let mut buf = datagram.to_vec();
    buf.resize(datagram.len() + TAILROOM, 0);
    Ok(match channel.open(&mut buf, datagram.len(), now)?.inner {
        Inner::Packet(range) => Some(buf[range].to_vec()),
        Inner::Assembled(packet) => Some(packet),
        Inner::Nothing | Inner::Exit => None,
    })
}

const PEER: ChannelOptions = ChannelOptions {
    peer_id: Some(7),
    compression: Compression::None,
    fragment: None,
    mssfix: None,
    outer: 28,
};

#[test]
fn packets_are_byte_for_byte_those_of_a_stock_client() {
    let v1 = ChannelOptions { peer_id: None, ..PEER };
    for (cipher, options, golden) in [
        (
            Cipher::Aes256Gcm,
            PEER,
            "48000007000000019a04c79285f9efa5b69e541abdb495d7e1d3004e0fa812021253797dec29cf6b",
        ),
        (
            Cipher::Aes128Gcm,
            PEER,
            "48000007000000010963ceda5fa946f8928badf41a68c8e5f81b8714b8cd8e5b853004a780a8bde5",
        ),
        (
            Cipher::ChaCha20Poly1305,
            PEER,
            "480000070000000198b156d8b248360b431780ac3d3aeeb8249c493797b2d7f5945bcaf9ded73aa2",
        ),
        (Cipher::Aes256Gcm, v1, "300000000121555309ee48f8dad080917adf916bbee1d3004e0fa812021253797dec29cf6b"),
    ] {
        let (client, server) = pair(cipher, options);
        assert_eq!(HEXLOWER.encode(&seal(&client, &PING)), golden);
        assert_eq!(open(&server, &HEXLOWER.decode(golden.as_bytes()).unwrap(), 0), Ok(None));
    }
}

#[test]
fn a_cbc_packet_of_a_stock_client_opens() {
    let golden = "4800000708773b70befa8cd25b47567a21c46ce9cbba1ea36a55f15cacc17ace2427d677000102030405060708090a0b\
                  0c0d0e0f16a33d12f9f1dd1271cc7ac39a8ce6d24a10439cb9ac782ed089eeb469c3f34d";
    let (_, server) = pair(Cipher::Aes256Cbc, PEER);
    assert_eq!(open(&server, &HEXLOWER.decode(golden.as_bytes()).unwrap(), 0), Ok(None));
}

#[test]
fn every_cipher_carries_packets_both_ways_and_refuses_changed_ones() {
    for cipher in Cipher::ALL {
        for peer_id in [None, Some(MAX)] {
            let (client, server) = pair(cipher, ChannelOptions { peer_id, ..PEER });
            let up = seal(&client, b"\x45up, from the client");
            let down = seal(&server, b"\x45down");
            let mut changed = up.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert_eq!(open(&server, &changed, 0), Err(DropReason::Authentication), "{cipher:?}");
            assert_eq!(open(&server, &up, 0).unwrap().unwrap(), b"\x45up, from the client");
            assert_eq!(open(&client, &down, 0).unwrap().unwrap(), b"\x45down");
            assert_eq!(open(&server, &up, 0), Err(DropReason::Replay));
        }
    }
}

const MAX: u32 = 0x00ff_fffe;

#[test]
fn a_forged_packet_with_a_high_number_does_not_move_the_window() {
    let (client, server) = pair(Cipher::Aes256Gcm, PEER);
    let first = seal(&client, b"\x45first");
    let mut forged = first.clone();
    forged[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(open(&server, &forged, 0), Err(DropReason::Authentication));
    assert!(open(&server, &first, 0).is_ok());
}

#[test]
fn only_the_newest_packet_says_so() {
    let (client, server) = pair(Cipher::Aes256Gcm, PEER);
    let [a, b] = [seal(&client, b"\x45a"), seal(&client, b"\x45b")];
    let newest = |datagram: &[u8]| {
        let mut buf = datagram.to_vec();
        buf.resize(datagram.len() + TAILROOM, 0);
        server.open(&mut buf, datagram.len(), 0).unwrap().newest
    };
    assert!(newest(&b));
    assert!(!newest(&a));
}

#[test]
fn compression_frames_are_understood_and_compression_is_refused() {
    for compression in [Compression::None, Compression::Lzo, Compression::Stub, Compression::StubV2] {
        let (client, server) = pair(Cipher::Aes128Gcm, ChannelOptions { compression, ..PEER });
        for packet in [b"\x45".as_slice(), b"\x45 a packet", &PING] {
            let got = open(&server, &seal(&client, packet), 0).unwrap();
            assert_eq!(got.as_deref(), (packet != PING).then_some(packet), "{compression:?}");
        }
    }
    // An IPv6 packet whose traffic class makes it begin like a compressed one.
    let (client, server) =
        pair(Cipher::Aes128Gcm, ChannelOptions { compression: Compression::StubV2, ..PEER });
    let mut packet = [0x69; 48];
    packet[4..6].copy_from_slice(&[0, 8]);
    assert_eq!(open(&server, &seal(&client, &packet), 0).unwrap().as_deref(), Some(&packet[..]));
    for (compression, content) in [
        (Compression::Lzo, b"\x66lzo data".as_slice()),
        (Compression::Stub, b"\x69lz4 data"),
        (Compression::StubV2, b"\x50\x01lz4 data"),
        (Compression::StubV2, b"\xfaplain in a frame of comp-lzo"),
        (Compression::StubV2, b"\xfbplain in a frame of compress lz4"),
        (Compression::StubV2, b"\x66lzo data"),
        (Compression::StubV2, b"\x69lz"),
    ] {
        let plain = channel(Role::Client, Cipher::Aes128Gcm, PEER);
        let server = channel(Role::Server, Cipher::Aes128Gcm, ChannelOptions { compression, ..PEER });
        assert_eq!(open(&server, &seal(&plain, content), 0), Err(DropReason::Compressed));
    }
}

#[test]
fn the_farewell_of_an_old_client_is_understood() {
    let (client, server) = pair(Cipher::Aes256Gcm, PEER);
    let datagram = client.seal_exit().unwrap();
    let mut buf = datagram.clone();
    buf.resize(datagram.len() + TAILROOM, 0);
    assert_eq!(server.open(&mut buf, datagram.len(), 0).unwrap().inner, Inner::Exit);
}

#[test]
fn a_new_key_is_used_for_sending_once_the_peer_uses_it() {
    let (client, server) = pair(Cipher::Aes256Gcm, PEER);
    client.install(key(Role::Client, Cipher::Aes256Gcm, 1));
    server.install(key(Role::Server, Cipher::Aes256Gcm, 1));
    assert_eq!(seal(&server, b"\x45")[0] & 7, 0);
    client.promote(KeyId::new(1));
    let under_new = seal(&client, b"\x45new");
    assert_eq!(under_new[0] & 7, 1);
    assert!(open(&server, &under_new, 0).is_ok());
    assert_eq!(seal(&server, b"\x45")[0] & 7, 1);
    server.promote(KeyId::new(0));
    assert_eq!(seal(&server, b"\x45")[0] & 7, 1, "never back to an older key");
    server.retire(KeyId::new(1));
    assert_eq!(seal(&server, b"\x45")[0] & 7, 0, "unless it is all there is");
    assert_eq!(open(&server, &seal(&client, b"\x45"), 0), Err(DropReason::NoKey));
}

#[test]
fn a_closed_channel_opens_and_seals_nothing() {
    let (client, server) = pair(Cipher::Aes256Gcm, PEER);
    let datagram = seal(&client, b"\x45");
    server.close();
    assert_eq!(open(&server, &datagram, 0), Err(DropReason::NoKey));
    let mut buf = [0; 200];
    assert_eq!(server.seal(&mut buf, HEADROOM..HEADROOM + 1), Err(DropReason::NoKey));
}

#[test]
fn a_key_at_its_limit_seals_nothing_more() {
    let key = key(Role::Client, Cipher::Aes256Gcm, 0);
    assert!(!key.wants_renewal());
    key.set_blocks((1 << 36) - 2);
    assert!(key.wants_renewal());
    let mut buf = [0; 300];
    assert_eq!(key.seal(&mut buf, 100..200, &[0x30]), Err(DropReason::KeyExhausted));
}

#[test]
fn segments_are_as_long_as_those_of_a_stock_peer() {
    let options = ChannelOptions { mssfix: Some(1492), ..PEER };
    assert_eq!(channel(Role::Server, Cipher::Aes256Gcm, options).max_segment(), Some((1400, 1380)));
    let tcp6 = ChannelOptions { outer: 62, ..options };
    assert_eq!(channel(Role::Server, Cipher::Aes256Gcm, tcp6).max_segment(), Some((1366, 1346)));
    assert_eq!(channel(Role::Server, Cipher::Aes256Gcm, PEER).max_segment(), None);
    // 1492 - 28 - 4 - 32 - 16 = 1412, in whole blocks 1408, less padding and packet id 1403, less 40.
    assert_eq!(channel(Role::Server, Cipher::Aes256Cbc, options).max_segment(), Some((1363, 1343)));
}

#[test]
fn a_segment_of_the_announced_length_just_fits_the_path() {
    for cipher in Cipher::ALL {
        let channel = channel(Role::Server, cipher, ChannelOptions { mssfix: Some(1300), ..PEER });
        let (segment, _) = channel.max_segment().unwrap();
        let outer = |len: usize| seal(&channel, &vec![0x45; len]).len() + 28;
        assert!(outer(usize::from(segment) + 40) <= 1300, "{cipher:?}");
        assert!(outer(usize::from(segment) + 41) > 1300, "{cipher:?}");
    }
}

#[test]
fn initialisation_vectors_do_not_repeat_and_do_not_count() {
    let (client, _) = pair(Cipher::Aes256Cbc, PEER);
    let iv = |datagram: &[u8]| u128::from_be_bytes(datagram[36..52].try_into().unwrap());
    let [a, b] = [iv(&seal(&client, b"\x45")), iv(&seal(&client, b"\x45"))];
    assert_ne!(a, b);
    assert!(a.abs_diff(b) > 1 << 64);
}

proptest! {
    #[test]
    fn strangers_bytes_open_nothing(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), first: u8) {
        if let Some(byte) = bytes.first_mut() {
            *byte = [0x30, 0x48, first][usize::from(first) % 3];
        }
        for cipher in Cipher::ALL {
            let (_, server) = pair(cipher, PEER);
            prop_assert!(open(&server, &bytes, 0).is_err());
        }
    }

    #[test]
    fn packets_of_any_length_survive(
        packet in proptest::collection::vec(any::<u8>(), 1..4000),
        fragment in proptest::option::of(400u16..1500),
        which in 0usize..7,
        framing in 0usize..3,
    ) {
        let mut packet = packet;
        packet[0] = 0x45;
        let compression = [Compression::None, Compression::Lzo, Compression::Stub][framing];
        let (client, server) = pair(Cipher::ALL[which], ChannelOptions { fragment, compression, ..PEER });
        let mut datagrams = Vec::new();
        match client.seal_cut(&packet, &mut |d| datagrams.push(d.to_vec())) {
            Some(result) => result.unwrap(),
            None => datagrams.push(seal(&client, &packet)),
        }
        if let Some(limit) = fragment {
            prop_assert!(datagrams.iter().all(|d| d.len() <= usize::from(limit)));
        }
        let got: Vec<_> = datagrams.iter().filter_map(|d| open(&server, d, 0).unwrap()).collect();
        prop_assert_eq!(got, [packet]);
    }
}
