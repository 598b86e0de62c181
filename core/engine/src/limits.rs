//! Every limit that the engine keeps, in one place. It enforces nothing itself: the modules that name a limit do.
//!
//! The figures are those of the wire protocol's "Limits" section and of the Matrix specification.

use std::time::Duration;

use crate::Allowance;

/// Bytes of an event in its federation format as canonical JSON, signatures included, that ruma still accepts
/// (Client-server API, "Size limits": less than 64 KiB).
pub const MAX_EVENT_BYTES: usize = 65_535;

/// Bytes of an event's JSON before it is parsed: twice the canonical limit, since escapes and spaces shrink.
pub const MAX_RAW_EVENT_BYTES: usize = 2 * 65_536;

/// Events that one event may name in `prev_events` (Room version 1, "Event format"). ruma's format check keeps it.
pub const MAX_PREV_EVENTS: usize = 20;

/// Events that one event may name in `auth_events` (Room version 1, "Event format"). ruma's format check keeps it.
pub const MAX_AUTH_EVENTS: usize = 10;

/// Forward extremities that an event of ours names. Fewer than allowed, so that the event stays small; one that does nothing
/// but join them names as many as it may.
pub const OWN_PREV_EVENTS: usize = 10;

/// Forward extremities of one server of which the current state is made, where there are more states than one event could
/// join ([`MAX_PREV_EVENTS`]). An honest server has one, which its next event builds upon; a few more for one that was
/// restored from a backup.
pub const MAX_RESOLVED_OF_ONE_SERVER: usize = 5;

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

/// Forward extremities of a room that are told, watched or named one by one.
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

/// How long a head that went over the room's topic is believed to reach everybody: then the neighbours are asked.
pub const TOPIC_CHECK_AFTER: Duration = Duration::from_secs(5);

/// Connected members that each member sees to, of what went over the room's topic: half of them on either side in the order
/// of names. So everybody is seen to by several, and nobody by all.
pub const TOPIC_NEIGHBOURS: usize = 4;

/// How far ahead the clock of whoever made a topic's secret may be of ours.
pub const TOPIC_CLOCK_TOLERANCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Members that are told of new heads at once; the others follow.
pub const TOLD_AT_ONCE: usize = 4;

/// Exchanges and pulls under way at once.
pub const MAX_CATCHING_UP: usize = 4;

/// Servers that count as in reach though they are not connected; of more, it counts as down what is let go.
pub const MAX_LET_GO: usize = 4096;

/// Events whose holders are remembered.
pub const MAX_WATCHED: usize = 4_096;

/// Members whom a server says that it cannot tell, by room.
pub const MAX_UNREACHED: usize = 100;

/// Forward extremities of a room from which on this server joins them with an event of its own, since every further event
/// costs their resolution.
pub const MAX_EXTREMITIES: usize = 10;

/// How long many forward extremities stay before they are joined: a member's next message may do that. The more there are,
/// the sooner.
pub const JOIN_HEADS_AFTER: Duration = Duration::from_secs(20);

/// How much later each connected member joins them than the one before it in the order of names. All at once, they would
/// make as many new ones; the first ones' joins reach the others meanwhile.
pub const JOIN_HEADS_TURN: Duration = Duration::from_secs(3);

/// Turns that are waited at the most: by then those before it are idle on purpose.
pub const MAX_JOIN_HEADS_TURNS: usize = 10;

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

/// What a server may send unasked in transactions, in units of an event of up to [`EVENT_UNIT_BYTES`] that builds upon one
/// other; each further one is a state more to resolve, and counts for one more. That is more than the 5,000
/// events that a peer's queue keeps for a server that was away, then 50 a second. What is above that waits in its queue, or
/// is pulled when heads are compared, at this node's own pace.
pub const ALLOWED_EVENTS: Allowance = Allowance {
    burst: 10_000,
    refill: Duration::from_millis(20),
};

/// Bytes of an event that count as one unit of [`ALLOWED_EVENTS`]. So a server that sends nothing but the largest events
/// fills 40 MB at once and 200 KB a second.
pub const EVENT_UNIT_BYTES: usize = 4_096;

/// EDUs that a server may send unasked: more than the 5,000 that a peer's queue keeps, then 20 a second. Typing and receipts
/// of a busy room are a few a second.
pub const ALLOWED_EDUS: Allowance = Allowance {
    burst: 6_000,
    refill: Duration::from_millis(50),
};

/// Requests to enter or leave rooms, and invitations, that a server may make: each may cost a signature, a commit and the
/// telling of a whole state. A person who joins a space enters a hundred rooms with two requests each.
pub const ALLOWED_HANDSHAKES: Allowance = Allowance {
    burst: 400,
    refill: Duration::from_millis(500),
};

/// Other requests of a server: events, states, keys, profiles, media, and those of catching up. 10,000 missed events cost
/// some 30.
pub const ALLOWED_QUERIES: Allowance = Allowance {
    burst: 2_000,
    refill: Duration::from_millis(50),
};

/// Names whose allowances are watched one by one. More than a node has peers.
pub const MAX_ALLOWED_NAMES: usize = 4_096;
