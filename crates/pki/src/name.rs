//! Distinguished names: reading them and printing them as OpenVPN does.

use std::fmt::Write;

use der::asn1::{Any, Utf8StringRef};
use der::{Decode, Encode, Tag, Tagged};
use spki::ObjectIdentifier;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const COMMON_NAME: ObjectIdentifier = oid("2.5.4.3");

/// Short names of the attributes that occur in certificates (X.520, RFC 4519, RFC 2985, CA/Browser Forum).
/// What is not here prints as its number.
const SHORT_NAMES: [(ObjectIdentifier, &str); 32] = [
    (COMMON_NAME, "CN"),
    (oid("2.5.4.4"), "SN"),
    (oid("2.5.4.5"), "serialNumber"),
    (oid("2.5.4.6"), "C"),
    (oid("2.5.4.7"), "L"),
    (oid("2.5.4.8"), "ST"),
    (oid("2.5.4.9"), "street"),
    (oid("2.5.4.10"), "O"),
    (oid("2.5.4.11"), "OU"),
    (oid("2.5.4.12"), "title"),
    (oid("2.5.4.13"), "description"),
    (oid("2.5.4.15"), "businessCategory"),
    (oid("2.5.4.16"), "postalAddress"),
    (oid("2.5.4.17"), "postalCode"),
    (oid("2.5.4.18"), "postOfficeBox"),
    (oid("2.5.4.20"), "telephoneNumber"),
    (oid("2.5.4.41"), "name"),
    (oid("2.5.4.42"), "GN"),
    (oid("2.5.4.43"), "initials"),
    (oid("2.5.4.44"), "generationQualifier"),
    (oid("2.5.4.45"), "x500UniqueIdentifier"),
    (oid("2.5.4.46"), "dnQualifier"),
    (oid("2.5.4.65"), "pseudonym"),
    (oid("2.5.4.97"), "organizationIdentifier"),
    (oid("0.9.2342.19200300.100.1.1"), "UID"),
    (oid("0.9.2342.19200300.100.1.25"), "DC"),
    (oid("1.2.840.113549.1.9.1"), "emailAddress"),
    (oid("1.2.840.113549.1.9.2"), "unstructuredName"),
    (oid("1.2.840.113549.1.9.8"), "unstructuredAddress"),
    (oid("1.3.6.1.4.1.311.60.2.1.1"), "jurisdictionL"),
    (oid("1.3.6.1.4.1.311.60.2.1.2"), "jurisdictionST"),
    (oid("1.3.6.1.4.1.311.60.2.1.3"), "jurisdictionC"),
];

/// The most characters of a common name (RFC 5280 appendix A.1, ub-common-name).
pub(crate) const MAX_COMMON_NAME: usize = 64;

/// The name `CN=common_name`, as a UTF8String.
pub(crate) fn with_common_name(common_name: &str) -> Result<Name, der::Error> {
    let value = Any::encode_from(&Utf8StringRef::new(common_name)?)?;
    let rdn = RelativeDistinguishedName::try_from(vec![AttributeTypeAndValue { oid: COMMON_NAME, value }])?;
    let mut sequence = RdnSequence::default();
    sequence.push(rdn);
    Name::from_der(&sequence.to_der()?)
}

/// The common name; of several, the last, which is the one OpenVPN takes.
pub(crate) fn common_name(name: &Name) -> Option<String> {
    name.iter().filter(|attribute| attribute.oid == COMMON_NAME).last().and_then(|cn| text(&cn.value))
}

/// The name in the form OpenVPN compares `verify-x509-name … subject` with: `C=NG, ST=…, CN=…` in the order
/// of the certificate, ` + ` inside a multi-valued part, control characters as `\XX`.
pub(crate) fn print(name: &Name) -> String {
    let mut out = String::new();
    for (part, rdn) in name.iter_rdn().enumerate() {
        for (index, attribute) in rdn.iter().enumerate() {
            out.push_str(match (part, index) {
                (0, 0) => "",
                (_, 0) => ", ",
                _ => " + ",
            });
            match SHORT_NAMES.iter().find(|(oid, _)| *oid == attribute.oid) {
                Some((_, short)) => out.push_str(short),
                None => write_into(&mut out, format_args!("{}", attribute.oid)),
            }
            out.push('=');
            match text(&attribute.value) {
                Some(text) => escape(&mut out, &text),
                None => dump(&mut out, &attribute.value),
            }
        }
    }
    out
}

