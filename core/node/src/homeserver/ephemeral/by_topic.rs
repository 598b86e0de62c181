//! EDUs that come over rooms' topics. A topic does not show who speaks: what counts is whose node signed them for this very
//! topic. They are a hint, as all that comes this way; nobody is answered. It tells nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use kith_identity::{PublicKey, TopicName, Vouched};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, RoomId, ServerName,
    api::federation::transactions::edu::Edu, serde::Raw,
};
use serde_json::value::RawValue;

use super::Ephemeral;
use crate::{
    Error,
    homeserver::{Admission, Work, topics::MAX_EDUS},
};

/// How far the clock of whoever speaks may be from ours, and for how long what was heard must be known again.
const WITHIN_MS: u64 = 60 * 60 * 1_000;

/// Messages of one node that are known again one by one; what is older than all of them was heard, or came too late.
const MAX_TIMES: usize = 128;

/// Nodes whose messages are known again.
const MAX_SPEAKERS: usize = 4_096;

/// What was heard: of each node's messages the times, which name them.
#[derive(Default)]
pub(super) struct Heard(Mutex<BTreeMap<Speaker, BTreeSet<u64>>>);

/// A node that speaks.
type Speaker = (OwnedServerName, OwnedServerSigningKeyId);

impl Heard {
    /// Takes a message in, once. Tells whether it is the node's newest; none if it was heard before, is too old to know, or is
    /// of another hour.
    fn take(
        &self,
        speaker: Speaker,
        sent_ts: MilliSecondsSinceUnixEpoch,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Option<bool> {
        let (sent_ts, now) = (u64::from(sent_ts.get()), u64::from(now.get()));
        if sent_ts.abs_diff(now) > WITHIN_MS {
            return None;
        }
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() >= MAX_SPEAKERS && !heard.contains_key(&speaker) {
            // What is older than an hour is not listened to anyway.
            heard.retain(|_, times| times.last().is_some_and(|last| last.abs_diff(now) <= WITHIN_MS));
            if heard.len() >= MAX_SPEAKERS {
                return None;
            }
        }
        let times = heard.entry(speaker).or_default();
        let newest = times.last().is_none_or(|last| *last < sent_ts);
        let too_old = times.len() >= MAX_TIMES && times.first().is_some_and(|first| sent_ts < *first);
        if too_old || !times.insert(sent_ts) {
            return None;
        }
        if times.len() > MAX_TIMES {
            times.pop_first();
        }
        Some(newest)
    }
}

impl Ephemeral {
    /// How many EDUs a member's word holds. Refuses what is no list of EDUs, or too long.
    pub(crate) fn count_vouched(vouched: &Vouched) -> Result<usize, Error> {
        let edus = list(vouched)?;
        if edus.len() > MAX_EDUS {
            return Err(Error::invalid_param(format!("a message holds at most {MAX_EDUS} EDUs")));
        }
        Ok(edus.len())
    }

    /// Takes in EDUs that came over a room's topic, if the server that they name is in the room and signed them. `hop` passed
    /// them on.
    pub(crate) async fn handle_vouched(
        &self,
        admission: &Admission,
        hop: &ServerName,
        (room, topic): (&RoomId, &TopicName),
        vouched: &Vouched,
    ) -> Result<(), Error> {
        let (of, origin) = (room.to_owned(), vouched.origin.clone());
        let joined = self.ctx.store.read(move |txn| txn.is_server_joined(&of, &origin));
        if self.ctx.is_self(&vouched.origin) || !joined.await? {
            return Ok(());
        }
        if !self.is_genuine(topic, vouched).await? {
            tracing::info!(%hop, origin = %vouched.origin, "EDUs are not whose they are said to be");
            return Ok(());
        }
        let edus = list(vouched)?;
        admission.take(
            &vouched.origin,
            Work::Edus,
            u32::try_from(edus.len()).unwrap_or(u32::MAX),
        )?;
        let speaker = (vouched.origin.clone(), vouched.key_id.clone());
        let Some(newest) = self.heard.take(speaker, vouched.sent_ts, self.ctx.world.now()) else {
            return Ok(());
        };
        for edu in edus {
            self.handle_topic_edu(&vouched.origin, room, &edu, newest).await?;
        }
        Ok(())
    }

