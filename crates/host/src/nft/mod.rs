//! nftables. Rules go through its program: one call is one transaction, so a rule set takes effect as a whole
//! or not at all. Elements of sets and maps go to the kernel directly, through a
//! [`Netfilter`](crate::netfilter::Netfilter).

mod counters;
mod elements;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::counters::Counter;
pub use self::elements::{Change, Element, ElementChange, fields};
use crate::errno::words;

/// Why nftables did not do as told.
#[derive(Debug, Error)]
pub enum NftFault {
    /// The program is not installed.
    #[error("the program nft was not found: install the nftables package")]
    NoProgram,
    /// Neither root nor `CAP_NET_ADMIN`.
    #[error("nft: not permitted: changing filters needs root or CAP_NET_ADMIN")]
    NotPermitted,
    /// The rules were refused; nothing of them is in effect.
    #[error("nft refused the rules{}: {message}", at_line(*line, text))]
    Refused {
        /// What nft said first.
        message: String,
        /// The line it is about, from 1, where nft named one.
        line: Option<usize>,
        /// That line.
        text: String,
    },
    /// The program could not be run.
    #[error("running nft: {}", words(.0))]
    Io(io::Error),
}

fn at_line(line: Option<usize>, text: &str) -> String {
    line.map(|line| format!(" at line {line} ({text})")).unwrap_or_default()
}

/// A family of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames crossing a bridge.
    Bridge,
    /// One interface, before anything else.
    Netdev,
}

impl Family {
    /// The name in nft's language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Applies `ruleset`, in nft's own language, in one transaction.
///
/// # Errors
/// [`NftFault::Refused`] with the line; nothing has changed then.
pub fn apply(ruleset: &str) -> Result<(), NftFault> {
    let output = run(&["-f", "-"], ruleset)?;
    check(&output, ruleset)
}

/// Deletes a table, if it is there.
///
/// # Errors
/// Missing program or privilege.
pub fn delete_table(family: Family, name: &str) -> Result<(), NftFault> {
    apply(&deletion(family, name))
}

/// The statements that delete a table whether it exists or not: adding an existing one is no error.
#[must_use]
pub fn deletion(family: Family, name: &str) -> String {
    format!("add table {family} {name}\ndelete table {family} {name}\n")
}

/// A table's rules as nft prints them; `None` when there is no such table.
///
/// # Errors
/// Missing program or privilege.
pub fn list_table(family: Family, name: &str) -> Result<Option<String>, NftFault> {
    if !tables()?.contains(&(family, name.to_owned())) {
        return Ok(None);
    }
    let output = run(&["list", "table", family.name(), name], "")?;
    check(&output, "")?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// All tables there are.
///
/// # Errors
/// Missing program or privilege.
pub fn tables() -> Result<Vec<(Family, String)>, NftFault> {
    let output = run(&["list", "tables"], "")?;
    check(&output, "")?;
    let families = [Family::Inet, Family::Ip, Family::Ip6, Family::Bridge, Family::Netdev];
    let table = |line: &str| {
        let mut words = line.split_whitespace();
        let (Some("table"), Some(family), Some(name)) = (words.next(), words.next(), words.next()) else {
            return None;
        };
        let family = families.into_iter().find(|known| known.name() == family)?;
        Some((family, name.to_owned()))
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(table).collect())
}

/// Where nft is: daemons often run without the system directories in their path.
fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).filter(|directory| directory.is_absolute());
    directories
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join("nft"))
        .find(|file| file.is_file())
}

fn run(arguments: &[&str], input: &str) -> Result<Output, NftFault> {
    let program = program().ok_or(NftFault::NoProgram)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftFault::Io)?;
    let stdin = child.stdin.take();
    // Written beside the reading: a long input and a long answer would otherwise wait for each other. A
    // failed write means that nft stopped reading, and then its answer says why.
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    })
    .map_err(NftFault::Io)
}

