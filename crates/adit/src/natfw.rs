//! `adit nat export --format eduvpn`, and the same as a program of its own: `vpn-generate-natfw`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_gateway::archive::Archive;
use adit_gateway::config::Loaded;
use adit_gateway::natfw::mapping;
use adit_plan::eduvpn::{Mapping, same};
use clap::Parser;
use serde_json::json;

use crate::cli::{NatExport, Natfw, NatfwOptions};
use crate::{FAILED, eprintln, output};

/// The name of the published program.
const NAME: &str = "vpn-generate-natfw";

/// Whether this program was run under that name.
pub(crate) fn is_called() -> bool {
    let called = std::env::args_os().next().map(PathBuf::from);
    called.is_some_and(|path| path.file_name().is_some_and(|name| name == NAME))
}

/// The published program: its options, its streams, its exit codes.
pub(crate) fn main() -> ExitCode {
    let options = match Natfw::try_parse() {
        Ok(options) => options,
        Err(said) => {
            eprintln(said.render().to_string().trim_end());
            return if said.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
        }
    };
    // Its -c is another option.
    let config = std::env::var_os("ADIT_CONFIG").unwrap_or_else(|| "/etc/adit/adit.toml".into());
    let outcome = generate(Path::new(&config), &options.natfw, &options.command, Stdio::inherit());
    match outcome {
        Ok(Outcome::Printed(text)) => output::print(&text),
        Ok(Outcome::Unchanged) => {}
        Ok(Outcome::Written { status, .. }) => return ExitCode::from(status),
        Err(why) => {
            eprintln(&format!("Error: {why}"));
            return ExitCode::from(FAILED);
        }
    }
    ExitCode::SUCCESS
}

/// Runs `adit nat export`.
pub(crate) fn export(config: &Path, options: &NatExport, json: bool) -> Result<ExitCode, String> {
    // With JSON there, nothing of the command's is in between.
    let stdout = if json { Stdio::from(io::stderr()) } else { Stdio::inherit() };
    let outcome = generate(config, &options.natfw, &options.command, stdout)?;
    let status = if let Outcome::Written { status, .. } = outcome { status } else { 0 };
    match outcome {
        Outcome::Printed(text) if json => output::json(&json!({ "text": text })),
        Outcome::Printed(text) => output::print(&text),
        Outcome::Unchanged if json => {
            output::json(&json!({ "changed": false, "file": null, "status": null }));
        }
        Outcome::Written { file, status } if json => {
            output::json(&json!({ "changed": true, "file": file, "status": status }));
        }
        Outcome::Unchanged | Outcome::Written { .. } => {}
    }
    Ok(ExitCode::from(status))
}

/// What was done.
enum Outcome {
    /// Nothing; these are the rules.
    Printed(String),
    /// Nothing: the file has these rules already.
    Unchanged,
    /// The rules are in a new file, and the command was run.
    Written {
        file: PathBuf,
        /// The command's.
        status: u8,
    },
}

/// Does what the options say; the command writes to `stdout`.
fn generate(config: &Path, options: &NatfwOptions, command: &str, stdout: Stdio) -> Result<Outcome, String> {
    let loaded = Loaded::read(config).map_err(|fault| fault.to_string())?;
    let mapping = mapping(&loaded)?;
    if options.dry_run {
        return Ok(Outcome::Printed(mapping.render(now())));
    }
    let link = options.write.as_path();
    if fs::read(link).is_ok_and(|old| same(&old, mapping.render(now()).as_bytes())) {
        if options.verbose {
            eprintln(&format!("Success: {} has these rules already", link.display()));
        }
        return Ok(Outcome::Unchanged);
    }
    if let Ok(there) = fs::symlink_metadata(link) {
        if there.is_dir() {
            return Err(format!("{} is a directory: name a file", link.display()));
        }
        if !there.is_symlink() && !options.force {
            return Err(format!(
                "{} is there already, and no link\nHint: delete it, or overwrite it with -f, once",
                link.display()
            ));
        }
    }
    let file = archive(link, &mapping)?;
    eprintln(&format!("Success: wrote new rules to {}", file.display()));
    point(link, &file).map_err(|error| {
        // Never in force, so that nobody is to be traced by it.
        let _ = fs::remove_file(&file);
        format!("cannot make {} a link to {}: {error}", link.display(), file.display())
    })?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| format!("cannot write {}: {error}", directory.display()))?;
    eprintln(&format!("Success: {} is a link to it", link.display()));
    let status = run(command, stdout)?;
    match status {
        0 => eprintln(&format!("Success: {command}")),
        _ => eprintln(&format!("Failure: {command} (status {status}); the file is written: run it again")),
    }
    Ok(Outcome::Written { file, status })
}

/// Writes the rules as the file of this second.
fn archive(link: &Path, mapping: &Mapping) -> Result<PathBuf, String> {
    let now = own_second(link)?;
    let mut file = OsString::from(link);
    file.push(format!(".{now}"));
    let file = PathBuf::from(file);
    let fault = |error| format!("cannot write {}: {error}", file.display());
    let mut open = OpenOptions::new().write(true).create_new(true).open(&file).map_err(fault)?;
    let written = open.write_all(mapping.render(now).as_bytes()).and_then(|()| open.sync_all());
    written.map_err(|error| {
        let _ = fs::remove_file(&file);
        fault(error)
    })?;
    Ok(file)
}

/// Now, later than all files that there are: no two share a second, and waiting for the next one is short.
fn own_second(link: &Path) -> Result<u64, String> {
    loop {
        let now = now();
        match Archive::list(link)?.newest() {
            Some((time, _)) if time == now => std::thread::sleep(Duration::from_millis(50)),
            Some((time, later)) if time > now => {
                return Err(format!(
                    "{} is of a later time than now ({now}), so nobody could be traced by a file of now; correct \
                     the clock, or move that file away",
                    later.display()
                ));
            }
            _ => return Ok(now),
        }
    }
}

/// Makes `link` lead to `file` beside it, whatever it was before, without a moment in which it is not there.
fn point(link: &Path, file: &Path) -> io::Result<()> {
    // A relative path would be taken from the link's directory.
    let target = if file.is_absolute() { file.as_os_str() } else { file.file_name().unwrap_or_default() };
    let mut name = OsString::from(file);
    name.push(".link");
    symlink(target, &name)?;
    fs::rename(&name, link).inspect_err(|_| {
        let _ = fs::remove_file(&name);
    })
}

/// Runs a command of the shell to its end; its status, as the shell counts it.
fn run(command: &str, stdout: Stdio) -> Result<u8, String> {
    let status = Command::new("/bin/sh").arg("-c").arg(command).stdout(stdout).status();
    let status = status.map_err(|error| format!("cannot run /bin/sh: {error}"))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code).unwrap_or(FAILED))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
