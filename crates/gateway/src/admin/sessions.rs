//! Live sessions and totals.

use std::collections::BTreeMap;
use std::time::Instant;

use adit_api::{NatStatus, Problem, SessionClosed, SessionList, Status, Time, TrackedStatus};
use adit_openvpn::machine::Farewell;

use super::{Admin, Live, millis, not_found, unavailable};
use crate::control::{Message, Which};

impl Admin {
    /// The live sessions.
    ///
    /// # Errors
    /// [`Problem`] when the gateway is not running.
    pub async fn sessions(&self) -> Result<SessionList, Problem> {
        let sessions = self.running()?.control.ask(Message::List).await.map_err(unavailable)?;
        Ok(SessionList { sessions, next: None })
    }

    /// Closes a session; its client may come back.
    ///
    /// # Errors
    /// [`Problem`] when there is no such session.
    pub async fn close_session(&self, id: &str) -> Result<SessionClosed, Problem> {
        self.running()?;
        let started = Instant::now();
        let farewell = Farewell::Restart("closed by the administrator".into());
        match self.cut(Which::Session(id.to_owned()), farewell).await? {
            0 => Err(not_found("session", id)),
            _ => Ok(SessionClosed { id: id.to_owned(), millis: millis(started) }),
        }
    }

    /// How the gateway is.
    ///
    /// # Errors
    /// [`Problem`] when the gateway is not running.
    pub async fn status(&self) -> Result<Status, Problem> {
        let live = self.running()?;
        let totals = live.control.ask(Message::Totals).await.map_err(unavailable)?;
        Ok(Status {
            gateway: self.store.gateway().to_string(),
            name: self.loaded().config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: Time::from_millis(live.since.as_millis()),
            sessions: BTreeMap::from([("openvpn".to_owned(), totals.sessions)]),
            handshakes: totals.handshakes,
            rx_bytes: totals.rx_bytes,
            tx_bytes: totals.tx_bytes,
            rx_rate: totals.rx_rate,
            tx_rate: totals.tx_rate,
            drops: live.engine.drops().iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            sessions_started: totals.started,
            connections: (live.reception.counts().named())
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            flows: live.switch.flows(),
            classified: live.switch.rules().classified(),
            services: live.switch.rules().status(),
            nat: self.store.nat_usage().map(|usage| NatStatus {
                capacity: usage.capacity,
                in_use: usage.in_use,
                block_size: usage.block_size,
                leaving: usage.quarantined as u64,
                refused: refused(live),
            }),
            tracked: live
                .machine
                .connection_usage()
                .ok()
                .map(|usage| TrackedStatus { count: usage.count.into(), max: usage.max.into() }),
            logins_refused: totals.refused,
        })
    }

    /// The figures in Prometheus' text format.
    ///
    /// # Errors
    /// [`Problem`] when the gateway is not running.
    pub async fn metrics(&self) -> Result<String, Problem> {
        use std::fmt::Write;
        let status = self.status().await?;
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, rows: &[(String, u64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "# HELP adit_{name} {help}\n# TYPE adit_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "adit_{name}{labels} {value}");
            }
        };
        let one = |value: u64| vec![(String::new(), value)];
        let by = |label: &str, rows: &BTreeMap<String, u64>| -> Vec<_> {
            rows.iter().map(|(name, n)| (format!("{{{label}=\"{name}\"}}"), *n)).collect()
        };
        metric("sessions", "gauge", "Live sessions.", &by("protocol", &status.sessions));
        metric("handshakes", "gauge", "Handshakes under way.", &one(status.handshakes));
        metric("sessions_started_total", "counter", "Sessions begun.", &one(status.sessions_started));
        metric("logins_refused_total", "counter", "Logins refused.", &one(status.logins_refused));
        metric(
            "received_bytes_total",
            "counter",
            "Bytes of inner packets from clients.",
            &one(status.rx_bytes),
        );
        metric("sent_bytes_total", "counter", "Bytes of inner packets to clients.", &one(status.tx_bytes));
        metric(
            "connections",
            "gauge",
            "TCP connections by what became of them; `undecided` now.",
            &by("outcome", &status.connections),
        );
        metric(
            "flows",
            "gauge",
            "UDP flows of back ends by what became of them; `open` now.",
            &by("outcome", &status.flows),
        );
        metric(
            "classified",
            "gauge",
            "First packets by rule, since the rules are in force.",
            &by("rule", &status.classified),
        );
        let services: Vec<_> = (status.services.iter())
            .map(|service| (format!("{{service=\"{}\"}}", service.name), u64::from(service.up)))
            .collect();
        metric("service_up", "gauge", "1 where a back end answers.", &services);
        if let Some(nat) = &status.nat {
            metric("nat_blocks", "gauge", "Blocks of source ports.", &one(nat.capacity.into()));
            metric("nat_blocks_in_use", "gauge", "Blocks that somebody has.", &one(nat.in_use.into()));
            metric(
                "nat_blocks_leaving",
                "gauge",
                "Ranges that were left and have connections.",
                &one(nat.leaving),
            );
            metric("nat_refused_total", "counter", "Refused at the exit.", &by("reason", &nat.refused));
        }
        if let Some(tracked) = &status.tracked {
            metric(
                "tracked_connections",
                "gauge",
                "Connections that the kernel tracks.",
                &one(tracked.count),
            );
            metric("tracked_connections_max", "gauge", "As many as there may be.", &one(tracked.max));
        }
        metric("dropped_packets_total", "counter", "Packets dropped.", &by("reason", &status.drops));
        Ok(out)
    }

    fn running(&self) -> Result<&Live, Problem> {
        self.live().ok_or_else(|| unavailable("the gateway is not running; `adit up` starts it"))
    }
}

/// What the tables of source ports have counted, by name.
fn refused(live: &Live) -> BTreeMap<String, u64> {
    let counters = live.machine.counters().unwrap_or_else(|fault| {
        tracing::warn!(%fault, "cannot read counters");
        Vec::new()
    });
    let mut refused = BTreeMap::new();
    for counter in counters {
        *refused.entry(counter.name).or_default() += counter.packets;
    }
    refused
}
