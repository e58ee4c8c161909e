//! `adit forward`: ports that lead to devices; `adit nat show`: who has which source ports.

use adit_api as api;
use clap::Subcommand;
use hyper::Method;
use serde_json::json;

use crate::call::{CallFault, segment};
use crate::commands::{Context, Outcome, word};
use crate::output::{self, table};

/// `adit forward`
#[derive(Debug, Subcommand)]
pub(crate) enum Forward {
    /// Forward a port to a device, wherever the device connects from.
    #[command(after_help = "\
Example:
  adit forward add ann laptop --to 22                      a free port
  adit forward add ann laptop --proto tcp --port 30022 --to 22 --expires 7d")]
    Add {
        /// The user.
        user: String,
        /// The device.
        device: String,
        /// What is forwarded.
        #[arg(long, value_enum, default_value_t = Proto::Both)]
        proto: Proto,
        /// The port outside; a free one otherwise.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// The port on the device.
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        to: u16,
        /// End it by itself after this long.
        #[arg(long, value_name = "DURATION", value_parser = seconds)]
        expires: Option<u64>,
    },
    /// List forwarded ports.
    #[command(after_help = "Example:\n  adit forward list --json")]
    List {
        /// Only those of this user.
        user: Option<String>,
    },
    /// End a forward, with the connections that came in by it.
    #[command(after_help = "Example:\n  adit forward remove 0f37c1d2a4b5968778695a4b3c2d1e0f")]
    Remove {
        /// Its id.
        id: String,
    },
}

/// TCP, UDP or both.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Proto {
    Tcp,
    Udp,
    Both,
}

impl From<Proto> for api::ForwardProtocol {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Self::Tcp,
            Proto::Udp => Self::Udp,
            Proto::Both => Self::Both,
        }
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    let seconds = adit_gateway::config::parse_duration(text)?.as_secs();
    if seconds == 0 { Err("at least 1s".into()) } else { Ok(seconds) }
}

impl Context<'_> {
    /// `adit forward`
    pub(crate) async fn forward(&self, command: Forward) -> Outcome {
        match command {
            Forward::Add { user, device, proto, port, to, expires } => {
                let request = json!(api::AddForward {
                    user,
                    device,
                    protocol: proto.into(),
                    port,
                    to,
                    expires_in: expires
                });
                let added: api::ForwardList =
                    self.api.call(Method::POST, api::path::FORWARDS, Some(request)).await?;
                self.show(&added, |added| added.forwards.iter().map(described).collect());
            }
            Forward::List { user } => {
                let list = self.all_forwards(user.as_deref()).await?;
                if self.json {
                    output::json(&list);
                } else {
                    let rows: Vec<_> = list.forwards.iter().map(forward_row).collect();
                    let heading =
                        ["PORT", "PROTOCOL", "USER", "DEVICE", "TO", "OPEN", "CONNECTIONS", "EXPIRES", "ID"];
                    table(&heading, &rows, "no port is forwarded: adit forward add USER DEVICE --to PORT");
                }
            }
            Forward::Remove { id } => {
                let path = format!("{}/{}", api::path::FORWARDS, segment(&id));
                let gone: api::Forward = self.api.call(Method::DELETE, &path, None).await?;
                self.show(&gone, |gone| format!("port {} is forwarded no more\n", gone.port));
            }
        }
        Ok(())
    }

    async fn all_forwards(&self, user: Option<&str>) -> Result<api::ForwardList, CallFault> {
        let mut all = api::ForwardList { forwards: Vec::new(), next: None };
        let user = user.map(|user| format!("&user={}", segment(user))).unwrap_or_default();
        let mut path = format!("{}?limit=1000{user}", api::path::FORWARDS);
        loop {
            let page: api::ForwardList = self.api.call(Method::GET, &path, None).await?;
            all.forwards.extend(page.forwards);
            let Some(next) = page.next else { return Ok(all) };
            path = format!("{}?limit=1000{user}&after={}", api::path::FORWARDS, segment(&next));
        }
    }

    /// `adit nat show`
    pub(crate) async fn blocks(&self, user: Option<&str>) -> Outcome {
        let user = user.map(|user| format!("?user={}", segment(user))).unwrap_or_default();
        let list: api::BlockList =
            self.api.call(Method::GET, &format!("{}{user}", api::path::NAT), None).await?;
        if self.json {
            output::json(&list);
            return Ok(());
        }
        let rows: Vec<_> = list.blocks.iter().map(block_row).collect();
        table(
            &["USER", "DEVICE", "INSIDE", "ADDRESS", "PORTS", "SINCE", ""],
            &rows,
            "nobody has source ports now",
        );
        output::print(&format!(
            "{} of {} blocks of {} ports in use\n",
            list.in_use, list.capacity, list.block_size
        ));
        Ok(())
    }
}

fn described(forward: &api::Forward) -> String {
    let places = match forward.addresses.as_slice() {
        [] => format!("port {} of every address of the gateway", forward.port),
        addresses => {
            let places: Vec<_> =
                addresses.iter().map(|address| format!("{address}:{}", forward.port)).collect();
            places.join(" and ")
        }
    };
    let away = if forward.open { "" } else { ", once it connects" };
    let protocol = word(&forward.protocol);
    format!(
        "{places} {protocol} leads to port {} of {}/{}{away}, id {}\n",
        forward.to, forward.user, forward.device, forward.id
    )
}

fn forward_row(forward: &api::Forward) -> Vec<String> {
    vec![
        forward.port.to_string(),
        word(&forward.protocol),
        forward.user.clone(),
        forward.device.clone(),
        forward.to.to_string(),
        if forward.open { "yes" } else { "device is away" }.to_owned(),
        forward.connections.to_string(),
        forward.expires.map(|at| at.to_string()).unwrap_or_default(),
        forward.id.clone(),
    ]
}

fn block_row(row: &api::BlockInUse) -> Vec<String> {
    vec![
        row.user.clone(),
        row.device.clone(),
        row.inner.to_string(),
        row.block.address.to_string(),
        format!("{}-{}", row.block.from, row.block.to),
        row.since.to_string(),
        if row.leaving { "until its last connection ends" } else { "" }.to_owned(),
    ]
}
