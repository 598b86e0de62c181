//! What other servers must still be sent: written in the commit that made it, deleted once the other side has it. It
//! sends nothing.

use ruma::{EventId, OwnedEventId, OwnedServerName, ServerName};
use serde_json::value::RawValue;

use crate::{
    ReadTxn, StoreError, WriteTxn,
    intern::{missing, parse},
};

/// PDUs that wait for one server before the oldest make room: a server that has been away for so long learns from the
/// newer ones what it lacks, and fetches it.
const MAX_PDUS_WAITING: i64 = 5_000;
/// EDUs of no slot, which are messages between devices, that wait for one server before the oldest make room. The newest
/// stay: they hold the keys to what is said now, and those to what was said before can be asked for.
const MAX_EDUS_WAITING: i64 = 5_000;
/// Bytes of such EDUs.
const MAX_EDU_BYTES_WAITING: i64 = 32 * 1024 * 1024;
/// The bounds are looked at when a row's number is a multiple of this, so that they may be passed a little.
const LIMIT_EVERY: i64 = 64;

/// The first of what waits for one server, in the order in which it was made.
#[derive(Debug, Clone)]
pub struct OutboxBatch {
    /// Number of the first row.
    pub first: i64,
    /// Number of the last row: [`WriteTxn::outbox_sent`] deletes up to here.
    pub last: i64,
    /// Events, by their ids, as JSON.
    pub pdus: Vec<(OwnedEventId, Box<RawValue>)>,
    /// EDUs, as JSON.
    pub edus: Vec<Box<RawValue>>,
}

/// How much one batch may hold.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Events.
    pub pdus: usize,
    /// EDUs.
    pub edus: usize,
    /// Bytes of JSON, passed by at most the last entry.
    pub bytes: usize,
}

impl ReadTxn<'_> {
    /// What waits longest for a server among the rows after one; none if nothing does.
    pub fn outbox_batch(
        &self,
        server: &ServerName,
        after: i64,
        limits: BatchLimits,
    ) -> Result<Option<OutboxBatch>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT outbox.id, event_id, ifnull(edu, json) FROM outbox LEFT JOIN events USING (event)
             WHERE server = (SELECT server FROM servers WHERE name = ?) AND outbox.id > ? ORDER BY outbox.id",
        )?;
        let mut rows = statement.query((server.as_str(), after))?;
        let mut batch: Option<OutboxBatch> = None;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let (id, event, json): (i64, Option<String>, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let batch = batch.get_or_insert_with(|| OutboxBatch {
                first: id,
                last: id,
                pdus: Vec::new(),
                edus: Vec::new(),
            });
            let (held, limit) = match event {
                Some(_) => (batch.pdus.len(), limits.pdus),
                None => (batch.edus.len(), limits.edus),
            };
            // It ends before the first row that has no place: nothing may overtake.
            if held >= limit || bytes > limits.bytes {
                break;
            }
            bytes += json.len();
            let json = RawValue::from_string(json).map_err(|error| StoreError::Corrupt {
                what: "outgoing JSON",
                reason: error.to_string(),
            })?;
            match event {
                Some(event) => batch.pdus.push((parse("event id", &event)?, json)),
                None => batch.edus.push(json),
            }
            batch.last = id;
        }
        Ok(batch)
    }

    /// The servers that something waits for.
    pub fn outbox_servers(&self) -> Result<Vec<OwnedServerName>, StoreError> {
        self.names(
            "SELECT name FROM servers WHERE EXISTS (SELECT 1 FROM outbox WHERE outbox.server = servers.server)",
            "server name",
            [],
        )
    }

    /// How many entries wait, over all servers.
    pub fn outbox_len(&self) -> Result<u64, StoreError> {
        Ok(self.lookup("SELECT count(*) FROM outbox", [])?.unwrap_or(0))
    }
}

