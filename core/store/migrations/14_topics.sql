-- What members of larger rooms share to seal and open what they pass on to each other: see topics.rs.
CREATE TABLE topics (
    room        INTEGER NOT NULL REFERENCES rooms,
    generation  INTEGER NOT NULL,
    secret      BLOB NOT NULL,    -- 32 bytes
    since       INTEGER NOT NULL, -- of servers that left the room at a later position, it may have been given to one
    own         INTEGER NOT NULL, -- 1: made here
    adopted_at  INTEGER NOT NULL, -- milliseconds since the epoch
    replaced_at INTEGER,          -- likewise, of those that are only read any more
    PRIMARY KEY (room, generation, secret)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX topics_current ON topics (room) WHERE replaced_at IS NULL;
