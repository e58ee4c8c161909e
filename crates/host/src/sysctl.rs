//! Kernel parameters under `/proc/sys`, by the names that `sysctl` uses.
//!
//! Names have dots between their parts; a dot inside a part is written as a slash, as in
//! `net.ipv4.conf.eth0/100.rp_filter` for the interface `eth0.100`. Those under `net` are of the calling
//! thread's network namespace.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::errno::words;

const ROOT: &str = "/proc/sys";
/// More than a list of all ports takes, which is the longest value there is.
const LONGEST: usize = 512 << 10;

/// Why a parameter could not be read or set.
#[derive(Debug, Error)]
pub enum SysctlFault {
    /// Not a parameter's name.
    #[error("{0:?} is no sysctl name: it looks like net.ipv4.ip_forward")]
    BadName(String),
    /// The kernel has no such parameter.
    #[error("sysctl {0} does not exist: the kernel lacks it, or the interface in its name is gone")]
    Missing(String),
    /// Not root, or `/proc/sys` is read-only as in many containers.
    #[error("sysctl {0} may not be written here: run as root, or have it set for the container from outside")]
    NotPermitted(String),
    /// The kernel does not take the value.
    #[error("sysctl {name} does not take the value {value:?}")]
    BadValue {
        /// The parameter.
        name: String,
        /// What was to be set.
        value: String,
    },
    /// Anything else.
    #[error("sysctl {name}: {}", words(source))]
    Io {
        /// The parameter.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The value, without the line end.
///
/// # Errors
/// [`SysctlFault::Missing`] when there is no such parameter.
pub fn get(name: &str) -> Result<String, SysctlFault> {
    let path = path(name)?;
    let text = read_at_once(&path).map_err(|error| fault(name, "", error))?;
    Ok(text.trim_end().to_owned())
}

/// The kernel gives a value with the first read, cut off to what that has room for, and nothing with the next one.
fn read_at_once(path: &Path) -> io::Result<String> {
    let mut room = vec![0; 4096];
    loop {
        let length = fs::File::open(path)?.read(&mut room)?;
        if length < room.len() || length >= LONGEST {
            room.truncate(length);
            return String::from_utf8(room)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
        room.resize(LONGEST, 0);
    }
}

/// Sets the value.
///
/// # Errors
/// When the parameter does not exist, does not take the value or may not be written.
pub fn set(name: &str, value: &str) -> Result<(), SysctlFault> {
    // With the line end an empty value is written as well.
    fs::write(path(name)?, format!("{value}\n")).map_err(|error| fault(name, value, error))
}

/// Two spellings of one value: the kernel answers with tabs where spaces were written.
#[must_use]
pub fn same_value(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

/// The name of a parameter below `net.ipv4.conf` or `net.ipv6.conf` for an interface: `version` is 4 or 6.
#[must_use]
pub fn of_interface(version: u8, interface: &str, parameter: &str) -> String {
    format!("net.ipv{version}.conf.{}.{parameter}", interface.replace('.', "/"))
}

/// Parameters that the kernel changes of its own accord when `name` is written: turning forwarding on or off
/// for all interfaces overwrites what was set for each, and for IPv4 also whether redirects are heeded.
///
/// # Errors
/// When the list of interfaces cannot be read.
pub fn side_effects(name: &str) -> Result<Vec<String>, SysctlFault> {
    let (version, also): (u8, &[&str]) = match name {
        "net.ipv4.ip_forward" => (4, &["net.ipv4.conf.all.forwarding", "net.ipv4.conf.all.accept_redirects"]),
        "net.ipv4.conf.all.forwarding" => (4, &["net.ipv4.ip_forward", "net.ipv4.conf.all.accept_redirects"]),
        "net.ipv6.conf.all.forwarding" => (6, &[]),
        _ => return Ok(Vec::new()),
    };
    let directory = format!("{ROOT}/net/ipv{version}/conf");
    let mut names: Vec<String> = also.iter().map(|name| (*name).to_owned()).collect();
    for entry in fs::read_dir(directory).map_err(|error| fault(name, "", error))? {
        let entry = entry.map_err(|error| fault(name, "", error))?;
        if let Some(interface) = entry.file_name().to_str().filter(|interface| *interface != "all") {
            names.push(of_interface(version, interface, "forwarding"));
        }
    }
    names.sort();
    Ok(names)
}

/// Reverse path filtering of IPv4 (RFC 3704): whether a packet's source must be reachable by where it came
/// in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RpFilter {
    /// No check.
    Off,
    /// The best route back must leave by the interface the packet came in by.
    Strict,
    /// Any route back will do.
    Loose,
}

impl RpFilter {
    /// What the mode means for a gateway, in a sentence for the operator.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::Off => "the kernel does not check where packets claim to come from",
            Self::Strict => {
                "the kernel silently drops packets whose sender it would answer by another interface: \
                 with several uplinks or marked routes set rp_filter to 2 (loose)"
            }
            Self::Loose => "the kernel drops only packets whose sender it has no route to",
        }
    }
}

impl fmt::Display for RpFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Strict => "strict",
            Self::Loose => "loose",
        })
    }
}

