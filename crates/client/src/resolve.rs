//! Names to addresses. The system's resolver waits as long as it likes, so it has a thread of its own.

use std::net::{IpAddr, ToSocketAddrs};

use crate::remotes::Answers;

/// Asks for all of `hosts` and hands over the answers.
///
/// # Errors
/// When there can be no more threads.
pub(crate) fn resolve(
    hosts: Vec<String>,
    done: impl FnOnce(Answers) + Send + 'static,
) -> std::io::Result<()> {
    let ask = move || {
        let answers = hosts.into_iter().map(|host| {
            let answer = one(&host);
            (host, answer)
        });
        done(answers.collect());
    };
    std::thread::Builder::new().name("resolver".into()).spawn(ask).map(drop)
}

fn one(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    // The port makes no difference.
    for address in (host, 0).to_socket_addrs().map_err(|error| error.to_string())? {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn addresses_are_their_own_answer_and_bad_names_have_a_reason() {
        let (sender, receiver) = channel();
        let hosts = ["192.0.2.1", "2001:db8::1", "no such name"].map(str::to_owned).to_vec();
        resolve(hosts, move |answers| sender.send(answers).unwrap()).unwrap();
        let answers = receiver.recv().unwrap();
        assert_eq!(answers["192.0.2.1"], Ok(vec!["192.0.2.1".parse().unwrap()]));
        assert_eq!(answers["2001:db8::1"], Ok(vec!["2001:db8::1".parse().unwrap()]));
        assert!(answers["no such name"].is_err());
    }
}
