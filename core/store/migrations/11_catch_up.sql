-- What is compared with other members, by depth: see catch_up.rs.
CREATE INDEX events_depth ON events (room, depth) WHERE outlier = 0 AND status < 2;

-- Events before others that were placed by another server's word on the state there, since nobody had them then. Members
-- that come up are asked for them.
CREATE TABLE gaps (
    prev TEXT NOT NULL,
    room INTEGER NOT NULL REFERENCES rooms,
    PRIMARY KEY (prev, room)
) STRICT, WITHOUT ROWID;
CREATE INDEX gaps_room ON gaps (room);
