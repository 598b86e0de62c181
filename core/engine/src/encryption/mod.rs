//! What a homeserver decides about end-to-end encryption: whether a public key is well formed and signed, who may see
//! which signature, which of two backed-up room keys stays, and whether a device list has a gap. It sees no secret, and
//! never decides for a client whom to trust.

mod backup;
mod device_list;
mod published_key;

pub use backup::RoomKeyRank;
pub use device_list::{DeviceListStep, device_list_step};
pub use published_key::{KeyError, KeySignature, MAX_KEY_BYTES, PublishedKey};
