-- End-to-end encryption as a homeserver sees it: public keys, sealed backups, sealed messages between devices. Key
-- objects stand in canonical JSON as they were uploaded; what other keys signed later stands in key_signatures.

CREATE TABLE device_keys (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    keys      TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id),
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- A key that was handed out stays for a while as claimed, so that a repeated upload does not bring it back.
CREATE TABLE one_time_keys (
    position  INTEGER PRIMARY KEY NOT NULL,
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    key       TEXT NOT NULL,
    claimed   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (user_id, device_id, algorithm, key_id),
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX one_time_keys_by_state ON one_time_keys (user_id, device_id, claimed, algorithm, position);

CREATE TABLE fallback_keys (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    key       TEXT NOT NULL,
    used      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, device_id, algorithm),
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Of local users, and of remote ones whose device list is held.
CREATE TABLE cross_signing_keys (
    user_id TEXT NOT NULL,
    -- master, self_signing or user_signing.
    usage   TEXT NOT NULL,
    public  TEXT NOT NULL,
    key     TEXT NOT NULL,
    PRIMARY KEY (user_id, usage)
) STRICT, WITHOUT ROWID;

-- Signatures that local users uploaded for keys of their own or of others.
CREATE TABLE key_signatures (
    user_id   TEXT NOT NULL,
    -- The name of the signed key: a device id or, for a cross-signing key, its public key.
    key_name  TEXT NOT NULL,
    signer    TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (user_id, key_name, signer, key_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer, key_id);

-- Copies of remote users' device lists. A copy is fresh while gaps = filled.
CREATE TABLE remote_device_lists (
    user_id   TEXT PRIMARY KEY NOT NULL,
    stream_id INTEGER NOT NULL,
    gaps      INTEGER NOT NULL DEFAULT 0,
    filled    INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE remote_device_keys (
    user_id      TEXT NOT NULL REFERENCES remote_device_lists (user_id) ON DELETE CASCADE,
    device_id    TEXT NOT NULL,
    display_name TEXT,
    keys         TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) STRICT, WITHOUT ROWID;

-- The last update that was announced of each local user's device list, and the one before it.
CREATE TABLE device_list_positions (
    user_id   TEXT PRIMARY KEY NOT NULL,
    stream_id INTEGER NOT NULL,
    prev_id   INTEGER,
    device_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- For each local user (observer), whose device lists changed, and with whom they share no room any more: the last
-- change of each.
CREATE TABLE device_list_changes (
    observer TEXT NOT NULL,
    subject  TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    gone     INTEGER NOT NULL,
    PRIMARY KEY (observer, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_list_changes_by_seq ON device_list_changes (observer, seq);

-- Servers that have come to share a room with a local user and must be told of the user's device list.
CREATE TABLE due_device_lists (
    user_id TEXT NOT NULL,
    server  TEXT NOT NULL,
    PRIMARY KEY (user_id, server)
) STRICT, WITHOUT ROWID;

CREATE TABLE to_device_messages (
    seq       INTEGER PRIMARY KEY NOT NULL,
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- The sender's server, which may fill only a part of the inbox.
    origin    TEXT NOT NULL,
    message   TEXT NOT NULL,
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX to_device_messages_by_device ON to_device_messages (user_id, device_id, seq);
CREATE INDEX to_device_messages_by_origin ON to_device_messages (user_id, device_id, origin);

-- Requests of local devices that were carried out, and messages of other servers that arrived: neither is done twice.
CREATE TABLE to_device_sent (
    position  INTEGER PRIMARY KEY NOT NULL,
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    txn_id    TEXT NOT NULL,
    UNIQUE (user_id, device_id, txn_id),
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT;

CREATE TABLE to_device_received (
    position   INTEGER PRIMARY KEY NOT NULL,
    origin     TEXT NOT NULL,
    message_id TEXT NOT NULL,
    UNIQUE (origin, message_id)
) STRICT;

CREATE TABLE key_backups (
    user_id   TEXT NOT NULL,
    version   INTEGER NOT NULL,
    algorithm TEXT NOT NULL,
    auth_data TEXT NOT NULL,
    -- Counts changes of the keys.
    etag      INTEGER NOT NULL DEFAULT 0,
    count     INTEGER NOT NULL DEFAULT 0,
    -- A deleted version stays as an empty row, so that its number is never given out again.
    deleted   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE backed_up_keys (
    user_id             TEXT NOT NULL,
    version             INTEGER NOT NULL,
    room_id             TEXT NOT NULL,
    session_id          TEXT NOT NULL,
    is_verified         INTEGER NOT NULL,
    first_message_index INTEGER NOT NULL,
    forwarded_count     INTEGER NOT NULL,
    key                 TEXT NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id),
    FOREIGN KEY (user_id, version) REFERENCES key_backups (user_id, version) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- MSC3814: at most one sleeping device a user, whose secrets lie here encrypted until another device wakes it.
CREATE TABLE dehydrated_devices (
    user_id     TEXT PRIMARY KEY NOT NULL,
    device_id   TEXT NOT NULL,
    device_data TEXT NOT NULL,
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
