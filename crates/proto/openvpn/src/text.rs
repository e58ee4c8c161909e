//! Control messages: text, NUL-terminated, inside TLS after the key exchange.

/// Longest message accepted; OpenVPN's buffer for one.
pub const MAX_MESSAGE: usize = 2048;

/// Keeps printable ASCII, replaces everything else by `_`, and cuts at `limit` characters: what a peer says may
/// end up in a log, a terminal or a script.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    text.chars().take(limit).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '_' }).collect()
}

/// How a client is to behave after it was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// `RESTART`: connect again.
    Restart,
    /// `HALT`: stay away.
    Halt,
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The client wants its options.
    PushRequest,
    /// Options, still as text behind `PUSH_REPLY,`.
    PushReply(String),
    /// Credentials refused, with the server's reason if it gave one.
    AuthFailed(String),
    /// The decision takes time; the content is the keywords.
    AuthPending(String),
    /// `RESTART` or `HALT`, with the server's words.
    Stop(Stop, String),
    /// The peer leaves.
    Exit,
    /// Something for the user (`INFO`, `INFO_PRE`).
    Info(String),
    /// A message this program has no use for.
    Other(String),
}

impl Message {
    /// Reads one message (without its NUL). Bytes that are not printable are made harmless.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let text = printable(String::from_utf8_lossy(bytes).trim_end_matches(['\r', '\n']), MAX_MESSAGE);
        let (word, rest) = text.split_once(',').unwrap_or((&text, ""));
        match word {
            "PUSH_REQUEST" => Self::PushRequest,
            "PUSH_REPLY" => Self::PushReply(rest.to_owned()),
            "AUTH_FAILED" => Self::AuthFailed(rest.to_owned()),
            "AUTH_PENDING" => Self::AuthPending(rest.to_owned()),
            "RESTART" => Self::Stop(Stop::Restart, rest.to_owned()),
            "HALT" => Self::Stop(Stop::Halt, rest.to_owned()),
            "EXIT" => Self::Exit,
            "INFO" | "INFO_PRE" => Self::Info(rest.to_owned()),
            _ => Self::Other(text),
        }
    }

    /// The message with its NUL.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let with = |word: &str, rest: &str| match rest {
            "" => word.to_owned(),
            _ => format!("{word},{rest}"),
        };
        let text = match self {
            Self::PushRequest => "PUSH_REQUEST".to_owned(),
            Self::PushReply(rest) => with("PUSH_REPLY", rest),
            Self::AuthFailed(rest) => with("AUTH_FAILED", rest),
            Self::AuthPending(rest) => with("AUTH_PENDING", rest),
            Self::Stop(Stop::Restart, rest) => with("RESTART", rest),
            Self::Stop(Stop::Halt, rest) => with("HALT", rest),
            Self::Exit => "EXIT".to_owned(),
            Self::Info(rest) => with("INFO", rest),
            Self::Other(text) => text.clone(),
        };
        let mut bytes = text.into_bytes();
        bytes.push(0);
        bytes
    }
}

/// Splits a stream of decrypted bytes into messages.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

/// A peer sent more than [`MAX_MESSAGE`] bytes without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("control message longer than {MAX_MESSAGE} bytes")]
pub struct Oversized;

impl Splitter {
    /// Adds bytes and returns the messages they complete.
    ///
    /// # Errors
    /// [`Oversized`]; the session cannot go on then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Oversized> {
        let mut messages = Vec::new();
        for part in bytes.split_inclusive(|&b| b == 0) {
            self.partial.extend_from_slice(part);
            if self.partial.len() > MAX_MESSAGE {
                return Err(Oversized);
            }
            if self.partial.last() == Some(&0) {
                self.partial.pop();
                if !self.partial.is_empty() {
                    messages.push(Message::parse(&self.partial));
                }
                self.partial.clear();
            }
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn several_messages_in_one_record_and_one_in_several_are_understood() {
        let mut splitter = Splitter::default();
        assert_eq!(
            splitter.push(b"PUSH_REQUEST\0EXIT\0RESTART,[P]ba").unwrap(),
            [Message::PushRequest, Message::Exit]
        );
        assert_eq!(
            splitter.push(b"ck soon\0").unwrap(),
            [Message::Stop(Stop::Restart, "[P]back soon".into())]
        );
    }

    #[test]
    fn messages_survive_the_wire() {
        for message in [
            Message::PushRequest,
            Message::PushReply("route 10.0.0.0 255.0.0.0,ping 10".into()),
            Message::AuthFailed(String::new()),
            Message::AuthFailed("certificate revoked".into()),
            Message::Stop(Stop::Halt, "bye".into()),
            Message::Exit,
            Message::Info("OPEN_URL:https://vpn.example/".into()),
        ] {
            let mut splitter = Splitter::default();
            assert_eq!(splitter.push(&message.to_bytes()).unwrap(), [message]);
        }
    }

    #[test]
    fn control_text_injection_reaches_nobody() {
        let mut splitter = Splitter::default();
        let got = splitter.push(b"AUTH_FAILED,\x1b]0;owned\x07\r\nnext line\0").unwrap();
        assert_eq!(got, [Message::AuthFailed("_]0;owned___next line".into())]);
    }

    #[test]
    fn an_endless_message_is_refused() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.push(&[b'A'; MAX_MESSAGE]).unwrap(), []);
        assert_eq!(splitter.push(b"A"), Err(Oversized));
    }

    proptest! {
        #[test]
        fn any_bytes_become_printable_messages(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(messages) = Splitter::default().push(&bytes) {
                for message in messages {
                    let text = message.to_bytes();
                    prop_assert!(text[..text.len() - 1].iter().all(|&b| b.is_ascii_graphic() || b == b' '));
                }
            }
        }
    }
}
