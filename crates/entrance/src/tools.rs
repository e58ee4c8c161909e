//! What a thread of the reception lends to the connection that it is at.

use adit_host::pipe::Pipe;

/// Bytes that one read brings at most. What fills it is worth a pipe; less is copied faster than it is spliced.
pub(crate) const SCRATCH: usize = 32 * 1024;
/// Bytes a pipe is to hold: with less a transfer is more system calls.
const PIPE: usize = 1 << 20;
/// Pipes lying idle.
const SPARE_PIPES: usize = 4;
/// Buffers lying idle, and the largest of them.
const SPARE_BUFFERS: usize = 64;

pub(crate) struct Tools {
    pub(crate) scratch: Box<[u8]>,
    /// Pipes that lie idle, and how many more may be made: what a client does not read waits in one.
    pipes: Vec<Pipe>,
    more_pipes: usize,
    buffers: Vec<Vec<u8>>,
}

impl Tools {
    pub(crate) fn new(pipes: usize) -> Self {
        Self { scratch: vec![0; SCRATCH].into(), pipes: Vec::new(), more_pipes: pipes, buffers: Vec::new() }
    }

    /// An empty pipe, unless too many are in use or none can be had.
    pub(crate) fn pipe(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Some(pipe);
        }
        self.more_pipes = self.more_pipes.checked_sub(1)?;
        let pipe = Pipe::new(PIPE).ok();
        if pipe.is_none() {
            self.more_pipes += 1;
        }
        pipe
    }

    /// Takes back a pipe; one that is not empty is closed.
    pub(crate) fn give_pipe(&mut self, pipe: Pipe, empty: bool) {
        if empty && self.pipes.len() < SPARE_PIPES {
            self.pipes.push(pipe);
        } else {
            self.more_pipes += 1;
        }
    }

    /// An empty buffer.
    pub(crate) fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    pub(crate) fn give_buffer(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= SCRATCH && self.buffers.len() < SPARE_BUFFERS {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }
}
