-- Up to which event each user has read each room: see receipts.rs.
CREATE TABLE receipts (
    room     INTEGER NOT NULL REFERENCES rooms,
    user     INTEGER NOT NULL REFERENCES users,
    private  INTEGER NOT NULL, -- 1: nobody but the user may see it
    thread   TEXT NOT NULL,    -- '': of no thread; 'main'; or the thread's root
    event_id TEXT NOT NULL,    -- need not be held: a receipt may overtake its event
    ts       INTEGER NOT NULL, -- milliseconds
    seq      INTEGER NOT NULL,
    PRIMARY KEY (room, user, private, thread)
) STRICT, WITHOUT ROWID;
CREATE INDEX receipts_by_seq ON receipts (seq);
CREATE INDEX receipts_by_room ON receipts (room, seq);
