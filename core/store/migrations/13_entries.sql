-- Rooms that are being entered through other servers: written before the one that lets the user in is told, so that a node
-- that stops midway knows what others may believe of it. See entries.rs.
CREATE TABLE entries (
    entry    INTEGER PRIMARY KEY,
    user_id  TEXT NOT NULL,
    room_id  TEXT NOT NULL,
    knock    INTEGER NOT NULL, -- 1: by asking to be let in
    servers  TEXT NOT NULL,    -- those that were told and may believe it, the last one first: a JSON array
    version  TEXT NOT NULL,    -- the room's
    event_id TEXT NOT NULL,    -- the event that was told last
    over     INTEGER NOT NULL, -- 1: the user does not want it any more
    reason   TEXT,
    UNIQUE (user_id, room_id)
) STRICT;
