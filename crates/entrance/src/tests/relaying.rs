//! Bytes to and from back ends, and back ends that fail.

use std::hash::{DefaultHasher, Hasher};
use std::net::Shutdown;

use super::*;

fn stage(backend: &Arc<Backend>) -> Stage {
    Stage::new(Options::default(), LONG, Some(backend))
}

/// A client and the back end's side of its connection, which has read `relay`.
fn pair(stage: &Stage, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = stage.client();
    send(&client, b"relay");
    let server = accept(listener);
    assert_eq!(receive(&server, 5), b"relay");
    (client, server)
}

#[test]
fn bytes_go_both_ways_and_the_first_ones_first() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);
    let (client, server) = pair(&stage, &listener);
    for round in 0..20u8 {
        send(&client, &[round; 100]);
        assert_eq!(receive(&server, 100), [round; 100]);
        send(&server, &[round; 50]);
        assert_eq!(receive(&client, 50), [round; 50]);
    }
    drop((client, server));
    let counts = eventually(|| backend.counts(), |counts| counts.open == 0);
    assert_eq!((counts.connected, counts.bytes_in, counts.bytes_out), (1, 2005, 1000));
    assert_eq!(stage.reception.counts().relayed, 1);
}

#[test]
fn each_direction_ends_on_its_own() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);

    let (client, server) = pair(&stage, &listener);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&server).unwrap(), b"");
    send(&server, b"still here");
    assert_eq!(receive(&client, 10), b"still here");
    drop(server);
    assert_eq!(rest(&client).unwrap(), b"");

    let (client, server) = pair(&stage, &listener);
    send(&server, b"bye");
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&client).unwrap(), b"bye");
    send(&client, b"still here");
    assert_eq!(receive(&server, 10), b"still here");
    drop(client);
    assert_eq!(rest(&server).unwrap(), b"");
    eventually(|| backend.counts().open, |open| *open == 0);
}

#[test]
fn a_client_that_has_said_all_when_it_is_decided_gets_its_answer() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);
    for split in [0, 2, 5] {
        let client = stage.client();
        let (first, second) = b"relay".split_at(split);
        send(&client, first);
        eventually(|| stage.reception.counts().accepted, |accepted| *accepted > 0);
        send(&client, second);
        client.shutdown(Shutdown::Write).unwrap();
        let server = accept(&listener);
        assert_eq!(rest(&server).unwrap(), b"relay");
        send(&server, b"answer");
        drop(server);
        assert_eq!(rest(&client).unwrap(), b"answer");
    }
}

#[test]
fn a_reset_is_passed_on_as_one() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);

    let (client, server) = pair(&stage, &listener);
    adit_host::tcp::abort(server);
    assert!(is_reset(rest(&client)));

    let (client, server) = pair(&stage, &listener);
    adit_host::tcp::abort(client);
    assert!(is_reset(rest(&server)));

    // Also from a side that has said all it had to say.
    let (client, server) = pair(&stage, &listener);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&server).unwrap(), b"");
    adit_host::tcp::abort(client);
    eventually(|| (&server).write(b"x").is_err(), |failed| *failed);

    // And from one that nobody reads from, because the other takes nothing.
    let (client, server) = pair(&stage, &listener);
    fill(&client);
    adit_host::tcp::abort(client);
    eventually(|| backend.counts().open, |open| *open == 0);
    assert!(is_reset(rest(&server)));
}

/// Writes until nothing is taken any more.
fn fill(mut stream: &TcpStream) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = vec![0; 1 << 20];
    while stream.write(&block).is_ok() {}
}

/// Bytes without a pattern, the same for one seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Moves `length` bytes each way at once and compares what arrives.
fn exchange(client: &TcpStream, server: &TcpStream, length: usize, slow: bool) {
    let read = |stream: &TcpStream| {
        let (mut got, mut block) = (Vec::with_capacity(length), vec![0; if slow { 999 } else { 1 << 18 }]);
        loop {
            match { stream }.read(&mut block).unwrap() {
                0 => return hash(&got),
                count => got.extend_from_slice(&block[..count]),
            }
        }
    };
    let write = |stream: &TcpStream, seed| {
        let bytes = noise(seed, length);
        send(stream, &bytes);
        stream.shutdown(Shutdown::Write).unwrap();
        hash(&bytes)
    };
    std::thread::scope(|scope| {
        let (up, down) = (scope.spawn(|| write(client, 1)), scope.spawn(|| write(server, 2)));
        let (at_client, at_server) = (scope.spawn(|| read(client)), scope.spawn(|| read(server)));
        assert_eq!(up.join().unwrap(), at_server.join().unwrap(), "{length} up");
        assert_eq!(down.join().unwrap(), at_client.join().unwrap(), "{length} down");
    });
}

#[test]
fn what_arrives_is_what_was_sent_whatever_its_size() {
    let (listener, backend) = back_end(|_| {});
    let mut expected = 0;
    // With and without pipes.
    for pipes in [8, 0] {
        let stage = Stage::new(Options { pipes, ..Options::default() }, LONG, Some(&backend));
        for (length, slow) in
            [(0, false), (1, false), (40_000, false), (300_000, true), (3 << 20, true), (40 << 20, false)]
        {
            let (client, server) = pair(&stage, &listener);
            exchange(&client, &server, length, slow);
            expected += length as u64;
        }
    }
    let counts = eventually(|| backend.counts(), |counts| counts.open == 0);
    assert_eq!((counts.bytes_in, counts.bytes_out), (expected + 12 * 5, expected));
}

