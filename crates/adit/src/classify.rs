//! `adit classify`.

use std::path::Path;

use adit_capture::flows::{Flow, Transport};
use adit_gateway::classify::{Judge, Judged, Outcome};
use serde_json::{Value, json};

use crate::cli::Classify;
use crate::{captured, output};

/// Runs the command.
pub(crate) fn classify(config: &Path, options: &Classify, json: bool) -> Result<(), String> {
    let captured = captured::read(&options.capture)?;
    let judge = Judge::of(config);
    let judged: Vec<(&Flow, Judged)> =
        captured.flows.iter().map(|flow| (flow, judge_flow(&judge, flow))).collect();
    let mut notes = judge.notes().to_vec();
    notes.extend(captured::notes(&options.capture.display().to_string(), &captured));
    if json {
        let flows: Vec<Value> = judged.iter().map(|(flow, judged)| flow_json(flow, judged)).collect();
        let rules = judge.has_rules().then(|| config.display().to_string());
        output::json(&json!({ "flows": flows, "configuration": rules, "notes": notes }));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = judged.iter().map(|(flow, judged)| row(flow, judged)).collect();
    let heading = ["FLOW", "PROTOCOL", "BYTES", "VERDICT", "IDENTITY", "SERVICE", "EVIDENCE"];
    output::table(&heading, &rows, "no flows");
    notes.iter().for_each(|note| output::print(&format!("{note}\n")));
    Ok(())
}

fn judge_flow(judge: &Judge, flow: &Flow) -> Judged {
    let transport = match flow.transport {
        Transport::Udp => adit_classify::Transport::Udp,
        Transport::Tcp => adit_classify::Transport::Tcp,
    };
    let waited = flow.first.is_empty() && flow.received > 0;
    let mut judged = judge.judge(transport, &flow.first, flow.server.port(), waited && flow.from_start);
    if !flow.from_start {
        // Whatever it said before is not there, so nothing can be said of the rest.
        judged.outcome = judged.outcome.map(|_| Outcome::Undecided);
        judged.evidence = Some("its beginning is not in the capture".to_owned());
    }
    judged
}

fn name(flow: &Flow) -> String {
    format!("{} {} > {}", flow.transport, flow.client, flow.server)
}

fn flow_json(flow: &Flow, judged: &Judged) -> Value {
    json!({
        "flow": name(flow),
        "protocol": judged.protocol.unwrap_or("unknown"),
        "bytes": flow.sent + flow.received,
        "verdict": judged.outcome.map(Outcome::name),
        "identity": judged.identity,
        "service": judged.service,
        "evidence": judged.evidence,
    })
}

fn row(flow: &Flow, judged: &Judged) -> Vec<String> {
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    vec![
        name(flow),
        judged.protocol.unwrap_or("unknown").to_owned(),
        (flow.sent + flow.received).to_string(),
        or_dash(judged.outcome.map(Outcome::name)),
        or_dash(judged.identity.as_deref()),
        or_dash(judged.service.as_deref()),
        or_dash(judged.evidence.as_deref()),
    ]
}
