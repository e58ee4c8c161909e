//! `adit trace --archive`: answers from old rule files of `vpn-generate-natfw`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use adit_api::{PortRange, Time, Trace, TraceKind, TraceMatch, TraceProtocol, TraceQuery};
use adit_gateway::archive::{self, ArchiveMatch};
use adit_plan::eduvpn::Protocol;

use crate::{NOTHING, eprintln, output};

/// Runs the command.
pub(crate) fn trace(directory: &Path, query: &TraceQuery, json: bool) -> Result<ExitCode, String> {
    let millis = u64::try_from(query.at.as_millis()).map_err(|_| "there were no rule files before 1970")?;
    let protocol = query.protocol.map(|protocol| match protocol {
        TraceProtocol::Tcp => Protocol::Tcp,
        TraceProtocol::Udp => Protocol::Udp,
        TraceProtocol::Icmp => Protocol::Icmp,
    });
    let (at, tolerance) = (Duration::from_millis(millis), Duration::from_millis(query.tolerance_ms));
    let found = archive::trace(directory, at, query.address, query.port, protocol, tolerance)?;
    if json {
        let matches = found.iter().map(described).collect();
        output::json(&Trace { matches, epoch: None, clock_uncertainty_ms: 0 });
    } else if !found.is_empty() {
        let rows: Vec<_> = found.iter().map(row).collect();
        output::table(&["INSIDE", "PORTS", "FROM", "TO", "FILE"], &rows, "");
    }
    if found.is_empty() {
        eprintln(&super::trace::nobody(query));
        return Ok(ExitCode::from(NOTHING));
    }
    Ok(ExitCode::SUCCESS)
}

fn time(seconds: u64) -> Time {
    Time::from_millis(i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX))
}

fn described(found: &ArchiveMatch) -> TraceMatch {
    TraceMatch {
        kind: TraceKind::Nat,
        gateway: None,
        user: None,
        device: None,
        certificate_serial: None,
        inner: Some(found.inner.into()),
        block: Some(PortRange { from: *found.ports.start(), to: *found.ports.end() }),
        session: None,
        from: Some(time(found.from)),
        to: found.to.map(time),
    }
}

fn row(found: &ArchiveMatch) -> Vec<String> {
    vec![
        found.inner.to_string(),
        format!("{}-{}", found.ports.start(), found.ports.end()),
        time(found.from).to_string(),
        found.to.map_or_else(|| "now".to_owned(), |to| time(to).to_string()),
        found.file.display().to_string(),
    ]
}
