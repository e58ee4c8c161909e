//! What the gateway needs of the machine, as values: the wanted state is applied as a difference, and
//! everything is put back when the gateway ends, also when it crashed.
//!
//! [`Plumbing`] is the one door through which code above this crate changes the machine. Its requests are
//! plain values and its answers values or descriptors, so the one that does the work may be another,
//! privileged process. [`InProcess`] does it in this one.
//!
//! ```no_run
//! use adit_host::netlink::{InterfaceAddress, Route};
//! use adit_host::plumbing::{HostState, InProcess, LinkSettings, Plumbing, Sysctl};
//! use adit_host::tun::TunOptions;
//!
//! let (mut plumbing, recovery) = InProcess::start("/run/adit/changes.json".as_ref())?;
//! println!("{recovery}");
//! let tun = plumbing.open_tun(&TunOptions::new("adit0"))?;
//! let mut wanted = HostState::default();
//! wanted.sysctls.push(Sysctl::new("net.ipv4.ip_forward", "1"));
//! wanted.links.push(LinkSettings { up: Some(true), mtu: Some(1420), ..LinkSettings::of(tun.name()) });
//! wanted.addresses.push(InterfaceAddress { interface: "adit0".into(), address: "10.88.0.1/16".parse()? });
//! wanted.routes.push(Route::by_interface("10.99.0.0/16".parse()?, "adit0"));
//! plumbing.apply(&wanted)?;
//! // … later, with something more or something less:
//! wanted.routes.clear();
//! plumbing.apply(&wanted)?;
//! plumbing.undo()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod conflict;
#[cfg(any(test, feature = "testing"))]
mod fake;
mod in_process;
mod machine;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::conflict::{InterfaceConflict, Overlap, find_conflicts};
#[cfg(any(test, feature = "testing"))]
pub use self::fake::{FakePlumbing, Request};
pub use self::in_process::{InProcess, Recovery, recover};
use crate::capture::{CaptureFault, CaptureOptions, CapturePlan, Captured};
use crate::conntrack::{Tracked, Usage};
use crate::errno::words;
use crate::netlink::{InterfaceAddress, NetlinkFault, Route, Rule};
use crate::netns::NetnsFault;
use crate::nft::{Counter, Element, ElementChange, Family, NftFault};
use crate::socket::BindFault;
use crate::sysctl::SysctlFault;
use crate::tcp::ListenOptions;
use crate::tun::{Tun, TunFault, TunOptions};
use crate::udp::{UdpOptions, UdpSocket};

/// Changes the machine on the gateway's behalf.
pub trait Plumbing: Send {
    /// Makes the machine look like `wanted`: does what is missing, and undoes what an earlier call did and
    /// `wanted` no longer has. What is there already, from whomever, is left alone, now and on undoing; but
    /// an nftables table of a wanted name is replaced, since the name is the gateway's.
    ///
    /// The order is: sysctls, link settings, addresses, routes, rules, and all tables in one transaction.
    ///
    /// # Errors
    /// The first thing that failed. Everything this call did is undone then, and what earlier calls did
    /// stands.
    fn apply(&mut self, wanted: &HostState) -> Result<(), PlumbingFault>;

    /// Puts everything back that [`apply`](Self::apply) did. A sysctl or link setting that someone else has
    /// changed since is left as it is.
    ///
    /// # Errors
    /// [`PlumbingFault::Left`] with what could not be put back; the rest is.
    fn undo(&mut self) -> Result<(), PlumbingFault>;

    /// Opens a TUN interface, or one more queue of it.
    ///
    /// # Errors
    /// [`PlumbingFault::Tun`].
    fn open_tun(&mut self, options: &TunOptions) -> Result<Tun, PlumbingFault>;

