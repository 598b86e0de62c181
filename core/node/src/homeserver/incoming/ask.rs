//! Asks the servers in a room for events, one after another until one answers. It believes nothing that it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures::{StreamExt, stream};
use kith_engine::CheckedPdu;
use ruma::{
    EventId, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName,
    api::{
        OutgoingRequest,
        federation::{authorization::get_event_authorization, event::get_event},
        path_builder::PathBuilder,
    },
};
use serde_json::value::RawValue;

use super::Incoming;
use crate::{Error, federation::client, network::Limits};

/// Servers asked for one thing at the most.
const MAX_ASKED: usize = 5;
/// Events asked for one by one at the most, to complete what one event rests upon.
const MAX_SINGLE_EVENTS: usize = 200;
/// Single events asked for at once.
const AT_ONCE: usize = 8;
/// What an answer with many events may cost.
pub(super) const MANY_EVENTS: Limits = Limits {
    deadline: std::time::Duration::from_secs(60),
    max_answer: 64 * 1024 * 1024,
    bulk: true,
};

/// A room, and whom to ask about it, the likeliest first.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) room: ruma::OwnedRoomId,
    pub(super) version: RoomVersionId,
    servers: Vec<OwnedServerName>,
}

impl Asked {
    /// The same, a certain server first.
    pub(super) fn starting_with(&self, server: &ServerName) -> Self {
        let mut asked = self.clone();
        asked.servers.sort_by_key(|other| other != server);
        asked
    }

    /// The same, of one server only.
    pub(super) fn only(&self, server: &ServerName) -> Self {
        Self {
            servers: vec![server.to_owned()],
            ..self.clone()
        }
    }

    /// The server that is asked first.
    pub(super) fn first(&self) -> Option<&ServerName> {
        self.servers.first().map(|server| &**server)
    }

    /// Each of them alone, in the same order.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.servers.iter().map(|server| Self {
            servers: vec![server.clone()],
            ..self.clone()
        })
    }
}

impl Incoming {
    /// Whom to ask about a room: the server that told of it, then members that are connected, then others.
    pub(super) async fn whom_to_ask(
        &self,
        room: &RoomId,
        version: &RoomVersionId,
        first: Option<&ServerName>,
    ) -> Result<Asked, Error> {
        let wanted = room.to_owned();
        let joined = self.ctx.store.read(move |txn| txn.joined_servers(&wanted)).await?;
        let connected: BTreeSet<OwnedServerName> = self
            .ctx
            .network
            .peers()
            .into_iter()
            .map(|peer| peer.server_name)
            .collect();
        let mut others: Vec<OwnedServerName> = joined
            .into_iter()
            .filter(|server| !self.ctx.is_self(server) && Some(&**server) != first)
            .collect();
        others.sort_by_key(|server| !connected.contains(server));
        let mut servers: Vec<OwnedServerName> = first.map(ToOwned::to_owned).into_iter().collect();
        servers.extend(others);
        servers.truncate(MAX_ASKED);
        Ok(Asked {
            room: room.to_owned(),
            version: version.clone(),
            servers,
        })
    }

    /// The first answer. An error if nobody gives one: the first server's, which likeliest has what is asked for.
    pub(super) async fn ask<R>(
        &self,
        asked: &Asked,
        limits: Limits,
        request: impl Fn() -> R,
    ) -> Result<(OwnedServerName, R::IncomingResponse), Error>
    where
        R: OutgoingRequest,
        R::PathBuilder: for<'a> PathBuilder<Input<'a> = ()>,
    {
        let mut first_error = None;
        for server in &asked.servers {
            match client::request_within(&self.ctx, server, request(), limits).await {
                Ok(answer) => return Ok((server.clone(), answer)),
                Err(error) => {
                    tracing::debug!(%server, room = %asked.room, %error, "a server did not help");
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::not_found("nobody else is in this room")))
    }

    /// Events by id, and those they rest upon, as far as they are not held. Whatever nobody has is left out.
    pub(super) async fn fetch_events(
        &self,
        asked: &Asked,
        ids: impl IntoIterator<Item = OwnedEventId>,
    ) -> Result<Vec<CheckedPdu>, Error> {
        let mut known = BTreeSet::new();
        let mut queue: VecDeque<OwnedEventId> = ids.into_iter().filter(|id| known.insert(id.clone())).collect();
        let mut fetched = BTreeMap::new();
        while !queue.is_empty() && known.len() <= MAX_SINGLE_EVENTS {
            let batch: Vec<OwnedEventId> = queue.drain(..).collect();
            let told: Vec<_> = stream::iter(self.not_held(batch).await?)
                .map(|id| async move { self.fetch_event(asked, &id).await })
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            for event in told {
                let Some(event) = event? else { continue };
                for auth in event.pdu().auth_events() {
                    if known.insert(auth.clone()) {
                        queue.push_back(auth.clone());
                    }
                }
                fetched.insert(event.event_id().to_owned(), event);
            }
        }
        Ok(fetched.into_values().collect())
    }

    /// All that an event rests upon, as another server tells it.
    pub(super) async fn fetch_auth_chain(&self, asked: &Asked, event: &EventId) -> Result<Vec<CheckedPdu>, Error> {
        let request = || get_event_authorization::v1::Request::new(asked.room.clone(), event.to_owned());
        let (server, answer) = self.ask(asked, MANY_EVENTS, request).await?;
        self.server_keys
            .check(answer.auth_chain, &asked.room, &asked.version, &server)
            .await
    }

    /// Those of some events that are not held.
    pub(super) async fn not_held(&self, ids: Vec<OwnedEventId>) -> Result<Vec<OwnedEventId>, Error> {
        use kith_engine::RoomReader;
        let read = self.ctx.store.read(move |txn| {
            let mut lacking = Vec::new();
            for id in ids {
                if !txn.has_event(&id)? {
                    lacking.push(id);
                }
            }
            Ok::<_, Error>(lacking)
        });
        read.await
    }

    async fn fetch_event(&self, asked: &Asked, id: &EventId) -> Result<Option<CheckedPdu>, Error> {
        for server in &asked.servers {
            let request = get_event::v1::Request::new(id.to_owned());
            let pdu: Box<RawValue> = match client::request(&self.ctx, server, request).await {
                Ok(answer) => answer.pdu,
                Err(error) => {
                    tracing::debug!(%server, event = %id, %error, "a server does not have an event");
                    continue;
                }
            };
            let checked = self
                .server_keys
                .check(vec![pdu], &asked.room, &asked.version, server)
                .await?;
            if let Some(event) = checked.into_iter().find(|event| event.event_id() == id) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}
