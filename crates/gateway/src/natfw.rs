//! What `vpn-generate-natfw` writes, by a configuration. No gateway has to run.

use adit_plan::eduvpn::Mapping;

use crate::config::Loaded;
use crate::init::own_address;

/// The clients' blocks of source ports.
///
/// # Errors
/// Why there are none, in words, with the file.
pub fn mapping(loaded: &Loaded) -> Result<Mapping, String> {
    let wanted = loaded.config.natfw_wanted(own_address);
    wanted
        .and_then(|wanted| Mapping::new(&wanted).map_err(|fault| fault.to_string()))
        .map_err(|why| format!("{}: {why}", loaded.path.display()))
}
