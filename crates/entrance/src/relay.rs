//! A client's connection and the one to its back end, and the bytes between them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use adit_host::pipe::Pipe;
use adit_host::poll::{Event, Interest, Poller};
use adit_host::tcp;
use adit_wire::proxy;

use crate::classify::Flow;
use crate::tools::Tools;
use crate::{Backend, ProxyMode};

/// Bytes that one connection may move before others have their turn.
const TURN: usize = 8 << 20;
/// A turn that moves less is not worth a pipe.
const LITTLE: usize = 16 * 1024;

/// Which of its two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// What a relay is to be called back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Events.
    Wait,
    /// It could go on at once.
    Again,
    /// Nothing: it is over.
    Over,
}

/// Why a relay could not begin or go on; both its connections are reset then.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The back end was never reached.
    NotConnected(io::Error),
    /// One of the two connections has failed.
    Lost,
}

/// One of the two connections. Readiness is told once per change, so it is kept here.
#[derive(Debug)]
struct End {
    stream: TcpStream,
    token: u64,
    readable: bool,
    writable: bool,
    /// The peer sends no more than what is there: whoever reads has to read on to the end.
    ending: bool,
    /// The poller tells of room to write as well. Most connections never need to know.
    write_told: bool,
}

/// The bytes in one direction.
#[derive(Debug, Default)]
struct Half {
    /// Bytes that were read and not taken; first these, then those in the pipe.
    pending: Vec<u8>,
    sent: usize,
    pipe: Option<Pipe>,
    in_pipe: usize,
    /// It moves so much that a pipe pays.
    bulk: bool,
    /// The source has ended.
    ended: bool,
    /// That has been passed on.
    closed: bool,
    moved: u64,
}

/// Whom a relay is for.
pub(crate) struct Client<'a> {
    pub(crate) stream: TcpStream,
    /// The poller has it already, by its token.
    pub(crate) told: bool,
    /// What it has sent so far.
    pub(crate) seen: &'a [u8],
    pub(crate) flow: &'a Flow,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Relay {
    backend: Arc<Backend>,
    client: End,
    server: End,
    up: Half,
    down: Half,
    connecting: bool,
}

impl Relay {
    /// Begins to connect to `backend`. When that fails at once the client comes back with the error.
    pub(crate) fn start(
        client: Client<'_>,
        backend: Arc<Backend>,
        tokens: [u64; 2],
        poller: &Poller,
        tools: &mut Tools,
    ) -> Result<Self, (TcpStream, io::Error)> {
        let Client { stream: client, told, seen, flow } = client;
        let [client_token, server_token] = tokens;
        let mut pending = tools.buffer();
        let options = backend.options();
        if options.proxy == ProxyMode::V2 {
            let mut header = [0; proxy::MAX_BUILT];
            let length = proxy::build(&mut header, flow.remote, flow.dialled, proxy::Kind::Stream);
            pending.extend_from_slice(header.get(..length.unwrap_or_default()).unwrap_or_default());
        }
        pending.extend_from_slice(seen);
        let source = (options.proxy == ProxyMode::Transparent).then(|| flow.remote.ip());
        let attempt = || -> io::Result<(TcpStream, usize, bool)> {
            let server = tcp::start_connect(options.address, source)?;
            // Within one machine it is connected by now, and then this is all there is to it.
            let (sent, connecting) = match (&server).write(&pending) {
                _ if pending.is_empty() => (0, true),
                Ok(sent) => (sent, false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, true),
                Err(error) => return Err(error),
            };
            let interest = if connecting { Interest::READ_WRITE } else { Interest::READ };
            poller.add(&server, server_token, interest.edge())?;
            if !told {
                poller.add(&client, client_token, Interest::READ.edge())?;
            }
            Ok((server, sent, connecting))
        };
        let (server, sent, connecting) = match attempt() {
            Ok(made) => made,
            Err(error) => return Err((client, error)),
        };
        let end = |stream, token, writable, write_told| End {
            stream,
            token,
            readable: false,
            writable,
            ending: false,
            write_told,
        };
        let mut relay = Self {
            client: end(client, client_token, true, false),
            server: end(server, server_token, !connecting && sent == pending.len(), connecting),
            up: Half::default(),
            down: Half::default(),
            backend,
            connecting,
        };
        relay.backend.counters.open.raise();
        relay.backend.counters.bytes_in.add(sent as u64);
        if sent < pending.len() {
            (relay.up.pending, relay.up.sent) = (pending, sent);
            if !connecting {
                // A back end on this machine that takes less than the first bytes: rare, but then it has to be told.
                let _ = relay.server.watch_writes(poller);
            }
        } else {
            tools.give_buffer(pending);
        }
        Ok(relay)
    }

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The back end has not been reached yet.
    pub(crate) fn connecting(&self) -> bool {
        self.connecting
    }

