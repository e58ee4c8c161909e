//! Captured ports.

use adit_api::{PortReleased, Problem};

use super::{Admin, internal};
use crate::control::Message;

impl Admin {
    /// Gives a captured port back to the machine, UDP and TCP, until the gateway starts anew.
    ///
    /// # Errors
    /// [`Problem`] when it is not captured.
    pub async fn release_port(&self, port: u16) -> Result<PortReleased, Problem> {
        let Some(live) = self.live() else {
            return Err(Problem::new(409, "Conflict", "no gateway is running, so no port is captured"));
        };
        let sessions = live.control.ask(Message::List).await.map_err(internal)?;
        let loaded = self.loaded();
        if !live.machine.release(&loaded.config, &self.sites.all(), port).map_err(internal)? {
            let own =
                loaded.config.entrance.iter().any(|entrance| {
                    [&entrance.udp, &entrance.tcp].into_iter().any(|ports| ports.contains(port))
                });
            let detail = if own {
                format!(
                    "port {port} is not captured: it was given back already, is in `except`, or has a socket of its \
                     own, which goes when it is taken out of the configuration and the gateway started anew"
                )
            } else {
                format!("port {port} is in no [[entrance]]")
            };
            return Err(Problem::new(404, "Not Found", &detail));
        }
        tracing::info!(port, "released; `except` in the configuration makes it last");
        let touched = sessions.into_iter().filter(|session| session.local_port == port);
        Ok(PortReleased { port, sessions_touched: touched.map(|session| session.id).collect() })
    }
}
