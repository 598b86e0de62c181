-- Marks the file as ours: "Kith" in ASCII. A file of another program is refused.
PRAGMA application_id = 0x4B697468;

-- The one stream of positions: see txn.rs.
CREATE TABLE stream (seq INTEGER NOT NULL) STRICT;
INSERT INTO stream (seq) VALUES (0);
