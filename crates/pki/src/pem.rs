//! PEM armour (RFC 7468): reading what other programs wrote, writing it strictly.
//!
//! Reading is lenient where real files differ: text around the blocks (OpenSSL prints certificates there),
//! any line length, CRLF, indentation.

use data_encoding::BASE64;
use zeroize::Zeroizing;

/// One armoured block.
pub struct Block {
    /// Text between `BEGIN` and the dashes, for instance `CERTIFICATE`.
    pub label: String,
    /// Decoded contents, which may be a secret. Empty when `encrypted`.
    pub der: Zeroizing<Vec<u8>>,
    /// True when a `Proc-Type: 4,ENCRYPTED` header (RFC 1421 §4.6.1.1) says that the contents are encrypted.
    pub encrypted: bool,
}

/// Why a text is not PEM. Line numbers start at 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A `BEGIN` line without its `END` line.
    #[error("line {line}: the block that begins here has no matching END line")]
    Unfinished {
        /// Line of `BEGIN`.
        line: usize,
    },
    /// Something between `BEGIN` and `END` that is not base64.
    #[error("line {line}: the block that begins here is not valid base64")]
    NotBase64 {
        /// Line of `BEGIN`.
        line: usize,
    },
}

/// All blocks of `text`, in order; none when there is no armour in it.
///
/// # Errors
/// [`PemError`] when a block begins and is not complete.
pub fn parse(text: &str) -> Result<Vec<Block>, PemError> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let begin = at;
        let end = format!("-----END {label}-----");
        let length = lines[at..].iter().position(|line| *line == end);
        let body = &lines[at..at + length.ok_or(PemError::Unfinished { line: begin })?];
        at += body.len() + 1;

        let encrypted = body.iter().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"));
        // One allocation of the right size: a secret's digits are never moved and left behind.
        let mut digits = Zeroizing::new(String::with_capacity(body.iter().map(|line| line.len()).sum()));
        body.iter().filter(|line| !line.contains(':')).for_each(|line| digits.push_str(line));
        let der = match encrypted {
            true => Vec::new(),
            false => BASE64.decode(digits.as_bytes()).map_err(|_| PemError::NotBase64 { line: begin })?,
        };
        blocks.push(Block { label: (*label).to_owned(), der: Zeroizing::new(der), encrypted });
    }
    Ok(blocks)
}

/// `der` in one block with `label`, 64 digits to a line, ending in a newline (RFC 7468 §2).
pub fn encode(label: &str, der: &[u8]) -> String {
    let length = der.len().div_ceil(3) * 4;
    let mut text = String::with_capacity(length + length / 64 + 2 * (label.len() + 18));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    // 48 bytes are exactly 64 digits without padding.
    for line in der.chunks(48) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn several_blocks_are_found_between_other_text() {
        let text = format!(
            "Certificate:\r\n    Data:\r\n{}# a remark\n{}",
            encode("CERTIFICATE", b"one").replace('\n', "\r\n"),
            encode("X509 CRL", b"two")
        );

        let blocks = parse(&text).unwrap();

        let found: Vec<_> = blocks.iter().map(|block| (block.label.as_str(), block.der.as_slice())).collect();
        assert_eq!(found, [("CERTIFICATE", b"one".as_slice()), ("X509 CRL", b"two")]);
    }

    #[test]
    fn a_block_without_end_names_the_line_it_began_on() {
        let text = "hello\n-----BEGIN CERTIFICATE-----\nAAAA\n";

        assert_eq!(parse(text).err(), Some(PemError::Unfinished { line: 2 }));
    }

    #[test]
    fn a_block_of_something_else_than_base64_is_refused() {
        let text = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";

        assert_eq!(parse(text).err(), Some(PemError::NotBase64 { line: 1 }));
    }

    #[test]
    fn an_encrypted_block_is_recognised_by_its_header() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\nAAAA\n\
                    -----END RSA PRIVATE KEY-----\n";

        assert!(parse(text).unwrap()[0].encrypted);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(der in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = encode("X", &der);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            let blocks = parse(&text).unwrap();
            prop_assert_eq!(blocks[0].der.as_slice(), der);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "(-----BEGIN X-----|-----END X-----|[a:=\n ]){0,20}") {
            let _ = parse(&text);
        }
    }
}
