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

/// Events that may be fetched by walking back from one received event, before sets are reconciled instead.
pub const MAX_GAP_EVENTS: usize = 500;

/// Rounds of `get_missing_events` for one gap.
pub const MAX_GAP_ROUNDS: usize = 10;

/// Events asked for in one `get_missing_events` or `backfill` request.
pub const MISSING_EVENTS_PER_REQUEST: usize = 100;

/// Forward extremities that are told by name. Beyond that only a digest tells them apart, until some are joined.
pub const MAX_HEADS: usize = 1_000;

/// Forward extremities of a room that are watched one by one, after each event.
pub const FEW_HEADS: usize = 50;

/// Rooms of which one message tells the heads.
pub const MAX_ROOMS_PER_EXCHANGE: usize = 100;

/// Requests that one turn of catching up with a room may make; what is left is another turn's.
pub const MAX_PULL_ROUNDS: usize = 64;

/// Events at the recent end of a room that are reconciled as sets, fewest first; wider only where that did not do.
pub const RECONCILE_WINDOWS: [usize; 3] = [1_000, 16_000, MAX_RECONCILED];

/// Events of one side that are reconciled at the most. What lies deeper is asked for by name.
pub const MAX_RECONCILED: usize = 200_000;

/// Bytes of one message of set reconciliation.
pub const MAX_RECONCILE_MESSAGE: usize = 256 * 1024;

/// Messages of one set reconciliation.
pub const MAX_RECONCILE_ROUNDS: usize = 40;

/// Lacking events that one set reconciliation finds; the deeper past comes first, the rest is found the next time.
pub const MAX_LACKING: usize = 10_000;

/// Events that were pulled and wait for those before them.
pub const MAX_UNCONNECTED: usize = 1_000;

/// Events in one turn of catching up that are placed by another server's word on the state before them.
pub const MAX_TOLD: usize = 5;

/// How long a room's new heads may stay untold before they are told.
pub const TELL_AFTER: Duration = Duration::from_secs(1);

/// How long an author's server is believed to tell all members what it told here: then one member is asked, in case it was
/// told something else.
pub const CHECK_AFTER: Duration = Duration::from_secs(10);

/// Members that are told of new heads at once; the others follow.
pub const TOLD_AT_ONCE: usize = 4;

/// Exchanges and pulls under way at once.
pub const MAX_CATCHING_UP: usize = 4;

/// Events whose holders are remembered.
pub const MAX_WATCHED: usize = 4_096;

/// Members whom a server says that it cannot tell, by room.
pub const MAX_UNREACHED: usize = 100;

/// Forward extremities of a room from which on this server joins them with an event of its own, since every further event
/// costs their resolution.
pub const MAX_EXTREMITIES: usize = 10;

/// How long many forward extremities stay before they are joined: a member's next message may do that. Up to twice as
/// long, at random.
pub const JOIN_HEADS_AFTER: Duration = Duration::from_secs(20);

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
