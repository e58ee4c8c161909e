//! Tables, for people and as JSON, and the raw figures they come from.

use std::fs::File;
use std::io::{Write, stdout};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::Machine;

/// The report of one run.
pub(crate) struct Report {
    directory: PathBuf,
    raw: File,
    machine: Machine,
    tables: Vec<Table>,
}

/// One table. The first row is the peer that the others are compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    title: String,
    /// What stands in a column, with its unit.
    columns: Vec<&'static str>,
    rows: Vec<Row>,
    note: &'static str,
}

/// Medians of one peer.
#[derive(Debug, Serialize)]
struct Row {
    peer: String,
    median: Vec<f64>,
    /// Smallest and largest of the rounds.
    range: Vec<(f64, f64)>,
    /// Each median by the first row's.
    ratio: Vec<f64>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str], note: &'static str) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new(), note }
    }

    /// Adds a peer with the figures of its rounds, one for each column.
    pub(crate) fn row(&mut self, peer: &str, rounds: &[Vec<f64>]) {
        let columns = (0..self.columns.len()).map(|column| {
            let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
            values.sort_by(f64::total_cmp);
            values
        });
        let (mut median, mut range) = (Vec::new(), Vec::new());
        for values in columns {
            median.push(middle(&values));
            range.push((values[0], values[values.len() - 1]));
        }
        let first = self.rows.first().map_or(&median, |row| &row.median);
        let ratio = median.iter().zip(first).map(|(own, first)| own / first).collect();
        self.rows.push(Row { peer: peer.to_owned(), median, range, ratio });
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "\n{}", self.title)?;
        let width = self.rows.iter().map(|row| row.peer.len()).max().unwrap_or(0);
        let cells = |row: &Row| -> Vec<String> {
            let figures = row.median.iter().zip(&row.ratio).zip(&row.range);
            figures.map(|((median, ratio), (low, high))| cell(*median, *ratio, *low, *high)).collect()
        };
        let mut lines = vec![(String::new(), self.columns.iter().map(|&name| name.to_owned()).collect())];
        lines.extend(self.rows.iter().map(|row| (row.peer.clone(), cells(row))));
        let widest = lines.iter().flat_map(|(_, cells)| cells.iter().map(String::len)).max().unwrap_or(0);
        for (peer, cells) in lines {
            write!(out, "  {peer:width$}")?;
            for cell in cells {
                write!(out, "  {cell:>widest$}")?;
            }
            writeln!(out)?;
        }
        writeln!(out, "  {}", self.note)
    }
}

fn cell(median: f64, ratio: f64, low: f64, high: f64) -> String {
    // Nothing is a multiple of nothing.
    let ratio = if ratio.is_finite() { format!(" {ratio:.2}x") } else { String::new() };
    format!("{} ({}-{}){ratio}", short(median), short(low), short(high))
}

/// The median of sorted values.
pub(crate) fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

/// Three significant digits are more than such figures have.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Report {
    /// Begins a report in `directory`, or in a new one.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let directory = directory.unwrap_or_else(|| PathBuf::from("target/bench").join(time));
        std::fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("{} cannot be made: {error}", directory.display()));
        let raw = File::create(directory.join("raw.jsonl")).expect("a file for the raw figures");
        Self { directory, raw, machine: Machine::describe(), tables: Vec::new() }
    }

    /// Keeps a raw result, and says on standard error that it is there.
    pub(crate) fn raw(&mut self, what: &str, result: &Value) {
        eprintln!("{what}");
        writeln!(self.raw, "{}", json!({ "what": what, "result": result })).expect("raw figures are kept");
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Writes `report.txt` and `report.json`, and prints one of them.
    pub(crate) fn finish(self, as_json: bool) {
        let mut text = Vec::new();
        text.extend_from_slice(self.machine.lines().as_bytes());
        for table in &self.tables {
            table.print(&mut text).expect("memory can be written");
        }
        let json = json!({ "machine": self.machine, "tables": self.tables });
        let mut json = serde_json::to_string_pretty(&json).expect("plain values").into_bytes();
        json.push(b'\n');
        for (name, content) in [("report.txt", &text), ("report.json", &json)] {
            std::fs::write(self.directory.join(name), content).expect("the report can be written");
        }
        // A closed pipe is the reader's decision.
        let _ = stdout().write_all(if as_json { &json } else { &text });
        eprintln!("kept in {}", self.directory.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_compared_with_the_first() {
        let mut table = Table::new("speed", &["Mbit/s"], "");
        table.row("slow", &[vec![30.0], vec![10.0], vec![20.0]]);
        table.row("fast", &[vec![50.0], vec![30.0]]);
        assert_eq!(table.rows[0].median, [20.0]);
        assert_eq!(table.rows[0].range, [(10.0, 30.0)]);
        assert_eq!(table.rows[1].median, [40.0]);
        assert_eq!(table.rows[1].ratio, [2.0]);
    }

    #[test]
    fn a_ratio_to_nothing_is_left_out() {
        let mut table = Table::new("losses", &["failed %"], "");
        table.row("none", &[vec![0.0]]);
        table.row("some", &[vec![2.0]]);
        let mut text = Vec::new();
        table.print(&mut text).expect("memory can be written");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("2.00 (2.00-2.00)") && !text.contains('x'), "{text}");
    }
}
