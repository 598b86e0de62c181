//! Keys, names and the small signed or encoded things that carry them. Pure: no file, clock, socket or global
//! randomness; secrets are wiped from memory when dropped.
//!
//! A server name *is* an Ed25519 public key ([`IdentityPublicKey`]). The matching [`IdentityKey`] signs only
//! [`KeyDocument`]s, which name the [`NodeKey`]s that may sign events. A [`Hello`] proves who stands behind a libp2p
//! connection; a [`Ticket`] tells another person where to find a node, and a [`SealedRecord`] whoever knows its name. A
//! [`TopicSecret`] is what members of a room share to pass messages on among themselves; what one of them says there in its own
//! name is [`Vouched`] for.

mod blinding;
pub mod cbor;
pub mod compact;
mod document;
mod hello;
mod keys;
mod name;
mod phrase;
mod qr;
mod record;
mod ticket;
mod topic;
mod vouched;

pub use document::{DocumentError, KeyDocument, KeyStatus, NodeEntry, OldKey, ROOT_KEY_ID};
pub use hello::{Hello, HelloError};
pub use keys::{IdentityKey, KeyError, NodeKey, NodePublicKey, PublicKey, TransportKey, key_id};
pub use name::{IdentityPublicKey, NameError};
pub use phrase::{PhraseError, RecoveryPhrase};
pub use qr::{QrError, qr_png, qr_svg, qr_text};
pub use record::{
    AddressRecord, Certificate, Day, DhtKey, Mailbox, Record, RecordError, RecordKey, RecordKind, RecordLifetime,
    RecordRank, RecordSigner, RecordSlot, SealedRecord, Whereabouts,
};
pub use ticket::{Ticket, TicketError};
pub use topic::{TopicError, TopicKey, TopicName, TopicSecret};
pub use vouched::{Vouched, VouchedError};