impl WriteTxn<'_> {
    /// Has an event sent to servers. This node itself must not be among them. Wake the outbox after the commit.
    pub fn enqueue_pdu(&self, servers: &[OwnedServerName], event: &EventId) -> Result<(), StoreError> {
        let event = self.event_no(event)?.ok_or_else(|| missing("event to send"))?;
        for server in servers {
            let server = self.intern_server(server)?;
            let row = self
                .conn()
                .prepare_cached("INSERT INTO outbox (server, event) VALUES (?, ?)")?
                .insert((server, event))?;
            self.limit_outbox(server, row)?;
        }
        Ok(())
    }

    /// Has an EDU (`{"edu_type": …, "content": …}`) sent to a server, not this node. Wake the outbox after the commit.
    pub fn enqueue_edu(&self, server: &ServerName, edu: &RawValue) -> Result<(), StoreError> {
        let server = self.intern_server(server)?;
        let row = self
            .conn()
            .prepare_cached("INSERT INTO outbox (server, edu) VALUES (?, ?)")?
            .insert((server, edu.get()))?;
        self.limit_outbox(server, row)
    }

    /// [`WriteTxn::enqueue_edu`] for news that the next ones under the same slot make worthless, such as a user's read
    /// receipt in a room: an older one that still waits is dropped.
    pub fn enqueue_edu_in(&self, server: &ServerName, slot: &str, edu: &RawValue) -> Result<(), StoreError> {
        let server = self.intern_server(server)?;
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO outbox (server, edu, slot) VALUES (?, ?, ?)")?
            .execute((server, edu.get(), slot))?;
        Ok(())
    }

    /// Drops the EDU that waits for a server in a slot, if one does: what it would tell is no longer so.
    pub fn drop_edu(&self, server: &ServerName, slot: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM outbox WHERE server = (SELECT server FROM servers WHERE name = ?) AND slot = ?",
            )?
            .execute((server.as_str(), slot))?;
        Ok(())
    }

    /// Forgets what a server has received: everything up to the last row of a batch.
    pub fn outbox_sent(&self, server: &ServerName, last: i64) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "DELETE FROM outbox WHERE server = (SELECT server FROM servers WHERE name = ?) AND id <= ?",
            )?
            .execute((server.as_str(), last))?;
        Ok(())
    }

    /// Keeps the rows for one server within bounds; looks only now and then, since counting costs.
    fn limit_outbox(&self, server: i64, newest: i64) -> Result<(), StoreError> {
        if newest % LIMIT_EVERY != 0 {
            return Ok(());
        }
        let sql = "DELETE FROM outbox WHERE id IN (
                       SELECT id FROM outbox WHERE server = ? AND event IS NOT NULL ORDER BY id DESC LIMIT -1 OFFSET ?)";
        self.conn().prepare_cached(sql)?.execute((server, MAX_PDUS_WAITING))?;
        let sql = "DELETE FROM outbox WHERE id IN (
                       SELECT id FROM (
                           SELECT id, row_number() OVER newer AS count, sum(length(edu)) OVER newer AS bytes FROM outbox
                           WHERE server = ? AND edu IS NOT NULL AND slot IS NULL
                           WINDOW newer AS (ORDER BY id DESC))
                       WHERE count > ? OR bytes > ?)";
        let limits = (server, MAX_EDUS_WAITING, MAX_EDU_BYTES_WAITING);
        let dropped = self.conn().prepare_cached(sql)?.execute(limits)?;
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "a server is away for so long that messages to its devices made room for newer ones"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::{Store, StoreConfig};

    const ALL: BatchLimits = BatchLimits {
        pdus: usize::MAX,
        edus: usize::MAX,
        bytes: usize::MAX,
    };

    #[tokio::test]
    async fn messages_to_a_dead_server_are_bounded_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(folder.path().join("kith.db"))).unwrap();
        let (dead, other) = (server_name!("dead"), server_name!("other"));
        let text = |number: i64, length: usize| to_raw_value(&format!("{number:0length$}")).unwrap();
        let numbers = |batch: Option<OutboxBatch>| -> Vec<i64> {
            let edus = batch.map(|batch| batch.edus).unwrap_or_default();
            edus.iter()
                .filter_map(|edu| serde_json::from_str::<String>(edu.get()).ok()?.parse().ok())
                .collect()
        };
        // Below the limit nothing is lost; above it, the newest stay, and what waits in a slot is no part of it.
        let cases = [
            (10, MAX_EDUS_WAITING, MAX_EDUS_WAITING, 0),
            (10, 2 * MAX_EDUS_WAITING, MAX_EDUS_WAITING, LIMIT_EVERY),
            (60_000, 1_000, MAX_EDU_BYTES_WAITING / 60_002, LIMIT_EVERY),
        ];
        for (length, sent, expected, slack) in cases {
            let waiting = store
                .write(move |txn| {
                    txn.enqueue_edu_in(dead, "slot", &text(-1, 3))?;
                    txn.enqueue_edu(other, &text(-2, 3))?;
                    for number in 0..sent {
                        txn.enqueue_edu(dead, &text(number, length))?;
                    }
                    let (waiting, others) = (txn.outbox_batch(dead, 0, ALL)?, txn.outbox_batch(other, 0, ALL)?);
                    for (server, batch) in [(dead, &waiting), (other, &others)] {
                        txn.outbox_sent(server, batch.as_ref().map_or(0, |batch| batch.last))?;
                    }
                    Ok::<_, StoreError>((numbers(waiting), numbers(others)))
                })
                .await
                .unwrap();
            let (mut waiting, others) = waiting;
            assert_eq!(others, [-2]);
            assert_eq!(waiting.remove(0), -1);
            let count = i64::try_from(waiting.len()).unwrap();
            assert!((expected..=expected + slack).contains(&count), "{count} of {sent}");
            assert_eq!(waiting, (sent - count..sent).collect::<Vec<_>>());
        }
    }
}
