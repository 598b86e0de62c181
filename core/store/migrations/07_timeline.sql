-- What events of timelines say of other events, and their words: see relations.rs and search.rs.

-- Relations told by shown, unredacted events, by the room of these: relations across rooms do not count. The target
-- need not be held. Sender stands here so that threads are counted without reading their events.
CREATE TABLE relations (
    room     INTEGER NOT NULL REFERENCES rooms,
    target   TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    stream   INTEGER NOT NULL,
    event    INTEGER NOT NULL REFERENCES events,
    sender   INTEGER NOT NULL REFERENCES users,
    PRIMARY KEY (room, target, rel_type, stream)
) STRICT, WITHOUT ROWID;

-- The newest event of each thread, by the thread's root, which need not be held.
CREATE TABLE threads (
    room   INTEGER NOT NULL REFERENCES rooms,
    root   TEXT NOT NULL,
    latest INTEGER NOT NULL, -- its place in the room's timeline
    PRIMARY KEY (room, root)
) STRICT, WITHOUT ROWID;
CREATE INDEX threads_latest ON threads (room, latest);

-- The words of messages, room names and topics, by event; the text itself stands in the event alone.
CREATE VIRTUAL TABLE search USING fts5 (
    words, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);
