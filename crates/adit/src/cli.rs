//! The command line.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;

use adit_client::Bind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A VPN gateway: stock OpenVPN clients connect, work, and are known by name.
#[derive(Debug, Parser)]
#[command(
    name = "adit",
    version,
    arg_required_else_help = true,
    after_help = "\
Example:
  adit init --dir ./vpn --public vpn.example.org
  adit -c ./vpn/adit.toml up
  adit -c ./vpn/adit.toml user add ann --device laptop
  adit -c ./vpn/adit.toml profile ann laptop > ann.ovpn"
)]
pub(crate) struct Cli {
    /// The configuration file.
    #[arg(
        short,
        long,
        global = true,
        env = "ADIT_CONFIG",
        default_value = "/etc/adit/adit.toml",
        value_name = "FILE"
    )]
    pub(crate) config: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a configuration, a CA and identities.
    #[command(after_help = "Example:\n  adit init --dir /etc/adit --public vpn.example.org --name north")]
    Init(Init),
    /// Explain what is wrong with the configuration, if anything, and show the port plan.
    #[command(after_help = "Example:\n  adit -c ./vpn/adit.toml check --json")]
    Check,
    /// Run the gateway in the foreground; prints `ready` when it accepts clients.
    #[command(after_help = "Example:\n  adit -c ./vpn/adit.toml up")]
    Up,
    /// Put changes of the configuration in force.
    #[command(after_help = "Example:\n  adit reload --dry-run")]
    Reload {
        /// Only say what would change, and which sessions that touches.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the whole story in network namespaces on this machine, with a stock client.
    #[command(after_help = "Example:\n  adit demo")]
    Demo,
    /// Totals, drops by reason, rates.
    #[command(after_help = "Example:\n  adit status --json")]
    Status,
    /// Users.
    #[command(subcommand, after_help = "Example:\n  adit user add ann --device laptop")]
    User(User),
    /// Devices of users.
    #[command(subcommand, after_help = "Example:\n  adit device add ann phone")]
    Device(Device),
    /// Print the profile a stock client takes unchanged.
    #[command(after_help = "Example:\n  adit profile ann laptop --transport tcp --port 443 > ann.ovpn")]
    Profile(Profile),
    /// Live sessions.
    #[command(subcommand, after_help = "Example:\n  adit session list")]
    Session(Session),
    /// Ports that clients come in by.
    #[command(subcommand, after_help = "Example:\n  adit entrance release 8080")]
    Entrance(Entrance),
    /// Server identities.
    #[command(subcommand, after_help = "Example:\n  adit identity list")]
    Identity(Identity),
    /// The certificate authority.
    #[command(subcommand, after_help = "Example:\n  adit ca status")]
    Ca(Ca),
    /// Connect to a gateway by an OpenVPN profile, in the foreground.
    ///
    /// Needs root or CAP_NET_ADMIN. Everything that is changed on this machine is put back at the end; what a client
    /// that was killed has left is put back by the next one.
    #[command(after_help = "\
Example:
  adit connect ann.ovpn                           what the profile and the server say
  adit connect ann.ovpn --full                    everything through the tunnel
  adit connect ann.ovpn --split 10.0.0.0/8,fd00::/8
  adit connect ann.ovpn --full --kill-switch      and nothing past it, come what may
  adit connect ann.ovpn --status-json             each change of state as a line of JSON")]
    Connect(Connect),
    /// Say whose each flow of a capture is, and why: the decision of the gateway with this configuration.
    ///
    /// The capture is pcap or pcapng. Identities and services are those of the configuration, with their keys; when it
    /// cannot be read, protocols are told by form only. Of TCP, what the client says first counts; of UDP, the first
    /// datagram. BYTES is payload both ways.
    #[command(after_help = "\
Example:
  adit -c ./vpn/adit.toml classify all.pcap      made with: tcpdump -i eth0 -w all.pcap
  adit classify all.pcap --json")]
    Classify(Classify),
    /// Find out from captures what tells kinds of clients apart by their first packets.
    ///
    /// Each capture (pcap or pcapng) has connections of one kind of clients, at least three. Length and bytes of
    /// what clients say first count, nothing that a network may change. Exit code 3 when nothing tells them apart.
    #[command(after_help = "\
Example:
  adit learn rsa.pcap ecc.pcap      made with: tcpdump -i eth0 -w rsa.pcap host 192.0.2.1
  adit learn rsa.pcap ecc.pcap --background everything.pcap --json")]
    Learn(Learn),
    /// Print the plan of the configuration as plain rules for a host without adit.
    ///
    /// Identities are told apart by the port that is dialled (iptables-v1), or by the first packet: iptables-v2 and
    /// nft for UDP, with HAProxy behind them for TCP. Each identity has a server on its own port, the one that has
    /// no `port` in the configuration on 443.
    #[command(after_help = "\
Example:
  adit export iptables-v1 --stage 6 | iptables-restore --noflush
  adit export nft > adit.nft && nft -f adit.nft
  adit export haproxy --measure > haproxy.cfg && haproxy -db -f haproxy.cfg")]
    Export(Export),
    /// Source ports that clients' connections leave from.
    #[command(subcommand, after_help = "Example:\n  adit nat export --format eduvpn -n")]
    Nat(Nat),
    /// Print a completion script.
    #[command(after_help = "Example:\n  adit completion bash > /etc/bash_completion.d/adit")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages.
    #[command(after_help = "Example:\n  adit man /usr/local/share/man/man1")]
    Man {
        /// Where to.
        dir: PathBuf,
    },
}