#[test]
fn many_transfers_at_once_do_not_mix() {
    let (listener, backend) = back_end(|_| {});
    let stage = Stage::new(Options { pipes: 3, threads: 2, ..Options::default() }, LONG, Some(&backend));
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let (client, server) = pair(&stage, &listener);
            scope.spawn(move || exchange(&client, &server, 2 << 20, false));
        }
    });
}

#[test]
fn a_transfer_that_nobody_reads_does_not_hold_up_others() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);
    let (stuck, _never_reads) = pair(&stage, &listener);
    fill(&stuck);
    let (client, server) = pair(&stage, &listener);
    exchange(&client, &server, 1 << 20, false);
}

#[test]
fn a_dead_back_end_is_told_refuses_at_once_and_comes_back() {
    let (listener, backend) = back_end(|options| options.retry = Duration::from_millis(400));
    let address = listener.local_addr().unwrap();
    drop(listener);
    let stage = stage(&backend);

    let refused = || {
        let client = stage.client();
        send(&client, b"relay");
        assert!(is_reset(rest(&client)));
    };
    refused();
    let failed_at = Instant::now();
    let Event::Down { error, .. } = stage.event() else { panic!("another event") };
    assert!(error.contains("refused"), "{error}");
    assert!(matches!(backend.status(), Status::Down { since, .. } if since.elapsed() < PATIENCE));
    refused();
    let counts = backend.counts();
    if failed_at.elapsed() < Duration::from_millis(300) {
        assert_eq!((counts.failed, counts.refused), (1, 1));
    }

    let listener = TcpListener::bind(address).unwrap();
    let client = eventually(
        || {
            let client = stage.client();
            send(&client, b"relay");
            client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let waiting = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            (&client).read(&mut [0]).err().filter(waiting).map(|_| client)
        },
        Option::is_some,
    );
    let server = accept(&listener);
    assert_eq!(receive(&server, 5), b"relay");
    assert!(matches!(stage.event(), Event::Up(_)));
    assert_eq!(backend.status(), Status::Up);
    send(&server, b"!");
    assert_eq!(receive(&client.unwrap(), 1), b"!");
}

#[test]
fn a_back_end_that_never_answers_is_given_up_in_time() {
    use adit_host::tcp::{ListenOptions, listen};
    // Nobody accepts, and the kernel answers nothing once the backlog is full.
    let full = ListenOptions { backlog: 0, ..ListenOptions::default() };
    let listener = listen("127.0.0.1:0".parse().unwrap(), &full).unwrap();
    let _waiting = connect(listener.local_addr().unwrap());
    let limit = Duration::from_millis(300);
    let options = BackendOptions {
        connect_limit: limit,
        ..BackendOptions::new("back", listener.local_addr().unwrap())
    };
    let backend = Backend::new(options);
    let stage = stage(&backend);

    let (start, client) = (Instant::now(), stage.client());
    send(&client, b"relay");
    assert!(is_reset(rest(&client)));
    assert_lasted(start, limit);
    assert!(matches!(stage.event(), Event::Down { error, .. } if error.contains("timed out")));
    let client = stage.client();
    send(&client, b"relay");
    assert!(is_reset(rest(&client)));
    assert_eq!((backend.counts().failed, backend.counts().refused), (1, 1));
}

#[test]
fn a_back_end_that_accepts_late_gets_everything() {
    let (listener, backend) = back_end(|_| {});
    let stage = stage(&backend);
    let client = stage.client();
    send(&client, b"relay");
    send(&client, b" and more");
    client.shutdown(Shutdown::Write).unwrap();
    eventually(|| backend.counts().bytes_in, |bytes| *bytes == 14);
    assert_eq!(rest(&accept(&listener)).unwrap(), b"relay and more");
}

#[test]
fn a_connection_that_carries_nothing_ends_and_one_that_does_stays() {
    let limit = Duration::from_millis(400);
    let (listener, backend) = back_end(|options| options.idle_limit = limit);
    let stage = stage(&backend);
    let (busy, busy_server) = pair(&stage, &listener);
    let start = Instant::now();
    let (idle, _idle_server) = pair(&stage, &listener);
    idle.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    loop {
        send(&busy, b".");
        receive(&busy_server, 1);
        match (&idle).read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            ended => {
                assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        }
        assert!(start.elapsed() < PATIENCE);
    }
    assert_lasted(start, limit);
    send(&busy, b"!");
    assert_eq!(receive(&busy_server, 1), b"!");
    assert_eq!((backend.counts().idle, backend.counts().open), (1, 1));
}

#[test]
fn half_a_connection_that_carries_nothing_ends_sooner() {
    let limit = Duration::from_millis(400);
    let (listener, backend) = back_end(|options| options.half_closed_limit = limit);
    let stage = stage(&backend);
    let (whole, whole_server) = pair(&stage, &listener);
    let (half, half_server) = pair(&stage, &listener);
    half.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&half_server).unwrap().is_empty());
    let start = Instant::now();
    half.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    for _ in 0..3 {
        send(&half_server, b".");
        receive(&half, 1);
    }
    assert_eq!(rest(&half).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(rest(&half).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_lasted(start, limit);
    send(&whole, b"!");
    assert_eq!(receive(&whole_server, 1), b"!");
    assert_eq!((backend.counts().idle, backend.counts().open), (1, 1));
}
