//! Every limit that the engine keeps, in one place. It enforces nothing itself: the modules that name a limit do.
//!
//! The figures are those of the wire protocol's "Limits" section and of the Matrix specification.

use std::time::Duration;

/// Bytes of an event in its federation format as canonical JSON, signatures included, that ruma still accepts
/// (Client-server API, "Size limits": less than 64 KiB).
pub const MAX_EVENT_BYTES: usize = 65_535;

/// Bytes of an event's JSON before it is parsed: twice the canonical limit, since escapes and spaces shrink.
pub const MAX_RAW_EVENT_BYTES: usize = 2 * 65_536;

/// Events that one event may name in `prev_events` (Room version 1, "Event format"). ruma's format check keeps it.
pub const MAX_PREV_EVENTS: usize = 20;

/// Events that one event may name in `auth_events` (Room version 1, "Event format"). ruma's format check keeps it.
pub const MAX_AUTH_EVENTS: usize = 10;

/// Forward extremities that an event of ours names. Fewer than allowed, so that the event stays small.
pub const OWN_PREV_EVENTS: usize = 10;

const _: () = assert!(OWN_PREV_EVENTS <= MAX_PREV_EVENTS);

/// Largest `depth` that canonical JSON can hold; deeper events stay at it.
pub const MAX_DEPTH: u64 = (1 << 53) - 1;

/// Events pulled from another server in one request.
pub const MAX_EVENTS_PER_PULL: usize = 500;

/// Events that may be fetched to connect one received event with what is held, before a gap is accepted.
pub const MAX_GAP_EVENTS: usize = 2_000;

/// Rounds of `get_missing_events` for one gap.
pub const MAX_GAP_ROUNDS: usize = 10;

/// Events asked for in one `get_missing_events` or `backfill` request.
pub const MISSING_EVENTS_PER_REQUEST: usize = 100;

/// Auth and state events that may be fetched one by one before the whole state is asked for instead.
pub const MAX_SINGLE_FETCHES: usize = 50;

/// Events of an imported state and its auth chain together.
pub const MAX_IMPORT_EVENTS: usize = 200_000;

/// Users that a room-creation request may invite at once.
pub const MAX_CREATE_INVITES: usize = 100;

/// State events that a room-creation request may bring along.
pub const MAX_CREATE_STATE: usize = 100;

/// Events of stripped state that are kept with an invite or a knock.
pub const MAX_STRIPPED_STATE: usize = 100;

/// First wait before a failed request to a server is tried again.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Longest wait before a failed request to a server is tried again.
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(3_600);
