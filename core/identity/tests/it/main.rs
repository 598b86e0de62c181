//! Tests of kith-identity from outside: each wire thing, by cases and by properties.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod addresses;
mod certificates;
mod documents;
mod hellos;
mod names_and_keys;
mod phrases;
mod record_lifetimes;
mod records;
mod tickets;

use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// A moment, in milliseconds since the epoch.
fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new(millis).unwrap())
}

fn identity(seed: u8) -> IdentityKey {
    IdentityKey::from_bytes(&[seed; 32])
}

fn node(seed: u8) -> NodeKey {
    NodeKey::from_bytes(&[seed; 64])
}

const NOW: u64 = 1_700_000_000_000;
const LATER: u64 = NOW + 86_400_000;

fn document(identity_seed: u8, node_seed: u8) -> KeyDocument {
    KeyDocument::new(&identity(identity_seed), &node(node_seed).public(), at(NOW), at(LATER)).unwrap()
}
