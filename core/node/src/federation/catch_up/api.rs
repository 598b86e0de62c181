//! The requests by which members catch up with each other, in ruma's manner. They are Kith's own: a server that does not
//! know them answers `M_UNRECOGNIZED`. Nothing is handled here.

/// `POST /_matrix/federation/unstable/org.kith/heads`: where rooms stand with either side.
pub mod exchange_heads {
    use std::collections::{BTreeMap, BTreeSet};

    use kith_engine::Heads;
    use ruma::{
        OwnedRoomId, OwnedServerName,
        api::{federation::authentication::ServerSignatures, request, response},
        metadata,
    };

    use crate::homeserver::topics::ToldTopic;

    metadata! {
        method: POST,
        rate_limited: false,
        authentication: ServerSignatures,
        path: "/_matrix/federation/unstable/org.kith/heads",
    }

    /// The heads of rooms in which both servers are, or were until one of them left.
    #[request]
    pub struct Request {
        /// As the asking server has them: at the most 100 rooms.
        pub rooms: BTreeMap<OwnedRoomId, Heads>,
        /// Servers in these rooms that the asking one cannot tell itself what it sends there: up to 100 a room.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub unreached: BTreeMap<OwnedRoomId, BTreeSet<OwnedServerName>>,
        /// The secrets of those rooms' topics that have one.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub topics: BTreeMap<OwnedRoomId, ToldTopic>,
    }

    /// The same rooms, without those that are not the asking server's business; a room that it was removed from as it was then.
    #[response]
    pub struct Response {
        /// As the answering server has them.
        pub rooms: BTreeMap<OwnedRoomId, Heads>,
        /// Those of which it holds all that it was told of.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub holds: BTreeSet<OwnedRoomId>,
        /// Those that it has left, and knows it.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        pub left: BTreeSet<OwnedRoomId>,
        /// The secrets of topics, as the answering server has them.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub topics: BTreeMap<OwnedRoomId, ToldTopic>,
    }

    impl Request {
        /// A request about these rooms.
        pub fn new(rooms: BTreeMap<OwnedRoomId, Heads>) -> Self {
            Self {
                rooms,
                unreached: BTreeMap::new(),
                topics: BTreeMap::new(),
            }
        }
    }

    impl Response {
        /// An answer about these rooms.
        pub fn new(rooms: BTreeMap<OwnedRoomId, Heads>) -> Self {
            Self {
                rooms,
                holds: BTreeSet::new(),
                left: BTreeSet::new(),
                topics: BTreeMap::new(),
            }
        }
    }
}

/// `POST /_matrix/federation/unstable/org.kith/reconcile/{roomId}`: one message of set reconciliation over the events of
/// a room, and the names of those that it found lacking.
pub mod reconcile {
    use ruma::{
        OwnedEventId, OwnedRoomId, UInt,
        api::{federation::authentication::ServerSignatures, request, response},
        metadata,
        serde::Base64,
    };

    metadata! {
        method: POST,
        rate_limited: false,
        authentication: ServerSignatures,
        path: "/_matrix/federation/unstable/org.kith/reconcile/{room_id}",
    }

    /// One step. Either `message` or `masks` is there.
    #[request]
    pub struct Request {
        /// The room.
        #[ruma_api(path)]
        pub room_id: OwnedRoomId,
        /// The 32 bytes under which this exchange hashes event ids.
        pub key: Base64,
        /// Events of this depth and deeper are compared.
        pub depth: UInt,
        /// A message of the negentropy protocol, version 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub message: Option<Base64>,
        /// Hashes, 32 bytes each, of which the event ids are wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub masks: Option<Base64>,
    }

    /// The answer to one step.
    #[response]
    pub struct Response {
        /// From which depth on the answering server compared. If it is more than what was asked for, the room is too large
        /// for that, and the exchange begins anew from there.
        pub depth: UInt,
        /// The answer to `message`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub message: Option<Base64>,
        /// The events behind `masks`, as far as they are there, oldest first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub event_ids: Vec<OwnedEventId>,
    }

    impl Request {
        /// A step without message or masks.
        pub fn new(room_id: OwnedRoomId, key: [u8; 32], depth: UInt) -> Self {
            Self {
                room_id,
                key: Base64::new(key.to_vec()),
                depth,
                message: None,
                masks: None,
            }
        }
    }

    impl Response {
        /// An answer without message or names.
        pub fn new(depth: UInt) -> Self {
            Self {
                depth,
                message: None,
                event_ids: Vec::new(),
            }
        }
    }
}

/// `POST /_matrix/federation/unstable/org.kith/pull/{roomId}`: events by name, with or without those before them.
pub mod pull {
    use ruma::{
        OwnedEventId, OwnedRoomId,
        api::{federation::authentication::ServerSignatures, request, response},
        metadata,
    };
    use serde_json::value::RawValue;

    metadata! {
        method: POST,
        rate_limited: false,
        authentication: ServerSignatures,
        path: "/_matrix/federation/unstable/org.kith/pull/{room_id}",
    }

    /// What is wanted: at the most 500 events.
    #[request]
    pub struct Request {
        /// The room.
        #[ruma_api(path)]
        pub room_id: OwnedRoomId,
        /// These events.
        pub event_ids: Vec<OwnedEventId>,
        /// With those before them, as many as go into the answer, the nearest first, back to `held`.
        #[serde(default, skip_serializing_if = "ruma::serde::is_default")]
        pub past: bool,
        /// Events that the asking server holds, with those before them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub held: Vec<OwnedEventId>,
    }

    /// As many of them as there are, and as fit.
    #[response]
    pub struct Response {
        /// The events, oldest first.
        pub pdus: Vec<Box<RawValue>>,
    }

    impl Request {
        /// These events alone.
        pub fn new(room_id: OwnedRoomId, event_ids: Vec<OwnedEventId>) -> Self {
            Self {
                room_id,
                event_ids,
                past: false,
                held: Vec::new(),
            }
        }
    }

    impl Response {
        /// An answer with these events.
        pub fn new(pdus: Vec<Box<RawValue>>) -> Self {
            Self { pdus }
        }
    }
}
