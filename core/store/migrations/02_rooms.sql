-- Rooms, events and states: see intern.rs, events.rs, state.rs, rooms.rs and members.rs.

-- Names that recur are kept once and referred to by number.
CREATE TABLE servers (
    server INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE users (
    user    INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE,
    server  INTEGER NOT NULL REFERENCES servers
) STRICT;

CREATE TABLE types (
    type INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE state_keys (
    key       INTEGER PRIMARY KEY,
    type      INTEGER NOT NULL REFERENCES types,
    state_key TEXT NOT NULL,
    UNIQUE (type, state_key)
) STRICT;

CREATE TABLE rooms (
    room    INTEGER PRIMARY KEY,
    room_id TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    state   INTEGER REFERENCES states -- the current resolved state; null before the first event
) STRICT;
CREATE INDEX rooms_state ON rooms (state);

-- A state is a snapshot (base null) or a delta to another one. Entries are packed: see state.rs.
CREATE TABLE states (
    state   INTEGER PRIMARY KEY,
    room    INTEGER NOT NULL REFERENCES rooms,
    base    INTEGER REFERENCES states,
    chain   INTEGER NOT NULL, -- deltas from here to the snapshot, itself included
    entries BLOB NOT NULL
) STRICT;

CREATE TABLE events (
    event        INTEGER PRIMARY KEY,
    event_id     TEXT NOT NULL UNIQUE,
    room         INTEGER NOT NULL REFERENCES rooms,
    stream       INTEGER,          -- place in the timeline; null: none (outlier, soft-failed, rejected)
    status       INTEGER NOT NULL, -- 0 accepted, 1 soft-failed, 2 rejected
    outlier      INTEGER NOT NULL, -- 1: the state before it is not known
    type         INTEGER NOT NULL REFERENCES types,
    key          INTEGER REFERENCES state_keys, -- null: not a state event
    sender       INTEGER NOT NULL REFERENCES users,
    depth        INTEGER NOT NULL,
    ts           INTEGER NOT NULL, -- origin_server_ts, milliseconds
    state_before INTEGER REFERENCES states,
    state_after  INTEGER REFERENCES states,
    redacted_by  INTEGER REFERENCES events, -- set: json is the redacted form
    auth         BLOB,             -- numbers of the auth events, packed; null: some are not held
    json         TEXT NOT NULL     -- canonical JSON, as signed
) STRICT;
CREATE UNIQUE INDEX events_timeline ON events (room, stream) WHERE stream IS NOT NULL;

-- Events that nothing held builds upon.
CREATE TABLE forward_extremities (
    room  INTEGER NOT NULL REFERENCES rooms,
    event INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (room, event)
) STRICT, WITHOUT ROWID;

-- Edges from an accepted event of the timeline to one before it that is not one (not held, an outlier, refused): where
-- history can be fetched, and what the next arrival may turn out to precede.
CREATE TABLE loose_edges (
    prev  TEXT NOT NULL,
    event INTEGER NOT NULL REFERENCES events,
    room  INTEGER NOT NULL REFERENCES rooms,
    PRIMARY KEY (prev, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX loose_edges_room ON loose_edges (room);

-- The current state of each room, spread out for queries; changed in the commit that changes rooms.state.
CREATE TABLE current_state (
    room  INTEGER NOT NULL REFERENCES rooms,
    key   INTEGER NOT NULL REFERENCES state_keys,
    event INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (room, key)
) STRICT, WITHOUT ROWID;

-- Which state was a room's current one from a stream position on, and in what it differed from the one before.
CREATE TABLE room_states (
    room  INTEGER NOT NULL REFERENCES rooms,
    seq   INTEGER NOT NULL,
    state INTEGER NOT NULL REFERENCES states,
    PRIMARY KEY (room, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE state_changes (
    room   INTEGER NOT NULL REFERENCES rooms,
    seq    INTEGER NOT NULL,
    key    INTEGER NOT NULL REFERENCES state_keys,
    before INTEGER REFERENCES events, -- null: nothing stood there
    after  INTEGER REFERENCES events, -- null: nothing stands there
    PRIMARY KEY (room, seq, key)
) STRICT, WITHOUT ROWID;

-- The m.room.member entries of the current state.
CREATE TABLE members (
    room       INTEGER NOT NULL REFERENCES rooms,
    user       INTEGER NOT NULL REFERENCES users,
    membership INTEGER NOT NULL, -- see members.rs
    event      INTEGER NOT NULL REFERENCES events,
    seq        INTEGER NOT NULL, -- when the entry became what it is
    PRIMARY KEY (room, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user, membership, room);
CREATE INDEX members_membership ON members (room, membership, user);

-- How many users of each server are joined to each room.
CREATE TABLE room_servers (
    room   INTEGER NOT NULL REFERENCES rooms,
    server INTEGER NOT NULL REFERENCES servers,
    joined INTEGER NOT NULL,
    PRIMARY KEY (room, server)
) STRICT, WITHOUT ROWID;
CREATE INDEX room_servers_server ON room_servers (server, room);

-- Accepted redactions that arrived before what they redact.
CREATE TABLE early_redactions (
    target TEXT NOT NULL,
    event  INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (target, event)
) STRICT, WITHOUT ROWID;
