-- What the rooms service keeps beside the rooms themselves: see aliases.rs, outside.rs and client_txns.rs.

-- Aliases of this node; aliases of other nodes are asked for, never kept.
CREATE TABLE aliases (
    alias   TEXT PRIMARY KEY NOT NULL,
    room_id TEXT NOT NULL,
    creator TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_room ON aliases (room_id);

-- Rooms that this node's public room list shows.
CREATE TABLE published_rooms (
    room_id TEXT PRIMARY KEY NOT NULL
) STRICT, WITHOUT ROWID;

-- Memberships of local users in rooms that this node is not in: what a server in the room told.
CREATE TABLE outside_memberships (
    user_id    TEXT NOT NULL,
    room_id    TEXT NOT NULL,
    membership TEXT NOT NULL,    -- invite, knock, or leave: the invite or knock is over
    seq        INTEGER NOT NULL,
    via        TEXT NOT NULL,    -- the server that told, through which the room can be answered
    version    TEXT NOT NULL,    -- the room's version
    event_id   TEXT NOT NULL,
    event      TEXT NOT NULL,    -- the m.room.member event, in federation format
    state      TEXT NOT NULL,    -- JSON array of stripped state events
    PRIMARY KEY (user_id, room_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX outside_memberships_room ON outside_memberships (room_id);

-- Rooms that a user left and does not want to see again.
CREATE TABLE forgotten_rooms (
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id)
) STRICT, WITHOUT ROWID;

-- What a device's request with a transaction id led to, so that its repetition does nothing again.
CREATE TABLE client_txns (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    scope     TEXT NOT NULL,     -- the request's path up to the transaction id
    txn_id    TEXT NOT NULL,
    event_id  TEXT NOT NULL,
    ts        INTEGER NOT NULL,  -- milliseconds since the Unix epoch
    PRIMARY KEY (user_id, device_id, txn_id, scope)
) STRICT, WITHOUT ROWID;
CREATE INDEX client_txns_ts ON client_txns (ts);
CREATE INDEX client_txns_event ON client_txns (event_id);
