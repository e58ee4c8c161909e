//! adit as a client: a tunnel to a server by an OpenVPN profile, with this machine's addresses and routes.
//!
//! [`profile::read`] reads a profile, [`Client::new`] opens the tun interface and starts the packet loop, and
//! [`Client::run`] connects and stays connected until [`Stopper::stop`]:
//!
//! ```no_run
//! use adit_client::{Client, Options};
//!
//! let profile = adit_client::profile::read("ann.ovpn".as_ref())?;
//! let client = Client::new(profile, Options::default())?;
//! let stopper = client.stopper();
//! std::thread::spawn(move || { /* wait for a signal */ stopper.stop() });
//! client.run(&mut |status| println!("{status:?}"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The calling thread is the control thread: it owns the control machine and the machine's configuration, and waits
//! for nothing but its inbox and the next timer. Packets pass in the engine's thread; names are resolved and TCP
//! connections made on threads that end with their task. What becomes of the machine is decided in pure functions
//! (`tunnel`, `host_state`) and done by the host crate's plumbing, as a difference.
#![forbid(unsafe_code)]

mod attempt;
mod backoff;
mod client;
mod control;
mod host_state;
mod network;
mod place;
pub mod profile;
mod remotes;
mod resolve;
mod settings;
mod status;
mod tunnel;
mod verdict;

pub use client::{Bind, Client, ClientFault, Options, Stopper};
pub use network::NetworkFault;
pub use place::PlaceFault;
pub use settings::{SettingsFault, read as settings};
pub use status::{State, Status};
pub use tunnel::Mode;