fn check(output: &Output, ruleset: &str) -> Result<(), NftFault> {
    if output.status.success() {
        return Ok(());
    }
    Err(read_errors(&String::from_utf8_lossy(&output.stderr), ruleset))
}

/// Reads nft's complaints, which look like `/dev/stdin:3:5-9: Error: syntax error, unexpected foo`.
fn read_errors(errors: &str, ruleset: &str) -> NftFault {
    let complaint = errors.lines().find(|line| line.contains("Error: ")).or(errors.lines().next());
    let complaint = complaint.unwrap_or("it gave no reason");
    let (position, message) = complaint.split_once("Error: ").unwrap_or(("", complaint));
    // The file's name has no colon; the numbers behind it are line and columns.
    let line = position.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
    if line.is_none() && errors.contains("Operation not permitted") {
        return NftFault::NotPermitted;
    }
    let text = line.and_then(|line| ruleset.lines().nth(line.checked_sub(1)?)).unwrap_or_default();
    NftFault::Refused { message: message.trim().to_owned(), line, text: text.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::TemporaryNetns;

    fn in_namespace(work: impl FnOnce() + Send) {
        TemporaryNetns::create("adit-nft").unwrap().run_in(work);
    }

    #[test]
    fn a_table_is_applied_listed_and_deleted() {
        in_namespace(|| {
            apply("table inet adit_test {\n chain c {\n  tcp dport 22 accept\n }\n}\n").unwrap();

            let listed = list_table(Family::Inet, "adit_test").unwrap().unwrap();
            assert!(listed.contains("tcp dport 22 accept"), "{listed}");
            assert_eq!(tables().unwrap(), [(Family::Inet, "adit_test".to_owned())]);

            delete_table(Family::Inet, "adit_test").unwrap();
            delete_table(Family::Inet, "adit_test").unwrap();
            assert_eq!(list_table(Family::Inet, "adit_test").unwrap(), None);
        });
    }

    #[test]
    fn a_bad_rule_is_named_with_its_line_and_nothing_takes_effect() {
        in_namespace(|| {
            let fault = apply("add table inet adit_test\nadd chain inet adit_test c\nadd rule inet adit_test c frobnicate\n")
                .unwrap_err();

            let text = fault.to_string();
            assert!(
                text.starts_with(
                    "nft refused the rules at line 3 (add rule inet adit_test c frobnicate): syntax error"
                ),
                "{text}"
            );
            assert_eq!(tables().unwrap(), []);
        });
    }

    #[test]
    fn a_rule_the_kernel_refuses_undoes_what_came_before_it() {
        in_namespace(|| {
            apply("add table inet keep\nadd chain inet keep c\n").unwrap();

            let fault = apply("delete table inet keep\nadd rule inet missing c accept\n").unwrap_err();

            assert!(matches!(fault, NftFault::Refused { line: Some(2), .. }), "{fault:?}");
            assert_eq!(tables().unwrap(), [(Family::Inet, "keep".to_owned())]);
        });
    }

    #[test]
    fn a_long_rule_set_with_a_long_answer_does_not_block() {
        in_namespace(|| {
            let rules = "add rule inet missing c accept\n".repeat(20_000);

            assert!(matches!(apply(&rules), Err(NftFault::Refused { line: Some(1), .. })));
        });
    }

    #[test]
    fn complaints_are_read_with_and_without_a_position() {
        let with =
            read_errors("/dev/stdin:2:3-5: Error: No such file or directory\n  x\n  ^\n", "a\n  b c\n");
        assert_eq!(with.to_string(), "nft refused the rules at line 2 (b c): No such file or directory");

        let without = read_errors("netlink: Error: cache initialization failed: Invalid argument\n", "");
        assert_eq!(
            without.to_string(),
            "nft refused the rules: cache initialization failed: Invalid argument"
        );

        let denied = read_errors("Operation not permitted (you must be root)\nnetlink: Error: cache x\n", "");
        assert!(matches!(denied, NftFault::NotPermitted));
        assert_eq!(read_errors("", "").to_string(), "nft refused the rules: it gave no reason");
    }
}
