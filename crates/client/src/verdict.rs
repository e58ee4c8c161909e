//! What follows when a session, or the attempt at one, has ended: a pure function.

use std::time::Duration;

use adit_openvpn::machine::Ended;
use adit_openvpn::text::Stop;

use crate::remotes::Start;

/// Longest wait that a server may ask for.
const MOST: u64 = 600;

/// Servers that say RESTART stay for two more seconds, in which they still answer but connect nobody.
const RESTART: Duration = Duration::from_secs(3);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on with the next candidate.
    GoOn,
    /// Begin a new round there.
    Again(Start, Wait),
    /// Stop; the server does not want this client. With the reason in words.
    GiveUp(String),
}

/// How long to wait before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all, after a session that had lasted for a while.
    Not,
    /// As long as it is the turn to.
    Pause,
    /// As long as the server says.
    For(Duration),
}

/// What follows from `ended`. `was_up` says that data packets passed before.
pub(crate) fn after(ended: &Ended, was_up: bool) -> Next {
    match ended {
        Ended::AuthFailed(words) => auth_failed(words),
        Ended::Told(Stop::Halt, words) => {
            Next::GiveUp(said("the server told this client to stop (HALT)", flagged(words).1))
        }
        Ended::Told(Stop::Restart, words) => {
            let next = flagged(words).0.contains('N');
            Next::Again(if next { Start::NextRemote } else { Start::Same }, Wait::For(RESTART))
        }
        // The server was good once, and is the first to try.
        _ if was_up => Next::Again(Start::Same, Wait::Not),
        _ => Next::GoOn,
    }
}

/// True when waiting does not help: both sides talk, and one does not accept the other.
pub(crate) fn is_lasting(ended: &Ended) -> bool {
    matches!(ended, Ended::Tls(_) | Ended::Protocol(_))
}

/// Why it ended, for people.
pub(crate) fn reason(ended: &Ended) -> String {
    match ended {
        Ended::AuthFailed(words) => match words.strip_prefix("TEMP") {
            Some(rest) => said("the server put this client off", bracketed(rest).1),
            None => said("the server refused the login (AUTH_FAILED)", words),
        },
        Ended::Told(Stop::Restart, words) => {
            said("the server told this client to connect again", flagged(words).1)
        }
        Ended::Told(Stop::Halt, words) => {
            said("the server told this client to stop (HALT)", flagged(words).1)
        }
        Ended::PeerLeft => "the server left".to_owned(),
        other => other.to_string(),
    }
}

/// `AUTH_FAILED`, `AUTH_FAILED,reason`, or with a keyword and its parameters in front of the reason.
fn auth_failed(words: &str) -> Next {
    if let Some(rest) = words.strip_prefix("TEMP") {
        let keywords = bracketed(rest).0;
        let value = |name: &str| {
            keywords.split(',').find_map(|keyword| keyword.trim().strip_prefix(name)?.strip_prefix(' '))
        };
        let start = match value("advance") {
            Some("no") => Start::Same,
            Some("remote") => Start::NextRemote,
            _ => Start::NextAddress,
        };
        let wait = value("backoff").and_then(|seconds| seconds.parse().ok()).map(|n: u64| n.min(MOST));
        return Next::Again(
            start,
            wait.map_or(Wait::Pause, |seconds| Wait::For(Duration::from_secs(seconds))),
        );
    }
    if words.starts_with("SESSION:") {
        // The token from the server is no longer good; the next login has the user's own credentials.
        return Next::Again(Start::Same, Wait::Pause);
    }
    if let Some(challenge) = words.strip_prefix("CRV1:") {
        let question = challenge.splitn(4, ':').nth(3).unwrap_or_default();
        return Next::GiveUp(said("the server asks a question at login, which adit cannot answer", question));
    }
    Next::GiveUp(said("the server refused the login (AUTH_FAILED)", words))
}

