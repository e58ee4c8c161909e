//! Lines into words, blocks into text.

/// A directive with its parameters, or an inline block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    /// Line number, from 1.
    pub(super) line: usize,
    /// Name without leading dashes.
    pub(super) name: String,
    /// Parameters.
    pub(super) args: Vec<String>,
    /// Content of an inline block.
    pub(super) inline: Option<String>,
}

/// A line that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LexFault {
    /// A quote is not closed.
    Quote(usize),
    /// A block is not closed.
    Block(usize, String),
}

/// Longest line looked at; nothing legitimate is longer outside a block.
const MAX_LINE: usize = 4096;

pub(super) fn directives(text: &str) -> Result<Vec<Directive>, LexFault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((line, content)) = lines.next() {
        let trimmed = content.trim();
        let block = trimmed.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
        if let Some(name) = block.filter(|name| !name.starts_with('/')) {
            let end = format!("</{name}>");
            let mut inline = String::new();
            loop {
                match lines.next() {
                    Some((_, content)) if content.trim() == end => break,
                    Some((_, content)) => {
                        inline.push_str(content.trim_end_matches('\r'));
                        inline.push('\n');
                    }
                    None => return Err(LexFault::Block(line, name.to_owned())),
                }
            }
            found.push(Directive { line, name: name.to_owned(), args: Vec::new(), inline: Some(inline) });
            continue;
        }
        let mut words =
            words(trimmed.get(..MAX_LINE).unwrap_or(trimmed)).ok_or(LexFault::Quote(line))?.into_iter();
        if let Some(name) = words.next() {
            let name = name.strip_prefix("--").unwrap_or(&name).to_owned();
            found.push(Directive { line, name, args: words.collect(), inline: None });
        }
    }
    Ok(found)
}

/// Splits a line; `None` when a quote stays open.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#' | ';') if word.is_none() => break,
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_openvpn_splits_them() {
        let split = |line: &str| words(line).unwrap();
        assert_eq!(split(r#"remote "vpn one" 1194 # note"#), ["remote", "vpn one", "1194"]);
        assert_eq!(split(r#"a 'b "c' d\ e f#g"#), ["a", r#"b "c"#, "d e", "f#g"]);
        assert_eq!(split(r#"x "" "a\"b""#), ["x", "", "a\"b"]);
        assert_eq!(split("; comment"), [""; 0]);
        assert_eq!(words("a \"b"), None);
    }

    #[test]
    fn blocks_keep_their_lines_and_must_end() {
        let text = "\u{feff}client\r\n<ca>\r\nline one\r\n  line two\r\n</ca>\r\n--dev tun\r\n";
        let found = directives(text).unwrap();
        assert_eq!(found[1].inline.as_deref(), Some("line one\n  line two\n"));
        assert_eq!((found[2].name.as_str(), found[2].line), ("dev", 6));
        assert_eq!(directives("x\n<ca>\nabc"), Err(LexFault::Block(2, "ca".into())));
    }
}
