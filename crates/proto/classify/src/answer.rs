//! Three-valued answers about a beginning.

/// What a probe says of the bytes there are.
///
/// Of a TCP beginning, [`Answer::Yes`] and [`Answer::No`] are final: more bytes change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is something else.
    No,
    /// It may be; more bytes will tell. Never said of a datagram.
    More,
    /// It is.
    Yes,
}

impl Answer {
    /// Yes or No.
    pub(crate) fn whether(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }

    /// The answer when one of several alternatives is enough.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::More, _) | (_, Self::More) => Self::More,
            _ => Self::No,
        }
    }
}

/// Whether `bytes` begin with one of `words`.
pub(crate) fn begins_with(bytes: &[u8], words: &[&[u8]]) -> Answer {
    words.iter().fold(Answer::No, |answer, word| {
        answer.or(if bytes.starts_with(word) {
            Answer::Yes
        } else if word.starts_with(bytes) {
            Answer::More
        } else {
            Answer::No
        })
    })
}

/// False when a byte of `bytes[from..to]` that is there is not zero.
pub(crate) fn may_be_zeros(bytes: &[u8], from: usize, to: usize) -> bool {
    bytes.iter().take(to).skip(from).all(|&byte| byte == 0)
}

/// False when all of `bytes[from..to]` is there and zero.
pub(crate) fn may_be_random(bytes: &[u8], from: usize, to: usize) -> bool {
    bytes.get(from..to).is_none_or(|range| range.iter().any(|&byte| byte != 0))
}
