//! Named counters, read without a program.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use netlink_packet_core::DecodeError;

use crate::netfilter::{Message, Netfilter, attribute, be, find, name, write};
use crate::netlink::NetlinkFault;
use crate::netlink::connection::Failure;

/// The part of netfilter that has tables and their objects, as it is written in kinds of messages.
const SUBSYSTEM: u16 = 10;
const GET_OBJECTS: u16 = SUBSYSTEM << 8 | 19;
/// IPv4 and IPv6 together.
const INET: u8 = 1;
const TABLE: u16 = 1;
const NAME: u16 = 2;
const KIND: u16 = 3;
const DATA: u16 = 4;
/// The kind of object that counts.
const COUNTER: u32 = 1;
const BYTES: u16 = 1;
const PACKETS: u16 = 2;

/// A named counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Packets that came by since its table was loaded.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Netfilter {
    /// The named counters of a table of the family `inet`.
    ///
    /// # Errors
    /// When there is no such table, see [`NetlinkFault::is_missing`], or without privilege.
    pub fn counters(&mut self, table: &str) -> Result<Vec<Counter>, NetlinkFault> {
        let attributes = write(&[name(TABLE, table), attribute(KIND, COUNTER.to_be_bytes())]);
        let request = Message { kind: GET_OBJECTS, family: INET, resource: 0, attributes };
        let listed = self.connection.list(&request, |message: Message, all| {
            all.extend(counter(&message.attributes, table)?);
            Ok(())
        });
        listed.map_err(|failure: Failure| failure.about(format!("nft list counters of inet {table}")))
    }
}

/// What an object's message says, if it is a counter of this table.
fn counter(attributes: &[u8], table: &str) -> Result<Option<Counter>, DecodeError> {
    let text = |kind| -> Result<Option<String>, DecodeError> {
        let value = find(attributes, kind)?.and_then(|value| value.split_last());
        Ok(value.map(|(_, text)| String::from_utf8_lossy(text).into_owned()))
    };
    let number = |bytes, kind| -> Result<u64, DecodeError> {
        Ok(find(bytes, kind)?.map(be::<8>).transpose()?.map_or(0, u64::from_be_bytes))
    };
    let kind = find(attributes, KIND)?.map(be::<4>).transpose()?.map(u32::from_be_bytes);
    let (Some(name), Some(data)) = (text(NAME)?, find(attributes, DATA)?) else { return Ok(None) };
    if kind != Some(COUNTER) || text(TABLE)?.as_deref() != Some(table) {
        return Ok(None);
    }
    Ok(Some(Counter { name, packets: number(data, PACKETS)?, bytes: number(data, BYTES)? }))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use proptest::prelude::*;

    use super::*;
    use crate::netns::TemporaryNetns;
    use crate::nft::apply;

    #[test]
    fn counters_of_a_table_are_read_by_name() {
        let netns = TemporaryNetns::create("adit-counters").unwrap();
        netns.run_in(|| {
            let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(status.success());
            apply(
                "table inet one { counter seen { }\n counter none { }\n chain c { type filter hook output priority 0; \
                 udp dport 9 counter name seen; }; }\ntable inet other { counter seen { }; }\n",
            )
            .unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                let _ = socket.send_to(&[0; 10], "127.0.0.1:9");
            }
            let mut netfilter = Netfilter::open().unwrap();
            let mut found = netfilter.counters("one").unwrap();
            found.sort_by(|a, b| a.name.cmp(&b.name));
            let counter = |name: &str, packets, bytes| Counter { name: name.into(), packets, bytes };
            // An IP header, a UDP header and ten bytes each.
            assert_eq!(found, [counter("none", 0, 0), counter("seen", 3, 3 * 38)]);
            assert_eq!(netfilter.counters("other").unwrap(), [counter("seen", 0, 0)]);
            assert_eq!(netfilter.counters("missing").map_err(|fault| fault.is_missing()).unwrap_or_default(), []);
        });
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in crate::testing::hostile::bytes()) {
            let _ = counter(&bytes, "one");
        }
    }
}
