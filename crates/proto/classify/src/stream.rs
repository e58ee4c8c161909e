//! Protocols in TCP, by form. Each function is told a beginning of any length.

use crate::answer::{Answer, begins_with};

/// What SSH 2 begins with, from either side.
const SSH: [&[u8]; 2] = [b"SSH-2.0-", b"SSH-1.99-"];

/// HTTP's and WebDAV's methods with the space after them, and the preface of HTTP/2. A list, because `PROXY `
/// looks like a method too.
const HTTP: [&[u8]; 20] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
    b"QUERY ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// Preambles of the PROXY protocol: version 1, and version 2 with its two commands.
const PROXY: [&[u8]; 5] = [
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN",
    b"\r\n\r\n\0\r\nQUIT\n\x20",
    b"\r\n\r\n\0\r\nQUIT\n\x21",
];

/// Bytes looked at: the longest of the words.
pub(crate) const SSH_LOOKS_AT: usize = 9;
pub(crate) const HTTP_LOOKS_AT: usize = 24;
pub(crate) const PROXY_LOOKS_AT: usize = 13;
/// A request with a user name of 255 bytes and its end.
pub(crate) const SOCKS4_LOOKS_AT: usize = 8 + 256;
/// A greeting with 255 methods.
pub(crate) const SOCKS5_LOOKS_AT: usize = 2 + 255;

pub(crate) fn ssh(bytes: &[u8]) -> Answer {
    begins_with(bytes, &SSH)
}

pub(crate) fn http(bytes: &[u8]) -> Answer {
    begins_with(bytes, &HTTP)
}

pub(crate) fn proxy(bytes: &[u8]) -> Answer {
    begins_with(bytes, &PROXY)
}

/// `04`, command 1 or 2, port, address, user name in visible characters, `00`.
pub(crate) fn socks4(bytes: &[u8]) -> Answer {
    if begins_with(bytes, &[b"\x04\x01", b"\x04\x02"]) == Answer::No {
        return Answer::No;
    }
    for &byte in bytes.iter().take(SOCKS4_LOOKS_AT).skip(8) {
        match byte {
            0 => return Answer::Yes,
            0x20..=0x7e | 0x80..=0xff => {}
            _ => return Answer::No,
        }
    }
    if bytes.len() < SOCKS4_LOOKS_AT { Answer::More } else { Answer::No }
}

/// `05`, how many methods, the methods; `ff` is none.
pub(crate) fn socks5(bytes: &[u8]) -> Answer {
    match bytes {
        [] | [5] => Answer::More,
        [5, count, methods @ ..] if *count > 0 => {
            let count = usize::from(*count);
            if methods.iter().take(count).any(|&method| method == 0xff) {
                Answer::No
            } else if methods.len() < count {
                Answer::More
            } else {
                Answer::Yes
            }
        }
        _ => Answer::No,
    }
}
