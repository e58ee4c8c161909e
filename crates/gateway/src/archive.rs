//! Old rule files of `vpn-generate-natfw`: a link `rules.v4` and files `rules.v4.<unix time>`, each of which was in
//! force until the next one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Bound, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_plan::eduvpn::{MAX_FILE, Protocol, Rules, in_force};

/// The link's name, unless another is given.
const NAME: &str = "rules.v4";

/// The dated files beside a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    files: BTreeMap<u64, PathBuf>,
    link: PathBuf,
}

/// Who had the port, by one of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveMatch {
    /// The inner address.
    pub inner: Ipv4Addr,
    /// All ports that it had.
    pub ports: RangeInclusive<u16>,
    /// The file.
    pub file: PathBuf,
    /// It was in force after this second since 1970 began.
    pub from: u64,
    /// And up to this one; `None` when no later file is there.
    pub to: Option<u64>,
}

impl Archive {
    /// Lists the files: `path` is their directory, or the link itself when it has another name than `rules.v4`.
    ///
    /// # Errors
    /// The directory cannot be read, in words.
    pub fn list(path: &Path) -> Result<Self, String> {
        let link = if path.is_dir() { path.join(NAME) } else { path.to_owned() };
        let directory = match link.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let fault = |error| format!("cannot read {}: {error}", directory.display());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(fault)? {
            let file = entry.map_err(fault)?.path();
            if let Some(time) = time_of(&link, &file) {
                files.insert(time, file);
            }
        }
        // The one in force may be elsewhere, or gone: then no older one is to answer for it.
        if let Ok(target) = fs::read_link(&link)
            && let Some(time) = time_of(&link, &target)
        {
            files.entry(time).or_insert_with(|| directory.join(target));
        }
        Ok(Self { files, link })
    }

    /// When the newest file was made, in seconds since 1970 began, and the file.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, &Path)> {
        self.files.last_key_value().map(|(time, file)| (*time, file.as_path()))
    }
}

/// The number at the end of a name that is otherwise the link's.
fn time_of(link: &Path, file: &Path) -> Option<u64> {
    let name = file.file_name()?.to_str()?;
    let number = name.strip_prefix(link.file_name()?.to_str()?)?.strip_prefix('.')?;
    // Only as it is written by the tool: no sign, no zeros before it.
    number.parse().ok().filter(|time: &u64| time.to_string() == number)
}

/// Who had this port of this address around `at`, a time since 1970 began: one of each file that was in force within the tolerance, the oldest
/// first; nobody when it was given to nobody. Without a protocol it is TCP or UDP, which have the same ports.
///
/// # Errors
/// What the files cannot tell, and which of them cannot be read or is damaged, in words.
pub fn trace(
    path: &Path,
    at: Duration,
    address: IpAddr,
    port: Option<u16>,
    protocol: Option<Protocol>,
    tolerance: Duration,
) -> Result<Vec<ArchiveMatch>, String> {
    if protocol == Some(Protocol::Icmp) {
        return Err("rule files of vpn-generate-natfw cannot tell whose ICMP it was: all clients share the \
                    address for it, without ports"
            .into());
    }
    let port =
        port.ok_or("rule files of vpn-generate-natfw tell clients apart by the source port: give it")?;
    fs::symlink_metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let archive = Archive::list(path)?;
    if archive.files.is_empty() {
        return Err(format!("there is no file {}.<unix time>", archive.link.display()));
    }
    let IpAddr::V4(address) = address.to_canonical() else { return Ok(Vec::new()) };
    let times: Vec<u64> = archive.files.keys().copied().collect();
    let mut matches = Vec::new();
    for time in in_force(&times, at.saturating_sub(tolerance), at.saturating_add(tolerance)) {
        let Some(file) = archive.files.get(&time) else { continue };
        let rules = read(file).map_err(|why| format!("cannot use {}: {why}", file.display()))?;
        let to = archive.files.range((Bound::Excluded(time), Bound::Unbounded)).next().map(|(next, _)| *next);
        matches.extend(rules.find(address, port, protocol).into_iter().map(|found| ArchiveMatch {
            inner: found.inner,
            ports: found.ports,
            file: file.clone(),
            from: time,
            to,
        }));
    }
    Ok(matches)
}

