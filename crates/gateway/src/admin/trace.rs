//! Who had what: traces, the record behind them, and blocks of source ports as they are now.

use adit_api::{
    Block, BlockInUse, BlockList, Epoch, PortRange, Problem, Time, Trace, TraceKind, TraceMatch,
    TraceProtocol, TraceQuery, TraceRequest, Traces, TrailReport,
};
use adit_store::{Timestamp, TrailCheck};
use serde_json::json;

use super::{Admin, internal, invalid};

/// Questions in one call at most.
const MOST: usize = 1000;
/// The longest tolerance, in milliseconds: a week.
const WIDEST: u64 = 7 * 86_400_000;

impl Admin {
    /// Says who had an address and port; each question is written to the audit trail before it is answered.
    ///
    /// # Errors
    /// [`Problem`] without a reason where one is required.
    pub fn trace(&self, request: &TraceRequest) -> Result<Traces, Problem> {
        let reason = request.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        if reason.is_none() && self.loaded().config.trace.require_reason {
            return Err(invalid(
                "[trace] require_reason = true: nobody is named without a reason for the audit trail; --reason 'case …'",
            ));
        }
        if request.queries.len() > MOST {
            return Err(invalid(format!("at most {MOST} questions in one call")));
        }
        if request.queries.iter().any(|query| query.tolerance_ms > WIDEST) {
            return Err(invalid("a tolerance of more than a week names everybody"));
        }
        let entries = request.queries.iter().map(|query| {
            let detail = json!({
                "at": query.at, "port": query.port, "protocol": query.protocol,
                "tolerance_ms": query.tolerance_ms, "reason": reason,
            });
            (query.address.to_string(), detail)
        });
        self.store.record_all(&self.change(), "trace.query", entries).map_err(internal)?;
        let traces = request.queries.iter().map(|query| self.answer(query)).collect::<Result<_, _>>()?;
        Ok(Traces { traces })
    }

    /// Deletes the records that are older than they are to be kept.
    pub(crate) fn forget_old(&self) {
        let now = crate::clock::now();
        let kept = i64::try_from(self.loaded().config.retention().as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::from_millis(now.as_millis().saturating_sub(kept));
        // What lasts is written anew, so that it does not keep what was written after it.
        let done = self.store.roll(now).and_then(|_| self.store.purge(before));
        match done {
            Ok(purged) if purged.leases > 0 => tracing::info!(
                leases = purged.leases,
                sessions = purged.sessions,
                "records older than the retention time were deleted"
            ),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "old records could not be deleted"),
        }
    }

    fn answer(&self, query: &TraceQuery) -> Result<Trace, Problem> {
        let query = adit_store::TraceQuery {
            at: Timestamp::from_millis(query.at.as_millis()),
            address: query.address,
            port: query.port,
            protocol: query.protocol.map(|protocol| match protocol {
                TraceProtocol::Tcp => adit_store::TraceProtocol::Tcp,
                TraceProtocol::Udp => adit_store::TraceProtocol::Udp,
                TraceProtocol::Icmp => adit_store::TraceProtocol::Icmp,
            }),
            tolerance_ms: query.tolerance_ms,
        };
        let mut found = self.store.trace(&query).map_err(internal)?;
        // What somebody has now they need not have then; what began later than now tells of a clock that was set back.
        let reach = i64::try_from(query.tolerance_ms.saturating_add(found.clock_uncertainty_ms));
        let earliest = query.at.as_millis().saturating_sub(reach.unwrap_or(i64::MAX));
        let now = crate::clock::now();
        if earliest > now.as_millis() {
            found.matches.retain(|found| found.to.is_some() || found.from > now);
        }
        Ok(Trace {
            matches: found.matches.into_iter().map(described).collect(),
            epoch: found.epoch.filter(|epoch| epoch.layout.is_some()).map(epoch),
            clock_uncertainty_ms: found.clock_uncertainty_ms,
        })
    }

    /// Follows the record of who had what from its first entry to its last.
    ///
    /// # Errors
    /// [`Problem`] when it cannot be read at all.
    pub fn verify_trail(&self) -> Result<TrailReport, Problem> {
        Ok(match self.store.verify_trail(|_| {}).map_err(internal)? {
            TrailCheck::Intact { records, head, .. } => {
                TrailReport { ok: true, records, head: Some(head), broken_at: None, problem: None }
            }
            TrailCheck::Broken { seq, table, what } => TrailReport {
                ok: false,
                records: 0,
                head: None,
                broken_at: Some(seq),
                problem: Some(format!("{}: {what}", table.as_str())),
            },
        })
    }

    /// Blocks that somebody has now.
    ///
    /// # Errors
    /// [`Problem`] when there is no such user, or no [nat].
    pub fn blocks(&self, user: Option<&str>) -> Result<BlockList, Problem> {
        let user = user.map(|name| self.user_id(name)).transpose()?;
        let Some(layout) = self.store.nat() else {
            return Err(super::conflict(
                "there is no [nat] in force: clients leave by the gateway's own ports",
            ));
        };
        let mut rows = self.store.blocks_now(None).map_err(internal)?;
        let in_use = rows.iter().filter(|row| !row.quarantined).count();
        rows.retain(|row| user.is_none_or(|user| row.user == user));
        rows.sort_by_key(|row| (row.block.address, std::cmp::Reverse(row.block.to)));
        let current = self.store.epochs().into_iter().next();
        Ok(BlockList {
            blocks: rows.iter().map(in_use_row).collect(),
            block_size: layout.block_size(),
            capacity: layout.capacity(),
            in_use: u32::try_from(in_use).unwrap_or(u32::MAX),
            epoch: current.map(epoch),
            next: None,
        })
    }
}

fn in_use_row(row: &adit_store::BlockNow) -> BlockInUse {
    BlockInUse {
        user: row.user_name.to_string(),
        device: row.device_name.to_string(),
        inner: row.owner.inner,
        block: Block { address: row.block.address, from: row.block.from, to: row.block.to },
        session: row.owner.session.to_string(),
        since: time(row.since),
        leaving: row.quarantined,
    }
}

fn epoch(epoch: adit_store::Epoch) -> Epoch {
    Epoch { id: epoch.seq.to_string(), digest: epoch.digest, from: time(epoch.from), to: epoch.to.map(time) }
}

fn described(found: adit_store::TraceMatch) -> TraceMatch {
    use adit_store::TraceKind as Kind;
    let owner = found.owner;
    let with = |text: fn(&adit_store::TraceOwner) -> String| owner.as_ref().map(text);
    TraceMatch {
        kind: match found.kind {
            Kind::Nat => TraceKind::Nat,
            Kind::Forward => TraceKind::Forward,
            Kind::Ipv6 => TraceKind::Ipv6,
            Kind::Ipv4 => TraceKind::Ipv4,
            Kind::Host => TraceKind::Host,
        },
        gateway: Some(found.gateway.to_string()),
        user: with(|owner| owner.user_name.to_string()),
        device: with(|owner| owner.device_name.to_string()),
        certificate_serial: owner
            .as_ref()
            .and_then(|owner| owner.certificate.as_ref())
            .map(ToString::to_string),
        inner: owner.as_ref().map(|owner| owner.inner),
        block: found.block.map(|block| PortRange { from: block.from, to: block.to }),
        session: with(|owner| owner.session.to_string()),
        from: Some(time(found.from)),
        to: found.to.map(time),
    }
}

fn time(at: Timestamp) -> Time {
    Time::from_millis(at.as_millis())
}
