//! Pipes that bytes pass through on their way from one socket to another without being copied.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use crate::errno::uninterrupted;

/// Sizes to try one after the other: the kernel grants 1 MiB to everyone, but only so many pages to one user's pipes
/// altogether (`fs.pipe-user-pages-soft`).
const SMALLER: [usize; 2] = [256 * 1024, 64 * 1024];

/// A pipe with both ends in one hand. Nothing here waits.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    /// A pipe that holds `size` bytes, or less where the kernel grants no more.
    ///
    /// # Errors
    /// When the process has no two descriptors left.
    pub fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let granted = [size].into_iter().chain(SMALLER.into_iter().filter(|smaller| *smaller < size));
        let granted = granted.into_iter().find_map(|size| fcntl_setpipe_size(&write, size).ok());
        let size = match granted {
            Some(size) => size,
            None => fcntl_getpipe_size(&write)?,
        };
        Ok(Self { read, write, size })
    }

    /// How many bytes it holds when they come in whole pages; fewer when they come in small pieces.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Moves what waits in `source` into the pipe, as far as there is room; 0 when the peer has ended the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing waits or the pipe has no room; else what happened to the source.
    pub fn fill(&self, source: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(uninterrupted(|| splice(&source, None, &self.write, None, self.size, flags))?)
    }

    /// Moves up to `bytes` of what is in the pipe to `target`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the target takes nothing or the pipe is empty; else what happened to the
    /// target.
    pub fn drain(&self, target: impl AsFd, bytes: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(uninterrupted(|| splice(&self.read, None, &target, None, bytes, flags))?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_an_end_is_told() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let (target, mut to) = UnixStream::pair().unwrap();
        source.set_nonblocking(true).unwrap();
        let pipe = Pipe::new(1 << 20).unwrap();
        assert_eq!(pipe.fill(&source).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(pipe.drain(&target, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        from.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(&source).unwrap(), 5);
        assert_eq!(pipe.drain(&target, 2).unwrap(), 2);
        assert_eq!(pipe.drain(&target, 3).unwrap(), 3);
        let mut got = [0; 5];
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        drop(from);
        assert_eq!(pipe.fill(&source).unwrap(), 0);
    }

    #[test]
    fn a_size_that_nobody_is_granted_is_replaced_by_a_smaller_one() {
        assert_eq!(Pipe::new(1 << 20).unwrap().size(), 1 << 20);
        assert!(Pipe::new(1 << 40).unwrap().size() >= 64 * 1024);
    }
}
