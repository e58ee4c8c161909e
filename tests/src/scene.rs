//! A gateway at work, to see that whatever else happens does not matter to it.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use adit_testbed::{Gateway, Network, OpenVpnClient, Pinger, Scale, Wire, eventually};

const SOON: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How much the gateway's memory may differ between two moments.
const SLACK: u64 = 8 << 20;
const PORT: u16 = 1194;

/// A gateway with a client that is connected, and all its figures from before.
#[derive(Debug)]
pub struct Scene {
    /// Pings of client 0, all the time.
    pub pinger: Pinger,
    /// Client 0.
    pub good: OpenVpnClient,
    /// The gateway, with identities `default` (tls-crypt-v2), `compat` (tls-crypt) and `auth` (tls-auth).
    pub gateway: Gateway,
    /// The machines.
    pub network: Network,
    session: serde_json::Value,
    lines: usize,
    memory: u64,
}

impl Scene {
    /// With so many clients; `prepare` may change the gateway before it starts.
    ///
    /// # Panics
    /// When client 0 does not connect.
    #[must_use]
    pub fn new(clients: usize, prepare: impl FnOnce(&mut Gateway)) -> Self {
        let network = Network::with_clients(clients);
        let mut gateway = Gateway::new(&network);
        gateway.add_identity("auth", "P-256", "tls-auth SHA256");
        prepare(&mut gateway);
        gateway.up();
        let profile = gateway.add_user("ann", &["--transport", "udp"]);
        let good = OpenVpnClient::connect(network.client(0), &profile);
        let session = gateway.wait_for_session("ann", SOON)["id"].clone();
        let pinger = Pinger::start(good.host(), network.outside_address());
        pinger.wait_for_answers(5, SOON);
        let (lines, memory) = (gateway.logged("").len(), gateway.process().memory());
        Self { network, gateway, good, pinger, session, lines, memory }
    }

    /// The gateway's entrance.
    #[must_use]
    pub fn entrance(&self) -> SocketAddr {
        SocketAddr::new(self.network.gateway_address(), PORT)
    }

    /// Lines about the client of this number.
    #[must_use]
    pub fn lines_about(&self, client: usize) -> Vec<String> {
        self.gateway.logged(&format!("{}:", self.network.client_address(client)))
    }

    /// All dropped packets, by reason.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn drops(&self) -> HashMap<String, u64> {
        let status = self.gateway.json(&["status"]);
        let drops = status["drops"].as_object().expect("drops");
        // What clients' machines say by themselves inside, to nobody.
        let own = |reason: &str| ["no_route", "bad_source_address"].contains(&reason);
        let drops = drops.iter().filter(|(reason, _)| !own(reason));
        drops.map(|(reason, count)| (reason.clone(), count.as_u64().expect("a figure"))).collect()
    }

    /// Waits until this many more packets than `before` were dropped, each under a name of its own.
    ///
    /// # Panics
    /// When they are not.
    pub fn wait_for_drops(&self, before: &HashMap<String, u64>, more: u64) -> HashMap<String, u64> {
        let mut new = HashMap::new();
        eventually(&format!("{more} dropped packets"), HANDSHAKE, || {
            new = self.drops();
            new.iter_mut().for_each(|(reason, count)| *count -= before.get(reason).unwrap_or(&0));
            new.values().sum::<u64>() >= more
        });
        new.retain(|_, count| *count > 0);
        new
    }

    /// Nobody but client 0 is there, it has noticed nothing, and the gateway is as it was.
    ///
    /// # Panics
    /// When it is not so.
    pub fn as_before(&self) {
        self.as_before_but(0);
    }

    /// The same, but so many clients at most may still be listening to why they were refused.
    ///
    /// # Panics
    /// When it is not so.
    pub fn as_before_but(&self, lingering: u64) {
        self.pinger.wait_for_answers(5, SOON);
        assert_eq!(self.good.connections(), 1, "the good client was cut");
        let lingering = Scale::get().pick(lingering, 0);
        eventually("the end of all handshakes", HANDSHAKE, || {
            self.gateway.status("/handshakes") <= lingering
        });
        let sessions = self.gateway.sessions();
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(sessions[0]["id"], self.session);
        assert_eq!(sessions[0]["remote_address"], self.network.client_address(0).to_string());
        let memory = self.gateway.process().memory();
        assert!(memory < self.memory + SLACK, "memory has grown from {} to {memory} bytes", self.memory);
    }

    /// Strangers leave no trace in the log.
    ///
    /// # Panics
    /// When there are new lines.
    pub fn no_new_lines(&self) {
        let lines = self.gateway.logged("");
        assert_eq!(lines.len(), self.lines, "{:#?}", &lines[self.lines..]);
    }

    /// A socket of a stranger, towards the entrance.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn stranger(&self, client: usize) -> UdpSocket {
        let socket = self.network.client(client).run_in(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket.connect(self.entrance()).expect("a way to the gateway");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    }

    /// Everything that the gateway says to a client's machine: datagrams and bytes of TCP streams.
    ///
    /// # Panics
    /// When it cannot be watched.
    #[must_use]
    pub fn words_to(&self, clients: std::ops::Range<usize>) -> Wire {
        let gateway = self.network.gateway_address();
        let them: Vec<_> = clients.map(|client| self.network.client_address(client)).collect();
        Wire::watch(&self.network.gateway, move |packet| {
            // A segment of TCP that only opens, acknowledges or closes says nothing.
            let header = packet.payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            let empty = packet.protocol == 6 && packet.payload.len() <= header;
            packet.from == gateway && them.contains(&packet.to) && !empty
        })
    }
}
