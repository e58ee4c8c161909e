//! Looking at a whole network namespace, for tests of what changes it.

use std::fs;
use std::path::Path;
use std::process::Command;

/// All readable parameters of IPv4 and IPv6 with their values, in a stable order.
pub(crate) fn sysctls() -> Vec<(String, String)> {
    let root = Path::new("/proc/sys");
    let mut found = Vec::new();
    let mut pending = vec![root.join("net/ipv4"), root.join("net/ipv6")];
    while let Some(directory) = pending.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            if entry.is_dir() {
                pending.push(entry);
            } else if let Ok(value) = fs::read_to_string(&entry) {
                let path = entry.strip_prefix(root).unwrap().to_str().unwrap();
                found.push((path.replace('.', ":").replace('/', ".").replace(':', "/"), value));
            }
        }
    }
    found
}

/// What a command prints.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything about this thread's network namespace that this crate can change.
pub(crate) fn snapshot() -> String {
    let mut text = String::new();
    for command in [
        "ip address show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -4 rule show",
        "ip -6 rule show",
        "nft list ruleset",
    ] {
        text += &format!("# {command}\n{}", run(command));
    }
    for (name, value) in sysctls() {
        text += &format!("{name} = {value}");
    }
    text
}

/// Fails with the lines that differ.
#[track_caller]
pub(crate) fn assert_same(before: &str, after: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|there| there == *line)).map(str::to_owned).collect()
    };
    assert!(before == after, "gone: {:#?}\nnew: {:#?}", only(before, after), only(after, before));
}

/// Answers the kernel would never give.
pub(crate) mod hostile {
    use proptest::prelude::*;

    /// Nothing in particular, or attributes nested anyhow with lengths that are mostly right.
    pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let anything = prop::collection::vec(any::<u8>(), 0..64);
        let nested = anything.clone().prop_recursive(5, 64, 4, |inner| {
            let one = (inner, 0u16..28, -3i32..3).prop_map(|(value, kind, wrong)| {
                let length = i32::try_from(value.len() + 4).unwrap() + if wrong > 0 { 0 } else { wrong };
                let mut bytes = u16::try_from(length).unwrap().to_ne_bytes().to_vec();
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(&value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes
            });
            prop::collection::vec(one, 1..4).prop_map(|all| all.concat())
        });
        prop_oneof![anything, nested]
    }

    /// Places and what becomes of the bytes there.
    pub(crate) fn flips() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
        prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6)
    }

    /// `bytes` with some of them changed, and perhaps cut off.
    pub(crate) fn changed(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)]) -> Vec<u8> {
        for (at, value) in flips {
            let at = at.index(bytes.len().max(1));
            match value {
                0 => bytes.truncate(at),
                value => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value),
            }
        }
        bytes
    }
}
