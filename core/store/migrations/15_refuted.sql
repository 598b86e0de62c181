-- Events that were believed as part of a state that another server told, until their own past refuted them: no state yields
-- them any more, whatever its row holds. See refuted.rs.
CREATE TABLE refuted (
    event   INTEGER PRIMARY KEY REFERENCES events,
    room    INTEGER NOT NULL REFERENCES rooms,
    key     INTEGER NOT NULL REFERENCES state_keys,
    instead INTEGER REFERENCES events -- what states yield in its place; null: nothing
) STRICT;
CREATE INDEX refuted_room ON refuted (room, key);

-- 1: the state before the event rests upon another server's word, which refutes nothing.
ALTER TABLE events ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
