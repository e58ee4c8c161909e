//! Programs that must be installed.

use std::path::Path;

/// Where Debian's package of a program is not its name.
const PACKAGES: &[(&str, &str)] = &[
    ("ping", "iputils-ping"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("iptables-restore", "iptables"),
    ("iptables-legacy-restore", "iptables"),
    ("nmcli", "network-manager"),
    ("NetworkManager", "network-manager"),
    ("dbus-daemon", "dbus-daemon"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("busctl", "systemd"),
];

/// Makes sure that a program is there. Tests never pass by leaving out what they cannot run.
///
/// # Panics
/// When it is not; the message names Debian's package.
#[track_caller]
pub fn require(program: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"]);
    let found = places.into_iter().any(|dir| Path::new(dir).join(program).is_file());
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    assert!(found, "this test needs the program {program}: apt-get install {package}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        require("ip");
        let panic = std::panic::catch_unwind(|| require("nmcli-that-nobody-has")).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.ends_with("apt-get install nmcli-that-nobody-has"), "{text}");
    }
}
