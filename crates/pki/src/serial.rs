//! Certificate serial numbers.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::error::Unspecified;
use data_encoding::HEXLOWER;
use x509_cert::serial_number::SerialNumber;

/// A certificate's serial number (RFC 5280 §4.1.2.2). Prints as lower-case hexadecimal digits in pairs,
/// without colons: `03`, `3f0a…`. That text is the certificate's id everywhere in adit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial {
    /// Contents octets of the DER INTEGER: minimal two's complement, so two serials are equal exactly if
    /// their numbers are. Some old authorities issued negative ones.
    octets: Vec<u8>,
}

/// Text that is not a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate serial number: 1 to 20 bytes in hexadecimal are expected, for instance 3f0a29")]
pub struct BadSerial;

/// The longest serial that RFC 5280 allows, and the sign octet that some authorities add to it.
const MAX_LEN: usize = 21;

impl Serial {
    /// A fresh random serial of 16 bytes: positive, with 126 random bits.
    pub(crate) fn random() -> Result<Self, Unspecified> {
        let mut octets = vec![0; 16];
        aws_lc_rs::rand::fill(&mut octets)?;
        // The first octet is 0x40..=0x7f: positive, and every serial is equally long.
        octets[0] = octets[0] & 0x3f | 0x40;
        Ok(Self { octets })
    }

    pub(crate) fn from_x509(serial: &SerialNumber) -> Self {
        Self { octets: serial.as_bytes().to_vec() }
    }

    pub(crate) fn to_x509(&self) -> Result<SerialNumber, der::Error> {
        if self.is_negative() {
            return Err(der::ErrorKind::Failed.into());
        }
        SerialNumber::new(&self.octets)
    }

    fn is_negative(&self) -> bool {
        self.octets.first().is_some_and(|first| first & 0x80 != 0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.octets.as_slice() {
            [0, rest @ ..] if !rest.is_empty() => rest,
            all => all,
        };
        if self.is_negative() {
            f.write_str("-")?;
        }
        f.write_str(&HEXLOWER.encode(digits))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// Reads hexadecimal digits of either case; colons between them and leading zeros are allowed.
impl FromStr for Serial {
    type Err = BadSerial;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut digits = text.trim().replace(':', "").to_ascii_lowercase();
        if digits.len() % 2 == 1 {
            digits.insert(0, '0');
        }
        let bytes = HEXLOWER.decode(digits.as_bytes()).map_err(|_| BadSerial)?;
        let number: &[u8] = match bytes.iter().position(|&byte| byte != 0) {
            Some(first) => &bytes[first..],
            None if bytes.is_empty() => return Err(BadSerial),
            None => &[0],
        };
        let mut octets = Vec::with_capacity(number.len() + 1);
        if number[0] & 0x80 != 0 {
            octets.push(0);
        }
        octets.extend_from_slice(number);
        if octets.len() > MAX_LEN {
            return Err(BadSerial);
        }
        Ok(Self { octets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use der::{Decode, Encode};
    use proptest::prelude::*;

    #[test]
    fn a_random_serial_is_positive_and_sixteen_bytes_long() {
        for _ in 0..64 {
            let serial = Serial::random().unwrap();
            let der = serial.to_x509().unwrap().to_der().unwrap();
            assert_eq!(der[..2], [0x02, 16]);
            assert_eq!(serial.to_string().len(), 32);
        }
    }

    #[test]
    fn serials_are_read_with_colons_capitals_and_leading_zeros() {
        let expected: Serial = "3f0a".parse().unwrap();

        for text in ["3F0A", "3f:0a", "003f0a", " 3F:0A "] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text:?}");
        }
        assert_eq!("0".parse::<Serial>().unwrap().to_string(), "00");
        assert_eq!("F".parse::<Serial>().unwrap().to_string(), "0f");
    }

    #[test]
    fn what_is_no_serial_is_refused() {
        for text in ["", "xyz", "-01", &"7f".repeat(22)] {
            assert_eq!(text.parse::<Serial>(), Err(BadSerial), "{text:?}");
        }
    }

    #[test]
    fn a_negative_serial_differs_from_the_positive_one_with_the_same_digits() {
        let negative = Serial::from_x509(&SerialNumber::from_der(&[2, 1, 0xff]).unwrap());

        assert_eq!(negative.to_string(), "-ff");
        assert_ne!(negative, "ff".parse().unwrap());
    }

    proptest! {
        #[test]
        fn text_and_der_name_the_same_serial(bytes in proptest::collection::vec(any::<u8>(), 1..20)) {
            let serial: Serial = HEXLOWER.encode(&bytes).parse().unwrap();
            prop_assert_eq!(&serial.to_string().parse::<Serial>().unwrap(), &serial);
            let der = serial.to_x509().unwrap().to_der().unwrap();
            prop_assert_eq!(&Serial::from_x509(&SerialNumber::from_der(&der).unwrap()), &serial);
        }
    }
}
