//! The packet loop, for gateway and client alike.
//!
//! A *shard* is a thread that owns UDP sockets, a tun queue and the TCP connections of sessions, and runs each
//! packet to completion: receive, find the session, open, check the source, write to tun; and back. It reads
//! no clock per packet, writes no log, allocates nothing and waits for nobody.
//!
//! Control packets go up to the control plane as [`Event`]s over a bounded queue, and come down as
//! [`Command`]s. First packets are judged here by the [`Gate`](adit_openvpn::gate::Gate), so that a flood of
//! them never reaches the control plane.
//!
//! [`start`] makes the shard; [`Engine`] is the handle to it. On the control plane's side a [`Driver`] keeps a control
//! machine and the engine in step.
#![forbid(unsafe_code)]

mod command;
mod driver;
mod routes;
mod session;
mod shard;
mod stream;
mod table;

pub use command::{Command, Engine, Event, Foreign, Handle, Parts, Path, StartFault, start};
pub use driver::{Clocks, Driver, OsEntropy};
pub use session::{Counters, Session, Snapshot, Sources};
