-- What users have reported to the node's owner: see reports.rs.
CREATE TABLE reports (
    report   INTEGER PRIMARY KEY,
    ts       INTEGER NOT NULL, -- milliseconds
    reporter TEXT NOT NULL,
    room_id  TEXT, -- the room reported, or that of the event
    event_id TEXT,
    user_id  TEXT, -- the user reported
    reason   TEXT NOT NULL
) STRICT;
