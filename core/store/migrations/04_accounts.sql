-- Accounts of this node and what hangs on them. Times are milliseconds since the Unix epoch; tokens stand here only as
-- BLAKE3 hashes, so that a stolen database opens no session.

CREATE TABLE accounts (
    user_id       TEXT PRIMARY KEY NOT NULL,
    password_hash TEXT,
    created_ts    INTEGER NOT NULL,
    admin         INTEGER NOT NULL DEFAULT 0,
    deactivated   INTEGER NOT NULL DEFAULT 0,
    locked        INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    user_id      TEXT NOT NULL REFERENCES accounts (user_id),
    device_id    TEXT NOT NULL,
    display_name TEXT,
    created_ts   INTEGER NOT NULL,
    last_seen_ts INTEGER NOT NULL,
    last_seen_ip TEXT,
    -- The newest generation of tokens that the client has shown to hold; older ones are gone.
    confirmed    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    hash       BLOB PRIMARY KEY NOT NULL,
    user_id    TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    -- 0: access, 1: refresh.
    kind       INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    expires_ts INTEGER,
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_device ON tokens (user_id, device_id);

CREATE TABLE registration_tokens (
    hash       BLOB PRIMARY KEY NOT NULL,
    uses_left  INTEGER,
    expires_ts INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE profiles (
    user_id TEXT NOT NULL REFERENCES accounts (user_id),
    field   TEXT NOT NULL,
    -- JSON.
    value   TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
) STRICT, WITHOUT ROWID;

CREATE TABLE account_data (
    user_id TEXT NOT NULL REFERENCES accounts (user_id),
    -- Empty: global.
    room_id TEXT NOT NULL,
    type    TEXT NOT NULL,
    -- JSON, the event's content.
    content TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
) STRICT, WITHOUT ROWID;
CREATE INDEX account_data_by_seq ON account_data (user_id, seq);

CREATE TABLE filters (
    user_id   TEXT NOT NULL REFERENCES accounts (user_id),
    filter_id INTEGER NOT NULL,
    -- JSON.
    filter    TEXT NOT NULL,
    PRIMARY KEY (user_id, filter_id),
    UNIQUE (user_id, filter)
) STRICT, WITHOUT ROWID;

-- Events that a user of this node is to be notified of.
CREATE TABLE notifications (
    user      INTEGER NOT NULL REFERENCES users,
    room      INTEGER NOT NULL REFERENCES rooms,
    -- The event, by its place in the room's timeline.
    stream    INTEGER NOT NULL,
    -- The event id of the root of its thread; empty: it stands in none.
    thread    TEXT NOT NULL,
    highlight INTEGER NOT NULL,
    read      INTEGER NOT NULL DEFAULT 0,
    -- JSON, the actions of the rule that matched.
    actions   TEXT NOT NULL,
    PRIMARY KEY (user, room, stream)
) STRICT, WITHOUT ROWID;
CREATE INDEX notifications_unread ON notifications (user, room, thread, highlight) WHERE NOT read;
CREATE INDEX notifications_newest ON notifications (user, stream);

CREATE TABLE pushers (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    app_id    TEXT NOT NULL,
    pushkey   TEXT NOT NULL,
    -- JSON, as the client gets it back.
    pusher    TEXT NOT NULL,
    PRIMARY KEY (app_id, pushkey, user_id),
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX pushers_by_device ON pushers (user_id, device_id);

-- Media by name. The bytes are files beside the database, named by their BLAKE3 hash.
CREATE TABLE media (
    server       TEXT NOT NULL,
    media_id     TEXT NOT NULL,
    -- Null: the name was given out and nothing was uploaded yet.
    hash         BLOB,
    size         INTEGER NOT NULL DEFAULT 0,
    content_type TEXT,
    filename     TEXT,
    -- Who uploaded it, or may; null: it is another server's.
    user_id      TEXT,
    created_ts   INTEGER NOT NULL,
    -- When a name to which nothing was uploaded is void.
    expires_ts   INTEGER,
    PRIMARY KEY (server, media_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX media_by_hash ON media (hash);
CREATE INDEX media_fetched ON media (created_ts) WHERE user_id IS NULL;
CREATE INDEX media_unused ON media (user_id, expires_ts) WHERE hash IS NULL;

-- Thumbnails by what they were made of and how; their bytes are files too.
CREATE TABLE thumbnails (
    hash         BLOB NOT NULL,
    variant      TEXT NOT NULL,
    thumbnail    BLOB NOT NULL,
    size         INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    PRIMARY KEY (hash, variant)
) STRICT, WITHOUT ROWID;
CREATE INDEX thumbnails_by_file ON thumbnails (thumbnail);
