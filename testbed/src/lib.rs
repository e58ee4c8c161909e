//! What every end-to-end test stands on: networks, the gateway, its peers, and eyes on the wire.
//!
//! A test draws its topology with [`Network`], runs the real `adit` program in it with [`Gateway`], lets stock
//! clients ([`OpenVpnClient`]) and servers ([`OpenVpnServer`]) talk to it and to adit's own client
//! ([`AditClient`]), sends traffic ([`ping`], [`Flow`], [`HttpServer`], [`TcpFlow`], [`iperf3`]) and looks at it
//! from outside: peers' own logs, access logs, the wire itself ([`Wire`]). Between client and gateway there may be a
//! [`Proxy`] that loses, delays, reorders, repeats, records and injects.
//!
//! ```no_run
//! use adit_testbed::{Gateway, Network, OpenVpnClient, ping};
//!
//! let network = Network::with_clients(1);
//! let mut gateway = Gateway::new(&network);
//! gateway.up();
//! let profile = gateway.add_user("ann", &["--transport", "udp"]);
//! let client = OpenVpnClient::connect(network.client(0), &profile);
//! ping(network.client(0), network.outside_address()).must_all_return();
//! client.stop();
//! ```
//!
//! Nothing here returns errors: whatever cannot be set up, or was not seen in time, ends the test with a panic
//! that says what was missing and what the processes have said. Waiting is on conditions with generous limits,
//! never for a fixed time. Namespaces and processes end with their handles, on a panic as well; namespaces that
//! a killed run has left are removed by the next one.
//!
//! All of it needs root and a Linux with network namespaces.
#![forbid(unsafe_code)]

mod binary;
mod client;
mod flow;
mod gateway;
mod host;
mod http;
mod iperf;
mod light;
mod listener;
mod network;
mod openvpn;
mod ping;
mod pki;
mod process;
mod proxy;
mod require;
mod rng;
mod scale;
mod snapshot;
mod tcp;
mod wait;
mod wire;
mod witness;

pub use binary::adit;
pub use client::AditClient;
pub use flow::{Flow, FlowTally, Tally};
pub use gateway::{Gateway, Outcome};
pub use host::Host;
pub use http::{HttpServer, Visit, http_get};
pub use iperf::{IperfServer, iperf3};
pub use light::{AT_ONCE, LightClient, LightSession, in_parallel};
pub use network::{Layout, Network};
pub use openvpn::{OpenVpnClient, OpenVpnServer, ServerSpec, ServerWrap};
pub use ping::{PingResult, Pinger, ping, ping_with};
pub use pki::{KEY_KINDS, TestPki, ready_key};
pub use process::{Log, Process};
pub use proxy::{Action, Direction, Impairment, Proxy, TcpProxy};
pub use require::require;
pub use rng::Rng;
pub use scale::Scale;
pub use snapshot::Snapshot;
pub use tcp::{TcpFlow, TcpTally};
pub use wait::{eventually, eventually_some};
pub use wire::{Seen, Wire};
pub use witness::{Call, Sighting, Witness};