/// `adit init`
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to; made if it is missing.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Names or addresses that clients reach the gateway by; found out if not given.
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    pub(crate) public: Vec<String>,
    /// The gateway's name, for certificates and profiles.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// IPv4 addresses for clients; may be repeated.
    #[arg(long, value_name = "CIDR")]
    pub(crate) pool4: Vec<Ipv4Net>,
    /// IPv6 addresses for clients; may be repeated.
    #[arg(long, value_name = "CIDR")]
    pub(crate) pool6: Vec<Ipv6Net>,
}

/// `adit user`
#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Add a user.
    #[command(after_help = "Example:\n  adit user add ann --device laptop")]
    Add {
        /// The name.
        name: String,
        /// Add a first device as well.
        #[arg(long, value_name = "DEV")]
        device: Option<String>,
    },
    /// List users.
    #[command(after_help = "Example:\n  adit user list --json")]
    List,
    /// Remove a user for good; returns when every session is cut.
    #[command(after_help = "Example:\n  adit user remove ann")]
    Remove {
        /// The name.
        name: String,
    },
    /// Keep a user out until `resume`; returns when every session is cut.
    #[command(after_help = "Example:\n  adit user suspend ann")]
    Suspend {
        /// The name.
        name: String,
    },
    /// Let a suspended user in again.
    #[command(after_help = "Example:\n  adit user resume ann")]
    Resume {
        /// The name.
        name: String,
    },
}

/// `adit device`
#[derive(Debug, Subcommand)]
pub(crate) enum Device {
    /// Add a device to a user.
    #[command(after_help = "Example:\n  adit device add ann office --prefix 192.168.7.0/24")]
    Add {
        /// The user.
        user: String,
        /// The device.
        device: String,
        /// A certificate request (PEM), if the key is made on the device.
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// A network behind the device, routed through it; may be repeated.
        #[arg(long, value_name = "CIDR")]
        prefix: Vec<IpNet>,
    },
    /// List devices.
    #[command(after_help = "Example:\n  adit device list ann")]
    List {
        /// Only those of this user.
        user: Option<String>,
    },
    /// Revoke a device for good; returns when its sessions are cut.
    #[command(after_help = "Example:\n  adit device revoke ann laptop")]
    Revoke {
        /// The user.
        user: String,
        /// The device.
        device: String,
    },
}

/// `adit profile`
#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// The user.
    pub(crate) user: String,
    /// The device.
    pub(crate) device: String,
    /// The server identity; the first of the configuration otherwise.
    #[arg(long, value_name = "NAME")]
    pub(crate) identity: Option<String>,
    /// What carries the tunnel.
    #[arg(long, value_enum, default_value_t = TransportChoice::Both)]
    pub(crate) transport: TransportChoice,
    /// A port, or `random`.
    #[arg(long, value_name = "N|random")]
    pub(crate) port: Option<String>,
    /// The gateway's name or address, instead of the configured ones.
    #[arg(long, value_name = "HOST")]
    pub(crate) remote: Option<String>,
    /// What goes through the tunnel; otherwise what the gateway says.
    #[arg(long, value_enum)]
    pub(crate) route: Option<RouteChoice>,
    /// The format.
    #[arg(long, value_enum, default_value_t = Format::Ovpn)]
    pub(crate) format: Format,
}

