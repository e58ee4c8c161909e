//! Rules about the project's own files.

use std::path::{Path, PathBuf};

/// The one crate that may contain unsafe code.
const MAY_BE_UNSAFE: &str = "crates/host/";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files that belong to the project: what git knows, or, outside a checkout, what lies there.
fn files(extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").map_while(Result::ok) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "data", "corpus", "artifacts", "bench-out"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                let relative =
                    path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((relative, std::fs::read_to_string(&path).unwrap_or_default()));
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} files in {}", root().display());
    found
}

#[test]
fn unsafe_code_is_forbidden_everywhere_but_in_the_host_layer() {
    for (path, text) in files("rs") {
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && !path.starts_with(MAY_BE_UNSAFE) {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{path} does not forbid unsafe code");
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    for (path, text) in files("rs").iter().filter(|(path, _)| path.starts_with(MAY_BE_UNSAFE)) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("unsafe {") || code.contains("unsafe impl") {
                let above = lines[..at].iter().rev().take(8).any(|line| line.contains("// SAFETY:"));
                assert!(above, "{path}:{}: no SAFETY comment", at + 1);
            }
        }
    }
}

#[test]
fn nothing_is_left_half_done() {
    for (path, text) in files("rs") {
        if path.starts_with("lint/") {
            continue;
        }
        for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX", "#[ignore"] {
            assert!(!text.contains(mark), "{path} contains {mark}");
        }
    }
}

#[test]
fn every_end_to_end_test_is_part_of_a_proof() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).expect("a Makefile");
    let tests = files("rs")
        .into_iter()
        .filter_map(|(path, _)| path.strip_prefix("tests/tests/")?.strip_suffix(".rs").map(str::to_owned));
    for name in tests {
        let named = makefile.lines().any(|line| line.contains(&format!("--test {name} ")));
        assert!(named, "tests/tests/{name}.rs is in no `make proof-…`");
    }
}