    /// Whether a key of the server that is named signed it, one that is not revoked. No key is asked for: a member whose key is
    /// not known yet has said nothing that was kept either, and anybody could make up keys to be asked for.
    async fn is_genuine(&self, topic: &TopicName, vouched: &Vouched) -> Result<bool, Error> {
        let ring = self.server_keys.held([vouched.origin.clone()].into()).await?;
        let key = ring.get(&vouched.origin, vouched.key_id.as_str(), self.ctx.world.now());
        let key = key.filter(|key| !key.revoked);
        let key = key.and_then(|key| PublicKey::from_bytes(&key.public_key).ok());
        Ok(key.is_some_and(|key| vouched.verify(&key, topic).is_ok()))
    }

    async fn handle_topic_edu(
        &self,
        origin: &ServerName,
        room: &RoomId,
        edu: &Raw<Edu>,
        newest: bool,
    ) -> Result<(), Error> {
        match edu.deserialize() {
            // Whoever types now may have ended since.
            Ok(Edu::Typing(content)) if content.room_id == room && newest => self.handle_typing(origin, content).await,
            Ok(Edu::Receipt(mut content)) => {
                content.receipts.retain(|of, _| of == room);
                self.handle_receipts(origin, content).await
            }
            // Nothing else is said over topics.
            Ok(_) => Ok(()),
            Err(error) => Err(Error::bad_json(error.to_string())),
        }
    }
}

fn list(vouched: &Vouched) -> Result<Vec<Raw<Edu>>, Error> {
    let edus = serde_json::from_str::<Vec<Box<RawValue>>>(vouched.content.get());
    let edus = edus.map_err(|error| Error::bad_json(error.to_string()))?;
    Ok(edus.into_iter().map(Raw::from_json).collect())
}

#[cfg(test)]
mod tests {
    use ruma::{UInt, owned_server_name};

    use super::*;

    #[test]
    fn nothing_is_heard_twice() {
        let heard = Heard::default();
        let at = |millis: u64| MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis));
        let now = 10 * WITHIN_MS;
        let speaker = |name: &str| -> Speaker { (owned_server_name!("one"), name.try_into().unwrap()) };
        let take = |key: &str, millis: u64| heard.take(speaker(key), at(millis), at(now));
        assert_eq!(take("ed25519:a", now), Some(true));
        assert_eq!(take("ed25519:a", now), None, "again");
        assert_eq!(take("ed25519:a", now - 5), Some(false), "overtaken");
        assert_eq!(take("ed25519:a", now - 5), None, "overtaken, again");
        assert_eq!(take("ed25519:b", now), Some(true), "another node");
        assert_eq!(take("ed25519:a", now - WITHIN_MS - 1), None, "long ago");
        assert_eq!(take("ed25519:a", now + WITHIN_MS + 1), None, "in the far future");
        // However many there are, one that was forgotten is not heard once more.
        for number in 1..=2 * MAX_TIMES as u64 {
            assert_eq!(take("ed25519:a", now + number), Some(true));
        }
        for number in 0..=2 * MAX_TIMES as u64 {
            assert_eq!(take("ed25519:a", now + number), None, "{number}");
        }
        assert!(heard.0.lock().unwrap()[&speaker("ed25519:a")].len() <= MAX_TIMES);
    }

    #[test]
    fn speakers_are_bounded_and_those_of_the_hour_are_known_again() {
        let heard = Heard::default();
        let at = |millis: u64| MilliSecondsSinceUnixEpoch(UInt::new_saturating(millis));
        let speaker = |number: usize| -> Speaker {
            let name = format!("s{number}");
            (name.as_str().try_into().unwrap(), "ed25519:a".try_into().unwrap())
        };
        let now = 10 * WITHIN_MS;
        for number in 0..MAX_SPEAKERS {
            assert_eq!(heard.take(speaker(number), at(now), at(now)), Some(true));
        }
        assert_eq!(heard.take(speaker(MAX_SPEAKERS), at(now), at(now)), None);
        assert_eq!(heard.take(speaker(0), at(now), at(now)), None);
        // An hour later they make room, and what they said is too old to be heard once more.
        let later = now + WITHIN_MS + 1;
        assert_eq!(heard.take(speaker(MAX_SPEAKERS), at(later), at(later)), Some(true));
        assert_eq!(heard.take(speaker(0), at(now), at(later)), None);
    }
}