fn write_into(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a String does not fail");
}

/// Control characters become `\` and two digits; the backslash itself is doubled so that this is unambiguous.
fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\0'..='\x1f' | '\x7f' => write_into(out, format_args!("\\{:02X}", character as u32)),
            _ => out.push(character),
        }
    }
}

/// A value that is no character string: `#` and its DER in hexadecimal (RFC 4514 §2.4).
fn dump(out: &mut String, value: &Any) {
    out.push('#');
    if let Ok(der) = value.to_der() {
        out.push_str(&data_encoding::HEXUPPER.encode(&der));
    }
}

/// The characters of any of ASN.1's string types; `None` for other types and for bytes outside the type's
/// character set. T61String is read as Latin-1, as everybody does.
fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::NumericString => {
            String::from_utf8(bytes.to_vec()).ok()
        }
        Tag::TeletexString => Some(bytes.iter().map(|&byte| char::from(byte)).collect()),
        Tag::BmpString => {
            let (units, []) = bytes.as_chunks::<2>() else {
                return None;
            };
            char::decode_utf16(units.iter().map(|unit| u16::from_be_bytes(*unit)))
                .collect::<Result<_, _>>()
                .ok()
        }
        _ => None,
    }
}

/// Every short name, for a test that holds them against OpenSSL's.
#[cfg(test)]
pub(crate) fn short_names() -> impl Iterator<Item = &'static str> {
    SHORT_NAMES.iter().map(|(_, short)| *short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use der::asn1::SetOfVec;

    fn attribute(oid: &str, tag: u8, bytes: &[u8]) -> AttributeTypeAndValue {
        let der = [&[tag, bytes.len() as u8], bytes].concat();
        AttributeTypeAndValue { oid: ObjectIdentifier::new_unwrap(oid), value: Any::from_der(&der).unwrap() }
    }

    fn name(parts: Vec<Vec<AttributeTypeAndValue>>) -> Name {
        let sets: Vec<SetOfVec<_>> =
            parts.into_iter().map(|part| SetOfVec::try_from(part).unwrap()).collect();
        Name::from_der(&sets.to_der().unwrap()).unwrap()
    }

    const UTF8: u8 = 12;
    const PRINTABLE: u8 = 19;
    const T61: u8 = 20;
    const BMP: u8 = 30;

    #[test]
    fn a_subject_prints_in_the_order_of_the_certificate() {
        let name = name(vec![
            vec![attribute("2.5.4.6", PRINTABLE, b"NG")],
            vec![attribute("2.5.4.8", UTF8, "Ogun, S\u{f3}".as_bytes())],
            vec![attribute("2.5.4.10", T61, b"Caf\xe9"), attribute("2.5.4.11", BMP, b"\0O\x20\xac")],
            vec![attribute("1.2.3.4", UTF8, b"x")],
            vec![attribute("2.5.4.3", UTF8, b"a\\b\x01")],
        ]);

        assert_eq!(
            print(&name),
            "C=NG, ST=Ogun, S\u{f3}, O=Caf\u{e9} + OU=O\u{20ac}, 1.2.3.4=x, CN=a\\\\b\\01"
        );
    }

    #[test]
    fn of_several_common_names_the_last_counts() {
        let name =
            name(vec![vec![attribute("2.5.4.3", UTF8, b"one")], vec![attribute("2.5.4.3", UTF8, b"two")]]);

        assert_eq!(common_name(&name).as_deref(), Some("two"));
    }

    #[test]
    fn a_common_name_that_is_no_string_is_none() {
        assert_eq!(common_name(&name(vec![vec![attribute("2.5.4.3", UTF8, b"\xff")]])), None);
        assert_eq!(common_name(&name(vec![vec![attribute("2.5.4.3", 2, b"\x05")]])), None);
        assert_eq!(common_name(&name(vec![])), None);
    }

    #[test]
    fn a_made_name_has_its_common_name() {
        let name = with_common_name("Ann's laptop \u{2713}").unwrap();

        assert_eq!(common_name(&name).as_deref(), Some("Ann's laptop \u{2713}"));
        assert_eq!(print(&name), "CN=Ann's laptop \u{2713}");
    }
}
