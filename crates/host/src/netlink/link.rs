//! Network interfaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{IfExists, Netlink, NetlinkFault};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is administratively up.
    pub up: bool,
    /// The largest packet it takes, in bytes.
    pub mtu: u32,
    /// How many packets may wait in its queue.
    pub tx_queue_len: u32,
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// Only when the kernel's answer is not understood.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkFault> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(&request, "list links")?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(read(&message)),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Turns an interface on or off.
    ///
    /// # Errors
    /// When it does not exist, or without privilege.
    pub fn set_up(&mut self, interface: &str, up: bool) -> Result<(), NetlinkFault> {
        let mut message = named(interface);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.set(message, || format!("set link {interface} {}", if up { "up" } else { "down" }))
    }

    /// Sets the largest packet an interface takes, in bytes.
    ///
    /// # Errors
    /// When it does not exist or does not take the value, or without privilege.
    pub fn set_mtu(&mut self, interface: &str, mtu: u32) -> Result<(), NetlinkFault> {
        let mut message = named(interface);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set(message, || format!("set link {interface} mtu {mtu}"))
    }

    /// Sets how many packets may wait in an interface's queue.
    ///
    /// # Errors
    /// When it does not exist, or without privilege.
    pub fn set_tx_queue_len(&mut self, interface: &str, packets: u32) -> Result<(), NetlinkFault> {
        let mut message = named(interface);
        message.attributes.push(LinkAttribute::TxQueueLen(packets));
        self.set(message, || format!("set link {interface} txqueuelen {packets}"))
    }

    /// Sets the longest superpacket that is handed to an interface in one piece, in bytes: for both IP versions when it is
    /// at most 65,536.
    ///
    /// # Errors
    /// When it does not exist or does not take the value, or without privilege.
    pub fn set_gso_max_size(&mut self, interface: &str, bytes: u32) -> Result<(), NetlinkFault> {
        let mut message = named(interface);
        message.attributes.push(LinkAttribute::GsoMaxSize(bytes));
        self.set(message, || format!("set link {interface} gso_max_size {bytes}"))
    }

    fn set(&mut self, message: LinkMessage, operation: impl FnOnce() -> String) -> Result<(), NetlinkFault> {
        self.request(RouteNetlinkMessage::SetLink(message), operation).map(drop)
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// When it does not exist or is not of a kind that can be deleted, or without privilege.
    pub fn delete_link(&mut self, interface: &str) -> Result<(), NetlinkFault> {
        let request = RouteNetlinkMessage::DelLink(named(interface));
        self.request(request, || format!("delete link {interface}")).map(drop)
    }

    /// Makes a pair of connected interfaces: `a` here, and `b` in the namespace `ns_b`.
    ///
    /// # Errors
    /// When a name is taken, or without privilege.
    pub fn add_veth(&mut self, a: &str, b: &str, ns_b: BorrowedFd<'_>) -> Result<(), NetlinkFault> {
        let mut peer = named(b);
        peer.attributes.push(LinkAttribute::NetNsFd(ns_b.as_raw_fd()));
        let mut message = named(a);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let request = RouteNetlinkMessage::NewLink(message);
        self.add(request, IfExists::Fail, || format!("add link {a} type veth peer {b}")).map(drop)
    }
}

fn named(interface: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(interface.to_owned()));
    message
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        tx_queue_len: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::TxQueueLen(packets) => link.tx_queue_len = *packets,
            _ => {}
        }
    }
    link
}
