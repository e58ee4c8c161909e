//! What many connections leave behind. A program of its own, since descriptors and memory are the whole process's.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "other tests use the rest of what they have in common")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use adit_entrance::Options;
use common::{Stage, eventually};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// One large transfer through a pipe.
fn bulk(stage: &Stage) {
    let mut client = TcpStream::connect(stage.address).unwrap();
    client.write_all(b"r").unwrap();
    let (mut server, _) = stage.server.accept().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            client.write_all(&vec![1; 8 << 20]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut block = vec![0; 1 << 16];
        while server.read(&mut block).unwrap() > 0 {}
    });
}

#[test]
fn many_connections_leave_no_descriptors_and_no_memory_behind() {
    let stage = Stage::new(Options { threads: 2, ..Options::default() }, Duration::from_secs(600));
    let round = || {
        for _ in 0..1000 {
            stage.visit();
        }
        let undecided: Vec<TcpStream> = (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(stage.address).unwrap();
                stream.write_all(&[b'x'; 2000]).unwrap();
                stream
            })
            .collect();
        eventually(|| stage.reception.counts().undecided, |count| *count == undecided.len() as u64);
        drop(undecided);
        (0..5).for_each(|_| bulk(&stage));
        eventually(
            || (stage.reception.counts().undecided, stage.backend.counts().open),
            |open| *open == (0, 0),
        );
    };
    // What is kept for the next ones is there after these.
    (0..3).for_each(|_| round());
    let (open, memory) = (descriptors(), resident());
    (0..6).for_each(|_| round());

    // Two pipes may lie ready in one thread and not in the other.
    assert!(descriptors() <= open + 4, "{} descriptors, {open} before", descriptors());
    let grown = resident().saturating_sub(memory);
    assert!(grown < 1 << 20, "{grown} bytes more than before");
    let before = descriptors();
    drop(stage);
    assert!(descriptors() < before);
}
