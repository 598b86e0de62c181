-- The one stream of positions: see txn.rs.
CREATE TABLE stream (seq INTEGER NOT NULL) STRICT;
INSERT INTO stream (seq) VALUES (0);
