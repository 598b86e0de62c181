//! Answers to transactions that other servers sent, so that a repeated one is answered alike and does nothing again.

use ruma::{ServerName, TransactionId};
use rusqlite::params;

use crate::{ReadTxn, StoreError, WriteTxn};

/// Transactions remembered for one server. It sends one at a time, so that only the latest can be repeated.
const REMEMBERED: i64 = 16;

impl ReadTxn<'_> {
    /// The answer, as JSON, that a server's transaction was given before.
    pub fn received_transaction(&self, server: &ServerName, id: &TransactionId) -> Result<Option<String>, StoreError> {
        self.lookup(
            "SELECT answer FROM received_transactions
             WHERE server = (SELECT server FROM servers WHERE name = ?) AND txn_id = ?",
            (server.as_str(), id.as_str()),
        )
    }
}

impl WriteTxn<'_> {
    /// Remembers the answer to a server's transaction.
    pub fn keep_received_transaction(
        &self,
        server: &ServerName,
        id: &TransactionId,
        answer: &str,
    ) -> Result<(), StoreError> {
        let server = self.intern_server(server)?;
        self.conn()
            .prepare_cached("INSERT OR REPLACE INTO received_transactions (server, txn_id, answer) VALUES (?, ?, ?)")?
            .execute((server, id.as_str(), answer))?;
        self.conn()
            .prepare_cached(
                "DELETE FROM received_transactions WHERE server = ?1 AND id <= (
                     SELECT id FROM received_transactions WHERE server = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?
            .execute(params![server, REMEMBERED])?;
        Ok(())
    }
}
