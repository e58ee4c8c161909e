//! Crowds of connections that send a byte now and then. A program of its own, since memory is the whole process's; the
//! crowd is another process, since both ends together would need more descriptors than one has.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "other tests use the rest of what they have in common")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adit_entrance::Options;
use common::{PATIENCE, Stage, eventually};

/// Where the crowd goes, and how many they are.
const CROWD: &str = "ADIT_TEST_CROWD";

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Sends nearly all that is read of a stranger, then a byte a second each, until all are closed.
#[test]
fn a_crowd_when_it_is_asked_for() {
    let Ok(task) = std::env::var(CROWD) else { return };
    let (address, count) = task.split_once(' ').unwrap();
    let count: usize = count.parse().unwrap();
    adit_host::limits::raise_open_files().unwrap();
    let mut crowd: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[b'x'; 2900]).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    let mut sent = 0;
    while !crowd.is_empty() {
        if start.elapsed().as_secs() > sent {
            sent = start.elapsed().as_secs();
            // One that is gone is noticed below.
            crowd.iter_mut().for_each(|stream| drop(stream.write(b"x")));
        }
        let first = crowd.first().unwrap();
        first.set_nonblocking(false).unwrap();
        first.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let waiting = |result: std::io::Result<usize>| {
            result.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        if !waiting({ first }.read(&mut [0])) {
            crowd.remove(0);
            crowd.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            crowd.retain_mut(|stream| waiting(stream.read(&mut [0])));
        }
    }
}

#[test]
fn a_crowd_of_slow_strangers_costs_little_is_done_with_in_time_and_holds_up_nobody() {
    adit_host::limits::raise_open_files().unwrap();
    let full = std::env::var("ADIT_SCALE").is_ok_and(|scale| scale == "full");
    let (count, inspect) =
        if full { (10_000, Duration::from_secs(10)) } else { (1000, Duration::from_secs(2)) };
    // With some room for whoever is served meanwhile.
    let most = count + 100;
    let options =
        Options { max_undecided: most, max_undecided_per_network: most as u32, ..Options::default() };
    let stage = Stage::new(options, inspect);
    stage.visit();
    let before = resident();
    let mut crowd = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_crowd_when_it_is_asked_for", "--nocapture"])
        .env(CROWD, format!("{} {count}", stage.address))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually(|| stage.reception.counts().undecided, |undecided| *undecided == count as u64);
    let each = resident().saturating_sub(before) / count;
    assert!(each <= 4096, "{each} bytes for each of {count}");
    // The kernel gives a process memory in steps; less than was sent would mean that nothing was kept.
    assert!(each >= 2048, "{each} bytes for each of {count}");

    // A client that is served while they are there.
    let start = Instant::now();
    (0..20).for_each(|_| stage.visit());
    let took = start.elapsed() / 20;
    assert!(took < Duration::from_millis(100), "{took:?} for one");
    assert!(stage.reception.counts().undecided > 0, "they have gone before this was measured");

    let end = Instant::now() + inspect + PATIENCE;
    while stage.reception.counts().undecided > 0 {
        assert!(Instant::now() < end, "{:?}", stage.reception.counts());
        stage.visit();
    }
    assert!(crowd.wait().unwrap().success());
    let counts = stage.reception.counts();
    // The last of them may have shown too much before their time was up.
    assert_eq!(counts.timed_out + counts.unknown, count as u64);
    assert!(counts.timed_out > 0 && counts.refused_full == 0);
}
