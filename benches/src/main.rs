//! Speed and memory of adit beside OpenVPN's, with the stock client, in network namespaces; of its entrance beside
//! HAProxy's and sslh's, and of its address translation beside iptables'.
//!
//! A benchmark says how fast something is on one machine on one day; only the ratio of two rows of one run means
//! something elsewhere. So peers take turns within a run, medians are shown, and nothing is asserted here.
//! [`soak`] is the exception: it runs everything for long and fails when memory or descriptors grow.
#![forbid(unsafe_code)]

mod capture;
mod demux;
mod handshakes;
mod machine;
mod nat;
mod peers;
mod report;
mod soak;
mod throughput;
mod usage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::report::Report;

/// Measure adit beside OpenVPN, in network namespaces. Needs root.
///
/// Example: adit-bench --only handshakes --clients 100
#[derive(Debug, Parser)]
#[command(name = "adit-bench", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything for long; fail when memory or descriptors grow.
    ///
    /// Example: adit-bench soak --minutes 10
    Soak(Soak),
    /// The one in the middle of the part `demux`: relays to a back end until its input ends.
    #[command(hide = true)]
    Relay {
        /// Address and port to listen at
        address: SocketAddr,
        /// Address and port of the back end
        back_end: SocketAddr,
    },
}

/// What is measured, and how long.
#[derive(Debug, Args)]
struct Bench {
    /// One part alone
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How often each peer has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of one transfer, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Clients that connect at once; a class C network of addresses is what OpenVPN has for them here
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=250))]
    clients: u32,
    /// Where the report and the raw figures go; a new directory below target/bench without it
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One TCP stream through the tunnel, both ways
    Throughput,
    /// Handshakes, and memory of idle sessions
    Handshakes,
    /// TCP connections of a foreign back end, beside HAProxy and sslh
    Demux,
    /// Address translation that names users, beside one rule for all and two rules for each client
    Nat,
    /// Packets and connections to many ports that come to one socket; only when it is asked for
    Capture,
}

#[derive(Debug, Args)]
struct Soak {
    /// How long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
}

fn main() {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Soak(options)) => soak::run(Duration::from_secs(u64::from(options.minutes) * 60)),
        Some(Command::Relay { address, back_end }) => demux::relay(address, back_end),
        None => bench(cli.bench),
    }
}

fn bench(options: Bench) {
    let mut report = Report::new(options.out);
    let wanted = |part| options.only.is_none_or(|only| only == part);
    if wanted(Part::Throughput) {
        throughput::run(&mut report, options.rounds, options.seconds);
    }
    if wanted(Part::Handshakes) {
        handshakes::run(&mut report, options.rounds, options.clients);
    }
    if wanted(Part::Demux) {
        demux::run(&mut report, options.rounds, options.seconds);
    }
    if wanted(Part::Nat) {
        nat::run(&mut report, options.rounds);
    }
    // A choice that was made once.
    if options.only == Some(Part::Capture) {
        capture::run(&mut report, options.rounds, options.seconds);
    }
    report.finish(options.json);
}
