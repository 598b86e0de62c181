//! The room engine: every decision about rooms, and nothing else.
//!
//! Pure: synchronous functions of their arguments. No I/O, clock, randomness or async stands here; state is read
//! through [`RoomReader`], which the store's transactions implement, and what must change comes back as values.

mod fields;
mod filter;
mod pdu;
mod reader;

pub use fields::FieldSelection;
pub use filter::{EventFilter, RoomSet, Subject, SyncFilter};
pub use pdu::{Pdu, PduError};
pub use reader::{EventStatus, NewState, RoomReader, StateId, StateKey, StateMap, StoredPdu};
