//! A topic's secret as members tell each other: beside the heads that they compare, and by itself when it is new. Nobody
//! else is told.

use std::fmt;

use kith_engine::is_generation_believed;
use kith_store::{NewTopic, ReadTxn};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, OwnedServerName, RoomId, UInt,
    serde::{Base64, base64::UrlSafe},
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::Error;

/// The kind of EDU by which a member is told of a secret that it cannot have yet.
pub(crate) const NEW_TOPIC: &str = "org.kith.topic";

/// Servers that a secret may be said not to have been given to.
const MAX_GONE: usize = 50;

/// The content of a [`NEW_TOPIC`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TopicContent {
    /// The room.
    pub(crate) room_id: OwnedRoomId,
    /// The secret of its topic.
    #[serde(flatten)]
    pub(crate) topic: ToldTopic,
}

/// A secret, and what decides whether it is used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldTopic {
    generation: UInt,
    secret: Base64<UrlSafe>,
    /// Servers that it was not given to because they have left the room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<OwnedServerName>,
}

impl ToldTopic {
    /// What is to be told of a room: none if it has no secret, or if a server that is gone may have it.
    pub(crate) fn of(txn: &ReadTxn<'_>, room: &RoomId) -> Result<Option<Self>, Error> {
        let Some(topic) = txn.topic(room)? else {
            return Ok(None);
        };
        if txn.is_topic_stale(room)? {
            return Ok(None);
        }
        Ok(Some(Self {
            generation: UInt::new_saturating(topic.generation),
            secret: Base64::new(topic.secret.to_vec()),
            gone: txn.servers_gone(room)?,
        }))
    }

    /// The EDU that tells it.
    pub(crate) fn edu(self, room: &RoomId) -> Result<Box<RawValue>, Error> {
        #[derive(Serialize)]
        struct Edu {
            edu_type: &'static str,
            content: TopicContent,
        }
        let edu = Edu {
            edu_type: NEW_TOPIC,
            content: TopicContent {
                room_id: room.to_owned(),
                topic: self,
            },
        };
        to_raw_value(&edu).map_err(|error| Error::Internal("an EDU did not serialise", Some(Box::new(error))))
    }

    /// As the store takes it; none if it is not as members tell it, or not believed now.
    pub(super) fn parse(self, now: MilliSecondsSinceUnixEpoch) -> Option<NewTopic> {
        let sound = self.gone.len() <= MAX_GONE && is_generation_believed(self.generation.into(), now);
        sound.then_some(())?;
        Some(NewTopic {
            generation: self.generation.into(),
            secret: self.secret.as_bytes().try_into().ok()?,
            gone: Some(self.gone),
            now,
        })
    }
}

impl fmt::Debug for ToldTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToldTopic(generation {})", self.generation)
    }
}

/// Of a room's secrets only the newest is worth telling.
pub(crate) fn topic_slot(room: &RoomId) -> String {
    format!("{NEW_TOPIC} {room}")
}
