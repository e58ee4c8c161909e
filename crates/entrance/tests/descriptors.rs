//! A process without descriptors left. A program of its own, since the limit is the whole process's.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "other tests use the rest of what they have in common")]

mod common;

use std::fs::File;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use adit_entrance::Options;
use common::{Stage, eventually};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum }).unwrap();
    let stage = Stage::new(Options::default(), Duration::from_secs(600));
    stage.visit();
    eventually(|| stage.backend.counts().open, |open| *open == 0);

    // The client has its descriptor before there is no other.
    let client = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let client = client.unwrap();
    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    rustix::net::connect(&client, &stage.address).unwrap();
    eventually(|| stage.reception.counts().paused, |paused| *paused >= 1);

    // A handful of attempts in a second, not thousands: each pause lasts a tenth of it.
    let start = Instant::now();
    let paused = stage.reception.counts().paused;
    eventually(|| stage.reception.counts().paused, |now| *now >= paused + 3);
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());

    drop(hoard);
    let mut client = TcpStream::from(client);
    std::io::Write::write_all(&mut client, b"r").unwrap();
    let (server, _) = stage.server.accept().unwrap();
    assert_eq!(std::io::Read::read(&mut &server, &mut [0]).unwrap(), 1);
    stage.visit();
}
