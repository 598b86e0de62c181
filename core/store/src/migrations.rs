//! The numbered schema steps, applied in order when a file is opened. They only go forward.

use rusqlite_migration::{M, Migrations};

/// Every step, oldest first. Until the first release a step may still be edited; afterwards only appended.
const STEPS: &[M<'static>] = &[
    M::up(include_str!("../migrations/01_stream.sql")),
    M::up(include_str!("../migrations/02_rooms.sql")),
    M::up(include_str!("../migrations/03_directory.sql")),
    M::up(include_str!("../migrations/03_outbox.sql")),
    M::up(include_str!("../migrations/04_accounts.sql")),
    M::up(include_str!("../migrations/05_e2ee.sql")),
    M::up(include_str!("../migrations/06_rooms_service.sql")),
    M::up(include_str!("../migrations/07_timeline.sql")),
    M::up(include_str!("../migrations/08_receipts.sql")),
    M::up(include_str!("../migrations/09_reports.sql")),
    M::up(include_str!("../migrations/10_invites.sql")),
    M::up(include_str!("../migrations/11_catch_up.sql")),
    M::up(include_str!("../migrations/12_departures.sql")),
    M::up(include_str!("../migrations/13_entries.sql")),
    M::up(include_str!("../migrations/14_topics.sql")),
    M::up(include_str!("../migrations/15_refuted.sql")),
    M::up(include_str!("../migrations/16_entries.sql")),
];

/// All schema steps.
pub(crate) const MIGRATIONS: Migrations<'static> = Migrations::from_slice(STEPS);

/// The schema version that this build writes.
pub(crate) const fn known_version() -> usize {
    STEPS.len()
}
