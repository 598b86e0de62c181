//! The public room list: which rooms this node publishes, and what it and other nodes tell of theirs.

use kith_store::ReadTxn;
use ruma::{
    RoomId, ServerName, UInt, UserId,
    api::{client::room::Visibility, federation::directory::get_public_rooms_filtered},
    directory::{Filter, PublicRoomsChunk, RoomNetwork, RoomTypeFilter},
    events::StateEventType,
};

use super::{
    Rooms,
    state::{find_room, get_room, may_send_state},
    summary::listed,
};
use crate::{Error, federation::client};

/// Rooms in one answer at the most.
const MAX_PAGE: usize = 100;

/// What to look for in a public room list.
#[derive(Debug, Clone, Default)]
pub struct PublicRoomsQuery {
    /// Rooms in the answer at the most.
    pub limit: Option<UInt>,
    /// The `next_batch` or `prev_batch` of another answer.
    pub since: Option<String>,
    /// Which rooms.
    pub filter: Filter,
    /// Of which network; there are no third-party networks here.
    pub network: RoomNetwork,
}

/// One page of a public room list, largest rooms first.
#[derive(Debug, Clone, Default)]
pub struct PublicRooms {
    /// The rooms.
    pub chunk: Vec<PublicRoomsChunk>,
    /// Where the next page starts.
    pub next_batch: Option<String>,
    /// Where the page before starts.
    pub prev_batch: Option<String>,
    /// How many rooms all pages hold.
    pub total: Option<UInt>,
}

impl Rooms {
    /// This node's public rooms.
    pub async fn public_rooms(&self, query: PublicRoomsQuery) -> Result<PublicRooms, Error> {
        if matches!(query.network, RoomNetwork::ThirdParty(_)) {
            return Ok(PublicRooms::default());
        }
        let start = match &query.since {
            None => 0,
            Some(since) => since.parse().map_err(|_| Error::invalid_param("no such page"))?,
        };
        let limit = query
            .limit
            .map_or(MAX_PAGE, |limit| u64::from(limit).try_into().unwrap_or(MAX_PAGE));
        let limit = limit.clamp(1, MAX_PAGE);
        self.ctx
            .store
            .read(move |txn| page(txn, &query.filter, start, limit))
            .await
    }

    /// The public rooms of a node, this one if none is named.
    pub async fn public_rooms_at(
        &self,
        server: Option<&ServerName>,
        query: PublicRoomsQuery,
    ) -> Result<PublicRooms, Error> {
        match server.filter(|server| !self.ctx.is_self(server)) {
            Some(server) => self.public_rooms_of(server, query).await,
            None => self.public_rooms(query).await,
        }
    }

    /// Another node's public rooms, as it tells them.
    async fn public_rooms_of(&self, server: &ServerName, query: PublicRoomsQuery) -> Result<PublicRooms, Error> {
        let mut request = get_public_rooms_filtered::v1::Request::new();
        request.limit = query.limit;
        request.since = query.since;
        request.filter = query.filter;
        request.room_network = query.network;
        let answer = client::request(&self.ctx, server, request)
            .await
            .map_err(Error::passed_on)?;
        Ok(PublicRooms {
            chunk: answer.chunk,
            next_batch: answer.next_batch,
            prev_batch: answer.prev_batch,
            total: answer.total_room_count_estimate,
        })
    }

    /// Whether the public room list shows a room.
    pub async fn visibility(&self, room: &RoomId) -> Result<Visibility, Error> {
        let room = room.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                get_room(txn, &room)?;
                let published = txn.is_published(&room)?;
                Ok(if published {
                    Visibility::Public
                } else {
                    Visibility::Private
                })
            })
            .await
    }

    /// Shows a room in the public room list, or hides it. Who may name the room officially may.
    pub async fn set_visibility(&self, user: &UserId, room: &RoomId, visibility: Visibility) -> Result<(), Error> {
        let published = match visibility {
            Visibility::Public => true,
            Visibility::Private => false,
            _ => return Err(Error::invalid_param("a room is `public` or `private`")),
        };
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                let current = get_room(txn, &room)?;
                if !may_send_state(&current, &user, StateEventType::RoomCanonicalAlias)? {
                    return Err(Error::forbidden("you may not publish this room"));
                }
                txn.set_published(&room, published)?;
                Ok(())
            })
            .await
    }
}

fn page(txn: &ReadTxn<'_>, filter: &Filter, start: usize, limit: usize) -> Result<PublicRooms, Error> {
    let mut rooms = Vec::new();
    for room in txn.published_rooms()? {
        // A room that nobody here is in any more cannot be joined through this node, and its state is out of date.
        let Some(current) = find_room(txn, &room)? else {
            continue;
        };
        let listed = listed(txn, &current)?;
        if listed.num_joined_members > UInt::MIN && matches(&listed, filter) {
            rooms.push(listed);
        }
    }
    rooms.sort_by(|a, b| (b.num_joined_members, &a.room_id).cmp(&(a.num_joined_members, &b.room_id)));
    let total = rooms.len();
    let chunk: Vec<_> = rooms.into_iter().skip(start).take(limit).collect();
    let end = start + chunk.len();
    Ok(PublicRooms {
        chunk,
        next_batch: (end < total).then(|| end.to_string()),
        prev_batch: (start > 0).then(|| start.saturating_sub(limit).to_string()),
        total: UInt::try_from(total).ok(),
    })
}

fn matches(room: &PublicRoomsChunk, filter: &Filter) -> bool {
    let type_matches = filter.room_types.is_empty()
        || filter
            .room_types
            .contains(&RoomTypeFilter::from(room.room_type.clone()));
    let Some(term) = &filter.generic_search_term else {
        return type_matches;
    };
    let term = term.to_lowercase();
    let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
    let texts = [room.name.as_deref(), room.topic.as_deref(), alias];
    let found = texts.iter().flatten().any(|text| text.to_lowercase().contains(&term));
    type_matches && found
}