fn read(path: &Path) -> Result<Rules, String> {
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is no file".into());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Rules::parse(&bytes).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PUBLIC: [u8; 4] = [192, 0, 2, 1];

    /// Two clients, the first of them with the highest ports.
    fn rules(first: u8, second: u8) -> String {
        let line = |host, protocol, ports| {
            format!(
                "-A POSTROUTING -s 192.168.101.{host} -p {protocol} -j SNAT --to-source 192.0.2.1:{ports}\n"
            )
        };
        let all = [(first, "65280-65535"), (second, "65024-65279")]
            .map(|(host, ports)| line(host, "tcp", ports) + &line(host, "udp", ports));
        format!(
            "*nat\n-A POSTROUTING -p icmp -j SNAT --to-source 192.0.2.1\n{}COMMIT\n*filter\nCOMMIT\n",
            all.concat()
        )
    }

    /// Files of 1000 and 2000, the second with the clients changed over.
    fn archive() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rules.v4.1000"), rules(2, 3)).unwrap();
        fs::write(dir.path().join("rules.v4.2000"), rules(3, 2)).unwrap();
        symlink("rules.v4.2000", dir.path().join("rules.v4")).unwrap();
        dir
    }

    fn ask(path: &Path, at: u64, port: u16, tolerance: u64) -> Result<Vec<ArchiveMatch>, String> {
        let at = Duration::from_millis(at);
        trace(path, at, PUBLIC.into(), Some(port), Some(Protocol::Udp), Duration::from_secs(tolerance))
    }

    fn hosts(path: &Path, at: u64, port: u16, tolerance: u64) -> Vec<u8> {
        ask(path, at, port, tolerance).unwrap().iter().map(|found| found.inner.octets()[3]).collect()
    }

    #[test]
    fn the_answer_is_that_of_the_file_with_the_highest_lower_number() {
        let dir = archive();
        assert_eq!(hosts(dir.path(), 1_500_000, 65_300, 0), [2]);
        assert_eq!(hosts(dir.path(), 2_000_000, 65_300, 0), [2], "not yet that of the same second");
        assert_eq!(hosts(dir.path(), 2_000_001, 65_300, 0), [3]);
        assert_eq!(hosts(dir.path(), 2_000_000, 65_300, 2), [2, 3], "both at the boundary");
        assert_eq!(hosts(dir.path(), 9_000_000, 65_100, 2), [2]);
        let found = ask(dir.path(), 1_500_000, 65_300, 0).unwrap();
        let file = dir.path().join("rules.v4.1000");
        let ports = 65_280..=65_535;
        let inner = Ipv4Addr::new(192, 168, 101, 2);
        assert_eq!(found, [ArchiveMatch { inner, ports, file, from: 1000, to: Some(2000) }]);
        assert_eq!(ask(dir.path(), 9_000_000, 65_300, 0).unwrap()[0].to, None);
    }

    #[test]
    fn nobody_is_found_outside_of_all_blocks_addresses_and_times() {
        let dir = archive();
        assert!(hosts(dir.path(), 1_500_000, 65_023, 0).is_empty());
        assert!(hosts(dir.path(), 1_000_000, 65_300, 0).is_empty(), "there was no file yet");
        assert!(hosts(dir.path(), 0, 65_300, 2).is_empty());
        let tcp = Some(Protocol::Tcp);
        for other in ["192.0.2.2", "2001:db8::1"] {
            let at = Duration::from_millis(1_500_000);
            let found = trace(dir.path(), at, other.parse().unwrap(), Some(65_300), tcp, Duration::ZERO);
            assert_eq!(found, Ok(Vec::new()));
        }
    }

    #[test]
    fn what_the_format_does_not_hold_is_said() {
        let dir = archive();
        let ask = |port, protocol| {
            let at = Duration::from_millis(1_500_000);
            trace(dir.path(), at, PUBLIC.into(), port, protocol, Duration::ZERO)
        };
        assert!(ask(None, Some(Protocol::Icmp)).unwrap_err().contains("whose ICMP it was"));
        assert!(ask(None, Some(Protocol::Tcp)).unwrap_err().contains("give it"));
        assert_eq!(ask(Some(65_300), None).unwrap().len(), 1, "TCP and UDP agree");
    }

    #[test]
    fn a_damaged_file_is_named_when_it_would_answer_and_in_nobodys_way_else() {
        let dir = archive();
        let newer = dir.path().join("rules.v4.2000");
        let text = fs::read_to_string(&newer).unwrap();
        fs::write(&newer, &text[..text.len() / 2]).unwrap();
        let fault = ask(dir.path(), 2_500_000, 65_300, 0).unwrap_err();
        assert!(fault.contains("rules.v4.2000: line ") || fault.contains("its end is missing"), "{fault}");
        assert!(ask(dir.path(), 2_000_000, 65_300, 2).is_err(), "half an answer is none");
        assert_eq!(hosts(dir.path(), 1_500_000, 65_300, 0), [2]);
        fs::remove_file(&newer).unwrap();
        fs::create_dir(&newer).unwrap();
        assert!(ask(dir.path(), 2_500_000, 65_300, 0).unwrap_err().ends_with("rules.v4.2000: it is no file"));
    }

    #[test]
    fn the_file_that_the_link_leads_to_counts_wherever_it_is_and_even_if_it_is_gone() {
        let dir = archive();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = dir.path().join("rules.v4");
        let target = elsewhere.path().join("rules.v4.3000");
        fs::remove_file(&link).unwrap();
        symlink(&target, &link).unwrap();
        let fault = ask(dir.path(), 4_000_000, 65_300, 0).unwrap_err();
        assert!(fault.contains(&target.display().to_string()), "{fault}");
        fs::write(&target, rules(7, 8)).unwrap();
        assert_eq!(hosts(dir.path(), 4_000_000, 65_300, 0), [7]);
        assert_eq!(hosts(dir.path(), 2_500_000, 65_300, 0), [3]);
    }

    #[test]
    fn files_of_other_names_are_passed_over_and_a_link_of_another_name_is_given_itself() {
        let dir = archive();
        for other in ["rules.v4.1700.bak", "rules.v4.01600", "rules.v4.+1600", "rules.v4.", "rules.v6.1600"] {
            fs::write(dir.path().join(other), "no rules").unwrap();
        }
        assert_eq!(hosts(dir.path(), 1_900_000, 65_300, 0), [2]);
        assert_eq!(hosts(&dir.path().join("rules.v4"), 1_900_000, 65_300, 0), [2]);

        let fault = ask(&dir.path().join("absent"), 1_900_000, 65_300, 0).unwrap_err();
        assert!(fault.starts_with("cannot read "), "{fault}");
        let other = dir.path().join("nat");
        fs::write(&other, rules(2, 3)).unwrap();
        let fault = ask(&other, 1_900_000, 65_300, 0).unwrap_err();
        assert!(fault.ends_with("nat.<unix time>"), "{fault}");
        fs::write(dir.path().join("nat.1500"), rules(5, 6)).unwrap();
        assert_eq!(hosts(&other, 1_900_000, 65_300, 0), [5]);
        assert_eq!(Archive::list(&other).unwrap().newest().unwrap().0, 1500);
    }
}
