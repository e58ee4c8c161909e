//! `[natfw]`: what `vpn-generate-natfw` maps to what.

use std::net::{IpAddr, Ipv4Addr};

use adit_plan::eduvpn::{PORTS, Profile, Wanted};
use adit_plan::ports::PortSet;
use ipnet::Ipv4Net;
use serde::Deserialize;

use super::model::{Config, ports};
use super::ports::own_addresses;

/// `[natfw]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatfwConfig {
    /// The public address.
    pub address: Option<Ipv4Addr>,
    /// Source ports on it: one range.
    #[serde(deserialize_with = "ports")]
    pub ports: PortSet,
    /// The clients; with none, those of `[tunnel] pool4`.
    pub profiles: Vec<NatfwProfile>,
}

/// A range of clients' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatfwProfile {
    /// All of them.
    pub range: Ipv4Net,
    /// How many server processes share it.
    #[serde(default = "one")]
    pub processes: u32,
}

fn one() -> u32 {
    1
}

impl Default for NatfwConfig {
    fn default() -> Self {
        Self { address: None, ports: [PORTS].into_iter().collect(), profiles: Vec::new() }
    }
}

impl NatfwConfig {
    pub(super) fn validate(&self) -> Result<(), String> {
        own_addresses("[natfw]", self.address.as_slice())?;
        if self.ports.ranges().len() != 1 {
            return Err(format!("[natfw] ports = \"{}\": one range, such as \"1280-65535\"", self.ports));
        }
        Ok(())
    }
}

impl Config {
    /// What `vpn-generate-natfw` maps to what; `own` finds out the address of this machine when the file names none.
    ///
    /// # Errors
    /// What the file lacks, in words.
    pub(crate) fn natfw_wanted(&self, own: impl FnOnce() -> Option<IpAddr>) -> Result<Wanted, String> {
        let natfw = self.natfw.clone().unwrap_or_default();
        let profiles: Vec<Profile> = match natfw.profiles.as_slice() {
            [] => self.tunnel.pool4.iter().map(|&range| Profile { range, processes: 1 }).collect(),
            all => {
                all.iter().map(|&NatfwProfile { range, processes }| Profile { range, processes }).collect()
            }
        };
        if profiles.is_empty() {
            return Err("there are no clients: [natfw] has no profiles, and [tunnel] no pool4".into());
        }
        let of_nat = || self.nat.as_ref()?.addresses.first().copied();
        let of_public = || self.public.iter().find_map(|address| address.parse().ok());
        let of_machine = || match own()? {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let address = natfw.address.or_else(of_nat).or_else(of_public).or_else(of_machine).ok_or(
            "the public address is not known, for there is no default route: set [natfw] address = \"192.0.2.1\"",
        )?;
        let ports = natfw.ports.ranges().first().cloned().unwrap_or(PORTS);
        Ok(Wanted { address, ports, profiles })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    fn config(text: &str) -> Result<Config, String> {
        parse(text, Path::new("adit.toml")).map_err(|fault| fault.to_string())
    }

    fn wanted(text: &str) -> Wanted {
        config(text).unwrap().natfw_wanted(|| Some([203, 0, 113, 9].into())).unwrap()
    }

    #[test]
    fn the_address_is_the_nearest_that_is_named() {
        let named = "[natfw]\naddress = \"192.0.2.1\"\n";
        let nat = "[nat]\naddresses = [\"192.0.2.2\", \"192.0.2.3\"]\n";
        let public = "public = [\"vpn.example.org\", \"2001:db8::1\", \"192.0.2.4\"]\n";
        let pool = "[tunnel]\npool4 = [\"10.88.0.0/24\"]\n";
        for (texts, last) in [
            (&[public, pool, nat, named][..], 1),
            (&[public, pool, nat, "[natfw]\n"], 2),
            (&[public, pool], 4),
        ] {
            assert_eq!(wanted(&texts.concat()).address, Ipv4Addr::new(192, 0, 2, last));
        }
        let bare = config(pool).unwrap();
        let of_machine = bare.natfw_wanted(|| Some([203, 0, 113, 9].into())).unwrap();
        assert_eq!(of_machine.address, Ipv4Addr::new(203, 0, 113, 9));
        assert!(bare.natfw_wanted(|| None).unwrap_err().contains("set [natfw] address"));
    }

    #[test]
    fn profiles_and_ports_are_those_of_the_table_or_the_published_ones() {
        let pools = wanted("[tunnel]\npool4 = [\"10.88.0.0/24\", \"10.89.0.0/24\"]\n");
        let profile = |range: &str, processes| Profile { range: range.parse().unwrap(), processes };
        assert_eq!(pools.profiles, [profile("10.88.0.0/24", 1), profile("10.89.0.0/24", 1)]);
        assert_eq!(pools.ports, 1280..=65_535);

        let alone = wanted(
            "[natfw]\nports = \"2000-9999\"\nprofiles = [{ range = \"10.0.0.0/16\", processes = 4 }, { range = \"10.1.0.0/16\" }]\n",
        );
        assert_eq!(alone.profiles, [profile("10.0.0.0/16", 4), profile("10.1.0.0/16", 1)]);
        assert_eq!(alone.ports, 2000..=9999);

        let six = config("[tunnel]\npool6 = [\"fd88::/64\"]\n").unwrap();
        assert!(six.natfw_wanted(|| None).unwrap_err().contains("there are no clients"));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_the_remedy() {
        let profiles = "profiles = [{ range = \"10.0.0.0/24\" }]\n";
        for (lines, expected) in [
            ("ports = \"1-9,20-90\"\n", "[natfw] ports = \"1-9,20-90\": one range, such as"),
            ("ports = \"\"\n", "one range"),
            ("address = \"0.0.0.0\"\n", "[natfw] addresses: 0.0.0.0 is no address"),
            ("adress = \"192.0.2.1\"\n", "did you mean `address`?"),
            ("address = \"2001:db8::1\"\n", "invalid IPv4 address"),
        ] {
            let message = config(&format!("[natfw]\n{profiles}{lines}")).unwrap_err();
            assert!(message.contains(expected), "{lines}: {message}");
        }
        let message = config("[natfw]\nprofiles = [{ range = \"10.0.0.0/24\", process = 2 }]").unwrap_err();
        assert!(message.contains("did you mean `processes`?"), "{message}");
        // Without clients for the tool either, the pools are still asked for.
        assert!(config("[natfw]\n").unwrap_err().contains("clients need addresses"));
    }
}
