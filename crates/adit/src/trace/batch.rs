//! `adit trace --batch`: every line of a CSV file.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use adit_api::{Trace, TraceProtocol, TraceQuery};
use csv::StringRecord;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{TOGETHER, TraceOptions, ask};
use crate::call::Api;
use crate::{FAILED, Failure, NOTHING, eprintln, moment, output};

/// Names that columns go by in reports, firewall logs and nfdump's export; the first of each is ours.
const TIME: &[&str] = &["time", "at", "timestamp", "date", "datetime", "ts", "first", "firstseen", "start"];
const ADDRESS: &[&str] =
    &["address", "ip", "sa", "src", "srcaddr", "srcip", "sourceip", "source", "src4addr"];
const PORT: &[&str] = &["port", "sp", "srcport", "sport", "sourceport", "id"];
const PROTOCOL: &[&str] = &["proto", "protocol", "pr"];
/// What is put behind each line.
const ADDED: [&str; 8] = ["kind", "user", "device", "certificate_serial", "inner", "from", "to", "problem"];

/// Where in a line everything is.
struct Columns {
    time: usize,
    address: usize,
    port: Option<usize>,
    protocol: Option<usize>,
}

impl Columns {
    fn find(heading: &StringRecord) -> Result<Self, String> {
        let plain = |name: &str| name.to_lowercase().replace(['_', ' ', '-', '.'], "");
        let find = |names: &[&str]| {
            names.iter().find_map(|name| heading.iter().position(|column| plain(column) == *name))
        };
        let need = |names: &[&str], what: &str| {
            find(names).ok_or_else(|| {
                format!("no column for the {what}: the heading has to name one of {}", names.join(", "))
            })
        };
        Ok(Self {
            time: need(TIME, "time")?,
            address: need(ADDRESS, "address")?,
            port: find(PORT),
            protocol: find(PROTOCOL),
        })
    }

    fn query(
        &self,
        line: &StringRecord,
        zone: Option<&TimeZone>,
        tolerance_ms: u64,
    ) -> Result<TraceQuery, String> {
        let field = |column: Option<usize>| {
            column.and_then(|column| line.get(column)).map(str::trim).unwrap_or_default()
        };
        let address = field(Some(self.address));
        let port = field(self.port);
        // nfdump writes ICMP's type and code into the port, with a point.
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("\"{text}\" is no port"));
        let protocol = protocol(field(self.protocol))?;
        let port = match port {
            "" => None,
            port if protocol == Some(TraceProtocol::Icmp) && port.contains('.') => None,
            port => Some(number(port)?),
        };
        Ok(TraceQuery {
            at: moment::parse(field(Some(self.time)), zone)?,
            address: address.parse().map_err(|_| format!("\"{address}\" is no address"))?,
            port,
            protocol,
            tolerance_ms,
        })
    }
}

fn protocol(text: &str) -> Result<Option<TraceProtocol>, String> {
    match text.to_lowercase().as_str() {
        "" | "any" => Ok(None),
        "tcp" | "6" => Ok(Some(TraceProtocol::Tcp)),
        "udp" | "17" | "udplite" | "136" => Ok(Some(TraceProtocol::Udp)),
        "icmp" | "1" => Ok(Some(TraceProtocol::Icmp)),
        _ => Err(format!("\"{text}\": tcp, udp or icmp")),
    }
}

/// One line with what became of it.
struct Answered {
    number: u64,
    line: StringRecord,
    outcome: Result<(TraceQuery, Trace), String>,
}

/// Runs the command: each line of the file again, with who it was behind it, one line for each candidate.
pub(super) async fn run(
    api: &Api<'_>,
    file: &Path,
    options: &TraceOptions,
    json: bool,
) -> Result<ExitCode, Failure> {
    let unreadable = |error: csv::Error| format!("cannot read {}: {error}", file.display());
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_path(file).map_err(unreadable)?;
    let heading = reader.headers().map_err(unreadable)?.clone();
    let columns = Columns::find(&heading).map_err(|why| format!("{}: {why}", file.display()))?;
    let mut out = Output::new(&heading, json)?;
    let watched = std::io::stderr().is_terminal();
    let mut records = reader.records().take_while(|line| !is_summary(line));
    loop {
        let mut answered = Vec::new();
        for line in records.by_ref().take(TOGETHER) {
            let line = line.map_err(unreadable)?;
            let number = line.position().map_or(0, csv::Position::line);
            let query = columns.query(&line, options.zone.as_ref(), options.tolerance);
            answered.push((number, line, query));
        }
        if answered.is_empty() {
            break;
        }
        let queries: Vec<_> = answered.iter().filter_map(|(_, _, query)| query.clone().ok()).collect();
        let traces = match queries.is_empty() {
            true => Vec::new(),
            false => ask(api, queries, options.reason.clone()).await?,
        };
        let mut traces = traces.into_iter();
        for (number, line, query) in answered {
            let outcome = query.and_then(|query| {
                let trace = traces.next().ok_or_else(|| "no answer".to_owned())?;
                Ok((query, trace))
            });
            out.write(Answered { number, line, outcome })?;
        }
        if watched {
            eprintln(&format!("{} lines traced", out.lines));
        }
    }
    out.finish(file)
}

/// The line with which nfdump's export says that totals follow and no more flows.
fn is_summary(line: &csv::Result<StringRecord>) -> bool {
    line.as_ref().is_ok_and(|line| line.len() == 1 && line.get(0) == Some("Summary"))
}

/// What is printed, and the totals.
struct Output {
    csv: Option<csv::Writer<Vec<u8>>>,
    width: usize,
    results: Vec<Value>,
    lines: u64,
    found: u64,
    nobody: u64,
    unreadable: u64,
}

