-- Servers that are in a room no more: up to where they may read it, and who must still hear that they left. See
-- departures.rs.
CREATE TABLE departures (
    room    INTEGER NOT NULL REFERENCES rooms,
    server  INTEGER NOT NULL REFERENCES servers,
    seq     INTEGER NOT NULL, -- since when the room's current state is without it
    event   INTEGER NOT NULL, -- the event by which: those that came later have greater numbers
    heads   BLOB NOT NULL,    -- the room's forward extremities then, packed
    own_act INTEGER NOT NULL, -- 1: a user of that server made that event
    known   INTEGER NOT NULL, -- 1: whoever must hear of it has
    PRIMARY KEY (room, server)
) STRICT, WITHOUT ROWID;
CREATE INDEX departures_seq ON departures (room, seq);
CREATE INDEX departures_unknown ON departures (server, room) WHERE known = 0;