/// UDP, TCP or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportChoice {
    Udp,
    Tcp,
    Both,
}

/// What goes through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteChoice {
    Full,
    Split,
    None,
}

/// Format of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For OpenVPN clients.
    Ovpn,
}

/// `adit session`
#[derive(Debug, Subcommand)]
pub(crate) enum Session {
    /// List live sessions.
    #[command(after_help = "Example:\n  adit session list --json")]
    List,
    /// Close a session; its client may come back.
    #[command(after_help = "Example:\n  adit session close 0f37c1d2a4b5968778695a4b3c2d1e0f")]
    Close {
        /// The session's id.
        id: String,
    },
}

/// `adit entrance`
#[derive(Debug, Subcommand)]
pub(crate) enum Entrance {
    /// Give a captured port back to this machine's programs, UDP and TCP, until the gateway starts anew.
    ///
    /// For a program that was started after the gateway: what was there before keeps its ports by itself. `except` in
    /// the [[entrance]] makes it last.
    #[command(after_help = "Example:\n  adit entrance release 8080")]
    Release {
        /// The port.
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
}

/// `adit identity`
#[derive(Debug, Subcommand)]
pub(crate) enum Identity {
    /// List identities.
    #[command(after_help = "Example:\n  adit identity list")]
    List,
    /// Add an identity to the configuration and put it in force.
    #[command(after_help = "Example:\n  adit identity add ed --key Ed25519 --wrap tls-crypt")]
    Add {
        /// The name.
        name: String,
        /// Kind of key: RSA-2048 … RSA-8192, P-256, P-384, secp521r1, Ed25519, Ed448.
        #[arg(long)]
        key: String,
        /// none, tls-auth, tls-crypt or tls-crypt-v2.
        #[arg(long)]
        wrap: String,
        /// Digest of tls-auth: SHA1, SHA256, SHA384, SHA512.
        #[arg(long)]
        auth: Option<String>,
        /// The port that profiles prefer.
        #[arg(long)]
        port: Option<u16>,
    },
    /// Remove an identity and its keys, and end its sessions.
    #[command(after_help = "Example:\n  adit identity remove compat")]
    Remove {
        /// The name.
        name: String,
    },
    /// Give an identity a new key and certificate; profiles stay good.
    #[command(after_help = "Example:\n  adit identity rotate default")]
    Rotate {
        /// The name.
        name: String,
    },
}

/// `adit classify`
#[derive(Debug, Args)]
pub(crate) struct Classify {
    /// The capture.
    #[arg(value_name = "FILE")]
    pub(crate) capture: PathBuf,
}

/// `adit learn`
#[derive(Debug, Args)]
pub(crate) struct Learn {
    /// Captures, one for each kind of clients.
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    pub(crate) captures: Vec<PathBuf>,
    /// A capture of other traffic, to count how much of it would be mistaken.
    #[arg(long, value_name = "FILE")]
    pub(crate) background: Option<PathBuf>,
}

/// `adit export`
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// For what.
    #[arg(value_enum)]
    pub(crate) format: ExportFormat,
    /// iptables-v1 with the ports of so many identities: 2, 6 or 10 rules; otherwise those of all identities.
    #[arg(long, value_parser = ["2", "6", "10"], value_name = "2|6|10")]
    pub(crate) stage: Option<String>,
    /// haproxy logs the length of each first packet.
    #[arg(long)]
    pub(crate) measure: bool,
    /// The servers are on this host instead of the one that the rules are for.
    #[arg(long, value_name = "ADDR")]
    pub(crate) to: Option<IpAddr>,
}

/// Language of `adit export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A ruleset of nftables: UDP by first packet, TCP to HAProxy.
    Nft,
    /// For iptables-restore: everything by port.
    IptablesV1,
    /// For iptables-restore: UDP by first packet (u32), TCP to HAProxy.
    IptablesV2,
    /// A configuration of HAProxy: TCP by first packet.
    Haproxy,
}

