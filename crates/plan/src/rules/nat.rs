//! The table of traceable NAT, in nft's language.

use crate::special::PRIVATE4;

/// Source ports by inner address: `ipv4_addr : interval ipv4_addr . inet_service`.
pub const BLOCKS: &str = "blocks";
/// Source ports by network behind a device: `ipv4_addr : interval ipv4_addr . inet_service`, keys are intervals.
pub const SITES: &str = "sites";
/// Forwarded ports by address: `inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service`, connections
/// counted.
pub const FORWARDS: &str = "forwards";
/// Forwarded ports on all addresses of the host: `inet_proto . inet_service : ipv4_addr . inet_service`,
/// connections counted.
pub const FORWARDS_ANY: &str = "forwards_any";
/// Counts packets of protocols without ports, which are refused.
pub const PROTOCOLS: &str = "protocols";
/// Counts connections for which there was no port left towards their destination.
pub const FULL: &str = "full";
/// Counts packets that would have left with a private source address; there is one in either table.
pub const UNTRANSLATED: &str = "untranslated";

/// What has ports, or identifiers that are translated like ports.
const TRANSLATED: &str = "{ tcp, udp, udplite, icmp, sctp }";

/// The table that translates. Its maps are empty; who has which block is put there element by element.
///
/// The text depends on nothing but the two names, so that nothing that can be changed while the gateway runs replaces
/// the table and with it its elements.
///
/// * Private inner addresses leave by ports of their block: TCP, UDP, UDP-Lite and SCTP ports, ICMP identifiers. Who
///   has none does not leave, whatever other tables would do. Protocols without ports are refused.
/// * Forwarded ports are led to their devices, from inside too.
/// * Queries for names keep their port for five seconds only.
///
/// Where each packet is looked at, and not only the first, the rules ask first whether its connection is new: all others
/// are past them with that.
///
/// When all ports of a block are in use towards one destination, the kernel still chooses one and drops the packet
/// when it finds that connection in the way. `ports` has each connection by what it looks like outside, as long as it
/// lives: a second one of the same looks is one that is about to be dropped. It is counted, and for a moment those
/// that follow it to the same destination are refused visibly, its own second attempt (1 s later with TCP) first. To
/// count the connections by inner address and destination instead would refuse the very first, but costs a look at
/// each of them for every new one. An echo request that finds no identifier is dropped without a word.
#[must_use]
pub fn render_nat(table: &str, interface: &str) -> String {
    let leaving = format!("iifname \"{interface}\" oifname != \"{interface}\"");
    format!(
        r#"table inet {table} {{
    counter {PROTOCOLS} {{ }}
    counter {FULL} {{ }}
    counter {UNTRANSLATED} {{ }}
    ct timeout names {{
        protocol udp
        l3proto ip
        policy = {{ unreplied : 5, replied : 5 }}
    }}
    map {BLOCKS} {{
        type ipv4_addr : interval ipv4_addr . inet_service
    }}
    map {SITES} {{
        type ipv4_addr : interval ipv4_addr . inet_service
        flags interval
    }}
    map {FORWARDS} {{
        type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
        counter
    }}
    map {FORWARDS_ANY} {{
        type inet_proto . inet_service : ipv4_addr . inet_service
        counter
    }}
    set ports {{
        type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
        size 262144
        flags dynamic
    }}
    set crowded {{
        type ipv4_addr . ipv4_addr . inet_proto . inet_service
        size 65535
        flags dynamic,timeout
        timeout 1500ms
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat - 5; policy accept;
        dnat ip to meta l4proto . ip daddr . th dport map @{FORWARDS}
        fib daddr type local dnat ip to meta l4proto . th dport map @{FORWARDS_ANY}
    }}
    chain refused {{
        counter name {FULL}
        meta l4proto tcp reject with tcp reset
        reject with icmp admin-prohibited
    }}
    chain leaving {{
        meta l4proto != {TRANSLATED} counter name {PROTOCOLS} reject with icmp prot-unreachable
        udp dport 53 ct timeout set "names"
        ip saddr . ip daddr . meta l4proto . th dport @crowded goto refused
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ct status ! confirmed {leaving} ip saddr {PRIVATE4} goto leaving
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat - 5; policy accept;
        {leaving} meta l4proto {TRANSLATED} snat ip to ip saddr map @{BLOCKS}
        {leaving} meta l4proto {TRANSLATED} snat ip to ip saddr map @{SITES}
        {leaving} ip saddr {PRIVATE4} counter name {UNTRANSLATED} drop
        iifname "{interface}" oifname "{interface}" meta l4proto {{ tcp, udp }} ct status dnat snat ip to ip saddr map @{BLOCKS}
        iifname "{interface}" oifname "{interface}" meta l4proto {{ tcp, udp }} ct status dnat snat ip to ip saddr map @{SITES}
    }}
    chain clash {{
        counter name {FULL}
        add @crowded {{ ct original ip saddr . ip daddr . meta l4proto . th dport }}
        drop
    }}
    chain translated {{
        type filter hook postrouting priority srcnat + 10; policy accept;
        ct status ! confirmed ct status snat {leaving} meta l4proto != icmp add @ports {{ ip saddr . th sport . ip daddr . th dport . meta l4proto ct count over 1 }} goto clash
    }}
}}
"#
    )
}
