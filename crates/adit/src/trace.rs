//! `adit trace`: who was it?

mod batch;

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use adit_api as api;
use api::{Trace, TraceProtocol, TraceQuery, TraceRequest, Traces};
use clap::{Args, Subcommand};
use hyper::Method;
use jiff::tz::TimeZone;
use serde_json::json;

use crate::call::{Api, CallFault};
use crate::{FAILED, Failure, NOTHING, eprintln, moment, output};

/// Questions in one call.
const TOGETHER: usize = 500;

/// `adit trace`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TraceOptions {
    #[command(subcommand)]
    verify: Option<Verify>,
    /// When it was seen: 2026-11-20T13:37:42Z, Unix seconds, or date and time with a zone behind.
    #[arg(long, value_name = "TIME", required_unless_present = "batch")]
    at: Option<String>,
    /// The address it came from, as seen outside.
    #[arg(long, value_name = "IP", required_unless_present = "batch")]
    address: Option<IpAddr>,
    /// The source port.
    #[arg(long, value_name = "N", conflicts_with = "id")]
    port: Option<u16>,
    /// The identifier of an ICMP echo.
    #[arg(long, value_name = "N")]
    id: Option<u16>,
    /// What it was of; any if it is not known.
    #[arg(long, value_enum)]
    proto: Option<Proto>,
    /// How far the clock that took the time may be off.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = tolerance)]
    tolerance: u64,
    /// Why it is asked, for the audit trail.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Answer from rule files that `vpn-generate-natfw` has left in this directory: the inner address only.
    #[arg(long, value_name = "DIR", conflicts_with = "batch")]
    archive: Option<PathBuf>,
    /// Answer each line of a CSV file with a heading: reports of abuse, or flows as a collector exports them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["at", "address", "port", "id", "proto"])]
    batch: Option<PathBuf>,
    /// The time zone of times without one: a name, or an offset such as -05:00.
    #[arg(long, value_name = "ZONE", value_parser = moment::zone, allow_hyphen_values = true)]
    zone: Option<TimeZone>,
}

#[derive(Debug, Clone, Subcommand)]
enum Verify {
    /// Check that the record of who had what is as it was written.
    ///
    /// Follows the chain of hashes from the first record to the last. Keep the hash of the last one elsewhere: it shows
    /// later that nothing before it was changed.
    #[command(after_help = "Example:\n  adit trace verify --json")]
    Verify,
}

/// TCP, UDP or ICMP.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Proto {
    Tcp,
    Udp,
    Icmp,
}

impl From<Proto> for TraceProtocol {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Self::Tcp,
            Proto::Udp => Self::Udp,
            Proto::Icmp => Self::Icmp,
        }
    }
}

fn tolerance(text: &str) -> Result<u64, String> {
    let duration = adit_gateway::config::parse_duration(text)?;
    u64::try_from(duration.as_millis()).map_err(|error| error.to_string())
}

/// Runs the command.
pub(crate) async fn trace(api: &Api<'_>, options: TraceOptions, json: bool) -> Result<ExitCode, Failure> {
    if let Some(Verify::Verify) = options.verify {
        return Ok(verify(api, json).await?);
    }
    if let Some(file) = &options.batch {
        return batch::run(api, file, &options, json).await;
    }
    let (Some(at), Some(address)) = (&options.at, options.address) else {
        return Err("--at TIME and --address IP say what was seen".to_owned().into());
    };
    let query = TraceQuery {
        at: moment::parse(at, options.zone.as_ref())?,
        address,
        port: options.port.or(options.id),
        protocol: options.id.map(|_| TraceProtocol::Icmp).or(options.proto.map(Into::into)),
        tolerance_ms: options.tolerance,
    };
    if let Some(directory) = &options.archive {
        return Ok(crate::archive::trace(directory, &query, json)?);
    }
    let mut traces = ask(api, vec![query.clone()], options.reason.clone()).await?;
    let Some(trace) = traces.pop() else {
        return Err(CallFault::Transport("it gave no answer".into()).into());
    };
    if json {
        output::json(&trace);
    } else {
        show(&trace);
    }
    if trace.matches.is_empty() {
        eprintln(&nobody(&query));
        return Ok(ExitCode::from(NOTHING));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn nobody(query: &TraceQuery) -> String {
    let port = query.port.map(|port| format!(" port {port}")).unwrap_or_default();
    format!("adit: nobody had {}{port} at {}", query.address, query.at)
}

async fn ask(
    api: &Api<'_>,
    queries: Vec<TraceQuery>,
    reason: Option<String>,
) -> Result<Vec<Trace>, CallFault> {
    let asked = queries.len();
    let request = json!(TraceRequest { queries, reason });
    let Traces { traces } = api.call(Method::POST, api::path::TRACE, Some(request)).await?;
    match traces.len() == asked {
        true => Ok(traces),
        false => Err(CallFault::Transport("it did not answer every question".into())),
    }
}

const HEADING: [&str; 9] =
    ["BY", "USER", "DEVICE", "CERTIFICATE", "INSIDE", "PORTS", "FROM", "TO", "SESSION"];

fn show(trace: &Trace) {
    if !trace.matches.is_empty() {
        let rows: Vec<_> = trace.matches.iter().map(row).collect();
        output::table(&HEADING, &rows, "");
    }
    if let Some(epoch) = &trace.epoch {
        output::print(&format!("blocks as of {} (digest {})\n", epoch.from, epoch.digest));
    }
    if trace.clock_uncertainty_ms > 0 {
        output::print(&format!(
            "the gateway's clock was set by {} ms about then: what is found is of that time before or after\n",
            trace.clock_uncertainty_ms
        ));
    }
}

fn row(found: &api::TraceMatch) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let kind = json!(found.kind);
    vec![
        kind.as_str().unwrap_or_default().to_owned(),
        text(&found.user),
        text(&found.device),
        text(&found.certificate_serial),
        found.inner.map(|inner| inner.to_string()).unwrap_or_default(),
        found.block.map(|block| format!("{}-{}", block.from, block.to)).unwrap_or_default(),
        found.from.map(|from| from.to_string()).unwrap_or_default(),
        found.to.map_or_else(
            || if found.from.is_some() { "now".into() } else { String::new() },
            |to| to.to_string(),
        ),
        text(&found.session),
    ]
}

async fn verify(api: &Api<'_>, json: bool) -> Result<ExitCode, CallFault> {
    if std::io::stderr().is_terminal() {
        eprintln("following the chain, about five seconds for each million records …");
    }
    let report: api::TrailReport = api.call(Method::GET, api::path::TRAIL, None).await?;
    if json {
        output::json(&report);
    } else if report.ok {
        let head = report.head.as_deref().unwrap_or("none");
        output::print(&format!(
            "{} records, all as they were written; the last has the hash {head}\n",
            report.records
        ));
    }
    if report.ok {
        return Ok(ExitCode::SUCCESS);
    }
    let place = report.broken_at.map(|place| format!(" at place {place} of the journal")).unwrap_or_default();
    eprintln(&format!(
        "adit: the record is not as it was written{place}: {}",
        report.problem.unwrap_or_default()
    ));
    Ok(ExitCode::from(FAILED))
}