    /// One side has said its last, and the other knows.
    pub(crate) fn half_closed(&self) -> bool {
        self.up.closed || self.down.closed
    }

    /// There is more of the client to read, of which the poller will not tell again; with `ending` all there will be.
    pub(crate) fn client_has_more(&mut self, ending: bool) {
        self.client.readable = true;
        self.client.ending |= ending;
    }

    /// Notes what the poller has told of one side and moves what can be moved.
    pub(crate) fn event(
        &mut self,
        side: Side,
        event: Event,
        poller: &Poller,
        tools: &mut Tools,
    ) -> Result<Next, Broken> {
        let (end, read) = match side {
            Side::Client => (&mut self.client, &self.up),
            Side::Server => (&mut self.server, &self.down),
        };
        end.readable |= event.readable;
        end.writable |= event.writable;
        end.ending |= event.closed;
        // Where nobody reads at the moment, a lost connection would be noticed late or never.
        let unread = self.connecting || read.ended || read.waits();
        if event.closed
            && unread
            && let Ok(Some(error)) = end.stream.take_error()
        {
            let never = self.connecting && side == Side::Server;
            return Err(if never { Broken::NotConnected(error) } else { Broken::Lost });
        }
        if self.connecting && side == Side::Server && (event.writable || event.readable) {
            self.connecting = false;
        }
        self.go_on(poller, tools)
    }

    /// Moves what can be moved.
    pub(crate) fn go_on(&mut self, poller: &Poller, tools: &mut Tools) -> Result<Next, Broken> {
        let before = (self.up.moved, self.down.moved);
        let result = self.exchange(poller, tools);
        self.backend.counters.bytes_in.add(self.up.moved - before.0);
        self.backend.counters.bytes_out.add(self.down.moved - before.1);
        result
    }

    fn exchange(&mut self, poller: &Poller, tools: &mut Tools) -> Result<Next, Broken> {
        let up = self.up.pump(&mut self.client, &mut self.server, poller, tools);
        let down = self.down.pump(&mut self.server, &mut self.client, poller, tools);
        // When a back end closes without having read everything, its last words still count: they have been read now.
        let (Ok(up), Ok(down)) = (up, down) else { return Err(Broken::Lost) };
        let (up_done, down_done) = (self.up.done(), self.down.done());
        if up_done && down_done {
            // Closing says the rest.
            return Ok(Next::Over);
        }
        for (done, half, target) in
            [(up_done, &mut self.up, &self.server), (down_done, &mut self.down, &self.client)]
        {
            if done && !std::mem::replace(&mut half.closed, true) {
                target.stream.shutdown(Shutdown::Write).map_err(|_| Broken::Lost)?;
            }
        }
        Ok(if up || down { Next::Again } else { Next::Wait })
    }

    /// Gives back what was lent, and closes both connections: in order, or by a reset.
    pub(crate) fn end(self, tools: &mut Tools, reset: bool) {
        self.backend.counters.open.lower();
        for half in [self.up, self.down] {
            tools.give_buffer(half.pending);
            if let Some(pipe) = half.pipe {
                tools.give_pipe(pipe, half.in_pipe == 0);
            }
        }
        if reset {
            tcp::abort(self.client.stream);
            tcp::abort(self.server.stream);
        }
    }
}

