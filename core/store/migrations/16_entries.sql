-- The table of step 13, which was edited after data folders had been made with it: those lack the column `over`.
CREATE TABLE whole_entries (
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
-- Within the inner query `over` is the table's, if it has that column, and otherwise the outer one's.
INSERT INTO whole_entries (entry, user_id, room_id, knock, servers, version, event_id, over, reason)
    SELECT entry, user_id, room_id, knock, servers, version, event_id,
           (SELECT over FROM entries AS own WHERE own.entry = entries.entry), reason
    FROM entries CROSS JOIN (SELECT 0 AS over);
DROP TABLE entries;
ALTER TABLE whole_entries RENAME TO entries;