/// `[flags]words` apart.
fn flagged(words: &str) -> (&str, &str) {
    let (flags, rest) = bracketed(words);
    (flags, rest.trim_start_matches([',', ' ']))
}

/// `[inside]: rest` apart.
fn bracketed(text: &str) -> (&str, &str) {
    let split = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let (inside, rest) = split.unwrap_or(("", text));
    (inside, rest.trim_start_matches(':').trim_start())
}

fn said(what: &str, words: &str) -> String {
    match words.trim() {
        "" => what.to_owned(),
        words => format!("{what}: {words}"),
    }
}

#[cfg(test)]
mod tests {
    use adit_openvpn::tls::TlsFault;

    use super::*;

    fn failed(words: &str) -> Next {
        after(&Ended::AuthFailed(words.into()), false)
    }

    #[test]
    fn a_refusal_is_final_and_has_the_servers_words() {
        assert_eq!(failed(""), Next::GiveUp("the server refused the login (AUTH_FAILED)".into()));
        let words = "the server refused the login (AUTH_FAILED): account locked";
        assert_eq!(failed("account locked"), Next::GiveUp(words.into()));
        let halt = Ended::Told(Stop::Halt, "this device has connected from elsewhere".into());
        let words = "the server told this client to stop (HALT): this device has connected from elsewhere";
        assert_eq!(after(&halt, true), Next::GiveUp(words.into()));
        assert_eq!(reason(&halt), words);
        let Next::GiveUp(words) = failed("CRV1:R,E:id:dXNlcg==:Code, please: ") else { panic!() };
        assert!(words.ends_with(": Code, please:"), "{words}");
    }

    #[test]
    fn a_client_that_is_put_off_waits_and_goes_where_it_is_told() {
        let wait = |seconds| Wait::For(Duration::from_secs(seconds));
        assert_eq!(
            failed("TEMP[backoff 42,advance no]: No free addresses"),
            Next::Again(Start::Same, wait(42))
        );
        assert_eq!(failed("TEMP[advance remote]"), Next::Again(Start::NextRemote, Wait::Pause));
        assert_eq!(failed("TEMP[advance addr, backoff 99999]:x"), Next::Again(Start::NextAddress, wait(600)));
        assert_eq!(failed("TEMP"), Next::Again(Start::NextAddress, Wait::Pause));
        assert_eq!(failed("SESSION:token expired"), Next::Again(Start::Same, Wait::Pause));
        let put_off = Ended::AuthFailed("TEMP[backoff 42,advance no]: No free addresses".into());
        assert_eq!(reason(&put_off), "the server put this client off: No free addresses");
    }

    #[test]
    fn a_restart_comes_back_unless_told_to_go_elsewhere() {
        let told = |words: &str| Ended::Told(Stop::Restart, words.into());
        assert_eq!(after(&told("gateway restarts"), true), Next::Again(Start::Same, Wait::For(RESTART)));
        let full = after(&told("[N],full"), true);
        assert_eq!(full, Next::Again(Start::NextRemote, Wait::For(RESTART)));
        assert_eq!(reason(&told("[N],full")), "the server told this client to connect again: full");
    }

    #[test]
    fn a_lost_session_returns_to_its_server_and_a_failed_attempt_goes_on() {
        for ended in [
            Ended::Silent(Duration::from_secs(8)),
            Ended::PeerLeft,
            Ended::Timeout("the renegotiation", Duration::from_secs(60)),
            Ended::Tls(TlsFault::Peer("expired".into())),
            Ended::Protocol("x".into()),
            Ended::Local,
        ] {
            assert_eq!(after(&ended, true), Next::Again(Start::Same, Wait::Not));
            assert_eq!(after(&ended, false), Next::GoOn);
            let lasting = matches!(ended, Ended::Tls(_) | Ended::Protocol(_));
            assert_eq!(is_lasting(&ended), lasting);
        }
    }
}
