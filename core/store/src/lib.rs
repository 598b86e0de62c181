//! The one SQLite file that holds everything but the keys. It decides nothing about rooms: what to keep is told to it.
//!
//! [`Store`] is a cheap handle. Writes are closures queued to one writer thread and committed in groups; reads run on a
//! small pool of read-only connections, each seeing one consistent snapshot. One module per table family adds its
//! methods to [`ReadTxn`] and [`WriteTxn`].

mod account_data;
mod accounts;
mod aliases;
mod backup;
mod cache;
mod catch_up;
mod check;
mod client_txns;
mod column;
mod departures;
mod devices;
mod directory;
mod e2ee;
mod entries;
mod error;
mod events;
mod execution;
mod intern;
mod invites;
mod media;
mod members;
mod migrations;
mod notifications;
mod open;
mod outbox;
mod outside;
mod packed;
mod pool;
mod profiles;
mod pushers;
mod reader;
mod receipts;
mod refuted;
mod relations;
mod reports;
mod rooms;
mod search;
mod state;
mod timeline;
mod topics;
mod transactions;
mod txn;
mod user_directory;
mod writer;

pub use account_data::AccountDataEntry;
pub use accounts::{TokenHash, User};
pub use aliases::Alias;
pub use backup::BackupError;
pub use check::{Checked, Problem, check};
pub use client_txns::ClientTxn;
pub use departures::{Departure, Moment};
pub use devices::{Device, NewToken, Token, TokenKind};
pub use directory::KnownAddresses;
pub use e2ee::{
    BackedUpKey, CrossSigningRow, DehydratedDevice, DeviceListChanges, DeviceListPosition, DeviceRow, KeyBackup,
    KeyChange, OneTimeKeyState, RemoteDeviceList, ToDeviceMessage,
};
pub use entries::Entry;
pub use error::{OpenError, StoreError};
pub use events::{Direction, TimelineEvent};
pub use execution::{Disk, DiskFuture, Execution};
pub use invites::OwedLeave;
pub use media::{Media, MediaFile, MediaHash};
pub use members::{Member, RoomMembership};
pub use notifications::{NewNotification, Notification, RoomCounts, UnreadCounts};
pub use outbox::{BatchLimits, OutboxBatch};
pub use outside::{NewOutsideMembership, OutsideMembership};
pub use pool::{Store, StoreConfig};
pub use receipts::Receipt;
pub use relations::{RECURSION_DEPTH, RelationQuery, ThreadPlace, ThreadRow};
pub use reports::Report;
pub use rooms::{CurrentStateChange, HISTORY_GAP, SavedEvent};
pub use search::{SearchField, SearchHit, SearchOrder};
pub use state::StateChange;
pub use timeline::SyncRoom;
pub use topics::{Adopted, NewTopic, Topic};
pub use txn::{ReadTxn, Seq, WriteTxn};
pub use user_directory::DirectoryUser;
