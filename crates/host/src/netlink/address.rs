//! Addresses of interfaces.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{IfExists, Netlink, NetlinkFault, RouteKind};

/// An address and the network around it, on an interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// Name of the interface.
    pub interface: String,
    /// The address with its prefix length, such as 10.88.0.1/16.
    pub address: IpNet,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} dev {}", self.address, self.interface)
    }
}

impl Netlink {
    /// All addresses of all interfaces.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>, NetlinkFault> {
        let names = self.link_names()?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump(&request, "list addresses")?;
        let address = |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => read(&message, &names),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(address).collect())
    }

    /// The interface that has the address, if one has it. An address that is only routed to the machine is on
    /// none.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn interface_with(&mut self, address: IpAddr) -> Result<Option<String>, NetlinkFault> {
        let found = self.addresses()?.into_iter().find(|found| found.address.addr() == address);
        Ok(found.map(|found| found.interface))
    }

    /// Gives an interface an address; says whether it did not have it. An IPv6 address is not checked for
    /// duplicates first, but the kernel takes it up a moment later: see
    /// [`wait_for_address`](Self::wait_for_address).
    ///
    /// # Errors
    /// When the interface does not exist, or without privilege.
    pub fn add_address(
        &mut self,
        address: &InterfaceAddress,
        existing: IfExists,
    ) -> Result<bool, NetlinkFault> {
        let operation = || format!("add {address}");
        let message = self.address_message(address, operation)?;
        self.add(RouteNetlinkMessage::NewAddress(message), existing, operation)
    }

    /// Waits until the machine takes packets to `address` for its own, which for IPv6 is a moment after the
    /// address was added, and never while the interface is down. Says whether that came within `limit`.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn wait_for_address(&mut self, address: IpAddr, limit: Duration) -> Result<bool, NetlinkFault> {
        let deadline = Instant::now() + limit;
        loop {
            if self.route_to(address, 0)?.is_some_and(|route| route.kind == RouteKind::Local) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // The kernel tells nobody when it is done, and is so in far less than this.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Takes an address from an interface.
    ///
    /// # Errors
    /// When it is not there, see [`NetlinkFault::is_missing`].
    pub fn delete_address(&mut self, address: &InterfaceAddress) -> Result<(), NetlinkFault> {
        let operation = || format!("delete {address}");
        let message = self.address_message(address, operation)?;
        self.request(RouteNetlinkMessage::DelAddress(message), operation).map(drop)
    }

    pub(super) fn link_names(&mut self) -> Result<HashMap<u32, String>, NetlinkFault> {
        Ok(self.links()?.into_iter().map(|link| (link.index, link.name)).collect())
    }

    fn address_message(
        &self,
        address: &InterfaceAddress,
        operation: impl Fn() -> String,
    ) -> Result<AddressMessage, NetlinkFault> {
        let mut message = AddressMessage::default();
        message.header.index = self.index_for(&address.interface, operation)?;
        message.header.family = family(address.address.addr());
        message.header.prefix_len = address.address.prefix_len();
        message.attributes.push(AddressAttribute::Local(address.address.addr()));
        message.attributes.push(AddressAttribute::Address(address.address.addr()));
        match address.address {
            IpNet::V4(net) => {
                message.header.scope =
                    if net.addr().is_loopback() { AddressScope::Host } else { AddressScope::Universe };
                if net.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
                }
            }
            IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        Ok(message)
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn read(message: &AddressMessage, names: &HashMap<u32, String>) -> Option<InterfaceAddress> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // On a point-to-point interface the second is the peer's.
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(InterfaceAddress { interface: names.get(&message.header.index)?.clone(), address })
}
