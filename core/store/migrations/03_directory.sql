-- What is known of servers: the key documents they published, and how their nodes are reached.

-- Older versions stay while they list a key that no newer one lists, so that history keeps verifying.
CREATE TABLE key_documents (
    server   TEXT NOT NULL,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL, -- canonical JSON, verified before it came here
    PRIMARY KEY (server, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE peer_addresses (
    server    TEXT NOT NULL,
    peer_id   TEXT NOT NULL,
    addresses TEXT NOT NULL, -- JSON array of multiaddrs, the most useful first
    kept_at   INTEGER NOT NULL, -- milliseconds since the epoch
    PRIMARY KEY (server, peer_id)
) STRICT, WITHOUT ROWID;

-- Servers that a person added, by ticket.
CREATE TABLE contacts (
    server   TEXT PRIMARY KEY,
    added_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Facts about this node itself, each under a name.
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
