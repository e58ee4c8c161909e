//! adit: a VPN and tunnelling gateway. The command line; everything else is in the libraries.
#![forbid(unsafe_code)]

mod call;
mod captured;
mod classify;
mod cli;
mod commands;
mod connect;
mod demo;
mod export;
mod learn;
mod natfw;
mod output;
mod terminal;

use std::path::Path;
use std::process::ExitCode;

use adit_api::Problem;
use adit_gateway::config::InitOptions;
use clap::{CommandFactory, Parser};
use serde_json::json;

use crate::call::{Api, CallFault};
use crate::cli::{Cli, Command, Init, Nat};
use crate::commands::Context;

/// Refused or failed.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    adit_host::limits::share_one_heap();
    if natfw::is_called() {
        return natfw::main();
    }
    let cli = Cli::parse();
    start_log();
    let json = cli.json;
    match run(cli) {
        Ok(code) => code,
        Err(Failure(problem)) => {
            // One clear line, whatever went wrong; scripts find the same where they look for answers.
            eprintln(&format!("adit: {}", problem.detail.replace('\n', " ")));
            if json {
                output::json(&problem);
            }
            ExitCode::from(FAILED)
        }
    }
}

/// Why a command failed, in the API's form.
struct Failure(Problem);

impl From<String> for Failure {
    fn from(detail: String) -> Self {
        Self(Problem::new(500, "Failed", detail))
    }
}

impl From<CallFault> for Failure {
    fn from(fault: CallFault) -> Self {
        match fault {
            CallFault::Refused(problem) => Self(problem),
            other => other.to_string().into(),
        }
    }
}

#[expect(clippy::print_stderr, reason = "errors of the command line go to standard error")]
fn eprintln(line: &str) {
    eprintln!("{line}");
}

/// Logs go to standard error; `ADIT_LOG` says how much, for instance `debug` or `adit_gateway=debug`.
fn start_log() {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("ADIT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let (config, json) = (cli.config.as_path(), cli.json);
    match cli.command {
        Command::Init(init) => initialise(init, cli.json),
        Command::Check => Ok(check(config, cli.json)),
        Command::Up => {
            adit_gateway::up::up(config, || output::print("ready\n")).map_err(|fault| fault.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo => {
            demo::run(cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Connect(options) => {
            connect::connect(&options, cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Classify(options) => {
            classify::classify(config, &options, cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Learn(options) => Ok(learn::learn(&options, cli.json)?),
        Command::Export(options) => {
            export::export(config, &options, cli.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Nat(Nat::Export(options)) => Ok(natfw::export(config, &options, json)?),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "adit", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
                .map_err(|error| format!("cannot write manual pages to {}: {error}", dir.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        command => call(config, cli.json, command),
    }
}

/// Commands that talk to the gateway.
fn call(config: &Path, json: bool, command: Command) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let context = Context { api: Api::new(config), json };
    let outcome = runtime.block_on(async {
        match command {
            Command::User(command) => context.user(command).await.map(|()| true),
            Command::Device(command) => context.device(command).await.map(|()| true),
            Command::Profile(options) => context.profile(options).await.map(|()| true),
            Command::Session(command) => context.session(command).await.map(|()| true),
            Command::Entrance(command) => context.entrance(command).await.map(|()| true),
            Command::Identity(command) => context.identity(command).await.map(|()| true),
            Command::Ca(command) => context.ca(command).await.map(|()| true),
            Command::Status => context.status().await.map(|()| true),
            Command::Reload { dry_run } => context.reload(dry_run).await,
            _ => Ok(true),
        }
    });
    if outcome? {
        return Ok(ExitCode::SUCCESS);
    }
    // What needs it is on standard output, as with everything that a reload says.
    eprintln("adit: nothing has been changed: the changes need a new start of the gateway");
    Ok(ExitCode::from(FAILED))
}

fn initialise(init: Init, json: bool) -> Result<ExitCode, Failure> {
    let options = InitOptions { public: init.public, name: init.name, pool4: init.pool4, pool6: init.pool6 };
    let made = adit_gateway::init::init(&init.dir, options).map_err(|fault| fault.to_string())?;
    let config = made.config.display();
    if json {
        output::json(&json!({ "config": made.config, "public": made.public }));
    } else {
        output::print(&format!(
            "made {config}\nstart it:    adit -c {config} up\nadd a user:  adit -c {config} user add NAME --device DEVICE\n"
        ));
        if made.public.is_empty() {
            output::print("set `public` to the name or address that clients reach this machine by\n");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(config: &Path, json: bool) -> ExitCode {
    let report = adit_gateway::check::check(config);
    if json {
        output::json(&report);
    } else {
        for problem in &report.problems {
            output::print(&format!("{}: {}\n  {}\n", problem.code, problem.message, problem.hint));
        }
        let rows: Vec<_> = report
            .plan
            .iter()
            .map(|entry| {
                let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                vec![
                    entry.address.clone(),
                    text(json!(entry.protocol)),
                    format!("{}-{}", entry.from, entry.to),
                    text(json!(entry.usage)),
                ]
            })
            .collect();
        output::table(&["ADDRESS", "PROTOCOL", "PORTS", "USE"], &rows, "no ports are used");
        for note in &report.notes {
            output::print(&format!("note: {note}\n"));
        }
        if report.ok {
            output::print("ok\n");
        }
    }
    if report.ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
