//! Whose a flow would be, by its first bytes: what the running gateway decides, said without one.

use std::path::Path;

use adit_classify::{Answer, OpenVpnForm, Probe, Protocol, TlsCondition, Transport, Verdict};

use crate::config::Loaded;
use crate::identities;
use crate::switch::{self, Rules, Target};

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is for an identity of the gateway.
    Identity,
    /// It is for a foreign back end.
    Service,
    /// It is nobody's.
    Unknown,
    /// More bytes would tell.
    Undecided,
}

impl Outcome {
    /// In one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Service => "service",
            Self::Unknown => "unknown",
            Self::Undecided => "undecided",
        }
    }
}

/// A judgement with its reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The protocol by form: the name of a probe; `None` when it has no form that is known.
    pub protocol: Option<&'static str>,
    /// What becomes of it; `None` without a configuration.
    pub outcome: Option<Outcome>,
    /// The identity; `None` as well when several have no key, and only a certificate will tell.
    pub identity: Option<String>,
    /// The back end, also the one that has flows of nobody.
    pub service: Option<String>,
    /// Why.
    pub evidence: Option<String>,
}

/// The rules of a configuration, or form alone.
#[derive(Debug)]
pub struct Judge {
    rules: Option<Rules>,
    notes: Vec<String>,
}

impl Judge {
    /// By the identities and services of the configuration at `path`. When it or its keys cannot be read, by form only;
    /// [`notes`](Self::notes) says so. Changes nothing.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        match read(path) {
            Ok((rules, missing)) => {
                let note = |name: &String| {
                    format!("identity {name} has no key yet (`adit up` makes it), so no flow can be its")
                };
                Self { rules: Some(rules), notes: missing.iter().map(note).collect() }
            }
            Err(why) => Self { rules: None, notes: vec![format!("by form only: {why}")] },
        }
    }

    /// There are rules of a configuration.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// What was left out, and why.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Judges a flow by its beginning (the first datagram, or what a connection's client says first) and the port that
    /// was dialled. `waited`: the client has said nothing more until the server spoke.
    #[must_use]
    pub fn judge(&self, transport: Transport, first: &[u8], port: u16, waited: bool) -> Judged {
        let protocol = protocol(transport, first);
        let mut judged = Judged { protocol, outcome: None, identity: None, service: None, evidence: None };
        let Some(rules) = &self.rules else {
            judged.evidence = protocol.map(|name| format!("form of {name}"));
            return judged;
        };
        let decoy = || match transport {
            Transport::Tcp => rules.decoy().map(|backend| backend.options().name.clone()),
            Transport::Udp => None,
        };
        let outcome = match rules.judge(transport, first, port, waited) {
            Verdict::Matched(found) => {
                judged.evidence = Some(found.evidence.to_string());
                match &found.rule.target {
                    Target::Identity(name) => {
                        judged.identity.clone_from(name);
                        Outcome::Identity
                    }
                    Target::Service(backend) => {
                        judged.service = Some(backend.options().name.clone());
                        Outcome::Service
                    }
                }
            }
            Verdict::Unknown => {
                judged.service = decoy();
                Outcome::Unknown
            }
            Verdict::Undecided => Outcome::Undecided,
        };
        judged.outcome = Some(outcome);
        judged
    }
}

/// The rules, and the identities without a key.
fn read(path: &Path) -> Result<(Rules, Vec<String>), String> {
    let loaded = Loaded::read(path).map_err(|fault| fault.to_string())?;
    let (mut wraps, mut missing) = (Vec::new(), Vec::new());
    for (name, wrap) in identities::present_wraps(&loaded).map_err(|fault| fault.to_string())? {
        match wrap {
            Some(wrap) => wraps.push((name, wrap)),
            None => missing.push(name),
        }
    }
    let rules = switch::rules(&loaded.config, &loaded.directory(), &wraps, &[])?;
    Ok((rules, missing))
}

/// Forms do not overlap, so at most one says Yes.
fn protocol(transport: Transport, first: &[u8]) -> Option<&'static str> {
    let yes = |probe: &Probe| probe.answer(transport, first, false) == Answer::Yes;
    if yes(&Probe::OpenVpn(OpenVpnForm::Any)) {
        return Some("openvpn");
    }
    if yes(&Probe::Tls(TlsCondition::default())) {
        return Some("tls");
    }
    Protocol::ALL.into_iter().find(|protocol| yes(&Probe::Form(*protocol))).map(Protocol::name)
}

#[cfg(test)]
mod tests {
    use adit_openvpn::keyfile::StaticKey;

    use super::*;

