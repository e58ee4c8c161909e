//! Asking the person at the terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};

use adit_client::profile::Credentials;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

const TERMINAL: &str = "/dev/tty";

/// Asks for user name and password.
pub(crate) fn ask_credentials(server: &str) -> Result<Credentials, String> {
    let open = || OpenOptions::new().read(true).write(true).open(TERMINAL);
    let tty = open().map_err(|_| {
        "the profile asks for a user name and password, and there is no terminal to ask at: name a file with both in \
         the profile (auth-user-pass FILE)"
            .to_owned()
    })?;
    let ask = |question: &str, hidden| {
        ask(&tty, &format!("{question} for {server}: "), hidden).map_err(|error| error.to_string())
    };
    let username = ask("user name", false)?;
    let password = ask("password", true)?;
    Ok(Credentials { username: username.to_string(), password: password.to_string() })
}

/// Asks one question. An interrupt ends the waiting, so that the terminal is left as it was.
fn ask(tty: &File, question: &str, hidden: bool) -> io::Result<Zeroizing<String>> {
    let mut terminal = tty;
    terminal.write_all(question.as_bytes())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let silence = hidden.then(|| Silence::begin(tty)).transpose()?;
    let input = BufReader::new(tty.try_clone()?);
    let answer = runtime.block_on(async {
        tokio::select! {
            answer = tokio::task::spawn_blocking(move || line(input)) => answer?,
            _ = tokio::signal::ctrl_c() => Err(io::Error::other("interrupted")),
        }
    });
    runtime.shutdown_background();
    if silence.is_some() {
        terminal.write_all(b"\n")?;
    }
    answer
}

fn line(mut input: impl BufRead) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(256));
    if input.read_line(&mut line)? == 0 {
        return Err(io::Error::other("the terminal was closed"));
    }
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// The terminal shows nothing of what is typed for as long as this lives.
struct Silence<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn begin(tty: &'a File) -> io::Result<Self> {
        let before = tcgetattr(tty)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(tty, OptionalActions::Flush, &silent)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // If this fails there is no terminal any more.
        let _ = tcsetattr(self.tty, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_line_without_its_end() {
        assert_eq!(line(&b"p@ss word \r\nrest"[..]).unwrap().as_str(), "p@ss word ");
        assert_eq!(line(&b"\n"[..]).unwrap().as_str(), "");
        assert!(line(&b""[..]).is_err());
    }
}
