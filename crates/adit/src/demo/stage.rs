//! Namespaces and the wires between them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_host::netlink::{IfExists, InterfaceAddress, Netlink, Route};
use adit_host::netns::{TemporaryNetns, veth};
use adit_host::nft;

/// The gateway as the clients see it.
pub(super) const GATEWAY: &str = "192.0.2.1";
/// The gateway as the outside sees it.
pub(super) const GATEWAY_OUTSIDE: &str = "198.51.100.1";
/// The outside server.
pub(super) const OUTSIDE: &str = "198.51.100.2";
/// Its port.
pub(super) const PAGE_PORT: u16 = 80;

/// Everything the story is played on; removed when dropped.
pub(super) struct Stage {
    pub(super) ann: TemporaryNetns,
    pub(super) bob: TemporaryNetns,
    pub(super) gateway: TemporaryNetns,
    pub(super) outside: TemporaryNetns,
    dir: PathBuf,
    before: String,
}

impl Stage {
    pub(super) fn build() -> Result<Self, String> {
        adit_host::privilege::check().map_err(|fault| fault.to_string())?;
        let fault = |error: &dyn std::fmt::Display| format!("cannot build the networks: {error}");
        let namespace =
            |role: &str| TemporaryNetns::create(&format!("adit-demo-{role}")).map_err(|e| fault(&e));
        let dir = std::env::temp_dir().join(format!("adit-demo-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        let mut stage = Self {
            ann: namespace("ann")?,
            bob: namespace("bob")?,
            gateway: namespace("gateway")?,
            outside: namespace("outside")?,
            dir,
            before: String::new(),
        };
        // The two clients are on networks of their own: a route each at the gateway leads to them.
        for (client, near, far, address) in
            [(&stage.ann, "up", "ann", "192.0.2.10"), (&stage.bob, "up", "bob", "192.0.2.20")]
        {
            veth(near, client, far, &stage.gateway).map_err(|e| fault(&e))?;
            configure(client, near, &[&format!("{address}/24")], &[("0.0.0.0/0", Some(GATEWAY), near)])?;
            configure(
                &stage.gateway,
                far,
                &[&format!("{GATEWAY}/32")],
                &[(&format!("{address}/32"), None, far)],
            )?;
        }
        veth("out", &stage.gateway, "in", &stage.outside).map_err(|e| fault(&e))?;
        let far = [("0.0.0.0/0", Some(OUTSIDE), "out")];
        configure(&stage.gateway, "out", &[&format!("{GATEWAY_OUTSIDE}/24")], &far)?;
        configure(&stage.outside, "in", &[&format!("{OUTSIDE}/24")], &[])?;
        stage.before = stage.picture()?;
        Ok(stage)
    }

    /// A directory for files of this run.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is different on the gateway's machine from the time before the gateway ran.
    pub(super) fn left_behind(&self) -> Result<String, String> {
        let now = self.picture()?;
        let old: Vec<&str> = self.before.lines().collect();
        let new: Vec<&str> = now.lines().filter(|line| !old.contains(line)).collect();
        Ok(new.join("; "))
    }

    /// Links, addresses, routes and filter tables of the gateway's machine.
    fn picture(&self) -> Result<String, String> {
        self.gateway.run_in(|| {
            let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
            let mut lines = Vec::new();
            lines.extend(
                netlink.links().map_err(|e| e.to_string())?.iter().map(|link| format!("link {}", link.name)),
            );
            // Link-local addresses come by themselves, a while after an interface is up.
            let lasting = |net: &ipnet::IpNet| match net {
                ipnet::IpNet::V4(_) => true,
                ipnet::IpNet::V6(net) => net.network().segments()[0] < 0xfe80,
            };
            let addresses = netlink.addresses().map_err(|e| e.to_string())?;
            lines.extend(addresses.iter().filter(|a| lasting(&a.address)).map(|a| format!("address {a:?}")));
            let routes = netlink.routes().map_err(|e| e.to_string())?;
            lines.extend(routes.iter().filter(|r| lasting(&r.destination)).map(|r| format!("route {r:?}")));
            lines.extend(
                nft::tables().map_err(|e| e.to_string())?.iter().map(|table| format!("table {table:?}")),
            );
            let forwarding = adit_host::sysctl::get("net.ipv4.ip_forward").map_err(|e| e.to_string())?;
            lines.push(format!("forwarding {forwarding}"));
            Ok(lines.join("\n"))
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Namespaces see to themselves; the files are ours.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn configure(
    namespace: &TemporaryNetns,
    interface: &str,
    addresses: &[&str],
    routes: &[(&str, Option<&str>, &str)],
) -> Result<(), String> {
    let work = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut netlink = Netlink::open()?;
        netlink.set_up(interface, true)?;
        for address in addresses {
            let address = InterfaceAddress { interface: interface.to_owned(), address: address.parse()? };
            netlink.add_address(&address, IfExists::Keep)?;
        }
        for (destination, gateway, interface) in routes {
            let destination = destination.parse()?;
            let route = match gateway {
                Some(gateway) => Route::by_gateway(destination, gateway.parse::<IpAddr>()?),
                None => Route::by_interface(destination, interface),
            };
            netlink.add_route(&route, IfExists::Keep)?;
        }
        Ok(())
    };
    namespace.run_in(work).map_err(|error| format!("cannot set up {interface}: {error}"))
}

/// Fetches a page from inside `namespace`.
pub(super) fn browse(namespace: &TemporaryNetns, server: &str, port: u16, page: &str) -> Result<(), String> {
    let fetch = || -> std::io::Result<String> {
        let server = SocketAddr::new(server.parse().map_err(std::io::Error::other)?, port);
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET /{page} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = namespace
        .run_in(fetch)
        .map_err(|error| format!("{server} port {port} cannot be reached: {error}"))?;
    if answer.starts_with("HTTP/1.0 200") {
        Ok(())
    } else {
        Err(format!("{server} port {port} answered {answer:?}"))
    }
}
