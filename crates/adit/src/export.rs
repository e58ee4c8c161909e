//! `adit export`.

use std::path::Path;

use adit_gateway::config::{Config, Loaded, WrapKind};
use adit_plan::export::{Entrance, Format, Identity, Plan, Wrap, export as render};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::json;

use crate::cli::{Cli, Export, ExportFormat};
use crate::output;

/// Runs the command.
pub(crate) fn export(config: &Path, options: &Export, json: bool) -> Result<(), String> {
    let wrong = match options.format {
        ExportFormat::IptablesV1 if !options.measure => None,
        ExportFormat::Haproxy if options.stage.is_none() => None,
        _ if options.stage.is_some() => Some("--stage is for iptables-v1 only"),
        _ if options.measure => Some("--measure is for haproxy only"),
        _ => None,
    };
    if let Some(why) = wrong {
        Cli::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let format = match options.format {
        ExportFormat::Nft => Format::Nft,
        ExportFormat::IptablesV1 => Format::IptablesV1 {
            // Each identity apart adds two rules for each protocol's list: its own port, and the rest behind it.
            others: options.stage.as_deref().map(|stage| match stage {
                "2" => 0,
                "6" => 1,
                _ => 3,
            }),
        },
        ExportFormat::IptablesV2 => Format::IptablesV2,
        ExportFormat::Haproxy => Format::Haproxy { measure: options.measure },
    };
    let loaded = Loaded::read(config).map_err(|fault| fault.to_string())?;
    let plan = Plan { to: options.to, ..plan(&loaded.config) };
    let text = render(&plan, format).map_err(|fault| format!("{}: {fault}", loaded.path.display()))?;
    if json {
        output::json(&json!({ "text": text }));
    } else {
        output::print(&text);
    }
    Ok(())
}

/// What of the configuration is exported.
fn plan(config: &Config) -> Plan {
    let entrances = config.entrance.iter().flat_map(|entrance| {
        let (udp, tcp) = (entrance.udp.without(&entrance.except), entrance.tcp.without(&entrance.except));
        entrance.addresses().into_iter().map(move |address| Entrance {
            address,
            udp: udp.clone(),
            tcp: tcp.clone(),
        })
    });
    let identities = config.identity.iter().map(|identity| Identity {
        name: identity.name.clone(),
        wrap: match identity.wrap {
            WrapKind::None => Wrap::None,
            WrapKind::TlsAuth => Wrap::TlsAuth(identity.digest().size()),
            WrapKind::TlsCrypt => Wrap::TlsCrypt,
            WrapKind::TlsCryptV2 => Wrap::TlsCryptV2,
        },
        port: identity.port,
    });
    Plan { entrances: entrances.collect(), identities: identities.collect(), to: None }
}
