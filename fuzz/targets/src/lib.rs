//! Fuzz targets: functions that must survive any bytes.
//!
//! Each is run by libFuzzer (`make fuzz`) and, with random bytes and with the seeds in `fuzz/seeds`, by the tests
//! here. A target panics when a property does not hold; what the properties are stands at each.
#![forbid(unsafe_code)]

mod captures;
mod classify;
mod machine;
mod parsers;
mod wire;

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("control_packet", parsers::control_packet),
    ("control_wrap", parsers::control_wrap),
    ("wrapped_client_key", parsers::wrapped_client_key),
    ("key_files", parsers::key_files),
    ("key_message", parsers::key_message),
    ("control_text", parsers::control_text),
    ("push_reply", parsers::push_reply),
    ("data_packet", parsers::data_packet),
    ("fragments", parsers::fragments),
    ("gate", parsers::gate),
    ("profile", parsers::profile),
    ("config", parsers::config),
    ("ports", parsers::ports),
    ("natfw", parsers::natfw),
    ("certificates", parsers::certificates),
    ("tls_records", parsers::tls_records),
    ("ip_packet", wire::ip_packet),
    ("clamp_mss", wire::clamp_mss),
    ("icmp_error", wire::icmp_error),
    ("segment", wire::segment),
    ("coalesce", wire::coalesce),
    ("proxy", wire::proxy),
    ("probes", classify::probes),
    ("classify", classify::classify),
    ("machine", machine::machine),
    ("captures", captures::captures),
];

/// Runs the target with this name.
///
/// # Panics
/// When there is none, or when a property of it does not hold.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(bytes);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_seed_is_survived_by_every_target() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds");
        let mut count = 0;
        for entry in std::fs::read_dir(&seeds).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            TARGETS.iter().for_each(|(_, target)| target(&bytes));
            count += 1;
        }
        assert!(count >= 10, "only {count} seeds in {}", seeds.display());
    }

    #[test]
    fn every_target_has_a_program_for_the_fuzzer() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        for (name, _) in TARGETS {
            assert!(
                dir.join(format!("fuzz_targets/{name}.rs")).exists(),
                "fuzz_targets/{name}.rs is missing"
            );
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn random_bytes_are_survived_by_every_target(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            TARGETS.iter().for_each(|(_, target)| target(&bytes));
        }

        #[test]
        fn random_text_is_survived_by_every_target(text in "\\PC{0,300}") {
            TARGETS.iter().for_each(|(_, target)| target(text.as_bytes()));
        }
    }
}