    const CONFIG: &str = "[tunnel]\npool4 = [\"10.231.0.0/16\"]\n[[entrance]]\nudp = 1194\ntcp = 443\n[[identity]]\n\
                          name = \"own\"\nkey = \"P-256\"\nwrap = \"tls-crypt\"\n[[service]]\nname = \"shell\"\n\
                          match = \"ssh\"\nto = \"127.0.0.1:22\"\n[[service]]\nname = \"mail\"\nmatch = \"silence\"\n\
                          to = \"127.0.0.1:25\"\n";
    const DATAGRAM: &[u8] = include_bytes!("../../../fuzz/seeds/datagram-openvpn-crypt");
    const PLAIN: &[u8] = include_bytes!("../../../fuzz/seeds/datagram-openvpn-none");

    fn write(config: &str, key: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adit.toml"), config).unwrap();
        if key {
            let identity = dir.path().join("state/identities/own");
            std::fs::create_dir_all(&identity).unwrap();
            // The key of the recorded packets.
            let text = StaticKey::new(&std::array::from_fn(|at| at as u8)).to_text();
            adit_pki::files::write_secret(&identity.join("wrap.key"), text.as_bytes()).unwrap();
        }
        dir
    }

    fn of(dir: &tempfile::TempDir) -> Judge {
        Judge::of(&dir.path().join("adit.toml"))
    }

    #[test]
    fn keys_forms_and_silence_decide_as_in_the_gateway() {
        let dir = write(CONFIG, true);
        let judge = of(&dir);
        assert!(judge.has_rules() && judge.notes().is_empty(), "{:?}", judge.notes());
        let judged = judge.judge(Transport::Udp, DATAGRAM, 1194, false);
        let expected = Judged {
            protocol: Some("openvpn"),
            outcome: Some(Outcome::Identity),
            identity: Some("own".into()),
            service: None,
            evidence: Some("tls-crypt key verified".into()),
        };
        assert_eq!(judged, expected);
        let tcp = |first: &[u8], waited| {
            let judged = judge.judge(Transport::Tcp, first, 443, waited);
            (judged.protocol, judged.outcome.map(Outcome::name), judged.service)
        };
        assert_eq!(tcp(b"SSH-2.0-x", false), (Some("ssh"), Some("service"), Some("shell".into())));
        assert_eq!(tcp(b"SSH-", false), (None, Some("undecided"), None));
        assert_eq!(tcp(b"", true), (None, Some("service"), Some("mail".into())));
        assert_eq!(tcp(b"GET / HTTP", false), (Some("http"), Some("unknown"), None));
    }

    #[test]
    fn flows_of_nobody_name_who_gets_them_and_identities_without_a_key_are_not_guessed() {
        let plain = |key| format!("[[identity]]\nname = \"{key}\"\nkey = \"{key}\"\nwrap = \"none\"\n");
        let identity = |text: &str| {
            let dir = write(text, true);
            let judge = of(&dir);
            let judged = judge.judge(Transport::Udp, PLAIN, 1194, false);
            assert_eq!(judged.outcome, Some(Outcome::Identity), "{:?}", judge.notes());
            judged.identity
        };
        assert_eq!(identity(&format!("{CONFIG}{}", plain("P-256"))), Some("P-256".into()));
        assert_eq!(identity(&format!("{CONFIG}{}{}", plain("P-256"), plain("Ed25519"))), None);
        let dir = write(&format!("{CONFIG}[unknown]\nanswer = \"shell\"\n"), true);
        for (transport, service) in [(Transport::Tcp, Some("shell".to_owned())), (Transport::Udp, None)] {
            let judged = of(&dir).judge(transport, b"what is this", 443, false);
            assert_eq!((judged.outcome, judged.service), (Some(Outcome::Unknown), service));
        }
    }

    #[test]
    fn what_is_missing_is_said_and_nothing_is_made() {
        let dir = write(CONFIG, false);
        let judge = of(&dir);
        assert!(judge.has_rules() && judge.notes()[0].contains("identity own has no key yet"));
        assert_eq!(judge.judge(Transport::Udp, DATAGRAM, 1194, false).outcome, Some(Outcome::Unknown));
        assert!(!dir.path().join("state").exists());
        let judge = Judge::of(&dir.path().join("missing.toml"));
        assert!(!judge.has_rules() && judge.notes()[0].starts_with("by form only: cannot read"));
        let judged = judge.judge(Transport::Udp, DATAGRAM, 1194, false);
        assert_eq!((judged.outcome, judged.evidence.as_deref()), (None, Some("form of openvpn")));
    }
}