impl End {
    fn watch_writes(&mut self, poller: &Poller) -> io::Result<()> {
        if !std::mem::replace(&mut self.write_told, true) {
            poller.modify(&self.stream, self.token, Interest::READ_WRITE.edge())?;
        }
        Ok(())
    }

    /// Writes; `None` when there is no room, of which the poller will tell.
    fn write(&mut self, bytes: &[u8], poller: &Poller) -> io::Result<Option<usize>> {
        let result = retry(|| (&self.stream).write(bytes));
        self.room(result, poller)
    }

    fn room(&mut self, result: io::Result<usize>, poller: &Poller) -> io::Result<Option<usize>> {
        match result {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                self.watch_writes(poller)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Half {
    /// Something waits to be taken.
    fn waits(&self) -> bool {
        self.sent < self.pending.len() || self.in_pipe > 0
    }

    /// All there will ever be has been taken.
    fn done(&self) -> bool {
        self.ended && !self.waits()
    }

    /// Moves what can be moved; true when there may be more and others are to have their turn first.
    fn pump(&mut self, from: &mut End, to: &mut End, poller: &Poller, tools: &mut Tools) -> io::Result<bool> {
        let before = self.moved;
        let more = loop {
            if !self.flush(to, poller, tools)? || self.ended || !from.readable {
                break false;
            }
            let moved = (self.moved - before) as usize;
            if moved > TURN {
                break true;
            }
            if self.bulk && self.pipe.is_none() {
                self.pipe = tools.pipe();
            }
            match &self.pipe {
                Some(pipe) => match pipe.fill(&from.stream) {
                    Ok(0) => self.ended = true,
                    Ok(count) => self.in_pipe = count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        from.readable = false;
                        self.bulk = moved >= LITTLE;
                    }
                    Err(error) => return Err(error),
                },
                None => self.copy(from, to, poller, tools)?,
            }
        };
        if self.in_pipe == 0
            && !more
            && let Some(pipe) = self.pipe.take()
        {
            tools.give_pipe(pipe, true);
        }
        Ok(more)
    }

    /// Reads once and writes as much of it as is taken.
    fn copy(&mut self, from: &mut End, to: &mut End, poller: &Poller, tools: &mut Tools) -> io::Result<()> {
        let count = match retry(|| (&from.stream).read(&mut tools.scratch)) {
            Ok(0) => {
                self.ended = true;
                return Ok(());
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                from.readable = false;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if count == tools.scratch.len() {
            self.bulk = true;
        } else if !from.ending {
            // That was all: when more comes, or the end, the poller tells.
            from.readable = false;
        }
        let sent = to.write(tools.scratch.get(..count).unwrap_or_default(), poller)?.unwrap_or_default();
        self.moved += sent as u64;
        if sent < count {
            self.pending = tools.buffer();
            self.pending.extend_from_slice(tools.scratch.get(sent..count).unwrap_or_default());
        }
        Ok(())
    }

    /// Writes what waits; false when not all of it was taken.
    fn flush(&mut self, to: &mut End, poller: &Poller, tools: &mut Tools) -> io::Result<bool> {
        while self.sent < self.pending.len() {
            if !to.writable {
                return Ok(false);
            }
            let rest = self.pending.get(self.sent..).unwrap_or_default();
            let Some(count) = to.write(rest, poller)? else { return Ok(false) };
            self.sent += count;
            self.moved += count as u64;
        }
        if self.sent > 0 {
            self.sent = 0;
            tools.give_buffer(std::mem::take(&mut self.pending));
        }
        while self.in_pipe > 0 {
            let Some(pipe) = self.pipe.as_ref().filter(|_| to.writable) else { return Ok(false) };
            let result = pipe.drain(&to.stream, self.in_pipe);
            let Some(count) = to.room(result, poller)? else { return Ok(false) };
            self.in_pipe -= count;
            self.moved += count as u64;
        }
        Ok(true)
    }
}

/// Repeats a call for as long as a signal interrupts it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
