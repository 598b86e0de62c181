-- Invitations of other servers: what is still owed to their senders, and how many came from strangers. See invites.rs.

-- Leaves that no server of the room has heard of yet.
CREATE TABLE owed_leaves (
    owed    INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    servers TEXT NOT NULL, -- whom to tell, the likeliest first: a JSON array
    reason  TEXT,
    UNIQUE (user_id, room_id)
) STRICT;

CREATE TABLE strangers_invites (
    user_id TEXT NOT NULL, -- who was invited
    ts      INTEGER NOT NULL -- milliseconds
) STRICT;
CREATE INDEX strangers_invites_by_user ON strangers_invites (user_id, ts);