    /// Opens a UDP socket.
    ///
    /// # Errors
    /// [`PlumbingFault::Bind`].
    fn bind_udp(&mut self, address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, PlumbingFault>;

    /// Opens a TCP listener.
    ///
    /// # Errors
    /// [`PlumbingFault::Bind`].
    fn listen_tcp(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<TcpListener, PlumbingFault>;

    /// Captures ports, see [`crate::capture`], until [`undo`](Self::undo). Once.
    ///
    /// # Errors
    /// [`PlumbingFault::Capture`].
    fn capture(&mut self, plan: &CapturePlan, options: &CaptureOptions) -> Result<Captured, PlumbingFault>;

    /// Captures other ports from now on. Does nothing unless something was captured before.
    ///
    /// # Errors
    /// [`PlumbingFault::Capture`]; everything is as before then.
    fn recapture(&mut self, plan: &CapturePlan) -> Result<(), PlumbingFault>;

    /// Changes elements of sets and maps in tables of the family `inet`, all of them or none. They go with
    /// their table, and nothing else is recorded of them.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`], which names the element; nothing is changed then.
    fn change_elements(&mut self, changes: &[ElementChange]) -> Result<(), PlumbingFault>;

    /// All elements of a set or map in a table of the family `inet`.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`], also when there is no such table or set.
    fn elements(&mut self, table: &str, set: &str) -> Result<Vec<Element>, PlumbingFault>;

    /// The named counters of a table of the family `inet`.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`], also when there is no such table.
    fn counters(&mut self, table: &str) -> Result<Vec<Counter>, PlumbingFault>;

    /// Forgets the connections that these addresses began, or answer before addresses are changed back.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`].
    fn forget_connections(&mut self, inner: &[IpAddr]) -> Result<(), PlumbingFault>;

    /// Forgets these connections.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`].
    fn forget(&mut self, connections: &[Tracked]) -> Result<(), PlumbingFault>;

    /// Keeps the translated ends of connections from being used for others for so many seconds.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`].
    fn occupy(&mut self, connections: &[Tracked], seconds: u32) -> Result<(), PlumbingFault>;

    /// All tracked connections.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`].
    fn connections(&mut self) -> Result<Vec<Tracked>, PlumbingFault>;

    /// How many connections are tracked, and how many may be.
    ///
    /// # Errors
    /// [`PlumbingFault::Netlink`].
    fn connection_usage(&mut self) -> Result<Usage, PlumbingFault>;
}

/// What the machine is to look like, as far as the gateway is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostState {
    /// Kernel parameters. Those that change others along, such as forwarding for all interfaces, are set
    /// before the others, whatever their order here.
    pub sysctls: Vec<Sysctl>,
    /// Settings of interfaces.
    pub links: Vec<LinkSettings>,
    /// Addresses of interfaces.
    pub addresses: Vec<InterfaceAddress>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Rules that choose a routing table.
    pub rules: Vec<Rule>,
    /// Filter tables.
    pub tables: Vec<NftTable>,
}

/// A kernel parameter and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Name as the `sysctl` command has it, see [`crate::sysctl`].
    pub name: String,
    /// Value.
    pub value: String,
}

impl Sysctl {
    /// A parameter and its value.
    #[must_use]
    pub fn new(name: &str, value: &str) -> Self {
        Self { name: name.to_owned(), value: value.to_owned() }
    }
}

/// Settings of an interface; what is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSettings {
    /// Name of the interface.
    pub interface: String,
    /// The largest packet it takes, in bytes.
    pub mtu: Option<u32>,
    /// How many packets may wait in its queue.
    pub tx_queue_len: Option<u32>,
    /// Turned on or off.
    pub up: Option<bool>,
}

impl LinkSettings {
    /// No settings for an interface.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        Self { interface: interface.to_owned(), mtu: None, tx_queue_len: None, up: None }
    }
}

/// A filter table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NftTable {
    /// Its family.
    pub family: Family,
    /// Its name, which belongs to the gateway: a table that has it is replaced.
    pub name: String,
    /// What makes it, in nft's language, from `table inet adit {` on. Each time it is loaded the old table is
    /// deleted in the same transaction.
    pub ruleset: String,
}

/// Why the machine is not as wanted.
#[derive(Debug, Error)]
pub enum PlumbingFault {
    /// A kernel parameter.
    #[error(transparent)]
    Sysctl(#[from] SysctlFault),
    /// A link, address, route or rule, an element of a filter table, or tracked connections.
    #[error(transparent)]
    Netlink(#[from] NetlinkFault),
    /// A filter table.
    #[error(transparent)]
    Nft(#[from] NftFault),
    /// The network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsFault),
    /// A TUN interface.
    #[error(transparent)]
    Tun(#[from] TunFault),
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindFault),
    /// Captured ports.
    #[error(transparent)]
    Capture(#[from] CaptureFault),
    /// Another route is in the way.
    #[error(
        "add {0}: another route to this destination with this metric is there: remove it or choose another metric"
    )]
    RouteTaken(String),
    /// Things that could not be put back.
    #[error("could not put back: {}", .0.join("; "))]
    Left(Vec<String>),
    /// Something failed, and then not everything could be undone.
    #[error("{cause}; and could not put back: {}", left.join("; "))]
    NotUndone {
        /// What failed first.
        cause: Box<Self>,
        /// What is left.
        left: Vec<String>,
    },
    /// The record of changes could not be written, so nothing was changed.
    #[error("record of changes {}: {}", path.display(), words(source))]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record of changes is no such record.
    #[error(
        "record of changes {} cannot be read ({problem}): look for routes, rules and tables that adit left, \
         then remove the file",
        path.display()
    )]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What another process, which does the work, reported.
    #[error("{0}")]
    Reported(String),
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sysctl {} = {}", self.name, self.value)
    }
}
