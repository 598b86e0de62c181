-- What is compared with other members, by depth: see catch_up.rs.
CREATE INDEX events_depth ON events (room, depth) WHERE outlier = 0 AND status < 2;
