//! `adit learn`.

use std::process::ExitCode;

use adit_capture::flows::{Flows, Transport};
use adit_capture::learn::{FalsePositives, Finding, Kind, Lesson, learn as compare};
use serde_json::{Value, json};

use crate::cli::Learn;
use crate::{NOTHING, captured, output};

/// Runs the command.
pub(crate) fn learn(options: &Learn, json: bool) -> Result<ExitCode, String> {
    let mut captures = Vec::new();
    for path in &options.captures {
        captures.push((path.display().to_string(), captured::read(path)?));
    }
    let background = options.background.as_deref().map(captured::read).transpose()?;
    let kinds: Vec<Kind<'_>> =
        captures.iter().map(|(name, flows)| Kind { name, flows: &flows.flows }).collect();
    let lessons = compare(&kinds, background.as_ref().map(|flows| flows.flows.as_slice()));
    let apart = lessons.iter().any(|lesson| lesson.findings.is_ok());
    if json {
        let lessons: Vec<Value> = lessons.iter().map(|lesson| lesson_json(lesson, &kinds)).collect();
        let files: Vec<Value> = captures.iter().map(|(name, flows)| capture_json(name, flows)).collect();
        output::json(&json!({ "apart": apart, "lessons": lessons, "captures": files }));
    } else {
        show(&lessons, &captures);
    }
    if apart {
        return Ok(ExitCode::SUCCESS);
    }
    let whys: Vec<String> = lessons
        .iter()
        .filter_map(|lesson| Some(format!("{}: {}", lesson.transport, lesson.findings.as_ref().err()?)))
        .collect();
    let why = if whys.is_empty() {
        "no two captures have first packets of UDP, or of TCP with its handshake".to_owned()
    } else {
        whys.join("; ")
    };
    crate::eprintln(&format!("adit: nothing tells the captures apart: {why}"));
    Ok(ExitCode::from(NOTHING))
}

fn show(lessons: &[Lesson], captures: &[(String, Flows)]) {
    let mut rows = Vec::new();
    for lesson in lessons {
        for finding in lesson.findings.iter().flatten() {
            let name = captures.get(finding.kind).map(|(name, _)| name.clone()).unwrap_or_default();
            for (form, text) in forms(lesson.transport, finding) {
                rows.push(vec![name.clone(), lesson.transport.to_string(), form.to_owned(), text]);
            }
        }
    }
    if !rows.is_empty() {
        output::table(&["CAPTURE", "TRANSPORT", "AS", "RULE"], &rows, "");
    }
    let mut notes = String::new();
    for lesson in lessons {
        if let Err(why) = &lesson.findings {
            notes += &format!("{}: nothing: {why}\n", lesson.transport);
        }
        for ((name, _), count) in captures.iter().zip(&lesson.left_out).filter(|(_, count)| **count > 0) {
            notes += &format!(
                "{}: {count} flows of {name} go to other servers and were left out\n",
                lesson.transport
            );
        }
    }
    if rows.iter().any(|row| row.iter().any(|cell| cell == "u32")) {
        notes += "u32 takes the IP header to have no options (20 bytes); \"u32 any header\" is right for all headers\n";
    }
    for (name, flows) in captures {
        captured::notes(name, flows).iter().for_each(|note| notes += &format!("{note}\n"));
    }
    output::print(&notes);
}

/// What a finding is in each language, and how good it is.
fn forms(transport: Transport, finding: &Finding) -> Vec<(&'static str, String)> {
    let pattern = &finding.pattern;
    let mut forms = vec![("match", finding.own.toml(transport == Transport::Udp))];
    match transport {
        Transport::Udp => {
            forms.push(("u32", pattern.u32()));
            forms.push(("u32 any header", pattern.u32_any_header()));
            forms.push(("nft", pattern.nft()));
        }
        Transport::Tcp => forms.push(("haproxy", pattern.haproxy())),
    }
    forms.push((
        "sure",
        format!(
            "all of {} samples have it; at most {} of such clients may not (95 %)",
            finding.samples,
            share(finding.missed_at_most)
        ),
    ));
    let mistaken = match finding.false_positives {
        FalsePositives::Computed { bits } => {
            let which = if pattern.length.is_some() { "of this length" } else { "of any length" };
            format!(
                "computed: 1 in {} of other packets {which}, if their bytes are random; --background counts",
                2_f64.powf(f64::from(bits))
            )
        }
        FalsePositives::Counted { matched, of, at_most } => {
            format!("counted: {matched} of {of} flows of the background; at most {} (95 %)", share(at_most))
        }
    };
    forms.push(("mistaken", mistaken));
    forms
}

fn share(value: f64) -> String {
    format!("{:.2} %", value * 100.0)
}

fn capture_json(name: &str, flows: &Flows) -> Value {
    json!({
        "capture": name,
        "packets": flows.packets,
        "flows": flows.flows.len(),
        "ignored": flows.ignored,
        "cut": flows.cut,
        "truncated_at": flows.truncated,
    })
}

fn lesson_json(lesson: &Lesson, kinds: &[Kind<'_>]) -> Value {
    let udp = lesson.transport == Transport::Udp;
    let found = lesson.findings.as_ref().ok();
    let kinds: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| {
            let finding = found.and_then(|all| all.iter().find(|finding| finding.kind == index));
            let pattern = finding.map(|finding| &finding.pattern);
            let bytes = pattern.map(|pattern| {
                let byte = |b: &adit_plan::pattern::FixedByte| {
                    json!({ "offset": b.offset, "mask": b.mask, "value": b.value })
                };
                pattern.bytes.iter().map(byte).collect::<Vec<_>>()
            });
            json!({
                "capture": kind.name,
                "samples": lesson.samples.get(index),
                "left_out": lesson.left_out.get(index),
                "length": pattern.and_then(|pattern| pattern.length),
                "bytes": bytes,
                "match": finding.map(|finding| finding.own.toml(udp)),
                "u32": pattern.filter(|_| udp).map(|pattern| pattern.u32()),
                "u32_any_header": pattern.filter(|_| udp).map(|pattern| pattern.u32_any_header()),
                "nft": pattern.filter(|_| udp).map(|pattern| pattern.nft()),
                "haproxy": pattern.filter(|_| !udp).map(|pattern| pattern.haproxy()),
                "missed_at_most": finding.map(|finding| finding.missed_at_most),
                "false_positives": finding.map(false_positives_json),
            })
        })
        .collect();
    json!({
        "transport": lesson.transport.to_string(),
        "apart": found.is_some(),
        "why": lesson.findings.as_ref().err().map(ToString::to_string),
        "kinds": kinds,
    })
}

/// `share` is what is expected of packets of this length with random bytes, or what was counted.
fn false_positives_json(finding: &Finding) -> Value {
    match finding.false_positives {
        FalsePositives::Computed { bits } => json!({
            "basis": "computed",
            "share": 0.5_f64.powf(f64::from(bits)),
            "of_length": finding.pattern.length,
            "matched": null,
            "of": null,
            "at_most": null,
        }),
        FalsePositives::Counted { matched, of, at_most } => json!({
            "basis": "counted",
            "share": if of == 0 { Value::Null } else { json!(matched as f64 / of as f64) },
            "of_length": null,
            "matched": matched,
            "of": of,
            "at_most": at_most,
        }),
    }
}
