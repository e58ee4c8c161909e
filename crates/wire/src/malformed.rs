use std::error::Error;
use std::fmt;

/// Why bytes are not the header they were taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Fewer bytes than the header needs.
    Short,
    /// The IP version is neither 4 nor 6.
    Version,
    /// The header length field is smaller than the smallest header.
    HeaderLength,
    /// The packet's own length field is smaller than its header or larger than the bytes there are.
    TotalLength,
    /// More IPv6 extension headers than [`ip::MAX_EXTENSIONS`](crate::ip::MAX_EXTENSIONS).
    Extensions,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "shorter than its header",
            Self::Version => "neither IPv4 nor IPv6",
            Self::HeaderLength => "impossible header length",
            Self::TotalLength => "length field does not fit the packet",
            Self::Extensions => "too many IPv6 extension headers",
        })
    }
}

impl Error for Malformed {}