impl Output {
    fn new(heading: &StringRecord, json: bool) -> Result<Self, Failure> {
        let mut csv = (!json).then(|| csv::Writer::from_writer(Vec::new()));
        if let Some(csv) = &mut csv {
            csv.write_record(heading.iter().chain(ADDED)).map_err(|error| error.to_string())?;
        }
        let width = heading.len();
        Ok(Self { csv, width, results: Vec::new(), lines: 0, found: 0, nobody: 0, unreadable: 0 })
    }

    fn write(&mut self, answered: Answered) -> Result<(), Failure> {
        let Answered { number, line, outcome } = answered;
        self.lines += 1;
        match &outcome {
            Ok((_, trace)) if trace.matches.is_empty() => self.nobody += 1,
            Ok(_) => self.found += 1,
            Err(_) => self.unreadable += 1,
        }
        let Some(csv) = &mut self.csv else {
            self.results.push(match outcome {
                Ok((query, trace)) => {
                    let mut result = json!(trace);
                    if let Some(result) = result.as_object_mut() {
                        result.extend([
                            ("line".to_owned(), json!(number)),
                            ("query".to_owned(), json!(query)),
                            ("problem".to_owned(), Value::Null),
                        ]);
                    }
                    result
                }
                Err(problem) => json!({ "line": number, "query": null, "matches": [], "epoch": null,
                    "clock_uncertainty_ms": 0, "problem": problem }),
            });
            return Ok(());
        };
        let candidates: Vec<[String; 8]> = match outcome {
            Err(problem) => vec![added(problem)],
            Ok((_, trace)) if trace.matches.is_empty() => vec![added("nobody".into())],
            Ok((_, trace)) => trace.matches.iter().map(candidate).collect(),
        };
        for candidate in &candidates {
            // Lines may be shorter than the heading; what is added stands under its own.
            let padded = (0..self.width).map(|column| line.get(column).unwrap_or_default());
            let written = csv.write_record(padded.chain(candidate.iter().map(String::as_str)));
            written.map_err(|error| error.to_string())?;
        }
        csv.flush().map_err(|error| error.to_string())?;
        let inner = std::mem::replace(csv, csv::Writer::from_writer(Vec::new()));
        let bytes = inner.into_inner().map_err(|error| error.to_string())?;
        output::print(&String::from_utf8_lossy(&bytes));
        Ok(())
    }

    fn finish(self, file: &Path) -> Result<ExitCode, Failure> {
        let Self { results, found, nobody, unreadable, csv, .. } = self;
        if csv.is_none() {
            output::json(
                &json!({ "results": results, "found": found, "nobody": nobody, "unreadable": unreadable }),
            );
        }
        if unreadable > 0 {
            let lines = if unreadable == 1 { "one line".to_owned() } else { format!("{unreadable} lines") };
            eprintln(&format!("adit: {lines} of {} could not be read; `problem` says why", file.display()));
            return Ok(ExitCode::from(FAILED));
        }
        Ok(if found == 0 { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS })
    }
}

fn added(problem: String) -> [String; 8] {
    let mut added: [String; 8] = Default::default();
    if let Some(last) = added.last_mut() {
        *last = problem;
    }
    added
}

fn candidate(found: &adit_api::TraceMatch) -> [String; 8] {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let time = |time: Option<adit_api::Time>| time.map(|time| time.to_string()).unwrap_or_default();
    [
        json!(found.kind).as_str().unwrap_or_default().to_owned(),
        text(&found.user),
        text(&found.device),
        text(&found.certificate_serial),
        found.inner.map(|inner| inner.to_string()).unwrap_or_default(),
        time(found.from),
        time(found.to),
        String::new(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(heading: &[&str], line: &[&str]) -> Result<TraceQuery, String> {
        let columns = Columns::find(&StringRecord::from(heading.to_vec()))?;
        columns.query(&StringRecord::from(line.to_vec()), None, 2000)
    }

    #[test]
    fn columns_are_found_by_the_names_they_go_by() {
        let ours = query(&["time", "address", "port", "proto"], &["1608986262", "192.0.2.1", "40063", "tcp"])
            .unwrap();
        let flows = query(
            &["ts", "te", "td", "sa", "da", "sp", "dp", "pr"],
            &["2020-12-26T12:37:42Z", "", "", "192.0.2.1", "198.51.100.1", "40063", "443", "TCP"],
        );
        assert_eq!(flows, Ok(ours.clone()));
        let report =
            query(&["Source IP", "Source_Port", "Timestamp"], &["192.0.2.1", "40063", "1608986262"]).unwrap();
        assert_eq!(report, TraceQuery { protocol: None, ..ours });
    }

    #[test]
    fn a_file_without_the_columns_and_a_line_without_a_time_are_refused_in_words() {
        assert!(query(&["ip", "port"], &[]).unwrap_err().contains("no column for the time"));
        let heading = ["time", "ip", "port", "proto"];
        assert!(query(&heading, &["12:30", "192.0.2.1", "1"]).unwrap_err().contains("no time"));
        assert!(query(&heading, &["1", "192.0.2.300", "1"]).unwrap_err().contains("no address"));
        assert!(query(&heading, &["1", "192.0.2.1", "65536"]).unwrap_err().contains("no port"));
        assert!(query(&heading, &["1", "192.0.2.1", "1", "gre"]).unwrap_err().contains("tcp, udp or icmp"));
        assert_eq!(query(&heading, &["1", "192.0.2.1"]).unwrap().port, None);
    }

    #[test]
    fn what_a_collector_writes_for_a_port_of_icmp_is_none() {
        let found = query(&["ts", "sa", "sp", "pr"], &["1", "192.0.2.1", "8.0", "ICMP"]).unwrap();
        assert_eq!((found.port, found.protocol), (None, Some(TraceProtocol::Icmp)));
    }
}