/// How the kernel filters on `interface`: the larger of its own value and the one for all, in the kernel's
/// order off, strict, loose.
///
/// # Errors
/// [`SysctlFault::Missing`] when there is no such interface.
pub fn rp_filter_effective(interface: &str) -> Result<RpFilter, SysctlFault> {
    let read = |interface| {
        let name = of_interface(4, interface, "rp_filter");
        Ok(match get(&name)?.as_str() {
            "0" => RpFilter::Off,
            "1" => RpFilter::Strict,
            _ => RpFilter::Loose,
        })
    };
    Ok(read("all")?.max(read(interface)?))
}

fn path(name: &str) -> Result<PathBuf, SysctlFault> {
    let mut path = Path::new(ROOT).to_path_buf();
    for part in name.split('.') {
        let part = part.replace('/', ".");
        if part.is_empty() || part == "." || part == ".." || part.contains('\0') {
            return Err(SysctlFault::BadName(name.to_owned()));
        }
        path.push(part);
    }
    Ok(path)
}

fn fault(name: &str, value: &str, error: io::Error) -> SysctlFault {
    match error.kind() {
        io::ErrorKind::NotFound => SysctlFault::Missing(name.to_owned()),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            SysctlFault::NotPermitted(name.to_owned())
        }
        io::ErrorKind::InvalidInput => {
            SysctlFault::BadValue { name: name.to_owned(), value: value.to_owned() }
        }
        _ => SysctlFault::Io { name: name.to_owned(), source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::TemporaryNetns;
    use crate::testing::sysctls;

    #[test]
    fn a_name_becomes_a_path_below_proc_sys_and_nowhere_else() {
        let found = path("net.ipv4.conf.eth0/100.rp_filter").unwrap();
        assert_eq!(found, Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
        assert_eq!(of_interface(4, "eth0.100", "rp_filter"), "net.ipv4.conf.eth0/100.rp_filter");

        for bad in ["", ".", "net..x", "net.//.//.etc", "/", "net./", "net.a\0b"] {
            assert!(matches!(path(bad), Err(SysctlFault::BadName(_))), "{bad:?}");
        }
    }

    #[test]
    fn spaces_and_tabs_are_the_same_value() {
        assert!(same_value("64512 65535", "64512\t65535\n"));
        assert!(!same_value("1", "0"));
        assert!(!same_value("1 2", "12"));
    }

    #[test]
    fn what_is_set_is_read_in_this_threads_namespace() {
        let netns = TemporaryNetns::create("adit-sysctl").unwrap();
        let outside = get("net.ipv4.ip_local_port_range").unwrap();

        netns.run_in(|| {
            set("net.ipv4.ip_local_port_range", "64512 65535").unwrap();
            assert_eq!(get("net.ipv4.ip_local_port_range").unwrap(), "64512\t65535");
        });

        assert_eq!(get("net.ipv4.ip_local_port_range").unwrap(), outside);
    }

    #[test]
    fn long_values_are_read_whole() {
        let netns = TemporaryNetns::create("adit-sysctl").unwrap();
        netns.run_in(|| {
            for last in [1100, 65_535] {
                let ports: Vec<String> = (1000..=last).step_by(2).map(|port: u32| port.to_string()).collect();
                let ports = ports.join(",");
                set("net.ipv4.ip_local_reserved_ports", &ports).unwrap();
                assert_eq!(get("net.ipv4.ip_local_reserved_ports").unwrap(), ports);
            }
        });
    }

    #[test]
    fn faults_name_the_parameter_and_what_is_wrong() {
        let netns = TemporaryNetns::create("adit-sysctl").unwrap();
        netns.run_in(|| {
            assert!(matches!(get("net.ipv4.no_such_thing"), Err(SysctlFault::Missing(_))));
            assert_eq!(
                set("net.ipv4.ip_local_port_range", "no").unwrap_err().to_string(),
                "sysctl net.ipv4.ip_local_port_range does not take the value \"no\""
            );
        });
    }

    #[test]
    fn the_stricter_looking_of_the_two_values_counts() {
        let netns = TemporaryNetns::create("adit-sysctl").unwrap();
        netns.run_in(|| {
            let effective = |all: &str, own: &str| {
                set("net.ipv4.conf.all.rp_filter", all).unwrap();
                set("net.ipv4.conf.lo.rp_filter", own).unwrap();
                rp_filter_effective("lo").unwrap()
            };
            assert_eq!(effective("0", "0"), RpFilter::Off);
            assert_eq!(effective("0", "1"), RpFilter::Strict);
            assert_eq!(effective("2", "1"), RpFilter::Loose);
            assert_eq!(effective("1", "0"), RpFilter::Strict);
            assert!(matches!(rp_filter_effective("nosuch0"), Err(SysctlFault::Missing(_))));
        });
    }

    #[test]
    fn all_that_forwarding_changes_is_listed() {
        let netns = TemporaryNetns::create("adit-sysctl").unwrap();
        netns.run_in(|| {
            for name in
                ["net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv6.conf.all.forwarding"]
            {
                set("net.ipv4.conf.all.accept_redirects", "1").unwrap();
                let before = sysctls();
                let listed = side_effects(name).unwrap();

                set(name, "1").unwrap();

                let changed: Vec<_> = std::iter::zip(before, sysctls())
                    .filter(|(old, new)| old != new)
                    .map(|(old, _)| old.0)
                    .collect();
                assert!(changed.contains(&name.to_owned()));
                for other in changed.iter().filter(|other| *other != name) {
                    assert!(listed.contains(other), "{name} changes {other}");
                }
                set(name, "0").unwrap();
            }
        });
    }
}
