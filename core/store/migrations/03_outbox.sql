-- What other servers must still be sent, and what was received of them: see outbox.rs and transactions.rs.

-- Numbers are never given out twice, so that a transaction id that names them never comes to mean something else.
CREATE TABLE outbox (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    server INTEGER NOT NULL REFERENCES servers,
    event  INTEGER REFERENCES events, -- a PDU; or:
    edu    TEXT,                      -- an EDU, as JSON
    slot   TEXT,                      -- of EDUs with the same slot, only the newest is worth sending
    CHECK ((event IS NULL) <> (edu IS NULL))
) STRICT;
CREATE INDEX outbox_server ON outbox (server, id);
CREATE UNIQUE INDEX outbox_slot ON outbox (server, slot) WHERE slot IS NOT NULL;
CREATE INDEX outbox_event ON outbox (event) WHERE event IS NOT NULL;

-- The answers to the latest transactions of each server, so that a repeated one does nothing again.
CREATE TABLE received_transactions (
    id     INTEGER PRIMARY KEY,
    server INTEGER NOT NULL REFERENCES servers,
    txn_id TEXT NOT NULL,
    answer TEXT NOT NULL, -- JSON
    UNIQUE (server, txn_id)
) STRICT;