/// `adit nat`
#[derive(Debug, Subcommand)]
pub(crate) enum Nat {
    /// Write every client's source ports as rules for a host without adit.
    ///
    /// By [natfw] of the configuration. `eduvpn` writes what vpn-generate-natfw does, and this program is that one when
    /// run under its name: FILE.<unix time> is kept, FILE becomes a link to it, and the command is run, if anything has
    /// changed. The exit code is the command's. No gateway has to run.
    #[command(after_help = "\
Example:
  adit nat export --format eduvpn -n                print the rules
  adit nat export --format eduvpn -w /etc/iptables/rules.v4 --command 'service netfilter-persistent restart'
  ln -s $(command -v adit) /usr/local/bin/vpn-generate-natfw && vpn-generate-natfw -v")]
    Export(NatExport),
}

/// `adit nat export`
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct NatExport {
    /// For what.
    #[arg(long, value_enum)]
    pub(crate) format: NatFormat,
    /// How the file is written.
    #[command(flatten)]
    pub(crate) natfw: NatfwOptions,
    /// Command to run when a file was written.
    #[arg(long, value_name = "COMMAND", default_value = RESTART)]
    pub(crate) command: String,
}

/// Language of `adit nat export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NatFormat {
    /// iptables-restore, as eduVPN's vpn-generate-natfw.
    Eduvpn,
}

/// What `vpn-generate-natfw` and `adit nat export` have in common.
#[derive(Debug, Args)]
pub(crate) struct NatfwOptions {
    /// Overwrite an existing file; not needed for a link.
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only print the rules.
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Say so, too, if nothing has changed.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Write to this file.
    #[arg(short, long = "write", value_name = "FILE", default_value = "/etc/iptables/rules.v4")]
    pub(crate) write: PathBuf,
}

/// What brings the published file in force on Debian.
const RESTART: &str = "service netfilter-persistent restart";

/// Give every inner IPv4 address source ports of its own, as a file of iptables-restore.
#[derive(Debug, Parser)]
#[command(
    name = "vpn-generate-natfw",
    args_override_self = true,
    after_help = "\
The configuration is $ADIT_CONFIG, or else /etc/adit/adit.toml: its table [natfw].

Example:
  vpn-generate-natfw -n
  vpn-generate-natfw -w /etc/iptables/rules.v4 -c 'service netfilter-persistent restart'"
)]
pub(crate) struct Natfw {
    /// How the file is written.
    #[command(flatten)]
    pub(crate) natfw: NatfwOptions,
    /// Command to run when a file was written.
    #[arg(short, long, value_name = "COMMAND", default_value = RESTART)]
    pub(crate) command: String,
}

/// `adit ca`
#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Until when everything is valid.
    #[command(after_help = "Example:\n  adit ca status --json")]
    Status,
}

/// An address, or else the name of an interface.
fn bind(text: &str) -> Result<Bind, Infallible> {
    Ok(text.parse().map_or_else(|_| Bind::Interface(text.to_owned()), Bind::Address))
}

/// What carries the tunnel of `adit connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConnectTransport {
    /// Whatever the profile has, in its order.
    Auto,
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// `adit connect`
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The profile.
    pub(crate) profile: PathBuf,
    /// Send only these networks through the tunnel.
    #[arg(long, value_delimiter = ',', value_name = "CIDR", conflicts_with = "full")]
    pub(crate) split: Vec<IpNet>,
    /// Send everything through the tunnel.
    #[arg(long)]
    pub(crate) full: bool,
    /// Let nothing past the tunnel, even while it is being connected or after the server has refused it.
    #[arg(long)]
    pub(crate) kill_switch: bool,
    /// Only those servers of the profile that are reached by this.
    #[arg(long, value_enum, default_value_t = ConnectTransport::Auto)]
    pub(crate) transport: ConnectTransport,
    /// Reach the servers from this address of this machine, or by this interface.
    #[arg(long, value_name = "ADDR|IFACE", value_parser = bind)]
    pub(crate) bind: Option<Bind>,
    /// Print each change of state as a JSON object on a line; `--json` does the same.
    #[arg(long)]
    pub(crate) status_json: bool,
}
