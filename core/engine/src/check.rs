//! The checks that an event must pass by itself: size, format, signatures and content hash. They read no room and no
//! clock, so they run in parallel, before the event comes near the writer.

use std::collections::BTreeSet;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedServerName, RoomId,
    RoomVersionId, ServerName,
    canonical_json::redact_in_place,
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, Verified, required_server_signatures_to_verify_event, verify_event},
    state_res::check_pdu_format,
};

use crate::{
    Pdu, PduError,
    json::parse_object,
    limits::{MAX_EVENT_BYTES, MAX_RAW_EVENT_BYTES},
    pdu::rules,
};

/// A key that a server signs events with, as its key document tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyKey {
    /// The Ed25519 public key.
    pub public_key: [u8; 32],
    /// Whether the server has revoked it since. Events under it that arrive only now are soft-failed, unless something
    /// that is accepted builds upon them: who stole the key could have made them, whatever date they bear.
    pub revoked: bool,
}

/// The keys needed to verify an event's signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredKeys {
    /// Whose keys.
    pub server: OwnedServerName,
    /// Which of them: any one that holds suffices.
    pub key_ids: Vec<String>,
    /// When they must have been valid: the event's `origin_server_ts`.
    pub at: MilliSecondsSinceUnixEpoch,
}

/// An event whose format has been checked, and nothing else: whoever sent it may have made it up.
#[derive(Debug, Clone)]
pub struct UncheckedPdu {
    pdu: Pdu,
    object: CanonicalJsonObject,
    version: RoomVersionId,
}

impl UncheckedPdu {
    /// Checks size and format of an event as another server sent it. Its `unsigned` part, which nobody vouches for, is
    /// dropped.
    pub fn parse(json: &str, version: &RoomVersionId) -> Result<Self, PduError> {
        if json.len() > MAX_RAW_EVENT_BYTES {
            return Err(PduError::TooLarge(json.len()));
        }
        Self::from_object(parse_object(json)?, version)
    }

    /// [`UncheckedPdu::parse`] for an object that has been parsed already.
    pub fn from_object(mut object: CanonicalJsonObject, version: &RoomVersionId) -> Result<Self, PduError> {
        check_pdu_format(&object, &rules(version)?.event_format).map_err(PduError::Malformed)?;
        if !object.get("content").is_some_and(CanonicalJsonValue::is_object) {
            return Err(PduError::Malformed("`content` must be an object".to_owned()));
        }
        object.remove("unsigned");
        let pdu = Pdu::from_json(&object, version)?;
        if pdu.json().len() > MAX_EVENT_BYTES {
            return Err(PduError::TooLarge(pdu.json().len()));
        }
        Ok(Self {
            pdu,
            object,
            version: version.clone(),
        })
    }

    /// The event's id, which holds whether or not the event is genuine.
    pub fn event_id(&self) -> &EventId {
        self.pdu.event_id()
    }

    /// The event; nothing in it is to be believed yet.
    pub fn pdu(&self) -> &Pdu {
        &self.pdu
    }

    /// Which keys verify it: those of its sender's server and, for some joins, of the server that authorised it.
    pub fn required_keys(&self) -> Result<Vec<RequiredKeys>, PduError> {
        let servers = self.required_servers()?;
        let at = self.pdu.origin_server_ts();
        Ok(servers
            .into_iter()
            .map(|server| RequiredKeys {
                key_ids: self.key_ids(&server).map(str::to_owned).collect(),
                server,
                at,
            })
            .collect())
    }

