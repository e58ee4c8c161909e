//! What may depend on what, and on what terms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// The layers, lowest first. A crate depends only on crates further up in this list.
const LAYERS: &[&[&str]] = &[
    &["adit-wire"],
    &["adit-tunnel"],
    &["adit-openvpn"],
    &["adit-plan", "adit-host", "adit-api"],
    &["adit-classify"],
    &["adit-capture", "adit-engine", "adit-entrance", "adit-store", "adit-pki"],
    &["adit-tls"],
    &["adit-gateway", "adit-client"],
    &["adit"],
];

/// Crates that only tests, benchmarks and fuzzing use; they may depend on anything, and nothing on them.
const AROUND: &[&str] = &["adit-testbed", "adit-tests", "adit-lint", "adit-fuzz-targets", "adit-bench"];

/// Crates that must not be anywhere below a crate, with the reason.
const FORBIDDEN_BELOW: &[(&[&str], &[&str], &str)] = &[
    (
        &["adit-wire", "adit-tunnel", "adit-openvpn", "adit-plan", "adit-classify", "adit-capture"],
        &["tokio", "mio", "socket2", "rustix", "async-io", "rustls", "rusqlite", "rand"],
        "no async runtime, sockets, files or clocks in protocol machines and decisions",
    ),
    (
        &["adit-engine", "adit-entrance", "adit-host"],
        &["tokio", "mio", "axum", "hyper", "rusqlite", "rustls"],
        "the packet path waits for nobody",
    ),
];

/// Crates that are nowhere in the tree, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("ring", "there is one provider of cryptography: aws-lc-rs"),
    ("openssl", "there is one TLS library: rustls"),
    ("openssl-sys", "there is one TLS library: rustls"),
    ("native-tls", "there is one TLS library: rustls"),
    ("rustables", "its licence is the GPL"),
    ("async-std", "there is one async runtime: tokio"),
];

/// Licences that ask for no more than to be named.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).exec().expect("cargo metadata")
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&name))
}

/// Everything below each package, without what only its own tests use.
fn below(metadata: &Metadata) -> HashMap<PackageId, BTreeSet<PackageId>> {
    let resolve = metadata.resolve.as_ref().expect("resolved");
    let direct: HashMap<_, Vec<_>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let used = node.deps.iter().filter(|dep| {
                dep.dep_kinds
                    .iter()
                    .any(|kind| matches!(kind.kind, DependencyKind::Normal | DependencyKind::Build))
            });
            (node.id.clone(), used.map(|dep| dep.pkg.clone()).collect())
        })
        .collect();
    direct
        .keys()
        .map(|start| {
            let mut seen = BTreeSet::new();
            let mut open = direct[start].clone();
            while let Some(next) = open.pop() {
                if seen.insert(next.clone()) {
                    open.extend(direct[&next].iter().cloned());
                }
            }
            (start.clone(), seen)
        })
        .collect()
}

fn find<'a>(metadata: &'a Metadata, name: &str) -> Option<&'a Package> {
    metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == name)
}

#[test]
fn every_crate_of_the_project_has_its_layer() {
    for package in metadata().workspace_packages() {
        let name = package.name.as_str();
        assert!(layer(name).is_some() || AROUND.contains(&name), "{name} is in no layer: add it to LAYERS");
    }
}

#[test]
fn dependencies_point_only_downwards() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let Some(own) = layer(&package.name) else { continue };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let name = dependency.name.as_str();
            assert!(!AROUND.contains(&name), "{} depends on {name}, which is for tests", package.name);
            if let Some(other) = layer(name) {
                assert!(other < own, "{} depends on {name}, which is not below it", package.name);
            }
        }
    }
}

#[test]
fn the_folder_is_the_layer() {
    for package in metadata().workspace_packages() {
        if package.name.starts_with("adit-") && layer(&package.name).is_some() {
            let folder = package.manifest_path.parent().and_then(|path| path.file_name()).unwrap_or_default();
            assert_eq!(format!("adit-{folder}"), package.name.as_str());
        }
    }
}

#[test]
fn the_packet_path_and_the_machines_stay_free_of_what_waits() {
    let metadata = metadata();
    let below = below(&metadata);
    for (crates, forbidden, why) in FORBIDDEN_BELOW {
        for name in *crates {
            let package = find(&metadata, name).unwrap_or_else(|| panic!("{name} is gone"));
            for id in &below[&package.id] {
                let other = metadata[id].name.as_str();
                assert!(!forbidden.contains(&other), "{name} has {other} below it: {why}");
            }
        }
    }
}

#[test]
fn nothing_banned_is_in_the_tree() {
    // `cargo metadata` also lists what weak features of others name and nobody builds; `cargo tree` does not.
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges", "normal,build", "--target", "all", "--prefix", "none"])
        .args(["--format", "{p}", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .output()
        .expect("cargo tree");
    let tree = String::from_utf8(tree.stdout).expect("text");
    let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains("rustls"), "cargo tree says nothing: {built:?}");
    for (name, why) in BANNED {
        assert!(!built.contains(name), "{name} is in the tree: {why}");
    }
}

#[test]
fn everything_comes_from_the_registry_or_from_here() {
    for package in &metadata().packages {
        let good = match &package.source {
            None => true,
            Some(source) => source.is_crates_io(),
        };
        assert!(good, "{} comes from {:?}", package.name, package.source);
    }
}

#[test]
fn every_licence_is_one_we_can_live_with() {
    let mut bad = BTreeMap::new();
    for package in &metadata().packages {
        let text = package.license.clone().unwrap_or_default();
        let expression = spdx::Expression::parse_mode(&text, spdx::ParseMode::LAX);
        let allowed = expression.is_ok_and(|expression| {
            expression.evaluate(|requirement| {
                let id = requirement.license.id().map_or("", |id| id.name);
                LICENCES.contains(&id)
            })
        });
        if !allowed {
            bad.insert(package.name.to_string(), text);
        }
    }
    assert!(bad.is_empty(), "licences to look at: {bad:?}");
}
