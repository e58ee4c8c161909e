//! Finding out whose a connection is.

use super::*;

fn options() -> Options {
    Options::default()
}

#[test]
fn a_native_connection_is_handed_over_with_its_bytes_however_they_arrive() {
    let stage = Stage::new(options(), LONG, None);
    let client = stage.client();
    let whole = b"native";
    for byte in whole {
        send(&client, &[*byte]);
    }
    let taken = stage.taken();
    assert_eq!(taken.seen, whole);
    assert_eq!(
        taken.flow,
        Flow { remote: client.local_addr().unwrap(), dialled: stage.address, listener: 7 }
    );

    let client = stage.client();
    send(&client, b"native and more");
    let taken = stage.taken();
    taken.stream.set_nonblocking(false).unwrap();
    let behind = receive(&taken.stream, 15 - taken.seen.len());
    assert_eq!([taken.seen, behind].concat(), b"native and more");
    send(&taken.stream, b"answer");
    assert_eq!(receive(&client, 6), b"answer");

    drop(stage.reception);
    send(&taken.stream, b"still");
    assert_eq!(receive(&client, 5), b"still", "what was handed over does not end with the reception");
}

#[test]
fn bytes_that_come_one_by_one_are_waited_for() {
    let stage = Stage::new(options(), LONG, None);
    let client = stage.client();
    for byte in b"nativ" {
        send(&client, &[*byte]);
    }
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == 1);
    send(&client, b"e");
    assert_eq!(stage.taken().seen, b"native");
    eventually(|| stage.reception.counts(), |counts| counts.undecided == 0 && counts.native == 1);
}

#[test]
fn nobodys_connection_is_closed_or_hears_nothing_until_its_time_is_up() {
    let stage = Stage::new(Options { unknown: Unknown::Close, ..options() }, LONG, None);
    let client = stage.client();
    send(&client, b"?");
    assert!(matches!(rest(&client), Ok(bytes) if bytes.is_empty()), "an orderly end");

    let inspect = Duration::from_millis(200);
    let stage = Stage::new(options(), inspect, None);
    let (start, client) = (Instant::now(), stage.client());
    send(&client, b"?");
    eventually(|| stage.reception.counts().unknown, |unknown| *unknown == 1);
    // More of it changes nothing.
    send(&client, b"??");
    let _ = rest(&client);
    assert_lasted(start, inspect);
    let counts = eventually(|| stage.reception.counts(), |counts| counts.undecided == 0);
    assert_eq!((counts.unknown, counts.timed_out), (1, 0));
}

#[test]
fn a_client_that_leaves_before_it_is_decided_frees_its_place() {
    let stage = Stage::new(options(), LONG, None);
    for bytes in [&b""[..], b"nat", b"?"] {
        let client = stage.client();
        send(&client, bytes);
        eventually(|| stage.reception.counts(), |counts| counts.undecided == 1);
        drop(client);
        eventually(|| stage.reception.counts(), |counts| counts.undecided == 0);
    }
    let counts = stage.reception.counts();
    assert_eq!((counts.gone, counts.unknown, counts.timed_out), (2, 1, 0));
}

#[test]
fn the_silent_and_the_slow_are_done_with_in_time() {
    let inspect = Duration::from_millis(300);
    let stage = Stage::new(options(), inspect, None);
    let (start, silent, slow) = (Instant::now(), stage.client(), stage.client());
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // Each byte comes long before the limit and gains no time.
    let mut sent = 0;
    loop {
        if (&slow).write(if sent == 0 { b"more" } else { b"." }).is_err() {
            break;
        }
        sent += 1;
        match (&slow).read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        assert!(start.elapsed() < PATIENCE);
    }
    assert_lasted(start, inspect);
    assert!(matches!(rest(&silent), Ok(bytes) if bytes.is_empty()));
    let counts = eventually(|| stage.reception.counts(), |counts| counts.undecided == 0);
    assert_eq!(counts.timed_out, 2);
}

#[test]
fn the_silent_can_have_a_back_end() {
    let (listener, backend) = back_end(|_| {});
    let stage = Stage::with_silent(options(), Duration::from_millis(50), None, Some(&backend));
    let client = stage.client();
    let server = accept(&listener);
    send(&server, b"SSH-2.0-x\r\n");
    assert_eq!(receive(&client, 11), b"SSH-2.0-x\r\n");
    send(&client, b"hello");
    assert_eq!(receive(&server, 5), b"hello");
}

#[test]
fn no_more_than_the_first_bytes_are_read() {
    let stage = Stage::new(Options { first_bytes: 64, ..options() }, LONG, None);
    let client = stage.client();
    send(&client, &[b"more".as_slice(), &[b'x'; 60]].concat());
    // Silence is the answer to what is nobody's.
    let counts = eventually(|| stage.reception.counts(), |counts| counts.unknown == 1);
    assert_eq!((counts.undecided, counts.timed_out), (1, 0));
}

#[test]
fn a_network_has_so_many_places_and_more_of_it_are_refused_at_once() {
    let stage = Stage::new(Options { max_undecided_per_network: 3, ..options() }, LONG, None);
    let waiting: Vec<TcpStream> = (0..3).map(|_| stage.client()).collect();
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == 3);
    assert!(is_reset(rest(&stage.client())));
    let counts = stage.reception.counts();
    assert_eq!((counts.refused_full, counts.refused_network), (0, 1));

    // Whoever is decided makes room.
    send(&waiting[0], b"native");
    stage.taken();
    let client = stage.client();
    send(&client, b"native");
    stage.taken();
}

#[test]
fn when_all_places_are_taken_whoever_has_waited_longest_is_decided_at_once() {
    let stage = Stage::new(Options { max_undecided: 3, ..options() }, LONG, None);
    let waiting: Vec<TcpStream> = (0..3)
        .map(|n| {
            let client = stage.client();
            eventually(|| stage.reception.counts().undecided, |undecided| *undecided == n + 1);
            client
        })
        .collect();

    let client = stage.client();

    assert_eq!(rest(&waiting[0]).unwrap(), b"");
    let counts = eventually(|| stage.reception.counts(), |counts| counts.undecided == 3);
    assert_eq!((counts.cut_short, counts.timed_out, counts.refused_full), (1, 1, 0));
    for one in [&client, &waiting[1], &waiting[2]] {
        send(one, b"native");
        stage.taken();
    }
}

#[test]
fn listeners_come_and_go_while_it_runs() {
    let stage = Stage::new(Options { threads: 2, ..options() }, LONG, None);
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    stage.reception.listen(listener, 8, LONG).unwrap();
    let client = connect(address);
    send(&client, b"native");
    let flow = stage.taken().flow;
    assert_eq!((flow.remote, flow.dialled, flow.listener), (client.local_addr().unwrap(), address, 8));
    let undecided = stage.client();
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == 1);

    stage.reception.close();

    eventually(|| TcpStream::connect(stage.address).is_err(), |refused| *refused);
    eventually(|| TcpStream::connect(address).is_err(), |refused| *refused);
    send(&undecided, b"native");
    assert_eq!(stage.taken().seen, b"native", "those that were there go on");
    drop(stage.reception);
}

#[test]
fn addresses_of_a_dual_stack_listener_are_plain() {
    let stage = Stage::new(options(), LONG, None);
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    stage.reception.listen(listener, 9, LONG).unwrap();
    let client = connect(([127, 0, 0, 1], port).into());
    send(&client, b"native");
    let flow = stage.taken().flow;
    assert_eq!((flow.remote, flow.dialled), (client.local_addr().unwrap(), client.peer_addr().unwrap()));
}
