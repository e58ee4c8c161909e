//! Names of users and devices.

use std::fmt;

/// The most characters a name may have.
const LONGEST: usize = 64;

/// The name of a user or device, checked.
///
/// 1 to 64 ASCII letters, digits, `.`, `_`, `-`, `@` or `+`, beginning with a letter or digit. Such a name is safe in
/// file names, command lines, log lines, configuration files and certificates without quoting, and two names that
/// look alike are alike: other alphabets are refused rather than normalised. Upper and lower case are kept as
/// written but do not make two names different.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// There is no character at all.
    #[error("a name cannot be empty")]
    Empty,
    /// There are too many characters.
    #[error("a name has at most {LONGEST} characters")]
    TooLong,
    /// The first character is none that a name can begin with.
    #[error("a name begins with a letter a-z or a digit, not with {0:?}")]
    First(char),
    /// A character that no name has.
    #[error("a name consists of letters a-z, digits and . _ - @ +, not of {0:?}")]
    Character(char),
}

impl Name {
    /// Checks a text and takes it as a name.
    pub fn new(text: &str) -> Result<Self, NameFault> {
        let first = text.chars().next().ok_or(NameFault::Empty)?;
        if let Some(stranger) = text.chars().take(LONGEST).find(|&c| !allowed(c)) {
            return Err(NameFault::Character(stranger));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(NameFault::First(first));
        }
        if text.len() > LONGEST {
            return Err(NameFault::TooLong);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form by which names are compared, sorted and found.
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+')
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Name {}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = NameFault;

    fn from_str(text: &str) -> Result<Self, NameFault> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameFault;

    fn try_from(text: String) -> Result<Self, NameFault> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_kept_as_written() {
        for name in ["a", "7", "Ann", "ann.lee@example.org", "x_y-z+1", &"n".repeat(64)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn case_does_not_make_a_difference() {
        assert_eq!(Name::new("Ann").unwrap(), Name::new("aNN").unwrap());
        assert_eq!(Name::new("Ann").unwrap().key(), "ann");
    }

    #[test]
    fn hostile_names_are_refused_with_the_reason() {
        assert_eq!(Name::new(""), Err(NameFault::Empty));
        assert_eq!(Name::new(&"n".repeat(65)), Err(NameFault::TooLong));
        assert_eq!(Name::new(&"n".repeat(1 << 20)), Err(NameFault::TooLong));
        for (name, first) in
            [("..", '.'), (".hidden", '.'), ("-rf", '-'), ("@ann", '@'), ("_x", '_'), ("+1", '+')]
        {
            assert_eq!(Name::new(name), Err(NameFault::First(first)), "{name}");
        }
        let strangers = [
            ("a/../b", '/'),
            ("a\0b", '\0'),
            ("a\nb", '\n'),
            ("a b", ' '),
            ("ann\u{202e}", '\u{202e}'),
            ("\u{ff21}nn", '\u{ff21}'),
            ("аnn", 'а'),
            ("a'; DROP TABLE users; --", '\''),
            ("a\"b", '"'),
            ("<script>", '<'),
            ("a\\b", '\\'),
            ("a%00", '%'),
            ("a,CN=root", ','),
        ];
        for (name, stranger) in strangers {
            assert_eq!(Name::new(name), Err(NameFault::Character(stranger)), "{name:?}");
        }
        assert!(Name::new("a\u{1b}[2J").unwrap_err().to_string().contains("'\\u{1b}'"));
    }

    proptest! {
        #[test]
        fn a_name_is_safe_whatever_was_typed(text in "\\PC{0,80}|[a-zA-Z0-9._@+/-]{0,80}") {
            if let Ok(name) = Name::new(&text) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!((1..=64).contains(&text.len()));
                prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@+".contains(&b)));
                prop_assert!(text.as_bytes()[0].is_ascii_alphanumeric());
            }
        }
    }
}