    /// Verifies signatures and content hash. `keys` answers with a server's key by its id, if it was valid at the
    /// time given. With a wrong hash the event is redacted, as the specification demands, and is still genuine.
    pub fn verify(
        self,
        keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
    ) -> Result<CheckedPdu, PduError> {
        let rules = rules(&self.version)?;
        let mut revoked_key = false;
        let mut map = PublicKeyMap::new();
        for server in self.required_servers()? {
            let (revoked, set) = self.known_keys(&server, &keys);
            revoked_key |= revoked;
            map.insert(server.to_string(), set);
        }
        match verify_event(&map, &self.object, &rules)? {
            Verified::All => Ok(CheckedPdu {
                pdu: self.pdu,
                version: self.version,
                revoked_key,
                made_here: false,
            }),
            Verified::Signatures => {
                let mut object = self.object;
                redact_in_place(&mut object, &rules.redaction, None)
                    .map_err(|error| PduError::Malformed(error.to_string()))?;
                let pdu = Pdu::from_json(&object, &self.version)?;
                Ok(CheckedPdu {
                    pdu,
                    version: self.version,
                    revoked_key,
                    made_here: false,
                })
            }
        }
    }

    /// The keys of a server that are known among those that signed, and whether they are revoked ones. Every one that
    /// is named must verify, so revoked keys count only where there is no good one: anybody can add a signature.
    fn known_keys(
        &self,
        server: &ServerName,
        keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
    ) -> (bool, PublicKeySet) {
        let known: Vec<(&str, VerifyKey)> = self
            .key_ids(server)
            .filter_map(|id| Some((id, keys(server, id, self.pdu.origin_server_ts())?)))
            .collect();
        let revoked = !known.is_empty() && known.iter().all(|(_, key)| key.revoked);
        let usable = known.into_iter().filter(|(_, key)| key.revoked == revoked);
        let set = usable.map(|(id, key)| (id.to_owned(), Base64::new(key.public_key.to_vec())));
        (revoked, set.collect())
    }

    fn required_servers(&self) -> Result<BTreeSet<OwnedServerName>, PduError> {
        Ok(required_server_signatures_to_verify_event(
            &self.object,
            &rules(&self.version)?.signatures,
        )?)
    }

    fn key_ids<'a>(&'a self, server: &ServerName) -> impl Iterator<Item = &'a str> {
        self.object
            .get("signatures")
            .and_then(|signatures| signatures.as_object()?.get(server.as_str())?.as_object())
            .into_iter()
            .flat_map(|keys| keys.keys().map(String::as_str))
    }
}

/// An event that its format, its signatures and its hash have been checked of: it is genuine. Whether it was allowed is
/// for [`receive`](crate::receive) to find.
#[derive(Debug, Clone)]
pub struct CheckedPdu {
    pub(crate) pdu: Pdu,
    pub(crate) version: RoomVersionId,
    pub(crate) revoked_key: bool,
    /// Whether this server has just built it. Only such an event may open a room.
    pub(crate) made_here: bool,
}

impl CheckedPdu {
    /// The event.
    pub fn pdu(&self) -> &Pdu {
        &self.pdu
    }

    /// The event's id.
    pub fn event_id(&self) -> &EventId {
        self.pdu.event_id()
    }

    /// The event's room.
    pub fn room_id(&self) -> &RoomId {
        self.pdu.room_id()
    }

    /// The version of the event's room that it was checked under.
    pub fn version(&self) -> &RoomVersionId {
        &self.version
    }

    /// Whether a key signed it that has since been revoked.
    pub fn revoked_key(&self) -> bool {
        self.revoked_key
    }

    /// Says that an event under a good key names this one, directly or through others, so that a key revoked since
    /// does not matter: the good event's author had it.
    #[must_use]
    pub fn vouched_for(mut self) -> Self {
        self.revoked_key = false;
        self
    }
}

/// Checks an event that another server sent: [`UncheckedPdu::parse`], then [`UncheckedPdu::verify`].
pub fn check_pdu(
    json: &str,
    version: &RoomVersionId,
    keys: impl Fn(&ServerName, &str, MilliSecondsSinceUnixEpoch) -> Option<VerifyKey>,
) -> Result<CheckedPdu, PduError> {
    UncheckedPdu::parse(json, version)?.verify(keys)
}

/// Which keys [`check_pdu`] will need.
pub fn required_keys(json: &str, version: &RoomVersionId) -> Result<Vec<RequiredKeys>, PduError> {
    UncheckedPdu::parse(json, version)?.required_keys()
}
