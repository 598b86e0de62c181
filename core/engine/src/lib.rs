//! The room engine: every decision about rooms, and nothing else.
//!
//! Pure: synchronous functions of their arguments. No I/O, clock, randomness or async stands here; state is read
//! through [`RoomReader`], which the store's transactions implement, and what must change comes back as values.

mod allowance;
mod auth;
mod build;
mod catch_up;
mod change;
mod check;
mod client_event;
mod create;
pub mod encryption;
mod extremities;
mod fetch;
mod fields;
mod filter;
mod generation;
mod handshake;
mod heads;
mod import;
pub mod json;
pub mod limits;
mod pdu;
mod pull;
mod reader;
mod receive;
mod reconcile;
mod refute;
mod resolve;
mod stripped;
#[cfg(feature = "testing")]
pub mod testing;
mod view;
mod visibility;

pub use allowance::{Allowance, Allowances};
pub use build::{BuildError, Draft, Signer, build_create, build_event, build_template};
pub use catch_up::{CatchUp, Compared, ExchangeFailure, Looked, Pulled, Task, neighbours, whom_to_ask};
pub use change::{Applied, CurrentState, ExtremityChange, Missing, Outcome, Redaction, RoomError};
pub use check::{CheckedPdu, RequiredKeys, UncheckedPdu, VerifyKey, check_pdu, required_keys};
pub use client_event::{Aggregations, ClientFormat, ThreadSummary, Unsigned, client_event, stripped_event};
pub use create::{CreateRoom, CreateRoomError, create_room};
pub use extremities::{Author, Extremity};
pub use fetch::{Fetch, Gap, backoff};
pub use fields::FieldSelection;
pub use filter::{EventFilter, RoomSet, Subject, SyncFilter};
pub use generation::is_generation_believed;
pub use handshake::{
    Expected, HandshakeError, JoinGrant, accept_invite, build_on_template, check_membership, join_grant,
    membership_template, take_signature,
};
pub use heads::Heads;
pub use import::{ImportError, import_room, oldest_first};
pub use pdu::{DEFAULT_VERSION, Pdu, PduError, SUPPORTED_VERSIONS, rules};
pub use pull::{Ask, Pull};
pub use reader::{EventStatus, NewState, RoomReader, StateId, StateKey, StateMap, StoredPdu};
pub use receive::{JOINS_HEADS, receive, receive_history, receive_outlier, receive_with_state};
pub use reconcile::{EventSet, ReconcileError, Reconciliation, SetKey, answer_reconciliation};
pub use refute::Refuted;
pub use resolve::resolve;
pub use stripped::{STRIPPED_TYPES, prune_stripped_state, stripped_state};
pub use view::{RoomView, membership_of};
pub use visibility::{Standing, Viewer, is_visible, visible_to};
