//! Reading a profile from a file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use adit_openvpn::profile::ProfileFault;
use zeroize::Zeroizing;

pub use adit_openvpn::kex::Credentials;
pub use adit_openvpn::profile::Profile;

/// Why a file is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Its content.
    #[error("{}: {fault}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: ProfileFault,
    },
}

/// Reads the profile at `path`. Files that it names are looked for beside it.
///
/// # Errors
/// [`ReadFault`] with the file, the line and what to do.
pub fn read(path: &Path) -> Result<Profile, ReadFault> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| ReadFault::File { path: path.to_owned(), error })?;
    let beside = path.parent().unwrap_or(Path::new("."));
    let mut load = |name: &str| {
        let file = beside.join(name);
        std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
    };
    Profile::parse(&text, &mut load).map_err(|fault| ReadFault::Content { path: path.to_owned(), fault })
}

/// What in the profile has no effect: a line for each reason, with the directives it is the reason for.
#[must_use]
pub fn notes(profile: &Profile) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for note in &profile.notes {
        let directive = format!("{} (line {})", note.directive, note.line);
        by_reason.entry(note.why).or_default().push(directive);
    }
    by_reason.into_iter().map(|(why, directives)| format!("{}: {why}", directives.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_a_profile_names_are_looked_for_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.ovpn");
        std::fs::write(&path, "client\nremote vpn.example.org\nca ca.pem\n").unwrap();
        let missing = read(&path).unwrap_err().to_string();
        assert!(missing.contains("line 3: ca: ") && missing.contains("ca.pem: No such file"), "{missing}");

        std::fs::write(directory.path().join("ca.pem"), "x").unwrap();
        assert_eq!(read(&path).unwrap().ca.as_deref(), Some("x"));
        let missing = read(&directory.path().join("none.ovpn")).unwrap_err().to_string();
        assert!(missing.contains("none.ovpn: No such file"), "{missing}");
    }

    #[test]
    fn notes_with_one_reason_make_one_line() {
        let text = "client\nremote a\n<ca>\nx\n</ca>\nnobind\npersist-tun\nup /bin/run\n";
        let profile = Profile::parse(text, &mut |_| unreachable!()).unwrap();
        assert_eq!(
            notes(&profile),
            [
                "nobind (line 6), persist-tun (line 7): has no effect here",
                "up (line 8): programs are never run"
            ]
        );
    }
}
